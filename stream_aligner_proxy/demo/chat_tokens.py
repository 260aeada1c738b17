"""Between text and token ids for the embedded upstream.

Rule: text of a message can never become a control token. The chat template is rendered around
placeholders; only what the template itself wrote is encoded with special tokens on, and each
message's text is encoded by a tokenizer that has no added tokens at all. So the template sees no
text: what it does to `content` beyond putting it somewhere (trimming, say) has no effect.
"""

import codecs
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from stream_aligner_proxy.core.errors import ConfigError, RequestError


class ChatTokens:
    """The tokenizer of one model directory. Raises `ConfigError` if it is not byte-level."""

    def __init__(self, path: Path) -> None:
        try:
            spec = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model: no tokenizer.json in {path}") from error
        if (spec.get("decoder") or {}).get("type") != "ByteLevel":
            raise ConfigError("model: the embedded upstream needs a byte-level tokenizer")
        self._wrapped = AutoTokenizer.from_pretrained(path, local_files_only=True)
        plain = {"post_processor": None, "truncation": None, "padding": None}
        self._control = Tokenizer.from_str(json.dumps({**spec, **plain}))
        self._data = Tokenizer.from_str(json.dumps({**spec, **plain, "added_tokens": []}))
        self.eos: int | None = self._wrapped.eos_token_id
        self._bytes = _token_bytes(self._control, {t["id"] for t in spec["added_tokens"]})

    @property
    def size(self) -> int:
        """Ids in the vocabulary."""
        return len(self._bytes)

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Ids of `text`; special tokens in it are meant as such only with `control`."""
        ids: list[int] = (self._control if control else self._data).encode(text).ids
        return ids

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Ids of a conversation; the last message is left open with `continue_final_message`.

        Raises `RequestError` where the template refuses the conversation.
        """
        nonce = secrets.token_hex(8)
        hidden = [{**message, "content": f"{nonce}-{i}."} for i, message in enumerate(messages)]
        try:
            rendered = self._wrapped.apply_chat_template(
                hidden, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, ValueError) as error:
            raise RequestError(f"the chat template refuses this: {error}") from error
        pieces: list[str] = re.split(rf"{nonce}-(\d+)\.", str(rendered))
        if continue_final_message:
            last = str(len(messages) - 1)
            at = max((i for i in range(1, len(pieces), 2) if pieces[i] == last), default=0)
            if not at:
                raise RequestError(
                    "continue_final_message is set but the final message does not appear in the "
                    "chat after applying the chat template",
                    param="continue_final_message",
                )
            pieces = pieces[: at + 1]
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            text = messages[int(piece)]["content"] if i % 2 else piece
            ids += self.encode(text, control=i % 2 == 0)
        return ids

    def decoder(self) -> "TextDecoder":
        return TextDecoder(self._bytes)


class TextDecoder:
    """Ids to text, one at a time; a character whose bytes are not all there yet is held back.

    Bytes that are not UTF-8 become U+FFFD. Control tokens are left out.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def step(self, token: int) -> str:
        return self._decode(self._bytes[token]) if token < len(self._bytes) else ""

    def flush(self) -> str:
        return self._decode(b"", True)


def _token_bytes(tokenizer: Tokenizer, control: set[int]) -> list[bytes]:
    """The bytes of each id; byte-level vocabularies spell each byte as a printable character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    spelled.update({chr(256 + i): byte for i, byte in enumerate(others)})
    table: list[bytes] = []
    for token in range(tokenizer.get_vocab_size(with_added_tokens=True)):
        text = tokenizer.id_to_token(token)
        spelling = "" if text is None or token in control else text
        table.append(bytes(spelled[character] for character in spelling))
    return table
