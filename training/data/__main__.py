"""Command line of the training data: build, report, split, convert, sources.

python -m training.data build --source gsm8k:data/gsm8k --out runs/rows
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.config import ConfigError
from training.config import build as parse
from training.data import files, report
from training.data.config import BuildConfig, load, named
from training.data.files import DataError, Trouble
from training.data.intake import progress
from training.data.pipeline import build, empty
from training.data.rows import Example, form, key_text
from training.data.sources.registry import SOURCES
from training.data.split import SPLITS, Questions, Split, check_splits
from training.data.tally import Tally
from training.data.writing import write

DESCRIPTION = """\
From what you have (pairs, edits, labelled steps, the proxy's own audit log) to rows an aligner is
trained on: one sentence, the committed text before it, what it should have been."""

EXAMPLES = """\
examples:
  python -m training.data sources
      every source, its columns, its name on the hub
  python -m training.data build --source corrections:mine.jsonl --out runs/rows
      mine.jsonl has lines like
      {"question": "How many legs?", "answer": "It has 5. Not more.", "correction": "It has 6."}
      and runs/rows gets train/sentence-00000-of-00001.jsonl, ..., report.md, rejected.jsonl
  python -m training.data build --config build.yaml --out runs/rows
      build.yaml: sources: [{name: gsm8k, path: data/gsm8k}, {name: aligner-20k, limit: 5000}]
                  keep_share: 0.5
                  filters: {max_edit: 0.8}
  python -m training.data build --source demo --limit 20000 --out runs/demo-rows
      the demo world's own, made up; nothing is read
  python -m training.data report runs/rows/train
  python -m training.data split rows.jsonl --out runs/split --test 0.1
  python -m training.data convert rows.jsonl rows.parquet

exit status: 0 done, 1 the data is not fit (too many bad records, a leak), 2 the command or the
configuration is wrong."""

BUILD = """\
Reads each source, makes rows, filters, drops duplicates, balances kept and changed rows in the
training split, splits by question with near-duplicate questions together, shuffles, and writes
shards and a report. What is not used is in rejected.jsonl with its file, line and reason."""


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "training.data", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=formatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser(
        "build", help="sources to shards", description=BUILD, epilog=EXAMPLES,
        formatter_class=formatter,
    )  # fmt: skip
    one.add_argument("--config", type=Path, help="YAML; the options below win over it")
    one.add_argument(
        "--source", action="append", default=[], metavar="NAME[:PATH]",
        help="a source and its file or folder; without PATH the set on the hub; repeat for more",
    )  # fmt: skip
    one.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    one.add_argument("--limit", type=int, help="records to read of each --source at most")
    one.add_argument("--form", choices=("both", "sentence", "whole"), help="which rows to make")
    one.add_argument("--seed", type=int, help="of shuffling and balancing (default 0)")
    one.add_argument("--keep-share", type=float, help="of sentence rows to train on (default 0.5)")
    one.add_argument("--max-rejected", type=float, help="share of bad records (default 0.01)")
    one.add_argument("--format", choices=("jsonl", "parquet"), help="of the shards")
    one.add_argument("--shard-rows", type=int, help="rows in a shard (default 100000)")

    one = commands.add_parser("report", help="counts, lengths, edits, samples of rows")
    one.add_argument("paths", nargs="+", type=Path, help="files of rows, or folders of them")
    one.add_argument("--out", type=Path, help="write report.json, report.md and plots here")

    one = commands.add_parser("split", help="split rows by question, and check for leaks")
    one.add_argument("paths", nargs="+", type=Path)
    one.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")
    one.add_argument("--validation", type=float, default=0.05)
    one.add_argument("--test", type=float, default=0.05)
    one.add_argument("--near", type=float, default=0.8, help="how alike questions stay together")

    one = commands.add_parser("convert", help="JSONL to Parquet or back, by the names")
    one.add_argument("input", type=Path)
    one.add_argument("output", type=Path)

    commands.add_parser("sources", help="what can be read, and its columns")
    return parser


def _build(args: argparse.Namespace) -> None:
    data = load(args.config) if args.config else {}
    given = list(data.get("sources") or [])
    for told in args.source:
        given.append(named(told) if args.limit is None else named(told) | {"limit": args.limit})
    data["sources"] = given
    for key in ("form", "seed", "keep_share", "max_rejected", "format", "shard_rows"):
        if getattr(args, key) is not None:
            data[key] = getattr(args, key)
    config = parse(BuildConfig, data)
    made = build(config, args.out)
    print("\n".join([*report.reading(made["read"]), "", *report.counts(made)]))
    print(f"\n{made['rows']} rows, fingerprint {made['fingerprint']}: {args.out}/report.md")


def _rows(paths: Sequence[Path]) -> Iterator[Example]:
    """The rows of files and folders. Raises `DataError` at the first that is none."""
    for given in paths:
        for path in files.expand(given):
            if path.name in ("rejected.jsonl", "report.json"):
                continue
            for place, example in files.rows(path):
                if isinstance(example, Trouble):
                    raise DataError(f"{place}: {example.reason}")
                yield example


def _report(args: argparse.Namespace) -> None:
    tally = Tally()
    for example in progress(_rows(args.paths), "counting"):
        tally.add(example)
        tally.judge(example)
    data: dict[str, Any] = tally.plain()
    if args.out:
        for line in report.write(args.out, data):
            print(line)
    print("\n".join(report.counts(data)))
    print(f"\n{data['rows']} rows, fingerprint {data['fingerprint']}")


def _split(args: argparse.Namespace) -> None:
    config = parse(BuildConfig, {
        "sources": [{"name": "rows"}],
        "split": {"validation": args.validation, "test": args.test, "near": args.near},
    })  # fmt: skip
    config.check()
    empty(args.out)
    questions = Questions()
    for example in progress(_rows(args.paths), "reading questions"):
        questions.add(example.group, key_text(example.question))
    of = questions.split(config.split).of
    names: list[tuple[Split, Path]] = []
    for split in SPLITS:
        for shape in ("sentence", "whole"):
            path = args.out / split / f"{shape}.jsonl"
            wanted = (e for e in _rows(args.paths) if of[e.group] == split and form(e) == shape)
            if count := write(path, wanted):
                names.append((split, path))
                print(f"{path}: {count} rows")
            else:
                path.unlink()
    found = (
        (split, one.group, key_text(one.question)) for split, path in names for one in _rows([path])
    )
    check_splits(found, args.near)


def _convert(args: argparse.Namespace) -> None:
    count = write(args.output, progress(_rows([args.input]), "converting"))
    print(f"{args.output}: {count} rows")


def _sources(_: argparse.Namespace) -> None:
    body = [
        [one.name, one.about + (" (evaluation only)" if one.evaluation else ""), one.columns,
         one.hub or "-"]
        for one in SOURCES.values()
    ]  # fmt: skip
    print("\n".join(report.table(["source", "what", "columns", "on the hub"], body)))


_COMMANDS = {
    "build": _build, "report": _report, "split": _split, "convert": _convert, "sources": _sources,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        _COMMANDS[args.command](args)
    except ConfigError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
