"""Deciding how one chat request is treated: its mode, and what is refused in it.

The structure policy lives here: what cannot be aligned gets a clear 400, or passes through
untouched with a header that says so. It is the same for streams and for whole replies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from stream_aligner_proxy.api.schemas import EXTENSION, ChatBody
from stream_aligner_proxy.core.errors import RequestError
from stream_aligner_proxy.core.records import NEUTRAL, ChatRequest, Mode, Scope
from stream_aligner_proxy.core.watching import Opening

# What the proxy asks for itself: the upstream client adds its own.
_OURS = ("stream", "stream_options", "n")
_STRUCTURED = ("json_object", "json_schema")

SCOPE_OF: Mapping[Mode, Scope] = {
    Mode.STREAM: "sentence",
    Mode.SHADOW: "sentence",
    Mode.WHOLE: "whole",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a request.

    `passthrough` names the field for whose sake an aligned mode became `off`. `strength`: see
    `Review`. `relay_body` is what the upstream gets in mode `off`: all but the extension field.
    `choices`: so many replies are asked for, each in a request of its own. `path`, `key` and
    `route`: which API was asked, by whose key, and what route takes the model. `logprobs`: those of
    unchanged text are told. `obfuscation`: events are filled up, to hide how long they are.
    """

    request: ChatRequest
    mode: Mode
    stream: bool
    include_usage: bool
    provenance: bool
    passthrough: str | None
    strength: float
    relay_body: Mapping[str, Any]
    choices: int = 1
    path: str = "chat/completions"
    key: str | None = None
    route: str = "default"
    logprobs: bool = False
    obfuscation: bool = False

    def opening(self, request: ChatRequest, aligner: str = "") -> Opening:
        """What observers are told of one of the choices."""
        return Opening(self.mode, request, self.path, aligner, self.key, self.stream, self.route)

    @property
    def tells_sentences(self) -> bool:
        """Whether sentences come back with their history."""
        return self.provenance and self.mode is not Mode.OFF


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator settled: the mode of this route, those a request may choose instead,
    whether sentences come back with their history when a request does not say, whether JSON
    output may pass through, the strength where a request names none, and whether log probabilities
    of unchanged text are told."""

    mode: Mode
    choices: frozenset[Mode]
    provenance: bool = False
    pass_structured: bool = True
    strength: float = NEUTRAL
    logprobs: bool = False

    def allows(self, mode: Mode) -> bool:
        return mode is self.mode or mode in self.choices

    def within(self, modes: Sequence[Mode] | None) -> "Rules":
        """Those of a key that may use only these modes. Where the route's own is none of them, the
        first that the route allows takes its place. Raises `RequestError` where there is none."""
        if modes is None:
            return self
        allowed = [mode for mode in modes if self.allows(mode)]
        if not allowed:
            raise RequestError(
                f"This API key may use the modes {', '.join(modes)}, and this model none of them.",
                status=403,
                param=f"{EXTENSION}.mode",
                code="mode_not_allowed",
            )
        return replace(
            self,
            mode=self.mode if self.mode in allowed else allowed[0],
            choices=frozenset(allowed),
            # What passes through unreviewed is in mode `off`, whoever chose it.
            pass_structured=self.pass_structured and Mode.OFF in allowed,
        )


def decide(
    raw: Mapping[str, Any],
    body: ChatBody,
    rules: Rules,
    *,
    scopes: frozenset[Scope],
    strengths: tuple[float, float],
    headers: Mapping[str, str],
    request_id: str,
) -> Plan:
    """Raises `RequestError` for what the chosen mode, or the aligner, cannot do.

    `scopes` and `strengths` are the aligner's.
    """
    extension = body.stream_aligner
    mode = rules.mode
    if extension is not None and extension.mode is not None:
        mode = extension.mode
        if not rules.allows(mode):
            allowed = ", ".join(m for m in Mode if rules.allows(m))
            raise RequestError(
                f"The mode '{mode}' is not allowed here; allowed: {allowed}.",
                param=f"{EXTENSION}.mode",
                code="mode_not_allowed",
            )
    passthrough = None
    if mode is not Mode.OFF:
        if body.response_format is not None and body.response_format.type in _STRUCTURED:
            if not rules.pass_structured:
                refuse("response_format", "only prose can be aligned", mode, rules)
            mode, passthrough = Mode.OFF, "response_format"
        else:
            _refuse_unalignable(body, mode, rules)
            if SCOPE_OF[mode] not in scopes:
                raise RequestError(
                    f"The aligner of this server cannot work in mode '{mode}'.",
                    param=f"{EXTENSION}.mode",
                    code="mode_not_available",
                )
    relay_body = {key: value for key, value in raw.items() if key != EXTENSION}
    provenance = extension.provenance if extension is not None else None
    strength = extension.strength if extension is not None else None
    if strength is not None and mode is not Mode.OFF:
        check_strength(strength, strengths)
    return Plan(
        request=ChatRequest(
            model=body.model,
            body={key: value for key, value in relay_body.items() if key not in _OURS},
            conversation=body.conversation(),
            max_tokens=body.token_limit(),
            stop=body.stop,
            stop_included=body.stop_included(),
            headers=headers,
            request_id=request_id,
        ),
        mode=mode,
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        provenance=rules.provenance if provenance is None else provenance,
        passthrough=passthrough,
        strength=rules.strength if strength is None else strength,
        relay_body=relay_body,
        choices=body.n or 1,
        logprobs=bool(body.logprobs),
        obfuscation=bool(body.stream_options and body.stream_options.include_obfuscation),
    )


def check_strength(
    strength: float, strengths: tuple[float, float], param: str = f"{EXTENSION}.strength"
) -> None:
    """Raises `RequestError` for a strength that the aligner does not obey."""
    least, most = strengths
    if least <= strength <= most:
        return
    if least == most:
        allowed = f"this server's aligner has no such dial: leave it out, or send {least:g}"
    else:
        allowed = f"this server's aligner obeys {least:g} to {most:g}"
    raise RequestError(
        f"'{param}' cannot be {strength:g}: {allowed}.",
        param=param,
        code="strength_not_available",
    )


def _refuse_unalignable(body: ChatBody, mode: Mode, rules: Rules) -> None:
    """Say no to what would be wrong over rewritten text, rather than be quietly wrong."""
    if body.logprobs and not rules.logprobs:
        refuse("logprobs", "log probabilities do not belong to rewritten text", mode, rules)
    if body.top_logprobs and not rules.logprobs:
        refuse("top_logprobs", "log probabilities do not belong to rewritten text", mode, rules)
    if body.modalities is not None and body.modalities != ["text"]:
        refuse("modalities", "only text can be aligned", mode, rules)
    if body.store and mode is not Mode.SHADOW:
        refuse("store", "the upstream would keep its own text, not this reply", mode, rules)
    if body.moderation is not None:
        why = "the upstream would judge its own text, not this reply"
        refuse("moderation", why, mode, rules)


def refuse(param: str, why: str, mode: Mode, rules: Rules) -> NoReturn:
    """Raises the `RequestError` for a field that cannot be aligned."""
    if rules.allows(Mode.OFF):
        remedy = f'or send "{EXTENSION}": {{"mode": "off"}}'
    else:
        remedy = "or ask the operator to allow the mode 'off'"
    raise RequestError(
        f"'{param}' cannot be used in mode '{mode}': {why}. Leave it out, {remedy}.",
        param=param,
        code="unsupported_in_mode",
    )
