"""What a completion server is sent, and what its answers say. Pure: no I/O, no clock.

Rule 8 on the wire: a prompt is token ids, and an answer is read by its ids. Where a server gives
none, control tokens are read from its text, which is safe only while no data of the prompt holds
their names: `holds_mark` tells.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stream_aligner_proxy.aligners.encoding import Encoder, whole_words
from stream_aligner_proxy.aligners.options import GREEDY, Sampling
from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.prompts import KEEP, Revision, Segment

MOST_CHANCES = 20  # what vLLM allows by default
_MAX_DETAIL = 300
_MAX_STOPS = 4  # OpenAI's limit
_TOKEN_ID = "token_id:"


class Refused(ReviewError):
    """The server said no. `http` is the status it gave; `detail` is for the operator alone."""

    def __init__(self, http: int | None, detail: str) -> None:
        super().__init__(f"the aligner's server refused the review ({http or 'no status'})")
        self.http = http
        self.detail = detail

    @property
    def illness(self) -> bool:
        return self.http is None or self.http >= 500

    def hide(self, secret: str | None) -> None:
        """Clip what the server said, and take out what must not be told on: some echo the key."""
        clean = self.detail.replace(secret, "…") if secret else self.detail
        self.detail = clean[:_MAX_DETAIL]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a server understands. `ids`: it gives the ids of what it writes. `chances`: how many of
    a first token's log-probabilities. `plain`: it knows OpenAI's own fields only."""

    ids: bool = True
    chances: int = MOST_CHANCES
    plain: bool = False


