"""How the replies of each route are aligned: from settings and loaded aligners to treatments."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stream_aligner_proxy.aligners.beside import Shadowed
from stream_aligner_proxy.aligners.breaker import AlignerBreaker
from stream_aligner_proxy.api.canary import Canary, Reviewer
from stream_aligner_proxy.api.plan import SCOPE_OF, Rules
from stream_aligner_proxy.api.service import Candidate, Treatment
from stream_aligner_proxy.core.comparing import ComparisonWatcher, Pair, Unwatched
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.parts import candidate_of
from stream_aligner_proxy.settings import (
    DEFAULT,
    AlignmentSettings,
    CandidateSettings,
    Settings,
)


def make_treatments(
    settings: Settings,
    aligners: Mapping[str, AlignerBreaker],
    watcher: ComparisonWatcher | None = None,
) -> list[Treatment]:
    """One for each route, or a single one where there is none. `watcher` is told of candidates."""
    watcher = watcher or Unwatched()
    treatments = []
    for route in settings.routes or (None,):
        own, name = (None, None) if route is None else (route.alignment, route.aligner)
        name = name or DEFAULT
        pattern = DEFAULT if route is None else route.model
        treatment = _treatment(own or settings.alignment, name, aligners[name], pattern)
        if candidate := candidate_of(settings, route):
            with_it = aligners[candidate.aligner]
            treatment = _beside(treatment, candidate, with_it, watcher)
        treatments.append(treatment)
    return treatments


def _beside(
    treatment: Treatment,
    settings: CandidateSettings,
    candidate: AlignerBreaker,
    watcher: ComparisonWatcher,
) -> Treatment:
    """The same with a candidate: in the shadow of its aligner, or in its place at times."""
    name, aligner, kind, percent = (
        settings.aligner,
        treatment.aligner,
        settings.as_,
        settings.percent,
    )
    if kind == "shadow":
        shadowed = Shadowed(
            aligner,
            candidate,
            Pair(treatment.aligner_name, name),
            watcher,
            share=settings.share,
            most=settings.max_concurrent,
        )
        beside = Candidate(name, candidate, kind, percent)
        return replace(treatment, aligner=shadowed, candidate=beside)
    current = Reviewer(treatment.aligner_name, aligner, treatment.refusal)
    canary = Canary(current, Reviewer(name, candidate, candidate.refusal), settings.share, watcher)
    return replace(treatment, candidate=Candidate(name, candidate, kind, percent, canary))


def check_treatments(settings: Settings, treatments: Sequence[Treatment]) -> None:
    """Raises `ConfigError` for what an aligner cannot do; they must have been started."""
    for number, treatment in enumerate(treatments):
        route = settings.routes[number] if settings.routes else None
        own = route is not None and route.alignment is not None
        _check(treatment, f"routes[{number}].alignment" if own else "alignment")
        own = route is not None and route.candidate is not None
        _check_candidate(treatment, f"routes[{number}].candidate" if own else "candidate")


def _treatment(
    alignment: AlignmentSettings, name: str, aligner: AlignerBreaker, route: str = DEFAULT
) -> Treatment:
    rules = Rules(
        alignment.mode,
        alignment.allow_override,
        alignment.provenance,
        alignment.structured_output == "pass",
        alignment.strength,
        alignment.logprobs == "unchanged",
    )
    return Treatment(name, aligner, rules, alignment.policy, route, aligner.refusal)


def _check(treatment: Treatment, where: str) -> None:
    """A route's own mode must be one its aligner can work in, its strength one it obeys."""
    mode, aligner = treatment.rules.mode, treatment.aligner
    least, most = aligner.strengths
    if not least <= treatment.rules.strength <= most:
        able = f"it obeys {least:g} to {most:g}" if least < most else f"it can only be {least:g}"
        raise ConfigError(
            f"{where}.strength: the aligner {aligner.name} cannot be dialled to "
            f"{treatment.rules.strength:g}: {able}"
        )
    if mode is not Mode.OFF and SCOPE_OF[mode] not in aligner.scopes:
        able = ", ".join(m for m in Mode if m is Mode.OFF or SCOPE_OF[m] in aligner.scopes)
        raise ConfigError(
            f"{where}.mode: the aligner {aligner.name} cannot work in mode {mode}; "
            f"it can in: {able}"
        )


def _check_candidate(treatment: Treatment, where: str) -> None:
    """A candidate must be able to do what the route does by default."""
    candidate, rules = treatment.candidate, treatment.rules
    if candidate is None or rules.mode is Mode.OFF:
        return
    least, most = candidate.aligner.strengths
    if SCOPE_OF[rules.mode] not in candidate.aligner.scopes:
        raise ConfigError(f"{where}.aligner: {candidate.name} cannot work in mode {rules.mode}")
    if not least <= rules.strength <= most:
        raise ConfigError(
            f"{where}.aligner: {candidate.name} cannot be dialled to {rules.strength:g}"
        )
