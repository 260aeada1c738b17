"""The section `routes`: which upstream gets which model, and how its replies are aligned."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.settings.base import Name, Section
from stream_aligner_proxy.settings.candidate import CandidateSettings
from stream_aligner_proxy.settings.sections import AlignmentSettings
from stream_aligner_proxy.settings.upstreams import pattern
from stream_aligner_proxy.upstream.routing.patterns import Pattern

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FallbackSettings(Section):
    """An upstream that serves a route when those before it cannot. `model`: what it is asked for,
    `*` standing for what the route's `*` matched; by default what the client asked for."""

    upstream: Name
    model: Annotated[str, Field(min_length=1)] | None = None


class TargetSettings(FallbackSettings):
    """An upstream that shares the conversations of a route, by its weight."""

    weight: Weight = 1.0


class RouteSettings(Section):
    """What becomes of requests for `model`, a name or a pattern with one `*`.

    `alignment`: the keys that differ from the section of that name. `candidate`: a new aligner
    beside the route's own; by default that of the section of that name, where the route has no
    `aligner` of its own.
    """

    model: Annotated[str, AfterValidator(pattern)]
    to: Annotated[tuple[TargetSettings, ...], Field(min_length=1)]
    fallback: tuple[FallbackSettings, ...] = ()
    aligner: Name | None = None
    alignment: AlignmentSettings | None = None
    candidate: CandidateSettings | None = None


def with_alignment(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """`data` with each route's `alignment` laid over the section of that name. What has another
    shape is left as it is, to be told by its key."""
    routes, base = data.get("routes"), data.get("alignment", {})
    if not isinstance(routes, list) or not isinstance(base, Mapping):
        return data
    return {**data, "routes": [_over(base, route) for route in routes]}


def _over(base: Mapping[str, Any], route: Any) -> Any:
    if not isinstance(route, Mapping) or not isinstance(route.get("alignment"), Mapping):
        return route
    return {**route, "alignment": {**base, **route["alignment"]}}


def check_routes(
    routes: Sequence[RouteSettings], upstreams: Sequence[str], aligners: Sequence[str]
) -> None:
    """What only all sections together can show. Raises `ConfigError`.

    A route leads to upstreams and never to another route, so no cycle can be written.
    """
    for index, route in enumerate(routes):
        where = f"routes[{index}]"
        for before, other in enumerate(routes[:index]):
            if other.model == route.model:
                raise ConfigError(f"{where}.model: routes[{before}] has the same model")
            if Pattern(other.model).match(route.model) is not None:
                raise ConfigError(
                    f"{where}.model: is never reached, for routes[{before}] takes all that fits; "
                    "put it before that one"
                )
        if route.aligner is not None:
            _check_aligner(route.aligner, f"{where}.aligner", aligners)
        if route.candidate is not None:
            check_candidate(route.candidate, route.aligner, f"{where}.candidate", aligners)
        _check_targets(route, where, upstreams)


def check_candidate(
    candidate: CandidateSettings, current: str | None, where: str, aligners: Sequence[str]
) -> None:
    """Raises `ConfigError`. `current` is the route's own aligner."""
    _check_aligner(candidate.aligner, f"{where}.aligner", aligners)
    if candidate.aligner == current:
        raise ConfigError(f"{where}.aligner: is the aligner that it would be compared with")


def _check_aligner(name: str, key: str, aligners: Sequence[str]) -> None:
    if name not in aligners:
        raise ConfigError(
            f"{key}: unknown aligner; in `aligners` are: {', '.join(aligners) or '-'}"
        )


def _check_targets(route: RouteSettings, where: str, upstreams: Sequence[str]) -> None:
    seen: dict[tuple[str, str | None], str] = {}
    lists = (("to", route.to), ("fallback", route.fallback))
    for key, target in ((f"{where}.{n}[{i}]", t) for n, ts in lists for i, t in enumerate(ts)):
        if target.upstream not in upstreams:
            raise ConfigError(
                f"{key}.upstream: unknown upstream; in `upstreams` are: {', '.join(upstreams)}"
            )
        if "*" in (target.model or "") and "*" not in route.model:
            raise ConfigError(f"{key}.model: has a *, but {where}.model has none to fill it with")
        same = seen.setdefault((target.upstream, target.model), key)
        if same != key:
            raise ConfigError(f"{key}: is {same.removeprefix(where + '.')} once more")
