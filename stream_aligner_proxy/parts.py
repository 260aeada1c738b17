"""From settings to parts: upstreams, routes, aligners. `app` runs them, `check` tries them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_aligner_proxy.aligners import registry
from stream_aligner_proxy.aligners.breaker import AlignerBreaker
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.health import Health, HealthWatcher
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.settings import (
    DEFAULT,
    AlignerSettings,
    BreakerSettings,
    CandidateSettings,
    FallbackSettings,
    RouteSettings,
    Settings,
    TargetSettings,
    UpstreamSettings,
)
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.exchange import Timeouts
from stream_aligner_proxy.upstream.prober import Prober
from stream_aligner_proxy.upstream.routing.member import Member, Terms
from stream_aligner_proxy.upstream.routing.patterns import Pattern
from stream_aligner_proxy.upstream.routing.table import Aim, Route, Table


def make_upstream(settings: UpstreamSettings) -> HttpUpstream:
    """The client. Raises `ConfigError`."""
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    return HttpUpstream(
        settings.name,
        settings.base_url,
        settings.dialect,
        api_key=key,
        continuation=settings.continuation,
        query=settings.query,
        tokenizer=settings.tokenizer,
        headers={name: value.get_secret_value() for name, value in settings.headers.items()},
        timeouts=Timeouts(**settings.timeouts.model_dump()),
        http2=settings.http2,
        ca_file=settings.ca_file,
        session_header=settings.session_header,
    )


@dataclass(frozen=True, slots=True)
class NamedAligner:
    """An aligner with the name it is configured by. `breaker` is what reviews go through."""

    name: str
    aligner: Aligner
    breaker: AlignerBreaker


def behind_breaker(
    name: str, aligner: Aligner, settings: BreakerSettings, watcher: HealthWatcher | None = None
) -> NamedAligner:
    return NamedAligner(name, aligner, AlignerBreaker(aligner, _health(settings, watcher), name))


def _health(settings: BreakerSettings, watcher: HealthWatcher | None, *, trials: int = 1) -> Health:
    return Health(
        threshold=settings.failures,
        shortest_pause=settings.pause,
        longest_pause=settings.longest_pause,
        trials=trials,
        enforced=settings.enabled,
        watcher=watcher,
    )


def make_member(
    settings: UpstreamSettings, watcher: HealthWatcher | None = None
) -> tuple[Member, Prober]:
    """The client with its terms, and what finds out how it continues. Raises `ConfigError`."""
    client = make_upstream(settings)
    terms = Terms(
        retries=settings.retries,
        max_concurrent=settings.max_concurrent,
        patience=settings.timeouts.first_byte,
        total=settings.timeouts.total,
        session_header=settings.session_header,
    )

    prober = Prober(client, enabled=settings.probe, model=settings.probe_model)
    health = _health(settings.breaker, watcher, trials=settings.breaker.trials)
    return Member(client, terms, found=lambda: prober.state, health=health), prober


def make_table(settings: Settings, members: Sequence[Member]) -> Table | None:
    """The routes, None where none is configured."""
    if not settings.routes:
        return None
    by_name = {member.name: member for member in members}

    def aim(target: FallbackSettings) -> Aim:
        weight = target.weight if isinstance(target, TargetSettings) else 1.0
        return Aim(by_name[target.upstream], target.model, weight)

    return Table(
        [
            Route(Pattern(route.model), tuple(map(aim, route.to)), tuple(map(aim, route.fallback)))
            for route in settings.routes
        ]
    )


def used_aligners(settings: Settings) -> dict[str, AlignerSettings]:
    """Those that some route uses, by name: only they are loaded."""
    known = {DEFAULT: settings.aligner, **settings.aligners}
    used = {route.aligner or DEFAULT for route in settings.routes} or {DEFAULT}
    for route in settings.routes or (None,):
        if candidate := candidate_of(settings, route):
            used.add(candidate.aligner)
    return {name: aligner for name, aligner in known.items() if name in used}


def candidate_of(settings: Settings, route: RouteSettings | None) -> CandidateSettings | None:
    """What is tried beside the aligner of `route`, None for that of all requests."""
    if route is None:
        return settings.candidate
    # The section's own candidate is compared with the section's own aligner.
    return route.candidate or (settings.candidate if route.aligner is None else None)


def checkpoint_paths(settings: AlignerSettings) -> list[Path]:
    """The files that the aligner is made of."""
    return [path for path in (settings.path, settings.adapter) if path is not None]


def watched_paths(settings: Settings) -> list[Path]:
    """All files that a running proxy was made of, beside the configuration itself."""
    paths = [
        path for aligner in used_aligners(settings).values() for path in checkpoint_paths(aligner)
    ]
    for upstream in settings.upstreams:
        paths += filter(None, (upstream.tokenizer, upstream.ca_file))
    return paths


def aligner_key(name: str) -> str:
    """Where the aligner called `name` is configured."""
    return "aligner" if name == DEFAULT else f"aligners.{name}"


def make_aligner(settings: AlignerSettings, name: str) -> Aligner:
    """Not started yet. Raises `ConfigError`."""
    try:
        return registry.create(settings.options())
    except ConfigError as error:
        raise at_key(error, name) from error


async def start_aligner(aligner: Aligner, name: str) -> None:
    """Load it. Raises `ConfigError`."""
    try:
        await aligner.start()
    except ConfigError as error:
        raise at_key(error, name) from error


def at_key(error: ConfigError, name: str) -> ConfigError:
    """An aligner's error, which calls its section `aligner`, with the key it has here."""
    told = str(error)
    if not told.startswith("aligner"):
        return error
    return ConfigError(aligner_key(name) + told.removeprefix("aligner"))
