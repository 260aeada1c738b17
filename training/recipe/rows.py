"""Reads training rows (JSON lines) and encodes them as the engine will ask.

Rows are `question, prefix, last, correction, end, source, group`, or `question, answer, correction`
for a whole answer. Data is encoded with special tokens switched off, each segment on its own: the
same ids as in use (a test holds the two together).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_aligner_proxy.core.prompts import END, KEEP, PROFILES, PromptProfile, Segment
from stream_aligner_proxy.core.records import Review, Turn
from training.config import ConfigError
from training.recipe.config import Recipe

IGNORE = -100


class DataError(Exception):
    """Rows that cannot be trained on; the message names the file and line, or how many."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A review and what the aligner should answer. `where`: file and line. `source`: the set."""

    review: Review
    correction: str
    end: bool
    group: str
    where: str
    source: str = "rows"

    @property
    def kept(self) -> bool:
        return self.correction == self.review.sentence and not self.end


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of prompt and answer; loss is on those from `start` on."""

    ids: list[int]
    start: int

    @property
    def labels(self) -> list[int]:
        return [IGNORE] * self.start + self.ids[self.start :]


def files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files to train on and those held out: `train*`, `heldout*`/`valid*`/`validation*`, as
    files or in folders of that name; a single file is trained on. Raises `DataError`."""
    if folder.is_file():
        return [folder], []

    def found(*names: str) -> list[Path]:
        hits = [
            p for n in names for pat in (f"{n}*.jsonl", f"{n}*/*.jsonl") for p in folder.glob(pat)
        ]
        return sorted(set(hits))

    train = found("train")
    if not train:
        raise DataError(f"{folder}: has no train*.jsonl")
    return train, found("heldout", "valid")


def read(paths: Iterable[Path]) -> Iterator[Sample]:
    """Yield the rows of these files. Raises `DataError` at the first bad one."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{path.name}:{number}"
                try:
                    yield _sample(json.loads(line), where)
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{where}: {type(error).__name__}: {error}") from error


def _sample(row: Any, where: str) -> Sample:
    question = row["question"]
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    turns = tuple(Turn(str(t["role"]), str(t["content"])) for t in question)
    whole = "answer" in row
    sentence, correction = row["answer" if whole else "last"], row["correction"]
    prefix, end = "" if whole else row["prefix"], bool(row.get("end", False))
    for name, text in (("correction", correction), ("prefix", prefix), ("sentence", sentence)):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a text")
    review = Review(turns, prefix, sentence.strip(), "whole" if whole else "sentence")
    key = str(row.get("group") or hashlib.sha256(repr(turns).encode()).hexdigest()[:16])
    source = str(row.get("source", "rows"))
    return Sample(review, correction.strip(), end, key, where, source)


def fingerprint(samples: Iterable[Sample]) -> str:
    """32 hex digits of what the rows say, whatever their order."""
    total = 0
    for one in samples:
        text = json.dumps([repr(one.review), one.correction, one.end])
        total += int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    return f"{total % (1 << 128):032x}"


def hold_out(samples: Sequence[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """Split by group: which side one falls on depends on its name alone."""

    def out(sample: Sample) -> bool:
        drawn = hashlib.sha256(sample.group.encode()).digest()[:4]
        return int.from_bytes(drawn, "big") < share * (1 << 32)

    return [s for s in samples if not out(s)], [s for s in samples if out(s)]


def unchanged(samples: Iterable[Sample], count: int) -> list[Sample]:
    """Rows for the identity warm-up: the correction given as the sentence, to be left alone.

    As in the papers: what is right stays. `count` at most; deletions have nothing to leave alone.
    """
    rows: list[Sample] = []
    for one in samples:
        if len(rows) == count:
            break
        if text := one.correction:
            review = Review(
                one.review.conversation, one.review.committed, text, one.review.scope
            )  # fmt: skip
            rows.append(Sample(review, text, False, one.group, one.where))
    return rows


class Encoder:
    """Encodes samples for one tokenizer and profile. Raises `ConfigError` for missing tokens."""

    def __init__(self, tokenizer: Any, profile: PromptProfile, keep_token: bool) -> None:
        if missing := missing_tokens(tokenizer, profile):
            raise ConfigError(
                f"model.profile: {profile.name!r} needs tokens that the tokenizer has not: "
                f"{', '.join(missing)}; set model.add_tokens, or choose another profile"
            )
        if tokenizer.eos_token_id is None:
            raise ConfigError("model.base: the tokenizer names no end-of-sequence token")
        self._tokenizer, self._profile = tokenizer, profile
        self._compact = KEEP in profile.control_tokens
        self._keep = keep_token and self._compact

    def segment(self, segment: Segment) -> list[int]:
        if not segment.text:
            return []
        ids: list[int] = self._tokenizer(
            segment.text, add_special_tokens=False, split_special_tokens=not segment.control
        ).input_ids
        return ids

    def encode(self, sample: Sample) -> Encoded:
        """Prompt, answer, end of sequence."""
        review = sample.review
        ids = [self._tokenizer.bos_token_id] if self._profile.bos else []
        ids = [token for token in ids if token is not None]
        for segment in self._profile.render(review):
            ids += self.segment(segment)
        start = len(ids)
        if self._keep and sample.correction == review.sentence:
            ids += self.segment(Segment(KEEP, control=True))
        elif sample.correction:
            revised = Review(review.conversation, review.committed, sample.correction, review.scope)
            ids += self.segment(Segment(self._profile.draft(revised)))
        if sample.end and self._compact:
            ids += self.segment(Segment(END, control=True))
        return Encoded([*ids, self._tokenizer.eos_token_id], start)

    def all(self, samples: Iterable[Sample], length: int, too_long: str) -> list[Encoded]:
        """Encode what the profile can say. Raises `DataError` for examples over `length` tokens."""
        kept: list[Encoded] = []
        over: list[str] = []
        for sample in samples:
            if sample.review.scope not in self._profile.scopes:
                raise DataError(
                    f"{sample.where}: is a row of one sentence, which the profile "
                    f"{self._profile.name!r} cannot ask about"
                )
            encoded = self.encode(sample)
            if len(encoded.ids) > length:
                over.append(f"{sample.where} ({len(encoded.ids)})")
            else:
                kept.append(encoded)
        if over and too_long == "error":
            raise DataError(
                f"{len(over)} rows have more than {length} tokens (data.length): "
                f"{', '.join(over[:5])}{' …' if len(over) > 5 else ''}; raise it, or set "
                "data.too_long: drop"
            )
        if over:
            print(f"{len(over)} rows over {length} tokens left out: {', '.join(over[:5])}")
        return kept


def missing_tokens(tokenizer: Any, profile: PromptProfile) -> list[str]:
    """Control tokens of the profile that are not one id each."""
    known = tokenizer.get_vocab()
    return [token for token in profile.control_tokens if token not in known]


def profile_of(recipe: Recipe) -> PromptProfile:
    return PROFILES[recipe.model.profile]
