"""What each dialect is sent, and which requests can be continued at all."""

from typing import Any

import pytest

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.upstream.bodies import branch_body, may_continue
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.dialects import DIALECTS, find_dialect

ASK = [{"role": "user", "content": "q"}]


def body(dialect: str, prefix: str = "", limit: int | None = None, **extra: Any) -> dict[str, Any]:
    request = {"model": "m", "messages": ASK, **extra}
    kept = {**request, "messages": list(ASK)}
    sent = branch_body(request, DIALECTS[dialect], prefix=prefix, max_tokens=limit)
    assert request == kept, "the request was changed"
    return sent


@pytest.mark.parametrize(
    ("dialect", "mark", "fields"),
    [
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("sglang", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("llamacpp", {}, {"continue_final_message": "content", "add_generation_prompt": False}),
        ("deepseek", {"prefix": True}, {}),
        ("mistral", {"prefix": True}, {}),
        ("kimi", {"partial": True}, {}),
        ("qwen", {"partial": True}, {"enable_thinking": False}),
        ("ollama", {}, {}),
    ],
)
def test_each_dialect_continues_in_its_own_way(
    dialect: str, mark: dict[str, Any], fields: dict[str, Any]
) -> None:
    first, sent = body(dialect), body(dialect, prefix="Said.")
    assert first["messages"] == ASK
    assert sent["messages"] == [*ASK, {"role": "assistant", "content": "Said.", **mark}]
    added = {k: v for k, v in sent.items() if k not in first and k != "chat_template_kwargs"}
    assert added == fields


def test_thinking_is_switched_off_while_continuing_and_other_template_arguments_stay() -> None:
    theirs = {"enable_thinking": True, "style": "short"}
    sent = body("vllm", prefix="Said.", chat_template_kwargs=theirs)
    assert sent["chat_template_kwargs"] == {"enable_thinking": False, "style": "short"}
    assert body("vllm", chat_template_kwargs=theirs)["chat_template_kwargs"] == theirs


def test_a_continuation_is_not_asked_for_a_least_length_again_nor_to_repeat_the_prefix() -> None:
    theirs = {"min_tokens": 50, "echo": True}
    assert theirs.items() <= body("vllm", **theirs).items()
    assert not theirs.keys() & body("vllm", prefix="Said.", limit=20, **theirs).keys()


@pytest.mark.parametrize(
    ("dialect", "given", "limit", "expected"),
    [
        ("vllm", {"max_tokens": 9}, 5, {"max_tokens": 5}),
        ("vllm", {"max_completion_tokens": 9}, 5, {"max_completion_tokens": 5}),
        ("vllm", {"max_completion_tokens": 9}, None, {"max_completion_tokens": 9}),
        ("vllm", {}, 5, {"max_tokens": 5}),
        ("vllm", {}, None, {}),
        ("openai", {}, 5, {"max_completion_tokens": 5}),
        ("openai", {"max_tokens": 9}, 5, {"max_tokens": 5}),
        ("deepseek", {"max_completion_tokens": 9}, 5, {"max_tokens": 5}),
        ("deepseek", {"max_completion_tokens": 9}, None, {"max_tokens": 9}),
        ("vllm", {"max_tokens": 9, "max_completion_tokens": 8}, 5,
         {"max_tokens": 5, "max_completion_tokens": 5}),
    ],
)  # fmt: skip
def test_the_limit_keeps_the_name_that_the_client_used(
    dialect: str, given: dict[str, Any], limit: int | None, expected: dict[str, Any]
) -> None:
    sent = body(dialect, limit=limit, **given)
    assert {k: v for k, v in sent.items() if k.startswith("max_")} == expected


@pytest.mark.parametrize(
    ("dialect", "options"),
    [
        ("vllm", {"include_usage": True, "continuous_usage_stats": True}),
        ("generic", {"include_usage": True}),
        ("mistral", None),
    ],
)
def test_usage_is_asked_for_where_the_dialect_has_it(dialect: str, options: Any) -> None:
    assert body(dialect).get("stream_options") == options


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, True),
        ({"tools": []}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{"name": "f"}]}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"response_format": {"type": "json_schema"}}, False),
        ({"guided_regex": "a+"}, False),
        ({"messages": [*ASK, {"role": "assistant", "content": "So"}]}, False),
    ],
)
def test_only_plain_text_replies_can_be_continued(extra: dict[str, Any], expected: bool) -> None:
    request = {"model": "m", "messages": ASK, **extra}
    assert may_continue(request) is expected


def test_an_unknown_dialect_names_the_key_and_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^upstreams\.main\.dialect: .*'vlm'.*vllm, sglang"):
        HttpUpstream("main", "http://x/v1", "vlm")
    with pytest.raises(ConfigError, match=r"^dialect: "):
        find_dialect("")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "127.0.0.1:9"}, "base_url"),
        ({"base_url": "http://x", "api_key": "a\nb"}, "api_key"),
        ({"base_url": "http://x", "api_key": "schlüssel"}, "api_key"),
    ],
)
def test_an_address_or_key_that_cannot_work_is_a_configuration_error(
    options: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^upstreams\.main\.{key}: ") as caught:
        HttpUpstream("main", **options)
    assert options.get("api_key", "?") not in str(caught.value)


@pytest.mark.parametrize("dialect", ["openai", "azure", "groq", "gemini-openai"])
def test_thinking_is_an_effort_where_the_object_is_refused(dialect: str) -> None:
    for budget, effort in ((1024, "low"), (8000, "medium"), (32000, "high")):
        sent = body(dialect, thinking={"type": "enabled", "budget_tokens": budget})
        assert "thinking" not in sent
        assert sent["reasoning_effort"] == effort
    for kind in ("adaptive", "disabled"):
        assert {"thinking", "reasoning_effort"}.isdisjoint(body(dialect, thinking={"type": kind}))
    both = body(
        dialect,
        thinking={"type": "enabled", "budget_tokens": 1024},
        reasoning_effort="high",
    )
    assert both["reasoning_effort"] == "high"


@pytest.mark.parametrize("dialect", ["deepseek", "kimi", "vllm", "generic"])
def test_elsewhere_a_thinking_object_goes_on_as_it_is(dialect: str) -> None:
    assert body(dialect, thinking={"type": "enabled"})["thinking"] == {"type": "enabled"}
