"""The command `stream-aligner`: `demo`, `serve`, `check`, `key` and `health`.

What the operator got wrong is one line on stderr and exit code 2; nothing listens then.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stream_aligner_proxy import __version__
from stream_aligner_proxy.access import command
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.observers.log_format import configure

_EXAMPLES = """\
examples:
  stream-aligner demo
      Try it: two tiny built-in models, a page to play with, nothing to configure.

  stream-aligner serve --config proxy.yaml
      Put an aligner between your LLM server and your clients. The smallest proxy.yaml:

        upstreams: [{name: main, base_url: "http://127.0.0.1:9001/v1", dialect: vllm}]
        aligner: {backend: rules, path: rules.yaml}
        alignment: {mode: stream}

      and rules.yaml, a list of regular expressions and what to write instead:

        - {find: '\\butili[sz]e\\b', replace: use}

      Then point any OpenAI client at http://127.0.0.1:8000/v1.

  stream-aligner serve --aligner runs/demo-aligner/run/model
      Try an aligner that you trained, before the demo's upstream; with --config, before yours.

  stream-aligner check --config proxy.yaml
      Ask everything that the file names, before serving: which upstream answers, how it is made
      to continue a corrected reply, whether the aligners load. Exit code 0: all serve; 1: something
      does not answer; 2: the file is wrong.

  stream-aligner key new --name team-a
      A key for a client, and the entry with its hash for the file of keys (access.keys_file).

Every key can also be set by the environment, which wins over the file:
  STREAM_ALIGNER_ALIGNMENT__MODE=shadow stream-aligner serve --config proxy.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options)
        if options.command == "check":
            return _check(options)
        if options.command == "key":
            return command.run(options)
        if options.command == "health":
            return _health(options)
        return _demo(options)
    except ConfigError as error:
        print(f"stream-aligner: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stream-aligner",
        description="An OpenAI-compatible proxy that corrects an LLM's reply, sentence by sentence,"
        " while it is being written.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stream-aligner {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{demo,serve,check,key,health}"
    )
    demo = commands.add_parser(
        "demo",
        help="serve two tiny built-in models: upstream and aligner",
        description="Serve two tiny built-in models, an upstream that makes mistakes and an aligner"
        " that corrects them; print a page to open and a curl line. Ctrl+C ends it.",
    )
    serve = commands.add_parser(
        "serve",
        help="serve what a configuration file says",
        description="Serve what a configuration file says. SIGHUP reads it again without a restart;"
        " SIGTERM lets open replies end. Exit code 2: the file is wrong; the key is named.",
    )
    check = commands.add_parser(
        "check",
        help="ask every upstream and aligner of a configuration file",
        description="Ask every upstream and load or ask every aligner that a configuration file"
        " names; print what was found. Exit code 0: all serve; 1: something does not answer; 2: the"
        " file is wrong.",
    )
    command.add_parser(commands)
    check.add_argument("--no-aligner", action="store_true", help="leave the aligners out")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    serve.add_argument("--config", type=Path, metavar="FILE", help="a YAML file")
    serve.add_argument(
        "--aligner",
        type=Path,
        metavar="DIR",
        help="an aligner's checkpoint, in place of the file's; without a file, before the demo's"
        " upstream",
    )
    # How a supervisor hands its socket, and the end of a pipe, to a worker; and whether that takes
    # the place of one that died.
    serve.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    check.add_argument("--config", required=True, type=Path, metavar="FILE", help="a YAML file")
    health = commands.add_parser(
        "health",
        help="ask a running proxy whether it lives",
        description="Ask a running proxy whether it lives (/healthz) or is ready (/readyz). Exit"
        " code 0: it said so (status 200); 1: it did not.",
    )
    health.add_argument(
        "--url",
        type=_url,
        default="http://127.0.0.1:8000/healthz",
        metavar="URL",
        help="what to ask (%(default)s)",
    )
    health.add_argument(
        "--key-file", type=Path, metavar="FILE", help="a file with a key, for paths that want one"
    )
    health.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds (5)")
    demo.set_defaults(aligner=None, worker=None)
    for serving in (demo, serve):
        serving.add_argument("--host", metavar="H", help="address to listen on (127.0.0.1)")
        serving.add_argument(
            "--port", type=_port, metavar="P", help="port to listen on (8000); 0 takes a free one"
        )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("is no http:// or https:// address")
    return text