def body(
    encoder: Encoder,
    model: str,
    prompt: Sequence[int],
    most: int,
    abilities: Abilities,
    *,
    sampling: Sampling = GREEDY,
    chances: bool = False,
) -> dict[str, Any]:
    """A request for at most `most` tokens. `chances` asks for log-probabilities, too."""
    sent: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": most,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
    }
    if sampling.seed is not None:
        sent["seed"] = sampling.seed
    if chances and abilities.chances:
        sent["logprobs"] = abilities.chances
    if not abilities.ids:
        # The server's own end ends it as well; these are for a format's mark at the end of a turn.
        sent["stop"] = sorted(encoder.names(encoder.ends))[:_MAX_STOPS]
    if abilities.plain:
        return sent
    sent |= {
        # Not left to the model's generation_config: it would punish copying, which is our work.
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(encoder.ends),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }
    if sampling.top_k > 0:
        sent["top_k"] = sampling.top_k
    if abilities.ids:
        sent |= {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return sent


@dataclass(frozen=True, slots=True)
class Piece:
    """One event of an answer. `ids` is None where the server gives none. `token` and `chances`: its
    first token and the log-probabilities in its place, by the ids or the names that the server
    gave; None where it gave none."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    token: int | str | None = None
    chances: Mapping[int | str, float] | None = None
    finish: str | None = None


def read_piece(data: bytes) -> Piece | None:
    """The piece in an event's data; None for what holds none. Raises `Refused` for an error frame,
    `ReviewError` for what is no completion."""
    if data.strip() == b"[DONE]":
        return None
    try:
        frame = orjson.loads(data)
        if error := frame.get("error"):
            raise _refused(error)
        choices = frame["choices"]
        if not choices:
            return None
        choice = choices[0]
        ids = choice.get("token_ids")
        token, chances = _first(choice.get("logprobs"))
        return Piece(
            text=choice.get("text") or "",
            ids=None if ids is None else tuple(int(number) for number in ids),
            token=ids[0] if ids else token,
            chances=chances,
            finish=choice.get("finish_reason"),
        )
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ReviewError("the aligner's server sent what is no completion") from error


def _refused(error: Any) -> Refused:
    if not isinstance(error, Mapping):
        return Refused(None, str(error))
    code = error.get("code")
    return Refused(code if isinstance(code, int) else None, str(error.get("message", "")))


def refusal_of(status: int, content: bytes) -> Refused:
    """What an answer that is no 200 says."""
    try:
        told = orjson.loads(content)
        detail = told.get("error") or told.get("detail") or told.get("message") or ""
        if isinstance(detail, Mapping):
            detail = detail.get("message", "")
    except (ValueError, AttributeError):
        detail = ""
    return Refused(status, str(detail))


def _first(logprobs: Any) -> tuple[int | str | None, dict[int | str, float] | None]:
    """First token and chances, in OpenAI's older form (maps by text) or newer one (entries)."""
    if not logprobs:
        return None, None
    if content := logprobs.get("content"):
        entries = [content[0], *content[0].get("top_logprobs", ())]
        named = [(entry.get("id", entry.get("token")), entry["logprob"]) for entry in entries]
        return named[0][0], dict(named)
    tokens, top = logprobs.get("tokens"), logprobs.get("top_logprobs")
    if not tokens or not top or not top[0]:
        return None, None
    return _number(tokens[0]), {_number(name): float(chance) for name, chance in top[0].items()}


def _number(name: str) -> int | str:
    return int(name.removeprefix(_TOKEN_ID)) if name.startswith(_TOKEN_ID) else name


def by_id(chances: Mapping[int | str, float], encoder: Encoder) -> dict[int, float]:
    """The same by token id. A name that no single token has gets a number below zero."""
    found: dict[int, float] = {}
    for name, chance in chances.items():
        token = name if isinstance(name, int) else encoder.token_of(name)
        found[-len(found) - 1 if token is None else token] = chance
    return found


class IdAnswer:
    """An answer that comes as ids. `begun` are ids that were chosen for the model."""

    def __init__(self, encoder: Encoder, begun: Iterable[int] = ()) -> None:
        self._encoder = encoder
        self.ids = list(begun)

    def add(self, piece: Piece) -> None:
        """Raises `ReviewError` where the ids are missing."""
        if piece.ids is None:
            raise ReviewError("the aligner's server left out the token ids")
        self.ids.extend(piece.ids)

    @property
    def size(self) -> int:
        """Tokens so far."""
        return len(self.ids)

    @property
    def over(self) -> bool:
        """Whether nothing that comes can matter: an end token has come, or, after a keep token,
        what cannot be meant."""
        ended = any(token in self._encoder.ends for token in self.ids[-1:])
        kept = bool(self.ids) and self.ids[0] == self._encoder.keep
        return ended or (kept and any(i not in self._encoder.special for i in self.ids[1:]))

    def beginning(self) -> str:
        return self._encoder.beginning(self.ids)

    def revision(self, *, finished: bool) -> Revision:
        return self._encoder.revision(self.ids, finished=finished or self.over)


class TextAnswer:
    """An answer that comes as text, names of control tokens in it."""

    def __init__(self, encoder: Encoder, begun: Iterable[int] = ()) -> None:
        self._encoder = encoder
        self._marks = _any_of(encoder.names(encoder.special))
        self._ends = encoder.names(encoder.ends)
        self.text = "".join(encoder.spelled(token) for token in begun)
        self.size = int(bool(self.text))

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.size += 1

    @property
    def over(self) -> bool:
        return False

    def beginning(self) -> str:
        ordinary = self._marks.split(self.text, maxsplit=1)[0]
        return self._encoder.profile.plain(whole_words(ordinary)).strip()

    def revision(self, *, finished: bool) -> Revision:
        """As `Encoder.revision` reads ids."""
        ordinary: list[str] = []
        controls: list[str] = []
        for part in self._marks.split(self.text):
            if part in self._ends:
                break
            if self._marks.fullmatch(part):
                controls.append(part)
            elif controls[:1] == [KEEP] and not ordinary and part.strip():
                break
            elif part.strip() or ordinary:
                ordinary.append(part)
        return Revision("".join(ordinary), tuple(controls), finished)


Answer = IdAnswer | TextAnswer


def holds_mark(segments: Iterable[Segment], encoder: Encoder) -> bool:
    """Whether data of a prompt holds the name of a control token."""
    marks = _any_of(encoder.names(encoder.special))
    return any(marks.search(segment.text) for segment in segments if not segment.control)


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    return re.compile(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})")
