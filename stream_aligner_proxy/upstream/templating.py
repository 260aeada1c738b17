"""The chat template applied here, for upstreams that complete a prompt but continue no chat.

The prompt is what the server itself would make of the conversation up to where the reply begins;
the text so far comes behind it. So a continuation reads what an uninterrupted reply has read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from stream_aligner_proxy.core.errors import ConfigError, ContinuationFailed

# What a server's `/completions` takes as a prompt.
Prompts = Literal["ids", "text"]

_THINK = "<think>"
_NO_THOUGHT = "\n</think>\n\n"
_MOST_STOPS = 4


class LocalTemplate:
    """The tokenizer in `folder`, with its chat template. Blocks while it loads and renders.

    Raises `ConfigError`, its message to be put behind the key's name.
    """

    def __init__(self, folder: Path, prompts: Prompts) -> None:
        try:
            from transformers import AutoTokenizer  # noqa: PLC0415  (slow, and optional)
        except ImportError as error:
            raise ConfigError("needs the package `transformers`") from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder.name} holds no tokenizer that can be loaded") from error
        if not self._tokenizer.chat_template:
            raise ConfigError(f"the tokenizer in {folder.name} has no chat template")
        self._prompts = prompts
        self._twice = self._bos()

    def prompt(self, body: Mapping[str, Any], prefix: str) -> str | list[int]:
        """What `/completions` shall go on from. Raises `ContinuationFailed` where the template
        cannot render the conversation (images, roles that it does not know)."""
        more = body.get("chat_template_kwargs")
        arguments = {"enable_thinking": False, **(more if isinstance(more, Mapping) else {})}
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                _plain(body["messages"]),
                tokenize=False,
                add_generation_prompt=True,
                **arguments,
            )
        except Exception as error:  # a template is a program, and raises what it likes
            raise ContinuationFailed("the chat template cannot render this conversation") from error
        # A template that always opens a thought: the text is not part of it.
        if rendered.rstrip().endswith(_THINK):
            rendered = rendered.rstrip() + _NO_THOUGHT
        if self._prompts == "text":
            return rendered.removeprefix(self._twice) + prefix
        return self._ids(rendered) + self._ids(prefix, split_special_tokens=True)

    def stop(self, theirs: object) -> list[str]:
        """The client's stop strings, and the mark that ends a turn: not every server's
        `/completions` knows it."""
        stops = [theirs] if isinstance(theirs, str) else []
        if isinstance(theirs, list):
            stops += theirs
        end = self._tokenizer.eos_token
        if end and end not in stops and len(stops) < _MOST_STOPS:
            stops.append(end)
        return stops

    def _ids(self, text: str, **options: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, **options)["input_ids"]
        return ids

    def _bos(self) -> str:
        """The mark that a server with this tokenizer puts before every text of itself."""
        bos: str = self._tokenizer.bos_token or ""
        first = self._tokenizer("a")["input_ids"][:1]
        return bos if bos and first == [self._tokenizer.bos_token_id] else ""


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Text in parts as one text: templates of text models know no parts."""
    return [_joined(message) for message in messages]


def _joined(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ContinuationFailed("only text goes through the chat template")
    return {**message, "content": "".join(part["text"] for part in content)}
