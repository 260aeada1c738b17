"""OpenAI chat bodies as the native APIs want them: what is said, and what is refused."""

from typing import Any

import pytest

from stream_aligner_proxy.core.errors import RequestError, UpstreamGarbled, UpstreamRejected
from stream_aligner_proxy.core.records import Chunk
from stream_aligner_proxy.upstream.dialects import find_dialect
from stream_aligner_proxy.upstream.rejections import Refusals
from stream_aligner_proxy.upstream.ways import Ways
from stream_aligner_proxy.upstream.wires.anthropic import AnthropicWire
from stream_aligner_proxy.upstream.wires.anthropic_events import AnthropicReader
from stream_aligner_proxy.upstream.wires.gemini import GeminiWire
from stream_aligner_proxy.upstream.wires.gemini_contents import NO_SIGNATURE
from stream_aligner_proxy.upstream.wires.gemini_events import GeminiReader

QUESTION = {"role": "user", "content": "How many?"}
CLAUDE = "claude-sonnet-4-5"
PNG = "data:image/png;base64,iVBORw0="
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SECOND = {"id": "c2", "type": "function", "function": {"name": "now", "arguments": ""}}
TOOL_TURNS = [
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL, SECOND]},
    {"role": "tool", "tool_call_id": "c1", "content": '{"sum": 3}'},
    {"role": "tool", "tool_call_id": "c2", "content": "noon"},
]


