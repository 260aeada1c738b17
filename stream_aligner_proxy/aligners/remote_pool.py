"""Which of several servers is asked, and which of them are up.

Rendezvous hashing on the beginning of the conversation: the reviews of one reply, and of the talk's
next one, meet the same server and its prefix cache, whatever other servers come and go. Where that
server has `MARGIN` more requests in flight than the least busy one, the latter is asked instead.

A task per server asks it for a sign of life, soon after anything failed and every few seconds
otherwise; one that is up again is got to know anew, since it may serve something else now.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from hashlib import blake2b

from stream_aligner_proxy.aligners.remote_server import Server, Unanswered
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review

log = logging.getLogger(__name__)

MARGIN = 8  # requests in flight more than the least busy server has
UP_SECONDS, DOWN_SECONDS = 5.0, 1.0  # between two signs of life
PING_SECONDS = 3.0
_PINGS = 2  # that go without an answer: a busy server may be late once
# Some servers compile something at their first request.
INTRODUCTION_SECONDS = 30.0
# Of each turn: what follows says no more about which talk it is.
_KEY_CHARS = 2048

Introduce = Callable[[Server], Awaitable[None]]


def key_of(review: Review) -> bytes:
    """What the reviews of one talk have in common: all up to the first user turn."""
    digest = blake2b(digest_size=16)
    for turn in review.conversation:
        digest.update(repr((turn.role, turn.text[:_KEY_CHARS])).encode("utf-8", "replace"))
        if turn.role == "user":
            break
    return digest.digest()


class Pool:
    """Servers, and the tasks that watch them. `introduce` gets to know one, or raises."""

    def __init__(self, servers: Sequence[Server], introduce: Introduce) -> None:
        self.servers = tuple(servers)
        self._introduce = introduce
        self._doubts = {server: asyncio.Event() for server in servers}
        self._complaints: dict[Server, str] = {}
        self._watching: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> bool:
        return any(server.up for server in self.servers)

    async def start(self) -> None:
        """Get to know all servers that are up. Raises `ConfigError` for one that never works."""
        for found in await asyncio.gather(*map(self._meet, self.servers), return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
        for server in self.servers:
            if not server.up:
                log.warning("aligner.%s: does not answer; used as soon as it does", server.label)
        self._watching = [asyncio.create_task(self._watch(server)) for server in self.servers]

    async def close(self) -> None:
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for server in self.servers:
            server.up = False

    def choose(self, key: bytes, tried: Collection[Server] = ()) -> Server | None:
        """The server to ask, of those that are up and not asked to be left alone; None if none."""
        now = asyncio.get_running_loop().time()
        free = [
            server
            for server in self.servers
            if server.up and server not in tried and server.rests_until <= now
        ]
        if not free:
            return None
        best = max(free, key=lambda server: _score(key, server))
        idle = min(free, key=lambda server: server.running)
        return idle if best.running - idle.running > MARGIN else best

    def last_resort(self, key: bytes) -> Server | None:
        """Where none is up: the one that would be asked if it were."""
        known = [server for server in self.servers if server.abilities is not None]
        return max(known, key=lambda server: _score(key, server), default=None)

    def rest(self) -> float:
        """Seconds until one that is up may be asked again."""
        now = asyncio.get_running_loop().time()
        waits = [server.rests_until - now for server in self.servers if server.up]
        return max(0.0, min(waits, default=0.0))

    def failed(self, server: Server, error: Unanswered) -> None:
        """Note what became of a request."""
        if error.after is not None:
            server.rests_until = asyncio.get_running_loop().time() + error.after
        if error.lost:
            if server.up:
                log.warning("aligner.%s: %s", server.label, error.message)
            server.up = False
            self.doubt(server)

    def doubt(self, server: Server) -> None:
        """Have it asked for a sign of life now."""
        self._doubts[server].set()

    async def _watch(self, server: Server) -> None:
        doubt = self._doubts[server]
        while True:
            if server.up:
                try:
                    async with asyncio.timeout(UP_SECONDS):
                        await doubt.wait()
                except TimeoutError:
                    pass
            else:
                await asyncio.sleep(DOWN_SECONDS)
            doubt.clear()
            try:
                await (self._ping(server) if server.up else self._meet(server))
            except ConfigError as error:
                if self._complaints.get(server) != str(error):
                    log.error("%s; it is not used", error)
                self._complaints[server] = str(error)
            except Exception:
                log.exception("aligner.%s could not be watched", server.label)

    async def _meet(self, server: Server) -> None:
        """Introduce a server; it is up then. Raises `ConfigError`."""
        try:
            async with asyncio.timeout(INTRODUCTION_SECONDS):
                await self._introduce(server)
        except (ReviewError, TimeoutError) as error:
            log.debug("aligner.%s: %s", server.label, error)
            return
        server.up = True
        server.rests_until = 0.0
        log.info("aligner.%s: is up and serves %s", server.label, server.model)

    async def _ping(self, server: Server) -> None:
        for _ in range(_PINGS):
            try:
                async with asyncio.timeout(PING_SECONDS):
                    await server.alive()
                return
            except TimeoutError:
                continue
            except ReviewError:
                break
        server.up = False
        log.warning("aligner.%s: gives no sign of life", server.label)


def _score(key: bytes, server: Server) -> bytes:
    return blake2b(key + server.address.encode(), digest_size=16).digest()
