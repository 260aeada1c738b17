"""Plain text completions: chunks of a stream, and the whole answer.

Text is all there is: what an upstream sends beside it (thoughts) has no place in this API.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from stream_aligner_proxy.api.faces.describing import (
    sentence_object,
    summaries,
    summary,
    total,
    usage_object,
)
from stream_aligner_proxy.api.faces.face import Face
from stream_aligner_proxy.api.faces.openai_errors import DONE, OpenAiErrors
from stream_aligner_proxy.api.plan import Plan
from stream_aligner_proxy.api.schemas import EXTENSION
from stream_aligner_proxy.core.records import Delivery, Finished, Mode, Usage


def completions_face(prompts: Sequence[str], *, echo: bool = False) -> Face:
    """The writers for `prompts`, with equally many choices for each, in their order."""
    asked = tuple(prompts)
    return Face(
        lambda plan: TextChunks(plan, asked, echo=echo),
        lambda plan: TextGatherer(plan, asked, echo=echo),
        OpenAiErrors(),
    )


class TextChunks:
    """Makes the `text_completion` events of one answer."""

    def __init__(self, plan: Plan, prompts: Sequence[str], *, echo: bool) -> None:
        self._head = b"data: " + orjson.dumps(_head(plan))[:-1] + b',"choices":'
        self._include_usage = plan.include_usage
        self._tail = b',"usage":null' if plan.include_usage else b""
        self._provenance = plan.tells_sentences
        self._prompts = len(prompts)
        self._echoed = _each(prompts, plan.choices) if echo else ()

    def first(self) -> bytes:
        return b"".join(self._chunk(text, choice) for choice, text in enumerate(self._echoed))

    def delivery(self, delivery: Delivery, choice: int = 0) -> bytes:
        """The event for one delivery; empty where there is nothing to say."""
        sentence = sentence_object(delivery) if self._provenance else None
        if not delivery.text and sentence is None:
            return b""
        extension = None if sentence is None else {"sentence": sentence}
        return self._chunk(delivery.text, choice, extension=extension)

    def finished(self, finished: Finished, choice: int = 0) -> bytes:
        extension = None if finished.mode is Mode.OFF else summary(finished)
        return self._chunk("", choice, finish_reason=finished.finish_reason, extension=extension)

    def last(self, finished: Sequence[Finished]) -> bytes:
        """The usage chunk where it was asked for, and the end marker."""
        usage = _usage(finished, self._prompts)
        if not self._include_usage or usage is None:
            return DONE
        return self._head + b'[],"usage":' + orjson.dumps(usage_object(usage)) + b"}\n\n" + DONE

    def _chunk(
        self,
        text: str,
        choice: int,
        *,
        finish_reason: str | None = None,
        extension: dict[str, Any] | None = None,
    ) -> bytes:
        event = [
            self._head,
            b'[{"index":%d,"text":' % choice,
            orjson.dumps(text),
            b',"logprobs":null,"finish_reason":',
            orjson.dumps(finish_reason),
            b"}]",
            self._tail,
        ]
        if extension is not None:
            event += [b',"', EXTENSION.encode(), b'":', orjson.dumps(extension)]
        event.append(b"}\n\n")
        return b"".join(event)


class TextGatherer:
    """Joins the same deliveries into one `text_completion`."""

    def __init__(self, plan: Plan, prompts: Sequence[str], *, echo: bool) -> None:
        self._head = _head(plan)
        self._prompts = len(prompts)
        self._texts = [[text if echo else ""] for text in _each(prompts, plan.choices)]
        self._sentences: list[list[dict[str, Any]]] = [[] for _ in self._texts]
        self._provenance = plan.tells_sentences

    def add(self, delivery: Delivery, choice: int = 0) -> None:
        self._texts[choice].append(delivery.text)
        if self._provenance and (sentence := sentence_object(delivery)) is not None:
            self._sentences[choice].append(sentence)

    def completion(self, finished: Sequence[Finished]) -> bytes:
        answer: dict[str, Any] = {
            **self._head,
            "choices": [
                {
                    "index": index,
                    "text": "".join(texts),
                    "logprobs": None,
                    "finish_reason": one.finish_reason,
                }
                for index, (texts, one) in enumerate(zip(self._texts, finished, strict=True))
            ],
        }
        if (usage := _usage(finished, self._prompts)) is not None:
            answer["usage"] = usage_object(usage)
        if finished[0].mode is not Mode.OFF:
            told = self._sentences if self._provenance else None
            answer[EXTENSION] = summaries(finished, told)
        return orjson.dumps(answer)


def _each(prompts: Sequence[str], choices: int) -> tuple[str, ...]:
    """The prompt of every choice."""
    share = choices // len(prompts)
    return tuple(prompt for prompt in prompts for _ in range(share))


def _usage(finished: Sequence[Finished], prompts: int) -> Usage | None:
    """Every prompt once, every completion; None where none was reported."""
    if prompts == 1:
        return total(finished)
    share = len(finished) // prompts
    told = [total(finished[at : at + share]) for at in range(0, len(finished), share)]
    known = [usage for usage in told if usage is not None]
    if not known:
        return None
    return Usage(
        sum(usage.prompt_tokens for usage in known), sum(usage.completion_tokens for usage in known)
    )


def _head(plan: Plan) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": plan.request.model,
    }
