"""`stream-aligner key`: making keys, and hashing those that were made elsewhere."""

import argparse
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError

_HELP = """\
The proxy keeps no keys, only their hashes: a key is shown once, when it is made.

  stream-aligner key new --name team-a
      A new key for team-a, and the entry for the file of keys. Put the entry into that file
      (access.keys_file in the configuration); a running proxy reads it within seconds.

  KEY=$(stream-aligner key new --name team-a --expires 2027-03-01 --file keys.yaml)
      The same, with the entry added to the file; only the key is on standard output.

  printf %s "$KEY" | stream-aligner key hash
      The hash of a key that you have already. It must be random: 32 characters at least.

An entry can also limit what its key may have: models, modes, requests_per_minute,
tokens_per_minute, max_open (docs/access.md).

Several entries may have one name, and are counted together. To exchange a key without a gap make
a second one of the same name, give it to the client, and take the first entry out. Or keep one
entry with both hashes for a while:

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
    new.add_argument(
        "--expires", metavar="DATE", help="until when it is good: 2027-03-01, or with a time; UTC"
    )
    new.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="add the entry to this file, made where there is none, and print only the key",
    )
    actions.add_parser("hash", help="the hash of the key on standard input")


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises `ConfigError`."""
    return _hash() if options.action == "hash" else _new(options)


def _hash() -> int:
    # Imported late, here and below: `--help` must not wait for the settings' libraries.
    from stream_aligner_proxy.access.keys import hash_of  # noqa: PLC0415

    try:
        print(hash_of(sys.stdin.readline().rstrip("\r\n")))
    except ValueError as error:
        raise ConfigError(f"key hash: {error}") from None
    return 0


def _new(options: argparse.Namespace) -> int:
    import yaml  # noqa: PLC0415

    from stream_aligner_proxy.access.keys import hash_of, new_key  # noqa: PLC0415
    from stream_aligner_proxy.access.keys_file import add_entry  # noqa: PLC0415
    from stream_aligner_proxy.settings.access import AccessSettings  # noqa: PLC0415

    name: str = options.name
    if not name or not all(one.isascii() and (one.isalnum() or one in "._-") for one in name):
        raise ConfigError("--name: letters, digits and . _ - only")
    key = new_key()
    fields: dict[str, object] = {"name": name, "hash": hash_of(key)}
    if options.expires is not None:
        fields["expires"] = _date(options.expires)
    # Written by the library: a name may look like a number.
    entry = yaml.safe_dump([fields], sort_keys=False)
    if options.file is None:
        print(f"{key}\n\nThis is the key; it is not shown again. Its entry for the file of keys:\n")
        print(entry, end="")
        return 0
    # In place before the key is told: nobody is given one that does not work.
    add_entry(options.file, entry, lambda path: AccessSettings(keys_file=path).from_file())
    print(key)
    print(f"The key is not shown again. Its entry is in {options.file}.", file=sys.stderr)
    return 0


def _date(text: str) -> date:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError("--expires: must be a date such as 2027-03-01") from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    if when <= datetime.now(UTC):
        raise ConfigError("--expires: has passed already")
    return date.fromisoformat(text) if len(text) == len("2027-03-01") else when
