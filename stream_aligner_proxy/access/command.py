"""`stream-aligner key`: making keys, and hashing those that were made elsewhere."""

import argparse
import sys
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError

_HELP = """\
The proxy keeps no keys, only their hashes: a key is shown once, when it is made.

  stream-aligner key new --name team-a
      A new key for team-a, and the entry for the file of keys. Put the entry into that file
      (access.keys_file in the configuration); a running proxy reads it within seconds.

  printf %s "$KEY" | stream-aligner key hash
      The hash of a key that you have already. It must be random: 32 characters at least.

To exchange a key without a gap, add the new hash to the entry's list, give the new key to the
client, and take the old hash out:

  - name: team-a
    hash: ["sha256:OLD", "sha256:NEW"]
"""


def add_parser(commands: Any) -> None:
    """To the subcommands of argparse."""
    key = commands.add_parser(
        "key",
        help="make a key for a client, or hash one",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = key.add_subparsers(dest="action", required=True, metavar="{new,hash}")
    new = actions.add_parser("new", help="a new key, and its entry for the file of keys")
    new.add_argument("--name", required=True, help="whose it is: in logs and metrics")
    actions.add_parser("hash", help="the hash of the key on standard input")


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `ConfigError`."""
    # Imported late: `--help` must not wait for the settings' libraries.
    from stream_aligner_proxy.access.keys import hash_of, new_key  # noqa: PLC0415

    if options.action == "hash":
        try:
            print(hash_of(sys.stdin.readline().rstrip("\r\n")))
        except ValueError as error:
            raise ConfigError(f"key hash: {error}") from None
        return 0
    name: str = options.name
    if not name or not all(one.isascii() and (one.isalnum() or one in "._-") for one in name):
        raise ConfigError("--name: letters, digits and . _ - only")
    key = new_key()
    print(f"{key}\n\nThis is the key; it is not shown again. Its entry for the file of keys:\n")
    print(f"- name: {name}\n  hash: {hash_of(key)}")
    return 0
