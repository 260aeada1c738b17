"""How much one client may have: requests and tokens a minute, and requests at once.

Rates are leaky buckets kept as one number each (the generic cell rate algorithm, ITU-T I.371): how
far the client is ahead of its rate, in seconds. Nothing runs in between, and a minute's worth may
be used at once. Tokens are known only when they have been written: a request is let in while any
are left, and pays afterwards, into debt if need be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from stream_aligner_proxy.core.errors import RateLimited

MINUTE = 60.0
_ROUNDING = 1e-6  # of times that were computed

Kind = Literal["requests", "tokens", "open"]


@dataclass(frozen=True, slots=True)
class Limits:
    """0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_open: int = 0

    def __bool__(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.max_open)


@dataclass(frozen=True, slots=True)
class Standing:
    """Of one rate: the limit, what is left of it, and the seconds until all of it is there."""

    limit: int
    remaining: int
    reset: float

    @classmethod
    def after(cls, limit: int, ahead: float) -> "Standing":
        """Of who is `ahead` of this limit by so many seconds."""
        left = math.floor((MINUTE - ahead) * limit / MINUTE + _ROUNDING)
        return cls(limit, max(0, left), max(0.0, ahead))


@dataclass(frozen=True, slots=True)
class Decision:
    """`refused`: what is used up, None where the request is let in; `retry`: in so many seconds
    there is some again."""

    requests: Standing | None = None
    tokens: Standing | None = None
    refused: Kind | None = None
    retry: float = 0.0

    def headers(self) -> dict[str, str]:
        """As OpenAI names them."""
        told: dict[str, str] = {}
        for kind, standing in (("requests", self.requests), ("tokens", self.tokens)):
            if standing is not None:
                told[f"x-ratelimit-limit-{kind}"] = str(standing.limit)
                told[f"x-ratelimit-remaining-{kind}"] = str(standing.remaining)
                told[f"x-ratelimit-reset-{kind}"] = duration(standing.reset)
        return told

    def error(self, limits: Limits) -> RateLimited:
        match self.refused:
            case "tokens":
                what = f"{limits.tokens_per_minute} tokens per minute"
            case "open":
                what = f"{limits.max_open} requests at once"
            case _:
                what = f"{limits.requests_per_minute} requests per minute"
        wait = max(self.retry, 0.001)
        return RateLimited(
            f"Rate limit reached: {what}. Please try again in {duration(wait)}.",
            type="tokens" if self.refused == "tokens" else "requests",
            headers={
                **self.headers(),
                "retry-after": str(math.ceil(wait)),
                "retry-after-ms": str(math.ceil(1000 * wait)),
            },
        )


def admit(limits: Limits, ahead: Mapping[Kind, float], open_now: int) -> Decision:
    """What becomes of one more request of who is `ahead` by so many seconds of each rate."""
    requests = tokens = None
    refused: Kind | None = None
    retry = 0.0
    if limits.tokens_per_minute:
        over = ahead["tokens"] - MINUTE
        tokens = Standing.after(limits.tokens_per_minute, ahead["tokens"])
        if over > -_ROUNDING:
            refused, retry = "tokens", over + MINUTE / limits.tokens_per_minute
    if limits.requests_per_minute:
        step = MINUTE / limits.requests_per_minute
        over = ahead["requests"] + step - MINUTE
        if over > _ROUNDING:
            requests = Standing.after(limits.requests_per_minute, ahead["requests"])
            if refused is None or over > retry:
                refused, retry = "requests", over
        else:
            requests = Standing.after(limits.requests_per_minute, ahead["requests"] + step)
    if refused is None and limits.max_open and open_now >= limits.max_open:
        refused, retry = "open", 1.0
    return Decision(requests, tokens, refused, retry)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `12ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(math.ceil(10 * seconds) / 10, 60)
    return f"{minutes:.0f}m{rest:.0f}s" if minutes else f"{rest:g}s"


class Place(Protocol):
    """Of one request that was let in."""

    @property
    def decision(self) -> Decision: ...

    def release(self) -> None:
        """It has ended. Needs no waiting, so that a cancelled task can always do it."""
        ...


class Limiter(Protocol):
    async def take(self, who: str, limits: Limits) -> Place:
        """Let one request of `who` in. Raises `RateLimited`, or `Overloaded` where the limits
        cannot be looked up."""
        ...

    def spend(self, who: str, tokens: int) -> None:
        """So many tokens were written for `who`."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    @property
    def state(self) -> str:
        """For `/status`: `ok`, or what is wrong."""
        ...