def _serve(options: argparse.Namespace) -> int:
    if options.aligner is not None and not options.aligner.is_dir():
        raise ConfigError(f"--aligner: {options.aligner} is not a directory")
    if options.config is None:
        if options.aligner is None:
            raise ConfigError("serve: --config FILE is missing (or --aligner DIR, for a try)")
        return _demo(options)
    # Imported late: `--help` and a mistyped file must not wait for the server's libraries.
    from stream_aligner_proxy.operating.running import Configured  # noqa: PLC0415
    from stream_aligner_proxy.operating.workers import end_with_supervisor, supervise  # noqa: PLC0415

    configured = Configured(options.config, options.aligner)
    server = configured.settings.server
    configure(server.log_level, style=server.log_format, content=server.log_content)
    if options.worker is not None:
        with socket.socket(fileno=options.worker[0]) as listener:
            _exit_on_sigterm()
            end_with_supervisor(options.worker[1])
            configured.serve(listener, late=bool(options.worker[2]))
        return 0
    with _listen(options.host or server.host, _given(options.port, server.port)) as listener:
        if server.workers > 1:
            return supervise(sys.argv[1:], listener, server)
        _exit_on_sigterm()
        configured.serve(listener)
    return 0


def _check(options: argparse.Namespace) -> int:
    from stream_aligner_proxy.check import check  # noqa: PLC0415
    from stream_aligner_proxy.settings import load  # noqa: PLC0415

    configure("error")
    report = asyncio.run(check(load(options.config), load_aligners=not options.no_aligner))
    print(json.dumps(report.as_json(), indent=2) if options.json else report.table())
    return 0 if report.serves else 1


def _health(options: argparse.Namespace) -> int:
    from stream_aligner_proxy.health import trouble  # noqa: PLC0415

    key = None
    if options.key_file is not None:
        try:
            key = options.key_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--key-file: {options.key_file} cannot be read ({type(error).__name__})"
            ) from None
    found = trouble(options.url, options.timeout, key)
    if found is not None:
        print(f"stream-aligner: {found}", file=sys.stderr)
    return 0 if found is None else 1


def _demo(options: argparse.Namespace) -> int:
    from stream_aligner_proxy.app import create_app  # noqa: PLC0415
    from stream_aligner_proxy.demo.launch import EXAMPLES, DemoUpstream, demo_settings  # noqa: PLC0415
    from stream_aligner_proxy.operating.shared import Shared  # noqa: PLC0415
    from stream_aligner_proxy.serving import address, run  # noqa: PLC0415

    configure("warning")
    with _listen(options.host or "127.0.0.1", _given(options.port, 8000)) as listener:
        _exit_on_sigterm()
        with DemoUpstream() as upstream:
            settings = demo_settings(upstream.base_url, options.aligner)
            shared = Shared(settings.server)
            app = create_app(settings, examples=EXAMPLES, shared=shared)

            def welcome() -> None:
                print(_welcome(address(listener), EXAMPLES[0], upstream.model), flush=True)

            run(app, listener, shared, started=welcome)
    return 0


def _welcome(base: str, question: str, model: str) -> str:
    return f"""
  Stream Aligner demo: a small upstream that makes mistakes, and an aligner that corrects them.

  Page   {base}/
  API    {base}/v1

  curl -N {base}/v1/chat/completions -H 'content-type: application/json' -d '{{
    "model": "{model}", "stream": true, "stream_aligner": {{"provenance": true}},
    "messages": [{{"role": "user", "content": "{question}"}}]}}'

  Ctrl+C ends it.
"""


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything slow is loaded, so that a taken port is known at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, where = found[0]
        listener = socket.socket(family, kind, proto)
    except OSError as error:
        raise ConfigError(f"server.host: {host} cannot be used: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(1024)  # bound only, a second process could still bind it too
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"server.port: cannot listen on {host} port {port}: {error.strerror}; "
            "choose another with --port"
        ) from None
    listener.setblocking(False)
    return listener


def _exit_on_sigterm() -> None:
    """Unwind on SIGTERM as on Ctrl+C, so that every `finally` and context ends what it began."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)


if __name__ == "__main__":
    sys.exit(main())
