"""Continuing from the very tokens: `/tokenize` renders the conversation, `/completions` goes on.

The exact way on a stock vLLM server: the chat template, its special tokens and the partial message
become ids there, and the same ids are what the model continues.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from stream_aligner_proxy.core.errors import UpstreamGarbled
from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.core.sse import SseEvent
from stream_aligner_proxy.upstream.chunks import ChunkReader, parse_object

# What `/v1/completions` understands of a chat request.
_SAMPLING = frozenset(
    (
        *("model", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "user"),
        *("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "priority"),
        *("length_penalty", "bad_words", "include_stop_str_in_output"),
    )
)


def tokenize_body(sent: Mapping[str, Any], *, continues: bool = True) -> dict[str, Any]:
    """The request to `/tokenize` for a chat body that is to be answered, or that `continues` its
    last message."""
    wanted = ("model", "messages", "tools", "chat_template_kwargs", "chat_template")
    return {
        **{name: sent[name] for name in wanted if sent.get(name) is not None},
        "continue_final_message": continues,
        "add_generation_prompt": not continues,
    }


def completion_body(
    sent: Mapping[str, Any], prompt: str | list[int], room: int | None
) -> dict[str, Any]:
    """The request to `/completions` for the same body; `room`: tokens left in the context."""
    body = {name: value for name, value in sent.items() if name in _SAMPLING}
    body |= {"prompt": prompt, "stream": True}
    if "stream_options" in sent:
        body["stream_options"] = sent["stream_options"]
    asked = sent.get("max_tokens") or sent.get("max_completion_tokens")
    # Without a limit chat runs to the end of the context, but completions to 16 tokens.
    limits = [limit for limit in (asked, room) if limit is not None]
    if limits:
        body["max_tokens"] = max(1, min(limits))
    return body


def ids_of(answer: bytes) -> tuple[list[int], int | None]:
    """The ids in an answer of `/tokenize`, and how many more the context takes, where it is told.

    Raises `UpstreamGarbled`.
    """
    told = parse_object(answer)
    ids, most = told.get("tokens"), told.get("max_model_len")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids):
        raise UpstreamGarbled("the upstream's /tokenize answered without tokens")
    return ids, most - len(ids) if isinstance(most, int) else None


class CompletionReader:
    """Reads `/completions` as if it were chat. Implements `Reader`."""

    def __init__(self, chat: ChunkReader) -> None:
        self._chat = chat

    @property
    def finished(self) -> bool:
        return self._chat.finished

    def read(self, event: SseEvent) -> Iterator[Chunk]:
        if event.event == "ping":
            return iter(())
        return self.read_object(parse_object(event.data), event.event)

    def read_object(self, frame: Mapping[str, Any], event: str = "") -> Iterator[Chunk]:
        choices = frame.get("choices")
        if isinstance(choices, list):
            frame = {**frame, "choices": [_as_chat(choice) for choice in choices]}
        return self._chat.read_object(frame, event)


def _as_chat(choice: object) -> object:
    if not isinstance(choice, dict):
        return choice
    return {
        "index": choice.get("index", 0),
        "delta": {"content": choice.get("text")},
        "finish_reason": choice.get("finish_reason"),
    }