def body(model: str, *messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": list(messages) or [QUESTION], **fields}


def claude(*messages: Any, prefix: str = "", model: str = CLAUDE, **fields: Any) -> dict[str, Any]:
    limit = fields.pop("branch_limit", None)
    asked = body(model, *messages, **fields)
    return AnthropicWire().branch(asked, None, prefix=prefix, max_tokens=limit)


def gemini(
    *messages: Any, prefix: str = "", model: str = "gemini-2.5-flash", **fields: Any
) -> dict[str, Any]:
    limit = fields.pop("branch_limit", None)
    asked = body(model, *messages, **fields)
    return GeminiWire().branch(asked, None, prefix=prefix, max_tokens=limit)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


# --- both ------------------------------------------------------------------------------------

REFUSED = [
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"functions": [{}]}, "functions"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"a_field_nobody_knows": 1}, "a_field_nobody_knows"),
    ({"tools": [{"type": "custom"}]}, "tools[0].type"),
    ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"response_format": {"type": "grammar"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
]
MESSAGES_REFUSED = [
    ([{"role": "function", "name": "add", "content": "3"}], "messages[0].role"),
    ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content[0].type"),
    (
        [{"role": "user", "content": [{"type": "image_url"}]}],
        "messages[0].content[0].image_url.url",
    ),
    (
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f1"}}]}],
        "messages[0].content[0].file",
    ),
    (
        [
            {
                "role": "assistant",
                "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "["}}],
            }
        ],
        "messages[0].tool_calls[0].function.arguments",
    ),
    ([QUESTION, {"role": "tool", "content": "3"}], "messages[1].tool_call_id"),
    ([{"role": "system", "content": "Be brief."}], "messages"),
]


@pytest.mark.parametrize("translate", [claude, gemini])
@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(
    translate: Any, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        translate(**fields)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize("translate", [claude, gemini])
@pytest.mark.parametrize(("messages", "param"), MESSAGES_REFUSED)
def test_a_message_that_cannot_be_said_is_refused_by_its_place(
    translate: Any, messages: list[Any], param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        translate(*messages)
    assert caught.value.param == param


@pytest.mark.parametrize("translate", [claude, gemini])
def test_what_changes_no_reply_is_left_out(translate: Any) -> None:
    harmless = {
        "n": 1,
        "logprobs": False,
        "modalities": ["text"],
        "logit_bias": {"1": 5},
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "stream_options": {"include_usage": True},
        "audio": None,
    }
    assert translate(**harmless) == translate()


# --- Anthropic -------------------------------------------------------------------------------

CLAUDE_FIELDS = [
    ({}, {"max_tokens": 8192}),
    ({"model": "claude-3-haiku-20240307"}, {"max_tokens": 4096}),
    ({"max_tokens": 9}, {"max_tokens": 9}),
    ({"max_completion_tokens": 9}, {"max_tokens": 9}),
    ({"max_tokens": 9, "branch_limit": 4}, {"max_tokens": 4}),
    ({"temperature": 1.7}, {"temperature": 1}),
    ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    (
        {"temperature": 0.5, "top_p": 0.9, "model": "claude-opus-4-20250514"},
        {"temperature": 0.5, "top_p": 0.9},
    ),
    ({"temperature": 0.5, "top_p": 0.9, "model": "claude-opus-4-1"}, {"temperature": 0.5}),
    ({"temperature": 0.5, "model": "claude-opus-4-6"}, {"temperature": 0.5}),
    ({"temperature": 0.5, "top_p": 0.9, "top_k": 3, "model": "claude-opus-4-7"}, {}),
    ({"temperature": 0.5, "model": "claude-sonnet-5"}, {}),
    ({"temperature": 0.5, "top_p": 0.9, "model": "glm-5"}, {"temperature": 0.5, "top_p": 0.9}),
    ({"stop": "END"}, {"stop_sequences": ["END"]}),
    ({"stop": ["A", "", "B"]}, {"stop_sequences": ["A", "B"]}),
    ({"user": "u1"}, {"metadata": {"user_id": "u1"}}),
    ({"thinking": {"type": "adaptive"}}, {"thinking": {"type": "adaptive"}}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
    ),
]


@pytest.mark.parametrize(("fields", "expected"), CLAUDE_FIELDS)
def test_claude_gets_each_field_under_its_own_name(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    sent = claude(**fields)
    for name in ("model", "messages", "stream"):
        del sent[name]
    assert sent == {"max_tokens": 8192} | expected


def test_claude_refuses_stops_of_white_space_and_json_without_a_schema() -> None:
    for fields, param in (
        ({"stop": ["\n"]}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ):
        with pytest.raises(RequestError) as caught:
            claude(**fields)
        assert caught.value.param == param


def test_claudes_turns_alternate_and_hold_no_empty_text() -> None:
    sent = claude(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One."},
        {"role": "user", "content": [text(" "), text("Two.")]},
        {"role": "assistant", "content": ""},
        {"role": "developer", "content": [text("Be kind.")]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No. \n"}]},
    )
    assert sent["system"] == [text("Be brief."), text("Be kind.")]
    assert sent["messages"] == [
        {"role": "user", "content": [text("One."), text("Two.")]},
        {"role": "assistant", "content": [text("No.")]},
    ]


def test_claude_gets_images_and_documents() -> None:
    pdf = {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBER"}}
    sent = claude(
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": PNG}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                pdf,
            ],
        }
    )
    inline = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
    document = {"type": "base64", "media_type": "application/pdf", "data": "JVBER"}
    assert sent["messages"][0]["content"] == [
        {"type": "image", "source": inline},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "document", "source": document},
    ]
    image = {"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}
    with pytest.raises(RequestError, match="https://"):
        claude({"role": "user", "content": [image]})


def test_claude_gets_calls_and_their_results_in_one_turn_each() -> None:
    sent = claude(*TOOL_TURNS, {"role": "user", "content": "And?"})
    assert sent["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "now", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": '{"sum": 3}'},
                {"type": "tool_result", "tool_use_id": "c2", "content": "noon"},
                text("And?"),
            ],
        },
    ]


CLAUDE_CHOICES = [
    ({}, None),
    ({"tool_choice": "auto"}, {"type": "auto"}),
    ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
    ({"tool_choice": "required"}, {"type": "any"}),
    (
        {"tool_choice": {"type": "function", "function": {"name": "add"}}},
        {"type": "tool", "name": "add"},
    ),
    ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
]


@pytest.mark.parametrize(("fields", "choice"), CLAUDE_CHOICES)
def test_claude_gets_tools_and_the_choice_among_them(fields: dict[str, Any], choice: Any) -> None:
    bare = {"type": "function", "function": {"name": "now", "strict": True}}
    sent = claude(tools=[ADD, bare], **fields)
    function = ADD["function"]
    assert isinstance(function, dict)
    assert sent["tools"] == [
        {"name": "add", "description": "Adds.", "input_schema": function["parameters"]},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}, "strict": True},
    ]
    assert sent.get("tool_choice") == choice


def test_claude_continues_a_turn_that_ends_without_white_space_and_does_not_think() -> None:
    sent = claude(prefix="Two are left. \n", thinking={"type": "enabled", "budget_tokens": 1024})
    assert sent["messages"][-1] == {"role": "assistant", "content": [text("Two are left.")]}
    assert "thinking" not in sent


CONTINUES = {
    "anthropic": {
        "claude-3-5-sonnet-20241022": True,
        "claude-opus-4-20250514": True,
        "claude-opus-4-1": True,
        "claude-haiku-4-5-20251001": True,
        "anthropic.claude-sonnet-4-5-20250929-v1:0": True,
        "claude-opus-4-5@20251101": True,
        "claude-opus-4-6": False,
        "claude-sonnet-4-6-20260217": False,
        "claude-opus-4-10": False,
        "claude-sonnet-5": False,
        "claude-opus-5-5": False,
        "something-else": False,
    },
    "gemini": {
        "gemini-2.0-flash": True,
        "models/gemini-2.5-pro": True,
        "gemini-3-pro-preview": True,
        "gemini-3.1-pro-preview": True,
        "gemini-3.5-flash": False,
        "gemini-3.8-flash": False,
        "gemini-4-argon": False,
    },
}


