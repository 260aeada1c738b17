"""Limits counted in this process."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from stream_aligner_proxy.access.limits import MINUTE, Decision, Limits, admit

_FEW = 4096  # accounts; with more, those that hold nothing are forgotten


@dataclass(slots=True)
class _Account:
    """Until when each rate is used, by the clock."""

    requests: float = 0.0
    tokens: float = 0.0
    open: int = 0
    tokens_per_minute: int = 0


class _Place:
    __slots__ = ("_account", "decision")

    def __init__(self, account: _Account, decision: Decision) -> None:
        self._account: _Account | None = account
        self.decision = decision

    def release(self) -> None:
        if self._account is not None:
            self._account.open -= 1
            self._account = None


class MemoryLimiter:
    """Implements `Limiter`. Several processes count each for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._many = _FEW

    @property
    def state(self) -> str:
        return "ok"

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def take(self, who: str, limits: Limits) -> _Place:
        now = self._clock()
        account = self._accounts.get(who)
        if account is None:
            if len(self._accounts) >= self._many:
                self._forget(now)
            account = self._accounts[who] = _Account()
        account.tokens_per_minute = limits.tokens_per_minute
        ahead = {
            "requests": max(0.0, account.requests - now),
            "tokens": max(0.0, account.tokens - now),
        }
        decision = admit(limits, ahead, account.open)  # type: ignore[arg-type]
        if decision.refused is not None:
            raise decision.error(limits)
        if limits.requests_per_minute:
            account.requests = now + ahead["requests"] + MINUTE / limits.requests_per_minute
        account.open += 1
        return _Place(account, decision)

    def spend(self, who: str, tokens: int) -> None:
        account = self._accounts.get(who)
        if account is not None and account.tokens_per_minute:
            begun = max(account.tokens, self._clock())
            account.tokens = begun + tokens * MINUTE / account.tokens_per_minute

    def _forget(self, now: float) -> None:
        """What a client that comes again would find as it was."""
        self._accounts = {
            who: account
            for who, account in self._accounts.items()
            if account.open or max(account.requests, account.tokens) > now
        }
        self._many = max(_FEW, 2 * len(self._accounts))
