"""From settings to what guards the app: keys, limits, and pages of other origins."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from stream_aligner_proxy.access.keyring import Keyring
from stream_aligner_proxy.access.limits import Limiter, Limits
from stream_aligner_proxy.access.memory import MemoryLimiter
from stream_aligner_proxy.access.redis_limits import RedisLimiter, RedisOptions
from stream_aligner_proxy.access.spending import Spending
from stream_aligner_proxy.api.access import Access, BringsKey
from stream_aligner_proxy.api.faces.shapes import shape_of
from stream_aligner_proxy.api.limiting import Limiting
from stream_aligner_proxy.operating.pool import Use
from stream_aligner_proxy.operating.shared import Shared
from stream_aligner_proxy.settings import Settings
from stream_aligner_proxy.settings.access import RedisSettings

_log = logging.getLogger(__name__)

# What a page of another origin may read of an answer.
_EXPOSED = (
    *("x-request-id", "retry-after", "retry-after-ms"),
    *(
        f"x-ratelimit-{what}-{kind}"
        for kind in ("requests", "tokens")
        for what in ("limit", "remaining", "reset")
    ),
    *(
        f"x-stream-aligner-{name}"
        for name in (
            *("mode", "continuation", "class", "aligner", "upstream", "passthrough", "prompt"),
            *("corrections", "branches", "discarded-tokens", "aligner-tokens", "added-ms"),
        )
    ),
)


class Guarding:
    """What one configuration says of access. Holds a limiter from the start: `drop` it, or run.

    Raises `ConfigError`.
    """

    def __init__(self, settings: Settings, shared: Shared) -> None:
        self._access = access = settings.access
        self._cors = settings.server.cors
        self._counts = shared.access_counts
        self._count_error = shared.count_error
        self._ring = Keyring(
            access.inline(),
            access.keys_file,
            access.from_file,
            every=access.watch_seconds,
            reloaded=self._counts.keys_reloaded,
        )
        make = partial(_make_limiter, access.redis, self._counts.limiter_failed)
        self._limiter: Use[Limiter] = shared.limiters.take(("limiter", access.redis), make)
        self.spending = Spending(self._limiter.part.spend)
        self.sign_in: str | None = None
        if access.asks:
            self.sign_in = access.header if access.wanted == "both" else "authorization"
        limited = any(key.limits for key in self._ring.keys.all)
        if limited and settings.server.workers > 1 and access.redis is None:
            _log.warning(
                "access: each of the %d workers counts limits for itself; access.redis is for all",
                settings.server.workers,
            )

    def drop(self) -> None:
        """It will not run."""
        self._limiter.drop()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While the app lives: limits are counted, and the keys' file is looked at."""
        await self._limiter.start()
        watching = asyncio.create_task(self._ring.watch())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await self._limiter.release()

    def limit(self, app: FastAPI) -> None:
        """Add what is inside the gate: whoever is turned away there has used up nothing."""
        address = self._access.per_address
        app.add_middleware(
            Limiting,
            limiter=self._limiter.part,
            per_address=Limits(address.requests_per_minute, max_open=address.max_open),
            shape_of=shape_of,
            count_error=self._count_error,
            refused=self._counts.refused,
        )

    def guard(self, app: FastAPI) -> None:
        """Add what is outside of the gate."""
        if self._access.asks:
            app.add_middleware(
                Access,
                identify=self._ring.identify,
                header=self._access.header if self._access.wanted == "both" else None,
                open_paths=self._access.open_paths,
                shape_of=shape_of,
                count_error=self._count_error,
                refused=self._counts.refused,
            )
        elif self._access.wanted == "pass-through":
            app.add_middleware(
                BringsKey,
                shape_of=shape_of,
                count_error=self._count_error,
                refused=self._counts.refused,
            )
        if self._cors is not None:
            # Outside: a browser's preflight has no key. No cookies are read, so none are allowed.
            app.add_middleware(
                CORSMiddleware,
                allow_origins=self._cors.origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=_EXPOSED,
            )

    def report(self) -> dict[str, Any]:
        """For `/status`: no key, no name."""
        redis = self._access.redis is not None
        return {
            "mode": self._access.wanted,
            "keys": len(self._ring.keys.all),
            "keys_error": self._ring.error,
            "limits": {"store": "redis" if redis else "memory", "state": self._limiter.part.state},
        }


def _make_limiter(settings: RedisSettings | None, failed: Any) -> Limiter:
    if settings is None:
        return MemoryLimiter()
    assert settings.url is not None
    return RedisLimiter(
        RedisOptions(
            settings.url.get_secret_value(),
            settings.prefix,
            settings.on_failure,
            settings.timeout,
            settings.lease_seconds,
        ),
        failed,
    )


async def check_access(settings: Settings) -> list[str]:
    """What an operator should know before the start. Raises `ConfigError` as the start would."""
    access = settings.access
    Keyring(access.inline(), access.keys_file, access.from_file)
    if access.redis is None:
        return []
    limiter = _make_limiter(access.redis, lambda: None)
    try:
        why = await limiter.trouble() if isinstance(limiter, RedisLimiter) else None
    finally:
        await limiter.close()
    closed = access.redis.on_failure == "closed"
    then = "limited keys would get a 503" if closed else "each process would count for itself"
    return [] if why is None else [f"access.redis: does not answer ({why}): {then}"]


def warn_if_open(settings: Settings, host: str) -> None:
    """Whoever reaches this address can use the upstreams' keys."""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = False
    if settings.access.wanted == "open" and not local:
        _log.warning(
            "access.mode is open and %s is no loopback address: whoever reaches it may use it, and "
            "the upstreams' keys with it; give access.keys_file",
            host,
        )
