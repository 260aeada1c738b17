"""Command line of the demo world: draw problems and requests, grade replies.

python -m training.world problems --seed 7 --count 2
python -m training.world requests --seed 7 --count 2
echo '{"answer": "46", "reply": "The answer is 46."}' | python -m training.world grade
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from training.world.judge import final_answer, grade
from training.world.problems import problems
from training.world.tone import requests

DESCRIPTION = """\
The demo world: word problems solved one sentence per step, and requests for short notes that
tempt a careless writer to be rude. Everything is generated; the same seed gives the same lines."""

EXAMPLES = """\
examples:
  python -m training.world problems --seed 7 --count 2
      {"messages": [{"role": "user", "content": "Mia has 34 shells. ..."}], "answer": "46"}
  python -m training.world requests --seed 7 --count 2
      {"messages": [{"role": "user", "content": "Write to my neighbor Tom about ..."}]}
  python -m training.world grade < replies.jsonl
      reads   {"answer": "46", "reply": "... The answer is 46."}
      prints  {"correct": true, "final": "46"}, and a summary on stderr

The test split (the default) is held out: no template, name, object and chain of operations in it
is ever trained on, with any numbers."""


def _lines(source: Iterable[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(source, 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            raise SystemExit(f"line {number} is not JSON: {error}") from None
        if not isinstance(data, dict) or "answer" not in data or "reply" not in data:
            raise SystemExit(f'line {number} must be an object with "answer" and "reply"')
        yield number, data


def grade_lines(source: Iterable[str], out: TextIO, summary: TextIO) -> None:
    """Grade JSON lines; one result line each, and how many were right."""
    right = total = 0
    for _, data in _lines(source):
        reply = data["reply"] if isinstance(data["reply"], str) else ""
        correct = grade(str(data["answer"]), reply)
        print(json.dumps({"correct": correct, "final": final_answer(reply)}), file=out)
        right += correct
        total += 1
    share = f" ({right / total:.1%})" if total else ""
    print(f"{right} of {total} right{share}", file=summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.world",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("problems", "draw word problems with their answers"),
        ("requests", "draw requests for notes"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--seed", type=int, default=0, help="any integer (default 0)")
        command.add_argument("--count", type=int, default=10, help="how many (default 10)")
        command.add_argument(
            "--split", choices=("train", "test"), default="test", help="default: test (held out)"
        )
    text = 'grade {"answer", "reply"} lines from standard input'
    commands.add_parser("grade", help=text, description=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.command == "grade":
        grade_lines(sys.stdin, sys.stdout, sys.stderr)
        return
    if args.count < 0:
        raise SystemExit("--count must not be negative")
    if args.command == "problems":
        for problem in problems(args.seed, args.count, args.split):
            messages = [{"role": "user", "content": problem.question}]
            print(json.dumps({"messages": messages, "answer": problem.answer}))
    else:
        for request in requests(args.seed, args.count, args.split):
            print(json.dumps({"messages": [{"role": "user", "content": request.question}]}))


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        # The reader has left (`| head`): nothing more to say.
        sys.stderr.close()
