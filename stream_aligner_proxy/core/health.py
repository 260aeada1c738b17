"""Whether a part is worth asking: a circuit breaker. Pure: who calls it keeps the time.

    ok ── failures in a row ──► open ── it answers a ping ──► half-open ── all goes well ──► ok
                                 ▲                                │
                                 └───────── one failure ──────────┘   (the pause doubles)

Whoever wants to ask takes a `Pass` and tells through it what came of it. While it is open there is
none; half-open there are a few at a time, until the first of them has an answer. What was begun
before it opened says nothing about what it is now: such a pass is not heard any more.
"""

from typing import Literal, Protocol

State = Literal["ok", "open", "half-open"]


class HealthWatcher(Protocol):
    """Told what the breaker does. Must neither raise nor wait."""

    def opened(self) -> None: ...

    def closed(self) -> None:
        """It answers again. Told once more when all has gone well to the end."""
        ...

    def rejected(self) -> None:
        """Somebody was not let through."""
        ...


class _Nobody:
    def opened(self) -> None: ...

    def closed(self) -> None: ...

    def rejected(self) -> None: ...


class Health:
    """`threshold` failures in a row open it; pauses are in seconds, between two pings. `trials`: so
    many may ask at once while it is not known whether it has recovered. Not `enforced`, everybody
    gets a pass, and the state is no more than advice."""

    def __init__(
        self,
        *,
        threshold: int = 3,
        shortest_pause: float = 1.0,
        longest_pause: float = 60.0,
        trials: int = 1,
        enforced: bool = True,
        watcher: HealthWatcher | None = None,
    ) -> None:
        self._threshold = threshold
        self._shortest = self.pause = shortest_pause
        self._longest = longest_pause
        self._trials = trials
        self.enforced = enforced
        self._watcher = watcher or _Nobody()
        self._failures = 0
        self._era = 0  # how often it opened
        self._trying = 0
        self._proven = False  # half-open, and a trial was answered
        self.state: State = "ok"

    @property
    def usable(self) -> bool:
        return self.state != "open"

    @property
    def shut(self) -> bool:
        """Open, and it means that nobody is let through."""
        return self.enforced and not self.usable

    @property
    def admits(self) -> bool:
        """Whether there is a pass now."""
        if self.state == "ok" or not self.enforced:
            return True
        return self.usable and (self._proven or self._trying < self._trials)

    def enter(self, *, always: bool = False) -> "Pass | None":
        """Leave to ask, None where there is none now. `always`: whatever the state."""
        if not (always or self.admits):
            self.reject()
            return None
        trial = self.state == "half-open" and not self._proven
        self._trying += trial
        return Pass(self, self._era, trial=trial)

    def reject(self) -> None:
        """Somebody who has not even asked for a pass was sent away."""
        self._watcher.rejected()

    def answered(self) -> None:
        """A ping was answered: what is asked next decides."""
        if self.state == "open":
            self.state = "half-open"

    def unanswered(self) -> None:
        """A ping was not: ask less often."""
        self.pause = min(2 * self.pause, self._longest)

    def close(self) -> None:
        """The part is not used any more."""
        if self.state != "ok":
            self._watcher.closed()

    # --- what a pass tells -------------------------------------------------------------------

    def hears(self, era: int) -> bool:
        return era == self._era

    def begun(self) -> None:
        self.answered()
        if self.state == "half-open" and not self._proven:
            self._proven = True
            # Now: nobody may ask anything of a proxy for hours, and an alarm would stay on.
            self._watcher.closed()

    def failed(self) -> None:
        self._failures += 1
        if self.state == "half-open":
            self.unanswered()
        elif self.state == "open" or self._failures < self._threshold:
            return
        self.state = "open"
        self._era += 1
        self._trying, self._proven = 0, False
        self._watcher.opened()

    def succeeded(self) -> None:
        self._failures = 0
        self.pause = self._shortest
        if self.state != "ok":
            self.state = "ok"
            self._watcher.closed()

    def left(self) -> None:
        self._trying -= 1


class Pass:
    """Leave to ask once. `leave` comes last, whatever came before; alone it says nothing for or
    against: the client left, or the request itself was refused."""

    __slots__ = ("_era", "_health", "_trial")

    def __init__(self, health: Health, era: int, *, trial: bool) -> None:
        self._health = health
        self._era = era
        self._trial = trial

    def begun(self) -> None:
        """An answer has begun: others are let through, and one failure opens it again."""
        if self._health.hears(self._era):
            self._health.begun()

    def failed(self) -> None:
        if self._health.hears(self._era):
            self._health.failed()

    def succeeded(self) -> None:
        """It went well to the end."""
        if self._health.hears(self._era):
            self._health.succeeded()

    def leave(self) -> None:
        trial, self._trial = self._trial, False
        if trial and self._health.hears(self._era):
            self._health.left()
