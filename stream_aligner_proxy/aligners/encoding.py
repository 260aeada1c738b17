"""Text to token ids and back, with one rule: data can never become a delimiter (rule 8).

Control segments go through the tokenizer as it is. Data goes through a copy of it that knows no
added tokens at all, special or not, so that text which looks like one is spelled out in ordinary
tokens; what a vocabulary still maps to one (word-level and unigram models may) is broken into
characters. Where a vocabulary has tokens for single bytes and finds them by their names in text
(`<0x0A>`; unigram models do), such names are cut, or text could spell a delimiter in bytes. Each
segment is encoded on its own: nothing can grow together across a border.

Added tokens that are white space alone stay: no format marks anything with them, and the model was
trained on them.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError, Unreviewable
from stream_aligner_proxy.core.prompts import END, KEEP, PromptProfile, Revision, Segment
from stream_aligner_proxy.core.records import Review

CACHED_SEGMENTS = 256
# What is longer changes with each review, or would take too much memory.
CACHED_CHARS = 8192

# The name of a byte's token, cut after its first sign.
_BYTE_NAME = re.compile(r"(?<=<)(?=0x[0-9A-Fa-f]{2}>)")

# Where a word is over: what comes later changes nothing before it. A mark that was broken inside
# data, or a character whose bytes have not all come, is part of the last word.
_WORD_END = re.compile(r"\s|(?<=[\u3001-\u30ff\u3400-\u9fff\uac00-\ud7af\uff01-\uff65])")


class Encoder:
    """Encodes the prompts and drafts of one profile with one tokenizer.

    `ends` are the ids that end an output. Raises `ConfigError` where the tokenizer lacks a control
    token of the profile.
    """

    def __init__(self, tokenizer: Any, profile: PromptProfile, ends: Iterable[int]) -> None:
        self.profile = profile
        self._tokenizer = tokenizer
        self._plain = _without_added_tokens(tokenizer)
        self._names_bytes = len(self._spelled_out("<0x41>")) == 1
        control = {token: self._control_id(token) for token in profile.control_tokens}
        self.keep: int | None = control.get(KEEP)
        # A format without a keep token has no control token in its answers: there the mark that
        # closes the turn ends the answer, and any other one can only be run-on.
        closing = () if self.keep is not None else control.values()
        self.ends = frozenset((*ends, *closing))
        if not self.ends:
            raise ConfigError("aligner.path: the checkpoint names no end-of-sequence token")
        unknown = {tokenizer.unk_token_id}
        self.special = frozenset((*tokenizer.all_special_ids, *control.values(), *self.ends))
        self._names: dict[int, str] = {
            token: tokenizer.convert_ids_to_tokens(token) for token in self.special
        }
        self._numbers = {name: int(token) for token, name in self._names.items()}
        # What no answer may hold. Far from what a model would say by itself (a dial turned up), its
        # second best token may well be one of these.
        self.meaningless = self.special - self.ends - {control.get(KEEP), control.get(END)}
        self.forbidden = frozenset((self.special | set(_marks(tokenizer).values())) - unknown)
        end: int | None = tokenizer.eos_token_id
        self._end = end if end is not None and end in self.ends else min(self.ends)
        self._bos = tokenizer.bos_token_id if profile.bos else None
        self._cached = lru_cache(maxsize=CACHED_SEGMENTS)(self._encode_segment)

    def count(self, segment: Segment) -> int:
        """Tokens in a segment."""
        return len(self._encode(segment))

    @property
    def overhead(self) -> int:
        """Tokens of every prompt that no segment holds: BOS."""
        return int(self._bos is not None)

    def prompt(self, review: Review) -> tuple[int, ...]:
        """The ids of the whole prompt, BOS included where the profile wants one."""
        ids = [] if self._bos is None else [self._bos]
        for segment in self.profile.render(review):
            ids.extend(self._encode(segment))
        return tuple(ids)

    def draft(self, review: Review) -> tuple[int, ...]:
        """The output that would leave the sentence as it is, end token included."""
        return (*self._encode(Segment(self.profile.draft(review))), self._end)

    def revision(self, ids: Iterable[int], *, finished: bool) -> Revision:
        """What output ids say: text of the ordinary ones, names of the special ones.

        After a keep token that comes first, nothing but the end mark can be meant.
        """
        ordinary: list[int] = []
        controls: list[str] = []
        for token in ids:
            if token in self.ends:
                break
            if controls[:1] == [KEEP] and not ordinary and token not in self.special:
                break
            if token in self.special:
                controls.append(self._tokenizer.convert_ids_to_tokens(token))
            else:
                ordinary.append(token)
        return Revision(self._decode(ordinary), tuple(controls), finished)

    def beginning(self, ids: Iterable[int]) -> str:
        """What is final of the text that unfinished output ids will say, stripped: whole words."""
        ordinary = list(takewhile(lambda token: token not in self.special, ids))
        return self.profile.plain(whole_words(self._decode(ordinary))).strip()

    def names(self, ids: Iterable[int]) -> frozenset[str]:
        """How the tokenizer writes special tokens."""
        return frozenset(map(self._names.__getitem__, ids))

    def spelled(self, token: int) -> str:
        """One token as text: a special one by its name."""
        return self._names.get(token) or self._decode([token])

    def some_word(self) -> int | None:
        """The last ordinary token that is a word, or part of one; None where there is none."""
        for token in range(len(self._tokenizer) - 1, -1, -1):
            if token not in self.forbidden:
                text = self._decode([token]).strip()
                if len(text) > 1 and text.isascii() and text.isalpha():
                    return token
        return None

    def token_of(self, text: str) -> int | None:
        """The one token that is written so, special or not; None where there is none."""
        if text in self._numbers:
            return self._numbers[text]
        ids = self._data(text)
        return ids[0] if len(ids) == 1 and self._decode(ids) == text else None

    def _decode(self, ordinary: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ordinary, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _encode(self, segment: Segment) -> tuple[int, ...]:
        long = len(segment.text) > CACHED_CHARS
        return self._encode_segment(segment) if long else self._cached(segment)

    def _control_id(self, token: str) -> int:
        ids = self._tokenizer.encode(token, add_special_tokens=False)
        unknown = self._tokenizer.unk_token_id
        if len(ids) != 1 or ids[0] == unknown or token not in self._tokenizer.get_added_vocab():
            raise ConfigError(
                f"aligner.profile: the tokenizer has no control token {token}, which profile "
                f"{self.profile.name} needs"
            )
        return int(ids[0])

    def _encode_segment(self, segment: Segment) -> tuple[int, ...]:
        if segment.control:
            return tuple(self._tokenizer.encode(segment.text, add_special_tokens=False))
        ids = self._data(segment.text)
        if not self.forbidden.isdisjoint(ids):
            ids = [token for character in segment.text for token in self._data(character)]
            if not self.forbidden.isdisjoint(ids):
                raise Unreviewable("the text holds a character that is a control token")
        return tuple(ids)

    def _data(self, text: str) -> list[int]:
        if not text:
            return []
        if self._names_bytes and "<0x" in text:
            parts = map(self._spelled_out, _BYTE_NAME.split(text))
            return [token for part in parts for token in part]
        return self._spelled_out(text)

    def _spelled_out(self, text: str) -> list[int]:
        if self._plain is not None:
            ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
            return ids
        slow: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        return slow


def whole_words(text: str) -> str:
    """`text` without its last word, which may still grow."""
    return text[: max((found.start() for found in _WORD_END.finditer(text)), default=0)]


def _marks(tokenizer: Any) -> dict[str, int]:
    """The added tokens that text must not become: all but ordinary white space."""
    special = set(tokenizer.all_special_tokens)
    added: dict[str, int] = tokenizer.get_added_vocab()
    return {
        token: number for token, number in added.items() if token in special or not _blank(token)
    }


def _blank(token: str) -> bool:
    return not token.replace("\u2581", " ").strip()


def _without_added_tokens(tokenizer: Any) -> Any:
    """A copy of the tokenizer's Rust part that finds no mark in text; None where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    from tokenizers import Tokenizer  # noqa: PLC0415  (comes with transformers only)

    marks = _marks(tokenizer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [
        token
        for token in spec["added_tokens"]
        if not token["special"] and token["content"] not in marks
    ]
    spec.update(post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(spec))
