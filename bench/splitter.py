"""Sentence boundaries: F1 and time, ours streamed in random chunks, peers on whole paragraphs.

Data: the `ud-sentences` and `golden-rules` folders under `$STREAM_ALIGNER_DATA`, else under
`../shared/data` beside the repository. Paragraphs are the treebank's own (`newdoc`, `newpar`);
where it marks none, or every sentence, ten sentences make one. Sentences are joined by what the
treebank says stands after them; Chinese and Japanese by nothing.

A boundary is the end of a sentence, counted in characters that are not white space. `f1` counts
every end, `inner_f1` leaves out the ends of the paragraphs, which need no finding. Peers get the
language; ours is not told. A peer that is not installed is skipped, by name.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import Row, publish
from stream_aligner_proxy.core.sentences import SentenceSplitter

ROOT = Path(__file__).parents[1]
TREEBANKS = {
    "en": "en_ewt",
    "de": "de_gsd",
    "fr": "fr_gsd",
    "es": "es_gsd",
    "ja": "ja_gsd",
    "zh": "zh_gsd",
    "zh-Hans": "zh_gsdsimp",
}
UNSPACED = ("zh", "ja")
GROUP = 10  # sentences in a paragraph where the treebank marks none
MEASURES = ["sentences", "f1", "inner_f1", "us_per_char", "golden_right", "golden_of"]
MEASURES += ["lookahead_mean", "lookahead_p99", "lookahead_max"]
CHUNK = (1, 6)  # characters in a streamed chunk

Cut = Callable[[str], Iterable[str]]


class Paragraph(NamedTuple):
    text: str
    sentences: list[str]


class Score(NamedTuple):
    right: int = 0
    found: int = 0
    gold: int = 0

    @property
    def f1(self) -> float:
        return 200 * self.right / max(self.found + self.gold, 1)


def data_folder() -> Path | None:
    named = os.environ.get("STREAM_ALIGNER_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if (folder / "ud-sentences").is_dir() else None


def paragraphs(path: Path, *, spaced: bool) -> Iterator[Paragraph]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    opens = [bool(row.get("newdoc") or row.get("newpar")) for row in rows]
    marked = 0 < sum(opens) < 0.9 * len(rows)
    text, sentences = "", list[str]()
    for row, first in zip(rows, opens, strict=True):
        if sentences and (first if marked else len(sentences) == GROUP):
            yield Paragraph(text.rstrip(), sentences)
            text, sentences = "", []
        text += row["text"] + (" " if spaced and row["space_after"] else "")
        sentences.append(row["text"])
    yield Paragraph(text.rstrip(), sentences)


def ends(sentences: Iterable[str]) -> list[int]:
    """The end of each sentence, in characters that are not white space."""
    total, out = 0, list[int]()
    for sentence in sentences:
        size = len("".join(sentence.split()))
        if size:
            total += size
            out.append(total)
    return out


def score(cut: Cut, texts: list[Paragraph]) -> tuple[Score, Score, float]:
    """All ends, the inner ones, and seconds."""
    seconds = 0.0
    every, inner = Score(), Score()
    for paragraph in texts:
        began = time.perf_counter()
        got = list(cut(paragraph.text))
        seconds += time.perf_counter() - began
        gold, found = set(ends(paragraph.sentences)), set(ends(got))
        last = {max(gold)}
        every = _add(every, gold, found)
        inner = _add(inner, gold - last, found - last)
    return every, inner, seconds


def _add(score: Score, gold: set[int], found: set[int]) -> Score:
    return Score(score.right + len(gold & found), score.found + len(found), score.gold + len(gold))


def golden(cut: Cut, cases: list[dict[str, Any]]) -> int:
    def stripped(text: str) -> list[str]:
        return [sentence.strip() for sentence in cut(text) if sentence.strip()]

    return sum(stripped(case["text"]) == case["sentences"] for case in cases)


def chunks(text: str, seed: int) -> list[str]:
    rng = random.Random(f"{seed} {len(text)}")
    out, at = [], 0
    while at < len(text):
        size = rng.randint(*CHUNK)
        out.append(text[at : at + size])
        at += size
    return out


class Streamed:
    """Ours, fed in random chunks that were drawn before the clock starts."""

    def __init__(self, texts: Iterable[str], seed: int) -> None:
        self._chunks = {text: chunks(text, seed) for text in texts}

    def __call__(self, text: str) -> list[str]:
        splitter = SentenceSplitter()
        out = [s.text for chunk in self._chunks[text] for s in splitter.feed(chunk)]
        return out + [s.text for s in splitter.flush()]


def lookahead(texts: Iterable[str]) -> list[int]:
    """Characters that had to arrive after each sentence before it was out."""
    waits = []
    for text in texts:
        splitter = SentenceSplitter()
        done = 0
        for count, char in enumerate(text, 1):
            for sentence in splitter.feed(char):
                done += len(sentence.text)
                waits.append(count - done)
    return waits


# -- peers: each takes a language and returns what cuts a text ----------------------------------


def pysbd(language: str) -> Cut:
    cut: Cut = import_module("pysbd").Segmenter(language=language, clean=False).segment
    return cut


def sentencesplit(language: str) -> Cut:
    cut: Cut = import_module("sentencesplit").Segmenter(language=language, clean=False).segment
    return cut


def blingfire(language: str) -> Cut:
    to_sentences = import_module("blingfire").text_to_sentences
    return lambda text: to_sentences(text).split("\n")


def spacy(language: str) -> Cut:
    package = import_module("spacy")
    nlp = package.blank("zh" if language == "ja" else language)  # Japanese needs one more package
    nlp.add_pipe("sentencizer")
    return lambda text: [sentence.text for sentence in nlp(text).sents]


def sentencex(language: str) -> Cut:
    segment = import_module("sentencex").segment
    return lambda text: segment(language, text)


def sentence_stream(language: str) -> Cut:
    cut = import_module("sentence_stream").stream_to_sentences
    return lambda text: cut(chunks(text, 0))


PEERS: dict[str, tuple[str, Callable[[str], Cut]]] = {
    "sentencesplit": ("sentencesplit", sentencesplit),
    "pysbd": ("pysbd", pysbd),
    "sentencex": ("sentencex", sentencex),
    "blingfire": ("blingfire", blingfire),
    "spacy sentencizer": ("spacy", spacy),
    "sentence-stream": ("sentence-stream", sentence_stream),
}


def row(name: str, package: str, language: str, **values: float | int | None) -> Row:
    return {
        "splitter": name,
        "version": version(package) if package else None,
        "language": language,
        "streamed": name in {"ours", "sentence-stream"},
        **{column: values.get(column) for column in MEASURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    args = parser.parse_args()
    folder = data_folder()
    if folder is None:
        sys.exit("no data: set STREAM_ALIGNER_DATA to the folder that holds ud-sentences")
    texts = {
        language: list(
            paragraphs(
                folder / "ud-sentences" / f"{name}-ud-dev.jsonl.gz",
                spaced=not name.startswith(UNSPACED),
            )
        )
        for language, name in TREEBANKS.items()
    }
    rules = (folder / "golden-rules" / "english48.jsonl").read_text(encoding="utf-8")
    cases = [json.loads(line) for line in rules.splitlines()]
    print("seeds of the chunks:", *args.seeds)
    rows = ours(texts, cases, args.seeds)
    for name in args.peers:
        package, make = PEERS[name]
        try:
            version(package)
        except PackageNotFoundError:
            print(f"skipped, not installed: {package}")
            continue
        rows += measured(name, package, make, texts, cases)
    publish("splitter", rows, "bench.splitter")


def ours(
    texts: dict[str, list[Paragraph]], cases: list[dict[str, Any]], seeds: list[int]
) -> list[Row]:
    rows = list[Row]()
    every_f1, inner_f1 = [], []
    for language, some in texts.items():
        whole = [paragraph.text for paragraph in some]
        runs = [score(Streamed(whole, seed), some) for seed in seeds]
        every, inner, _ = runs[0]
        if any(run[:2] != (every, inner) for run in runs):
            sys.exit(f"{language}: the boundaries depend on the chunking")
        waits = sorted(lookahead(whole))
        characters = sum(map(len, whole))
        every_f1.append(every.f1)
        inner_f1.append(inner.f1)
        rows.append(
            row(
                "ours",
                "",
                language,
                sentences=every.gold,
                f1=every.f1,
                inner_f1=inner.f1,
                us_per_char=statistics.median(run[2] for run in runs) / characters * 1e6,
                lookahead_mean=statistics.mean(waits),
                lookahead_p99=waits[len(waits) * 99 // 100],
                lookahead_max=waits[-1],
            )
        )
    right = {golden(Streamed([case["text"] for case in cases], seed), cases) for seed in seeds}
    if len(right) > 1:
        sys.exit("the golden rules depend on the chunking")
    rows.append(_mean("ours", "", rows, right.pop(), len(cases)))
    return rows


def measured(
    name: str,
    package: str,
    make: Callable[[str], Cut],
    texts: dict[str, list[Paragraph]],
    cases: list[dict[str, Any]],
) -> list[Row]:
    rows = list[Row]()
    for language, some in texts.items():
        cut = make(language.split("-")[0])
        list(cut(some[0].text))  # what is built on first use is not timed
        every, inner, seconds = score(cut, some)
        rows.append(
            row(
                name,
                package,
                language,
                sentences=every.gold,
                f1=every.f1,
                inner_f1=inner.f1,
                us_per_char=seconds / sum(len(p.text) for p in some) * 1e6,
            )
        )
    rows.append(_mean(name, package, rows, golden(make("en"), cases), len(cases)))
    return rows


def _mean(name: str, package: str, rows: list[Row], right: int, of: int) -> Row:
    def mean(column: str) -> float:
        return statistics.mean(float(row[column] or 0) for row in rows)

    return row(
        name,
        package,
        "mean",
        f1=mean("f1"),
        inner_f1=mean("inner_f1"),
        us_per_char=mean("us_per_char"),
        golden_right=right,
        golden_of=of,
    )


if __name__ == "__main__":
    main()
