"""Limits that several processes share, kept in Redis.

One script decides for each request, by the server's clock, so that neither two processes nor two
clocks can disagree. A place is a lease that its process renews: those of a process that was killed
end by themselves. What needs no answer (places given back, tokens spent) is sent by one task, so
that nothing waits for it. A client that asks again as soon as it is answered may be faster than
that task: so its next request takes the places it gave back along.

While Redis cannot be reached no request waits for it but those that find out: they are refused, or
counted by this process alone, as the operator chose.
"""

import asyncio
import logging
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from stream_aligner_proxy.access.limits import (
    MINUTE,
    Decision,
    Kind,
    Limits,
    Place,
    Standing,
)
from stream_aligner_proxy.access.memory import MemoryLimiter
from stream_aligner_proxy.core.errors import ConfigError, Overloaded

_log = logging.getLogger(__name__)

_SCRIPTS = {name: Path(__file__).with_name(f"{name}.lua").read_text() for name in ("take", "spend")}
_CONNECTIONS = 32
_RETRY_SECONDS = 1.0  # between attempts to reach a Redis that is away


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """`url`: with what credentials it needs. `prefix`: of all keys. `timeout`: seconds that one
    call may take. `lease`: seconds after which the places of a dead process come back."""

    url: str
    prefix: str = "stream-aligner"
    on_failure: Literal["open", "closed"] = "open"
    timeout: float = 0.25
    lease: float = 30.0


class _Lease:
    """A place in Redis. Given back once."""

    __slots__ = ("_back", "decision", "id", "who")

    def __init__(self, who: str, back: Callable[["_Lease"], None]) -> None:
        self.who = who
        self.id = uuid.uuid4().hex
        self.decision = Decision()
        self._back: Callable[[_Lease], None] | None = back

    def release(self) -> None:
        if self._back is not None:
            self._back(self)
            self._back = None


