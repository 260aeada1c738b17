"""The routes: from the name that a client asks for to the targets that can serve it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stream_aligner_proxy.upstream.routing.member import Member
from stream_aligner_proxy.upstream.routing.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Target:
    """An upstream, and the model that it is asked for."""

    member: Member
    model: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.member.name}/{self.model}"


@dataclass(frozen=True, slots=True)
class Aim:
    """A target of a route; in `model` a `*` stands for what the route's matched, None for the name
    that was asked for."""

    member: Member
    model: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Those that share the conversations, and those for when they cannot, in order."""

    to: tuple[Target, ...]
    fallback: tuple[Target, ...] = ()

    def __iter__(self) -> Iterator[Target]:
        yield from self.to
        yield from self.fallback


@dataclass(frozen=True, slots=True)
class Route:
    pattern: Pattern
    to: tuple[Aim, ...]
    fallback: tuple[Aim, ...] = ()

    def targets(self, model: str) -> Targets:
        """For a name that fits."""
        star = self.pattern.match(model)
        assert star is not None

        def target(aim: Aim) -> Target:
            asked = model if aim.model is None else aim.model.replace("*", star)
            return Target(aim.member, asked, aim.weight)

        return Targets(tuple(map(target, self.to)), tuple(map(target, self.fallback)))


class Table:
    """All routes. The first that fits a name is its route."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)

    def find(self, model: str) -> int | None:
        """The number of the route for `model`."""
        for number, route in enumerate(self.routes):
            if route.pattern.match(model) is not None:
                return number
        return None

    def targets(self, model: str) -> Targets | None:
        number = self.find(model)
        return None if number is None else self.routes[number].targets(model)

    @property
    def names(self) -> list[str]:
        """The names that are no patterns, for the list of models."""
        return [route.pattern.text for route in self.routes if not route.pattern.wild]

    def leads(self, model: str, upstream: str) -> bool:
        """Whether a request for `model` may reach the model of that name at `upstream`."""
        return any(
            target.member.name == upstream and target.model == model
            for target in self.targets(model) or ()
        )
