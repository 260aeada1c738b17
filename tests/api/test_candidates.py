"""A new aligner beside the one at work: in its shadow, or with a share of the conversations."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream_aligner_proxy import parts
from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review, Verdict
from tests.api.proxy import REPLY, Proxy, proxy, settings
from tests.fakes import FunctionAligner
from tests.servers import refused_address
from tests.waiting import until, until_told

pytestmark = pytest.mark.anyio

NAME = "x-stream-aligner-aligner"


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Fakes":
    return Fakes(monkeypatch, tmp_path)


class Fakes:
    """Makes a configured aligner one of the test's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._made: dict[Path, FunctionAligner] = {}
        self._folder = folder
        create = parts.registry.create
        monkeypatch.setattr(
            parts.registry,
            "create",
            lambda options: self._made.get(options["path"]) or create(options),
        )

    def section(self, aligner: FunctionAligner, **more: Any) -> dict[str, Any]:
        path = self._folder / f"{len(self._made)}.yaml"
        path.write_text("[]")
        self._made[path] = aligner
        return {"backend": "rules", "path": str(path), **more}


def saying(word: str, text: str, *, end: bool = False) -> FunctionAligner:
    return FunctionAligner(lambda r: Verdict(text, end) if word in r.sentence else Verdict())


def failing() -> FunctionAligner:
    def judge(review: Review) -> Verdict:
        raise ReviewError("down")

    return FunctionAligner(judge)


async def counts(p: Proxy) -> dict[str, dict[str, float]]:
    """The candidate metrics: by name, and by the labels that are not the pair's names."""
    text = (await p.client.get("/metrics")).text
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = sample.name.removeprefix("stream_aligner_candidate_")
            if own == sample.name or own.endswith(("_created", "_bucket")):
                continue
            labels = dict(sample.labels)
            assert (labels.pop("current"), labels.pop("candidate")) == ("default", "new")
            found.setdefault(own, {})[" ".join(labels.values())] = sample.value
    return found


async def compared(p: Proxy, number: int) -> dict[str, dict[str, float]]:
    """The same when so many sentences were reviewed by both."""

    async def there() -> bool:
        return sum((await counts(p)).get("comparisons_total", {}).values()) >= number

    await until_told(there)
    return await counts(p)


def candidate(kind: str, percent: float = 100, **more: Any) -> dict[str, Any]:
    return {"aligner": "new", "as": kind, "percent": percent, **more}


async def test_in_shadow_both_review_each_sentence_and_the_counts_add_up(fakes: Fakes) -> None:
    new = saying("eats", "She ate one.")
    async with proxy(
        aligner=saying("Anna", "Anna has 4 apples."),
        aligners={"new": fakes.section(new)},
        candidate=candidate("shadow"),
        script={"prefill": "continues"},
    ) as p:
        answer = await p.post()
        found = await compared(p, 3)
    assert answer.headers[NAME] == "default"
    text = answer.json()["choices"][0]["message"]["content"]
    assert text == "Anna has 4 apples. She eats one. So 2 are left."
    agreed = found["comparisons_total"]
    assert agreed["only_current"] == 1
    assert agreed["only_candidate"] >= 1
    total = sum(agreed.values())
    for side in ("current", "candidate"):
        told = found["reviews_total"]
        assert sum(told.get(f"{side} {v}", 0) for v in ("keep", "replace", "failed")) == total
        assert found["review_seconds_count"][side] == total
    assert found["similarity_count"][""] == agreed["only_current"] + agreed["only_candidate"]
    assert "skipped_total" not in found
    assert len(new.asked) == total


async def test_who_ends_a_reply_is_counted(fakes: Fakes) -> None:
    async with proxy(
        aligners={"new": fakes.section(saying("So", "So 2.", end=True))},
        candidate=candidate("shadow"),
    ) as p:
        await p.post()
        found = await compared(p, 3)
    assert found["ends_total"] == {"candidate": 1}