class RedisLimiter:
    """Implements `Limiter`. Raises `ConfigError` for an address that is none, or without the
    package `redis`. `failed` is called whenever Redis turns out to be away."""

    def __init__(self, options: RedisOptions, failed: Callable[[], None] = lambda: None) -> None:
        self._options = options
        self._failed = failed
        self._redis, self._errors = _client(options)
        self._take = self._redis.register_script(_SCRIPTS["take"])
        self._spend = self._redis.register_script(_SCRIPTS["spend"])
        self._alone = MemoryLimiter()  # in place of a Redis that is away
        self._away = False
        self._held: set[_Lease] = set()
        self._given_back: dict[str, dict[str, None]] = {}  # lease ids, by who; until Redis knows
        self._spent: dict[str, int] = {}
        self._rates: dict[str, int] = {}  # tokens a minute, by who
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        return "unreachable" if self._away else "ok"

    async def start(self) -> None:
        """A Redis that cannot be reached yet does not hold up the start."""
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Tell what is left to tell, and leave."""
        self._closing.set()
        self._wake.set()
        if self._task is not None:
            # Told rather than cancelled: in the middle of a call that may be taken for a failure.
            await asyncio.wait((self._task,), timeout=8 * self._options.timeout + 1)
            self._task.cancel()
        await self._redis.aclose()

    async def trouble(self) -> str | None:
        """Why it cannot be asked, in a word; None where it can."""
        try:
            await self._redis.ping()
        except self._errors as error:
            return type(error).__name__
        return None

    async def take(self, who: str, limits: Limits) -> Place:
        if limits.tokens_per_minute:
            self._rates[who] = limits.tokens_per_minute
        if self._away:
            return await self._without(who, limits)
        lease = _Lease(who, self._give_back)
        try:
            lease.decision = await self._ask(lease, limits)
        except asyncio.CancelledError:
            self._give_back(lease)  # it may have been taken
            raise
        except self._errors as error:
            self._give_back(lease)
            self._lose(error)
            return await self._without(who, limits)
        if lease.decision.refused is not None:
            raise lease.decision.error(limits)
        if limits.max_open:
            self._held.add(lease)
        return lease

    def spend(self, who: str, tokens: int) -> None:
        if who not in self._rates:
            return
        self._spent[who] = self._spent.get(who, 0) + tokens
        self._alone.spend(who, tokens)
        self._wake.set()

    async def _ask(self, lease: _Lease, limits: Limits) -> Decision:
        keys = [self._name(lease.who, kind) for kind in ("requests", "tokens", "open")]
        arguments = [
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.max_open,
            lease.id,
            math.ceil(1000 * self._options.lease),
        ]
        back = tuple(self._given_back.get(lease.who, ()))
        async with asyncio.timeout(self._options.timeout):
            refused, retry, *told = await self._take(keys=keys, args=[*arguments, *back])
        left, reset, tokens_left, tokens_reset = map(int, told)
        return Decision(
            _standing(limits.requests_per_minute, left, reset),
            _standing(limits.tokens_per_minute, tokens_left, tokens_reset),
            cast(Kind, refused.decode()) if refused else None,
            int(retry) / 1000,
        )

    async def _without(self, who: str, limits: Limits) -> Place:
        if self._options.on_failure == "closed":
            raise Overloaded(
                "The limits of this API key cannot be looked up now.",
                headers={"retry-after": "1"},
            )
        return await self._alone.take(who, limits)

    def _give_back(self, lease: _Lease) -> None:
        self._held.discard(lease)
        self._given_back.setdefault(lease.who, {})[lease.id] = None
        self._wake.set()

    def _forget(self, who: str, ids: Iterable[str]) -> None:
        """Only by the task that renews too: a renewal under way would bring a lease back."""
        waiting = self._given_back[who]
        for one in ids:
            del waiting[one]
        if not waiting:
            del self._given_back[who]

    async def _keep(self) -> None:
        """Tell Redis what there is to tell and renew the leases, until it is closed."""
        while not self._closing.is_set():
            if self._away:
                await _happened(self._closing, _RETRY_SECONDS)
            else:
                await _happened(self._wake, self._options.lease / 3)
            self._wake.clear()
            await self._tell()

    async def _tell(self) -> None:
        back = {who: tuple(ids) for who, ids in self._given_back.items()}
        spent, self._spent = self._spent, {}
        lease = math.ceil(1000 * self._options.lease)
        try:
            async with asyncio.timeout(4 * self._options.timeout):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for who, ids in back.items():
                        pipe.zrem(self._name(who, "open"), *ids)
                    await pipe.execute()
                for who, ids in back.items():
                    self._forget(who, ids)
                told = bool(back or spent)
                while spent:
                    who, tokens = next(iter(spent.items()))
                    ahead = tokens * 1000 * MINUTE / self._rates[who]
                    await self._spend(keys=[self._name(who, "tokens")], args=[f"{ahead:.3f}"])
                    del spent[who]
                if self._held:
                    await self._renew(lease)
                elif not told:
                    await self._redis.ping()
        except self._errors as error:
            # What was not told is told when Redis is back.
            for who, tokens in spent.items():
                self._spent[who] = self._spent.get(who, 0) + tokens
            self._lose(error)
        else:
            if self._away:
                self._away = False
                _log.warning("access.redis: is back; limits are shared again")

    async def _renew(self, milliseconds: int) -> None:
        seconds, micros = await self._redis.time()
        until = seconds * 1000 + micros // 1000 + milliseconds
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in tuple(self._held):
                name = self._name(one.who, "open")
                pipe.zadd(name, {one.id: until})  # or again, if Redis has lost it
                pipe.pexpire(name, milliseconds)
            await pipe.execute()

    def _lose(self, error: Exception) -> None:
        self._failed()
        if not self._away:
            self._away = True
            alone = "each process counts for itself"
            what = alone if self._options.on_failure == "open" else "requests are refused"
            # The error's own words may hold the address.
            _log.error("access.redis: cannot be reached (%s): %s", type(error).__name__, what)
        self._wake.set()

    def _name(self, who: str, kind: str) -> str:
        # In a cluster the braces keep the keys of one client together.
        return f"{self._options.prefix}:{{{who}}}:{kind}"


async def _happened(event: asyncio.Event, seconds: float) -> None:
    """Wait for it, but no longer than that."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def _standing(limit: int, remaining: int, reset: int) -> Standing | None:
    return Standing(limit, remaining, reset / 1000) if limit else None


def _client(options: RedisOptions) -> tuple[Any, tuple[type[Exception], ...]]:
    """The client, and what it raises when Redis is away, or does not do what it is asked."""
    try:
        from redis.asyncio import BlockingConnectionPool, Redis  # noqa: PLC0415
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import RedisError  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "access.redis: needs the package redis; pip install 'stream-aligner-proxy[redis]'"
        ) from None
    try:
        pool = BlockingConnectionPool.from_url(
            options.url,
            max_connections=_CONNECTIONS,
            timeout=options.timeout,
            socket_timeout=options.timeout,
            socket_connect_timeout=options.timeout,
            # By default it would try again for seconds.
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):
        raise ConfigError(
            "access.redis.url: must be redis://, rediss:// or unix://, such as redis://127.0.0.1:6379/0"
        ) from None
    return Redis.from_pool(pool), (RedisError, OSError, TimeoutError)