@pytest.mark.parametrize("dialect", list(CONTINUES))
def test_only_the_models_that_take_a_prefill_are_asked_to_continue(dialect: str) -> None:
    models = CONTINUES[dialect]
    ways = Ways(find_dialect(dialect))
    assert {m: ways.order(body(m))[0] == "prefill" for m in models} == models


# --- Gemini ----------------------------------------------------------------------------------

GEMINI_FIELDS = [
    ({}, {}),
    ({"max_tokens": 9}, {"maxOutputTokens": 9}),
    ({"max_tokens": 9, "branch_limit": 4}, {"maxOutputTokens": 4}),
    (
        {"temperature": 1.7, "top_p": 0.9, "top_k": 4, "seed": 1},
        {"temperature": 1.7, "topP": 0.9, "topK": 4, "seed": 1},
    ),
    (
        {"presence_penalty": 1, "frequency_penalty": 0.5},
        {"presencePenalty": 1, "frequencyPenalty": 0.5},
    ),
    ({"stop": ["\n", "END"]}, {"stopSequences": ["\n", "END"]}),
    ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
    ),
    ({"reasoning_effort": "low"}, {"thinkingConfig": {"thinkingBudget": 1024}}),
    ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingBudget": 0}}),
    ({"reasoning_effort": "extreme"}, {}),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 8000}},
        {"thinkingConfig": {"thinkingBudget": 8192}},
    ),
    ({"thinking": {"type": "adaptive"}}, {}),
    ({"reasoning_effort": "low", "model": "gemini-2.0-flash"}, {}),
    (
        {"reasoning_effort": "none", "model": "gemini-3-flash-preview"},
        {"thinkingConfig": {"thinkingLevel": "minimal"}},
    ),
    (
        {"reasoning_effort": "medium", "model": "gemini-3-pro-preview"},
        {"thinkingConfig": {"thinkingLevel": "high"}},
    ),
    ({"prefix": "Two."}, {"thinkingConfig": {"thinkingBudget": 0}}),
    (
        {"prefix": "Two.", "model": "gemini-2.5-pro"},
        {"thinkingConfig": {"thinkingBudget": 128}},
    ),
]


@pytest.mark.parametrize(("fields", "expected"), GEMINI_FIELDS)
def test_gemini_gets_each_field_under_its_own_name(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert gemini(**fields).get("generationConfig", {}) == expected


def test_gemini_takes_five_stops_at_most() -> None:
    with pytest.raises(RequestError) as caught:
        gemini(stop=list("abcdef"))
    assert caught.value.param == "stop"


def test_gemini_gets_contents_and_a_system_instruction() -> None:
    sent = gemini(
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [text("Look:"), {"type": "image_url", "image_url": {"url": PNG}}],
        },
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklG"}}]},
        {"role": "assistant", "content": "Yes."},
        QUESTION,
        prefix="Two are left.",
    )
    assert sent["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert sent["contents"] == [
        {
            "role": "user",
            "parts": [
                {"text": "Look:"},
                {"inlineData": {"mimeType": "image/png", "data": "iVBORw0="}},
                {"inlineData": {"mimeType": "audio/wav", "data": "UklG"}},
            ],
        },
        {"role": "model", "parts": [{"text": "Yes."}]},
        {"role": "user", "parts": [{"text": "How many?"}]},
        {"role": "model", "parts": [{"text": "Two are left."}]},
    ]


@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-3-flash"])
def test_gemini_gets_calls_with_a_signature_where_it_wants_one(model: str) -> None:
    sent = gemini(*TOOL_TURNS, model=model)
    first: dict[str, Any] = {"functionCall": {"id": "c1", "name": "add", "args": {"a": 1}}}
    if model == "gemini-3-flash":
        first["thoughtSignature"] = NO_SIGNATURE
    second = {"functionCall": {"id": "c2", "name": "now", "args": {}}}
    assert sent["contents"][1:] == [
        {"role": "model", "parts": [first, second]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"id": "c1", "name": "add", "response": {"sum": 3}}},
                {"functionResponse": {"id": "c2", "name": "now", "response": {"result": "noon"}}},
            ],
        },
    ]


def test_gemini_gets_its_own_signature_back() -> None:
    signed = {**CALL, "extra_content": {"google": {"thought_signature": "CiQB"}}}
    sent = gemini(QUESTION, {"role": "assistant", "tool_calls": [signed]}, model="gemini-3-flash")
    assert sent["contents"][1]["parts"][0]["thoughtSignature"] == "CiQB"