async def test_a_shadow_that_hangs_changes_no_reply_and_ends_with_the_app(fakes: Fakes) -> None:
    new = FunctionAligner(gate=asyncio.Event())
    async with proxy(
        aligners={"new": fakes.section(new)},
        candidate=candidate("shadow", max_concurrent=1),
    ) as p:
        for _ in range(2):
            answer = await p.post()
            assert answer.json()["choices"][0]["message"]["content"] == REPLY
        await until(lambda: new.running == 1)
        found = await counts(p)
    assert found["skipped_total"] == {"busy": 5}
    assert "comparisons_total" not in found
    assert (new.running, new.cancelled) == (0, 1)


async def test_a_shadow_that_fails_changes_no_reply(fakes: Fakes) -> None:
    section = fakes.section(
        failing(), breaker={"failures": 2, "pause": 1000, "longest_pause": 1000}
    )
    async with proxy(aligners={"new": section}, candidate=candidate("shadow")) as p:
        answer = await p.post()
        assert answer.json()["choices"][0]["message"]["content"] == REPLY
        found = await compared(p, 3)
        ready = await p.client.get("/readyz")
        status = (await p.client.get("/status")).json()
    assert found["comparisons_total"] == {"candidate_failed": 3}
    assert (ready.status_code, ready.json()["aligner"]) == (200, "open")
    assert status["default"]["candidate"] == {"aligner": "new", "as": "shadow", "percent": 100}
    states = {one["name"]: one["state"] for one in status["aligners"]}
    assert states == {"default": "ok", "new": "open"}


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow"])
async def test_a_canary_has_whole_conversations(fakes: Fakes, mode: str) -> None:
    new, old = FunctionAligner(), FunctionAligner()
    async with proxy(
        aligner=old, aligners={"new": fakes.section(new)}, candidate=candidate("canary", 40)
    ) as p:
        took: dict[str, set[str]] = {}
        for question in map(str, range(20)):
            talk = [{"role": "user", "content": question}]
            for _ in range(2):
                answer = await p.post(messages=talk, stream_aligner={"mode": mode})
                took.setdefault(question, set()).add(answer.headers[NAME])
                talk += [
                    {"role": "assistant", "content": answer.text[:20]},
                    {"role": "user", "content": "And then?"},
                ]
        found = await counts(p)
    assert all(len(names) == 1 for names in took.values())
    assert {"default", "new"} == set.union(*took.values())
    told = found["reviews_total"]
    assert (told["current keep"], told["candidate keep"]) == (len(old.asked), len(new.asked))
    for aligner, name in ((old, "default"), (new, "new")):
        theirs = {q for q, names in took.items() if names == {name}}
        assert {review.conversation[0].text for review in aligner.asked} == theirs


@pytest.mark.parametrize(("percent", "name"), [(0, "default"), (100, "new")])
async def test_a_canary_may_have_nothing_or_all(fakes: Fakes, percent: int, name: str) -> None:
    async with proxy(
        aligners={"new": fakes.section(FunctionAligner())}, candidate=candidate("canary", percent)
    ) as p:
        for question in map(str, range(5)):
            answer = await p.post(messages=[{"role": "user", "content": question}])
            assert answer.headers[NAME] == name
        aligned = await p.client.post("/v1/align", json={"question": "q", "answer": "One."})
        assert aligned.json()["aligner"] == name


async def test_a_canary_that_is_down_leaves_its_conversations_to_the_current_one(
    fakes: Fakes,
) -> None:
    section = fakes.section(
        failing(), breaker={"failures": 1, "pause": 1000, "longest_pause": 1000}
    )
    async with proxy(aligners={"new": section}, candidate=candidate("canary")) as p:
        assert (await p.post()).status_code == 502
        answer = await p.post()
        found = await counts(p)
        assert (await p.client.get("/readyz")).status_code == 200
    assert (answer.status_code, answer.headers[NAME]) == (200, "default")
    assert found["skipped_total"] == {"unavailable": 1}
    assert found["reviews_total"]["candidate failed"] >= 1
    assert found["reviews_total"]["current keep"] == 3


