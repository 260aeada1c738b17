"""Which way a reply is continued: what the dialect can, what was seen, what the operator fixed.

A way is *seen* when a probe or a reply was continued by it, and *refuted* when the upstream refused
it or began again; both are remembered for each model, a refutation for a while only.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal

from stream_aligner_proxy.core.records import Continuation, Found, Way
from stream_aligner_proxy.upstream.bodies import as_chat, is_prompt, may_continue
from stream_aligner_proxy.upstream.dialects import Dialect

Setting = Literal["auto", "ids", "prefill", "instruct", "rewrite-only"]
SETTINGS: tuple[Setting, ...] = ("auto", "ids", "prefill", "instruct", "rewrite-only")

_REFUTED_SECONDS = 600.0
# Models are named by clients: what is remembered of them is bounded.
_MOST_MODELS = 256


class Ways:
    """What is known of one upstream. `doubted` is set when a way failed in use.

    `template`: its chat template is applied here.
    """

    def __init__(
        self,
        dialect: Dialect,
        setting: Setting = "auto",
        *,
        template: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dialect = dialect
        self._setting = setting
        # With the chat template applied here the ids come first, and need no proof.
        self._template = template
        others = (way for way in dialect.ways if way != "ids" or not template)
        self._ways: tuple[Way, ...] = ("ids", *others) if template else dialect.ways
        self._clock = clock
        self.doubted = asyncio.Event()
        self._classes: OrderedDict[str, Found] = OrderedDict()
        self._seen: OrderedDict[tuple[str, Way], None] = OrderedDict()
        self._refuted: OrderedDict[tuple[str, Way], float] = OrderedDict()

    def order(self, body: Mapping[str, Any]) -> list[Way]:
        """The ways to continue a reply to `body`, best first; empty for rewrite-only."""
        if is_prompt(body):
            chat = self.order(as_chat(body))
            free = self._setting != "rewrite-only" and self.completes(body)
            return ["prompt", *chat] if free else chat
        if not may_continue(body):
            return []
        if self._setting != "auto":
            return [] if self._setting == "rewrite-only" else [self._setting]
        model = str(body.get("model"))
        return [way for way in self._ways if self._may(way, model)]

    def completes(self, body: Mapping[str, Any]) -> bool:
        """Whether `body` is a prompt and the upstream writes on prompts, as far as is known."""
        known = self._dialect.prompts is not None and self._dialect.wire is None
        return known and is_prompt(body) and self._may("prompt", str(body.get("model")))

    def best(self, body: Mapping[str, Any]) -> Continuation:
        order, model = self.order(body), str(body.get("model"))
        if not order:
            return Continuation("rewrite-only", found=self.class_of(model))
        return Continuation(order[0], self.sure(model, order[0]), self.class_of(model))

    def sure(self, model: str, way: Way) -> bool:
        """Whether `way` is known to work: never where the upstream is only told to go on."""
        if way == "instruct":
            return False
        fixed = self._setting == way or (way == "ids" and self._template)
        return fixed or self._dialect.proven or (model, way) in self._seen

    def repeats(self, model: str) -> bool:
        """Whether the answer to a partial message begins with it."""
        return self._dialect.repeats_prefix or self._classes.get(model) == "repeats"

    def saw(self, model: str, way: Way) -> None:
        """A text was continued."""
        if way == "prefill" and self.class_of(model) not in ("continues", "repeats"):
            self._remember(model, "continues")
        if (model, way) not in self._seen:
            self._refuted.pop((model, way), None)
            self._seen[model, way] = None
            _bound(self._seen)

    def refute(self, model: str, way: Way, found: Found = "restarts") -> None:
        """A text was not continued: it was begun again, or refused."""
        if way == "prefill":
            self._remember(model, found)
        if way != "prompt":  # of which a probe finds out nothing
            self.doubted.set()
        self._seen.pop((model, way), None)
        self._refuted[model, way] = self._clock() + _REFUTED_SECONDS
        _bound(self._refuted)

    def classify(self, model: str, found: Found) -> None:
        """What a probe of partial messages found."""
        if found == "unknown":
            return
        self._remember(model, found)
        if found in ("continues", "repeats"):
            self.saw(model, "prefill")
        else:
            self.refute(model, "prefill", found)
            self.doubted.clear()  # it was asked just now

    @property
    def open_to_probing(self) -> bool:
        """Whether a probe of partial messages can change anything."""
        return self._setting == "auto" and self._ways[:1] != ("ids",) and "prefill" in self._ways

    def plain(self, model: str) -> Continuation:
        """How a plain chat with `model` would be continued."""
        return self.best({"model": model, "messages": [{"role": "user", "content": "."}]})

    def class_of(self, model: str) -> Found:
        return self._classes.get(model, "unknown")

    def _remember(self, model: str, found: Found) -> None:
        self._classes[model] = found
        _bound(self._classes)

    def _may(self, way: Way, model: str) -> bool:
        if (
            way == "prefill"
            and self._dialect.models is not None
            and not self._dialect.models.search(model)
        ):
            return False
        until = self._refuted.get((model, way))
        return until is None or self._clock() >= until


def _bound(remembered: OrderedDict[Any, Any]) -> None:
    while len(remembered) > _MOST_MODELS:
        remembered.popitem(last=False)