def test_gemini_gets_tools_and_the_choice_among_them() -> None:
    sent = gemini(
        tools=[ADD, {"type": "function", "function": {"name": "now"}}],
        tool_choice={"type": "function", "function": {"name": "add"}},
    )
    function = ADD["function"]
    assert isinstance(function, dict)
    add = {"name": "add", "description": "Adds.", "parametersJsonSchema": function["parameters"]}
    assert sent["tools"] == [{"functionDeclarations": [add, {"name": "now"}]}]
    config = {"mode": "ANY", "allowedFunctionNames": ["add"]}
    assert sent["toolConfig"] == {"functionCallingConfig": config}


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "models/gemini-2.5-flash:streamGenerateContent?alt=sse"),
        ("models/gemini-2.5-flash", "models/gemini-2.5-flash:streamGenerateContent?alt=sse"),
        ("../../x?y#z", "models/..%2F..%2Fx%3Fy%23z:streamGenerateContent?alt=sse"),
    ],
)
def test_geminis_model_stays_one_segment_of_the_address(model: str, path: str) -> None:
    assert GeminiWire().path(body(model)) == path


# --- answers ---------------------------------------------------------------------------------


def read(reader: Any, *frames: dict[str, Any]) -> list[Chunk]:
    return [chunk for frame in frames for chunk in reader.read_object(frame)]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_claudes_stop_reasons_in_openais_words(reason: str, finish: str) -> None:
    reader = AnthropicReader(Refusals("main"))
    frame = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}}
    assert [chunk.finish_reason for chunk in read(reader, frame)] == [finish]
    assert reader.finished


def test_a_whole_message_of_claudes_reads_like_a_stream() -> None:
    reader = AnthropicReader(Refusals("main"))
    chunks = read(
        reader,
        {
            "type": "message",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"},
                {"type": "text", "text": "Two."},
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
                {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
            ],
            "stop_reason": "tool_use",
            "usage": {
                "input_tokens": 5,
                "cache_read_input_tokens": 3,
                "cache_creation_input_tokens": 2,
                "output_tokens": 9,
            },
        },
    )
    assert [chunk.text for chunk in chunks if chunk.text] == ["Two."]
    parts = [chunk.part for chunk in chunks if chunk.part]
    assert parts[0] == {"reasoning_content": "Hm."}
    signed = {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}
    assert parts[1] == {"thinking_blocks": [signed]}
    calls = [call for part in parts[2:] for call in part["tool_calls"]]
    assert [call["function"]["arguments"] for call in calls] == ["", '{"a":1}', "", "{}"]
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 9)
    assert usage.details == {"prompt_tokens_details": {"cached_tokens": 3}}
    assert sum(chunk.tokens for chunk in chunks) == 9


@pytest.mark.parametrize(
    "frame", [{}, {"type": "content_block_delta"}, {"type": "message", "content": "x"}]
)
def test_what_is_no_event_of_claudes_is_garbled(frame: dict[str, Any]) -> None:
    with pytest.raises(UpstreamGarbled):
        read(AnthropicReader(Refusals("main")), frame)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("OTHER", "stop"),
    ],
)
def test_geminis_finish_reasons_in_openais_words(reason: str, finish: str) -> None:
    frame = {"candidates": [{"finishReason": reason}]}
    chunks = read(GeminiReader(Refusals("main")), frame)
    assert [chunk.finish_reason for chunk in chunks] == [finish]


def test_a_call_that_gemini_could_not_finish_is_an_error_worth_another_try() -> None:
    frame = {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]}
    with pytest.raises(UpstreamGarbled) as caught:
        read(GeminiReader(Refusals("main")), frame)
    assert caught.value.transient


@pytest.mark.parametrize("frame", [{}, {"candidates": [{"index": 1}]}])
def test_what_is_no_response_of_geminis_is_garbled(frame: dict[str, Any]) -> None:
    with pytest.raises(UpstreamGarbled):
        read(GeminiReader(Refusals("main")), frame)


def test_googles_errors_keep_their_kind_and_say_when_to_come_back() -> None:
    body = (
        b'[{"error":{"code":429,"message":"Slow down.","status":"RESOURCE_EXHAUSTED",'
        b'"details":[{"@type":"x/google.rpc.RetryInfo","retryDelay":"6.5s"}]}}]'
    )
    error = Refusals("main").from_status(429, {"content-type": "application/json"}, body)
    assert (error.status, error.type, error.message) == (429, "RESOURCE_EXHAUSTED", "Slow down.")
    assert error.headers["retry-after"] == "7"


def test_an_overload_in_the_middle_of_claudes_stream_is_worth_another_try() -> None:
    frame = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(UpstreamRejected) as caught:
        read(AnthropicReader(Refusals("main")), frame)
    assert (caught.value.status, caught.value.transient) == (529, True)