async def test_a_canary_that_cannot_do_what_a_request_asks_leaves_it(fakes: Fakes) -> None:
    new = FunctionAligner()
    new.scopes = frozenset(("sentence",))
    async with proxy(aligners={"new": fakes.section(new)}, candidate=candidate("canary")) as p:
        whole = await p.post(stream_aligner={"mode": "whole"})
        found = await counts(p)
    assert (whole.status_code, whole.headers[NAME]) == (200, "default")
    assert found["skipped_total"] == {"unable": 1}


async def test_each_route_has_its_own_candidate_or_that_of_the_section(fakes: Fakes) -> None:
    to = [{"upstream": "main", "model": "scripted"}]
    routes = [
        {"model": "a", "to": to},
        {"model": "b", "to": to, "candidate": candidate("canary", 0)},
        {"model": "c", "to": to, "aligner": "other"},
        {"model": "d", "to": to, "aligner": "other", "candidate": candidate("canary")},
    ]
    aligners = {
        "new": fakes.section(FunctionAligner()),
        "other": fakes.section(FunctionAligner()),
    }
    async with proxy(aligners=aligners, routes=routes, candidate=candidate("canary")) as p:
        names = [(await p.post(model=model)).headers[NAME] for model in "abcd"]
    assert names == ["new", "default", "other", "new"]


@contextmanager
def refusing(key: str) -> Iterator[None]:
    with pytest.raises(ConfigError, match=key):
        yield


def test_a_wrong_candidate_is_told_by_its_key(fakes: Fakes) -> None:
    to = [{"upstream": "main"}]
    aligners = {"new": fakes.section(FunctionAligner())}

    def read(**sections: Any) -> None:
        settings(refused_address(), aligners=aligners, **sections)

    with refusing(r"^candidate\.aligner: unknown aligner; in `aligners` are: new"):
        read(candidate={"aligner": "newer", "as": "canary"})
    with refusing(r"^candidate\.as: .*'shadow' or 'canary'"):
        read(candidate={"aligner": "new", "as": "test"})
    with refusing(r"^candidate\.percent: "):
        read(candidate=candidate("canary", 101))
    with refusing(r"^candidate\.how: unknown key; .*allowed: aligner, as, percent"):
        read(candidate=candidate("canary", how="x"))
    with refusing(r"^routes\[0\]\.candidate\.aligner: is the aligner"):
        route = {"model": "x", "to": to, "aligner": "new", "candidate": candidate("canary")}
        read(routes=[route])
    with refusing(r"^candidate: every route has an aligner of its own"):
        read(
            routes=[{"model": "x", "to": to, "aligner": "new"}],
            candidate=candidate("canary"),
        )
    with refusing(r"^aligner\.breaker: .*longest_pause"):
        read(
            aligner={
                "backend": "rules",
                "path": __file__,
                "breaker": {"pause": 5, "longest_pause": 1},
            }
        )


@pytest.mark.parametrize("of_route", [True, False])
async def test_a_candidate_that_cannot_do_what_the_route_does_stops_the_start(
    fakes: Fakes, of_route: bool
) -> None:
    whole, dialled = FunctionAligner(), FunctionAligner()
    whole.scopes = frozenset(("whole",))
    able = FunctionAligner()
    able.strengths = (0.0, 1.0)
    where = r"^routes\[0\]\.candidate" if of_route else "^candidate"
    for new, alignment, what in (
        (whole, {}, "cannot work in mode stream"),
        (dialled, {"strength": 0.7}, "cannot be dialled to 0.7"),
    ):
        section: dict[str, Any] = {"candidate": candidate("shadow")}
        if of_route:
            route = {"model": "x", "to": [{"upstream": "main"}], **section}
            section = {"routes": [route]}
        configured = settings(
            refused_address(),
            aligners={"new": fakes.section(new)},
            alignment=alignment,
            server={"warm_up_seconds": 0},
            **section,
        )
        app = create_app(configured, aligner=able)
        with refusing(rf"{where}\.aligner: new {what}"):
            async with app.router.lifespan_context(app):
                pass
