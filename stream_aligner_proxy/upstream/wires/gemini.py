"""The wire of Gemini's native API, streamGenerateContent: an OpenAI chat body as one of its own.

What its models differ in is data here. Sources: Google's Gemini API reference (models, generating
content, GenerationConfig, ToolConfig), its guides to thinking and structured output, its page on
OpenAI compatibility (what `reasoning_effort` means there); the API's own refusals, as users
reported them, for which models take a last turn of the model (2.x, 3 and 3.1 do, later ones not).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.wires.gemini_contents import continuing, translate
from stream_aligner_proxy.upstream.wires.gemini_events import GeminiReader
from stream_aligner_proxy.upstream.wires.openai_body import (
    check_fields,
    effort_of,
    functions_of,
    json_schema_of,
    refusal,
    stop_strings,
    token_limit,
    tool_mode,
)

_MAX_STOPS = 5
# Which models write on from a last turn of the model; the others answer it with a 400.
PREFILL_MODELS = r"gemini-(?:2\.|3-|3\.1-|pro-latest)"

# How much a model thinks, by what OpenAI calls it. Budgets are tokens; a level is Gemini 3's word.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
_LEVELS = {"none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high"}
_THINKING: tuple[tuple[re.Pattern[str], str, Mapping[str, Any]], ...] = (
    (re.compile(r"gemini-2\.5-pro"), "thinkingBudget", {**_BUDGETS, "none": 128}),
    (re.compile(r"gemini-2\.5-"), "thinkingBudget", _BUDGETS),
    (re.compile(r"gemini-3-pro"), "thinkingLevel", {**_LEVELS, "medium": "high"}),
    (
        re.compile(r"gemini-3(?:\.[15])?-flash"),
        "thinkingLevel",
        {**_LEVELS, "none": "minimal", "minimal": "minimal"},
    ),
    (re.compile(r"gemini-(?:[3-9]|\d\d)"), "thinkingLevel", _LEVELS),
)
# The models that must be given back the signature of each tool call, or a word that there is none.
_UNSIGNED = re.compile(r"gemini-[12]\.|^(?!.*gemini)")
_NUMBERS = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_NATIVE = frozenset(("thinking", "top_k"))
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}


class GeminiWire:
    """Implements `Wire`."""

    relays = False
    headers: Mapping[str, str] = MappingProxyType({})
    models_path = "models?pageSize=1000"  # the default is 50

    def path(self, body: Mapping[str, Any]) -> str:
        return f"{_path(body)}:streamGenerateContent?alt=sse"

    def branch(
        self, body: Mapping[str, Any], dialect: object, *, prefix: str = "", max_tokens: int | None
    ) -> dict[str, Any]:
        """`body` as one branch sends it. Raises `RequestError`."""
        check_fields(body, _NATIVE, "the Gemini API")
        signed = _UNSIGNED.search(body["model"]) is None
        system, contents = translate(body["messages"], signed=signed)
        if prefix.strip():
            contents = continuing(contents, prefix)
        sent: dict[str, Any] = {"contents": contents}
        if system:
            sent["systemInstruction"] = {"parts": system}
        config = _config(body, max_tokens)
        if thinking := _thinking(body, continues=bool(prefix)):
            config["thinkingConfig"] = thinking
        if config:
            sent["generationConfig"] = config
        return {**sent, **_tools(body)}

    def reader(self, refusals: Refusals) -> GeminiReader:
        return GeminiReader(refusals)

    def counting(self, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        # Only inside a whole request are the system's words and the tools counted.
        sent = self.branch(body, None, max_tokens=None)
        whole = {"model": f"models/{body['model'].removeprefix('models/')}", **sent}
        return f"{_path(body)}:countTokens", {"generateContentRequest": whole}

    def counted(self, answer: Mapping[str, Any]) -> object:
        return answer.get("totalTokens")

    def models(self, answer: Mapping[str, Any]) -> object:
        """The list in an answer to `models_path`, named as requests name them."""
        models = answer.get("models")
        if not isinstance(models, list):
            return None
        names = [model.get("name") for model in models if isinstance(model, dict)]
        return [{"id": name.removeprefix("models/")} for name in names if isinstance(name, str)]


def _path(body: Mapping[str, Any]) -> str:
    """The model is part of the address; whatever a client calls it stays one segment of it."""
    return f"models/{quote(body['model'].removeprefix('models/'), safe='')}"


def _config(body: Mapping[str, Any], max_tokens: int | None) -> dict[str, Any]:
    config = {theirs: body[ours] for ours, theirs in _NUMBERS.items() if body.get(ours) is not None}
    if limit := token_limit(body, max_tokens):
        config["maxOutputTokens"] = limit
    if stops := stop_strings(body):
        if len(stops) > _MAX_STOPS:
            raise refusal("stop", f"can hold {_MAX_STOPS} texts at most for this upstream")
        config["stopSequences"] = stops
    schema = json_schema_of(body)
    if schema is not None:
        config["responseJsonSchema"] = schema
    if schema is not None or (body.get("response_format") or {}).get("type") == "json_object":
        config["responseMimeType"] = "application/json"
    return config


def _thinking(body: Mapping[str, Any], *, continues: bool) -> dict[str, Any]:
    """As much as was asked for; as little as the model can in the middle of a reply, where it would
    think again."""
    asked = body.get("reasoning_effort") or effort_of(body.get("thinking"))
    effort = "none" if continues else asked
    if not isinstance(effort, str):
        return {}
    for models, field, values in _THINKING:
        if models.search(body["model"]):
            return {field: values[effort]} if effort in values else {}
    return {}


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    functions = functions_of(body)
    if not functions:
        return {}
    declared = []
    for function in functions:
        declaration: dict[str, Any] = {"name": function.name}
        if function.description:
            declaration["description"] = function.description
        if function.parameters:
            declaration["parametersJsonSchema"] = function.parameters
        declared.append(declaration)
    sent: dict[str, Any] = {"tools": [{"functionDeclarations": declared}]}
    if mode := tool_mode(body):
        calling: dict[str, Any] = {"mode": _MODES[mode[0]]}
        if mode[1]:
            calling["allowedFunctionNames"] = [mode[1]]
        sent["toolConfig"] = {"functionCallingConfig": calling}
    return sent
