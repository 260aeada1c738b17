"""What a build is told. Every key is checked before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from training.config import ConfigError, build
from training.data.rows import KINDS
from training.data.sources.registry import SOURCES


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """One source: a file or folder; without `path` the set of that name on the hub, or what the
    source makes up itself. In a config, a text `NAME` or `NAME:PATH` will do.

    `name` of a hub set may be its hub name. `similarity` and `evaluation` replace the source's own;
    `limit`: records to read at most. `whole`: whole-answer rows too.
    """

    name: str
    path: str | None = None
    split: str | None = None
    limit: int | None = None
    similarity: float | None = None
    evaluation: bool | None = None
    whole: bool = True


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """Bounds of a row. Characters; tokens too where `tokenizer` names one (a folder or hub name).

    `min_edit`, `max_edit`: the edit distance of a changed row as a share of the longer text. The
    bounds are for fixes and merges: what is deleted or inserted is far from nothing by nature.
    `leave_out`: kinds of sentence rows that are not wanted.
    """

    max_question_chars: int = 12_000
    max_prefix_chars: int = 16_000
    max_last_chars: int = 2_000
    max_answer_chars: int = 20_000
    tokenizer: str | None = None
    max_tokens: int = 4_096
    min_edit: float = 0.0
    max_edit: float = 1.0
    leave_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Shares of the questions; those as alike as `near` (Jaccard of word triples) stay together."""

    validation: float = 0.05
    test: float = 0.05
    near: float = 0.8


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """`keep_share`: of the sentence rows in the training split, kept ones are about this share at
    most; None leaves them as they are. `max_rejected`: the share of unreadable records that is an
    error. `form`: rows of sentences, of whole answers, or both. `code`: rows for fenced code too,
    for a proxy with `review_code`.
    """

    sources: list[Any] = field(default_factory=list)
    seed: int = 0
    keep_share: float | None = 0.5
    max_rejected: float = 0.01
    shard_rows: int = 100_000
    format: str = "jsonl"
    form: str = "both"
    code: bool = False
    filters: FilterConfig = FilterConfig()
    split: SplitConfig = SplitConfig()

    def parsed(self) -> list[SourceConfig]:
        """The sources. Raises `ConfigError` that names the key."""
        found = []
        for at, value in enumerate(self.sources):
            told = named(value) if isinstance(value, str) else value
            one = build(SourceConfig, told, f"sources[{at}].")
            if not any(one.name in (known.name, known.hub) for known in SOURCES.values()):
                raise ConfigError(
                    f"sources[{at}].name: no source {one.name!r}; known: {', '.join(SOURCES)}"
                )
            if one.limit is not None and one.limit < 1:
                raise ConfigError(f"sources[{at}].limit must be at least 1, got {one.limit}")
            if one.similarity is not None and not 0 <= one.similarity <= 1:
                raise ConfigError(f"sources[{at}].similarity must be between 0 and 1")
            found.append(one)
        return found

    def check(self) -> None:
        """Raises `ConfigError` that names the key."""
        if not self.sources:
            raise ConfigError("sources: name at least one")
        self.parsed()
        for key, share in (
            ("keep_share", self.keep_share),
            ("max_rejected", self.max_rejected),
            ("filters.min_edit", self.filters.min_edit),
            ("filters.max_edit", self.filters.max_edit),
            ("split.validation", self.split.validation),
            ("split.test", self.split.test),
            ("split.near", self.split.near),
        ):
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"{key} must be between 0 and 1, got {share}")
        if self.keep_share == 1:
            raise ConfigError("keep_share must be below 1: nothing could be learnt")
        if self.split.validation + self.split.test >= 1:
            raise ConfigError("split.validation and split.test leave nothing to train on")
        if self.split.near < 0.3:
            raise ConfigError(f"split.near must be at least 0.3, got {self.split.near}")
        for key in (
            "max_question_chars", "max_prefix_chars", "max_last_chars", "max_answer_chars",
            "max_tokens",
        ):  # fmt: skip
            if getattr(self.filters, key) < 1:
                raise ConfigError(f"filters.{key} must be at least 1")
        unknown = set(self.filters.leave_out) - set(KINDS)
        if isinstance(self.filters.leave_out, str) or unknown:
            raise ConfigError(f"filters.leave_out must be a list of {', '.join(KINDS)}")
        if self.shard_rows < 1:
            raise ConfigError(f"shard_rows must be at least 1, got {self.shard_rows}")
        if self.format not in ("jsonl", "parquet"):
            raise ConfigError(f"format must be jsonl or parquet, got {self.format!r}")
        if self.form not in ("both", "sentence", "whole"):
            raise ConfigError(f"form must be both, sentence or whole, got {self.form!r}")


def named(text: str) -> dict[str, Any]:
    """`NAME` or `NAME:PATH` as a source's keys."""
    name, _, path = text.partition(":")
    return {"name": name, "path": path} if path else {"name": name}


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping")
    return data
