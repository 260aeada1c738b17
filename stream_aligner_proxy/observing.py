"""From settings to observers. Those of the same settings are shared by all apps of a process."""

import asyncio
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import SecretStr

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.watching import ClosableObserver
from stream_aligner_proxy.observers.audit import AuditLog, Sampling
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts, Sizes
from stream_aligner_proxy.observers.redacting import Redaction
from stream_aligner_proxy.operating.pool import Pool, Use
from stream_aligner_proxy.settings import AuditSettings, Settings, TracingSettings

# How the semantic conventions call who is behind a dialect; others have no name there but theirs.
_PROVIDERS = {
    "openai": "openai",
    "azure": "azure.ai.openai",
    "anthropic": "anthropic",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "gemini-openai": "gcp.gemini",
    "mistral": "mistral_ai",
    "deepseek": "deepseek",
    "groq": "groq",
}


Observers = Pool[ClosableObserver]


async def _start(observer: ClosableObserver) -> None:
    """They are ready when they are made."""


async def _close(observer: ClosableObserver) -> None:
    await asyncio.to_thread(observer.close)


def observer_pool() -> Observers:
    return Pool(_start, _close)


def take_observers(
    settings: Settings,
    pool: Observers,
    counts: Counts,
    spans_dropped: Callable[[str, int], None],
) -> list[Use[ClosableObserver]]:
    """Those that the settings ask for. Raises `ConfigError`, and holds nothing then."""
    uses: list[Use[ClosableObserver]] = []
    audit, tracing = settings.audit, settings.tracing
    try:
        if audit is not None:
            uses.append(pool.take(audit, lambda: _audit(audit, counts)))
        if tracing is not None:
            who = {
                upstream.name: _PROVIDERS.get(upstream.dialect, upstream.dialect)
                for upstream in settings.upstreams
            }
            uses.append(pool.take((tracing, who), lambda: _traces(tracing, who, spans_dropped)))
    except ConfigError:
        for use in uses:
            use.drop()
        raise
    return uses


def check_observers(settings: Settings) -> None:
    """Raises `ConfigError` for what the start would end at, and makes nothing."""
    if settings.tracing is not None:
        _trace_modules()
    if settings.audit is not None:
        folder = settings.audit.path
        there = next((at for at in (folder, *folder.parents) if at.exists()), folder)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"audit.path: {folder}: cannot be written to")


def _audit(settings: AuditSettings, counts: Counts) -> ClosableObserver:
    rules = [
        rule if isinstance(rule, str) else (rule.find, rule.replace) for rule in settings.redact
    ]
    sizes = Sizes(settings.max_bytes, settings.keep, settings.queue_bytes)
    try:
        files = AuditFiles(settings.path, sizes, sync=settings.sync, counts=counts)
    except OSError as error:
        raise ConfigError(f"audit.path: {settings.path}: {error.strerror}") from None
    sampling = Sampling(settings.sample, settings.corrected)
    return AuditLog(files, Redaction(rules), sampling, counts, most_chars=settings.max_reply_chars)


def _traces(
    settings: TracingSettings,
    providers: Mapping[str, str],
    spans_dropped: Callable[[str, int], None],
) -> ClosableObserver:
    traces, export = _trace_modules()
    provider = export.make_provider(
        settings.endpoint,
        service_name=settings.service_name,
        sample=settings.sample,
        headers=_headers(settings.headers),
        dropped=spans_dropped,
    )
    content = traces.Content(settings.content, settings.max_chars)
    made: ClosableObserver = traces.Traces(traces.Tracing(provider, providers, content))
    return made


def _trace_modules() -> tuple[Any, Any]:
    try:
        return (
            import_module("stream_aligner_proxy.observers.traces"),
            import_module("stream_aligner_proxy.observers.trace_export"),
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing: the package {error.name} is missing; install stream-aligner-proxy[traces]"
        ) from None


def _headers(secret: SecretStr | None) -> dict[str, str]:
    text = "" if secret is None else secret.get_secret_value()
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
