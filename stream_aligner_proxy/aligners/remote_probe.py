"""Getting to know a server: which model, how long a prompt, and what of its API it understands.

A handful of one-token requests, from asking for everything to asking for nothing special; the first
that is answered decides. What can never work is a `ConfigError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.remote_server import Server
from stream_aligner_proxy.aligners.remote_wire import MOST_CHANCES, Abilities, Piece, Refused, body
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.prompts import KEEP

# Of the server's refusals, those that say that it did not like the request.
_DISLIKED = frozenset((400, 422, None))
# OpenAI's older API gives five log-probabilities at most.
_FEWER_CHANCES = 5


@dataclass(frozen=True, slots=True)
class Introduction:
    """What is known of a server; see `Server`."""

    model: str
    window: int | None
    abilities: Abilities


async def introduce(
    server: Server, encoder: Encoder, prompt: Sequence[int], model: str | None
) -> Introduction:
    """Ask a server what it is. `model`: the name to use there, None for its first.

    Raises `ConfigError` for what can never work, `ReviewError` where it does not answer now.
    """
    try:
        name, window = await _model(server, model)
        return Introduction(name, window, await _abilities(server, encoder, prompt, name))
    except Refused as refusal:
        if refusal.http in (401, 403):
            raise ConfigError(f"aligner.api_key: {server.label} does not accept it") from None
        if refusal.http in (404, 405):
            raise ConfigError(
                f"aligner.{server.label}: has no such model, or no /completions there "
                f"({refusal.http}: {refusal.detail})"
            ) from None
        if refusal.http in _DISLIKED:
            raise ConfigError(
                f"aligner.{server.label}: refuses a prompt of token ids ({refusal.detail})"
            ) from None
        raise


async def _model(server: Server, wanted: str | None) -> tuple[str, int | None]:
    try:
        models = await server.models()
    except Refused as refusal:
        if refusal.http not in (404, 405):
            raise
        models = []
    if wanted is None:
        if not models:
            raise ConfigError(f"aligner.model: must be given, for {server.label} lists no models")
        found: dict[str, Any] = models[0]
    else:
        names = [model.get("id") for model in models]
        if models and wanted not in names:
            listed = ", ".join(map(str, names))
            raise ConfigError(
                f"aligner.model: {wanted!r} is not a model of {server.label}; it has: {listed}"
            )
        found = models[names.index(wanted)] if models else {"id": wanted}
    longest = found.get("max_model_len")
    return str(found.get("id")), longest if isinstance(longest, int) and longest > 0 else None


async def _abilities(
    server: Server, encoder: Encoder, prompt: Sequence[int], model: str
) -> Abilities:
    refusal: Refused | None = None
    for asked in _ladder(dial=encoder.keep is not None):
        sent = body(encoder, model, prompt, 1, asked, chances=True)
        try:
            piece = await _first(server, sent)
        except Refused as error:
            if error.http not in _DISLIKED:
                raise
            refusal = error
            continue
        seen = replace(
            asked,
            ids=asked.ids and piece.ids is not None,
            chances=asked.chances if piece.chances else 0,
        )
        plain = body(encoder, model, prompt, 1, seen)
        if seen.ids:
            await _check_tokenizer(server, encoder, plain)
        elif encoder.keep is not None:
            await _check_shown(server, plain, encoder.keep)
        return seen
    assert refusal is not None
    raise refusal


def _ladder(*, dial: bool) -> list[Abilities]:
    """From all to nothing. Without a keep token no chances are needed."""
    chances = (MOST_CHANCES, _FEWER_CHANCES, 0) if dial else (0,)
    return [
        *(Abilities(ids=True, chances=most) for most in chances),
        *(Abilities(ids=False, chances=most) for most in chances),
        Abilities(ids=False, chances=0, plain=True),
    ]


async def _first(server: Server, sent: dict[str, Any]) -> Piece:
    """All pieces of a one-token answer as one."""
    text, first, ids = "", None, None
    async with server.complete(sent) as pieces:
        async for piece in pieces:
            text += piece.text
            first = first or piece.chances
            ids = (*(ids or ()), *piece.ids) if piece.ids is not None else ids
    return Piece(text, ids, chances=first)


async def _check_tokenizer(server: Server, encoder: Encoder, sent: dict[str, Any]) -> None:
    """The same id must be the same word here and there."""
    word = encoder.some_word()
    if word is None:
        return
    try:
        piece = await _first(server, {**sent, "logit_bias": {str(word): 100}})
    except Refused:
        return  # it may not know logit_bias, or not allow it where it speculates
    if piece.ids and piece.ids[0] == word and piece.text.strip() != encoder.spelled(word).strip():
        raise ConfigError(
            f"aligner.path: its tokenizer is not the one of the model at {server.label}"
        )


async def _check_shown(server: Server, sent: dict[str, Any], keep: int) -> None:
    """Where a server gives text only, a keep token that it hides would read as "delete this"."""
    try:
        piece = await _first(server, {**sent, "logit_bias": {str(keep): 100}})
        shown = piece.text.strip() == KEEP
    except Refused:
        shown = False
    if not shown:
        raise ConfigError(
            f"aligner.{server.label}: gives no token ids, and does not show that its text holds "
            "control tokens (return_token_ids or skip_special_tokens: false must work there)"
        )
