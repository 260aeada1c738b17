"""What every backend with a model is told alike, checked once: how to draw, and how much.

Rule: nothing here needs torch. What makes no sense is a `ConfigError` that names the key.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.prompts import PROFILES


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw: the words and meanings of OpenAI's and vLLM's parameters. `temperature` 0 is
    greedy; `top_k` 0 and `top_p` 1 leave everything in. With `seed` a review's answer is the same
    each time. Raises `ConfigError` for numbers that make no sense."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"aligner.temperature: must be 0 or more, not {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"aligner.top_k: must be 0 (all) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"aligner.top_p: must be above 0 and at most 1, not {self.top_p}")


GREEDY = Sampling()


def seed_for(seed: int, prompt: Sequence[int]) -> int:
    """A review's own seed: sentences of one reply must not share their luck, nor differ from run to
    run."""
    return seed ^ zlib.crc32(repr(tuple(prompt)).encode())


@dataclass(frozen=True, slots=True)
class MaxNew:
    """How many tokens a revision may have: `factor` x its draft's + `extra`."""

    factor: float
    extra: int

    def __call__(self, draft: int) -> int:
        return int(self.factor * draft) + self.extra


def check(profile: str | None, **counts: int | None) -> None:
    """Raise `ConfigError` for a profile that there is none of, or a count below 1."""
    for key, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"aligner.{key}: must be at least 1, not {value}")
    if profile is not None and profile not in PROFILES:
        raise ConfigError(
            f"aligner.profile: unknown profile {profile!r}; known are {', '.join(PROFILES)}"
        )
