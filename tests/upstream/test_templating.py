"""The chat template applied by the proxy: the prompt is what an uninterrupted reply would read."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from stream_aligner_proxy.core.errors import ConfigError, ContinuationFailed
from stream_aligner_proxy.core.records import ChatRequest
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.templating import LocalTemplate
from tests.upstream.completing import CompletingServer

pytestmark = pytest.mark.anyio

FOLDER = Path(__file__).parents[2] / "stream_aligner_proxy" / "demo" / "models" / "upstream"
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Three."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}],
    },
]
PLAIN = [*CHAT[:3], {"role": "user", "content": "And now?"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def changed(into: Path, **fields: object) -> Path:
    """A copy of the tokenizer with another template or other marks."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for name, value in fields.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(into)
    return into


def test_text_is_the_templates_own_with_the_prefix_behind_it(tokenizer) -> None:
    shown = tokenizer.apply_chat_template(PLAIN, tokenize=False, add_generation_prompt=True)
    template = LocalTemplate(FOLDER, "text")
    assert template.prompt({"messages": CHAT}, "There are") == shown + "There are"


def test_ids_are_the_prompts_and_then_the_prefixs(tokenizer) -> None:
    shown = tokenizer.apply_chat_template(PLAIN, tokenize=False, add_generation_prompt=True)
    ids = LocalTemplate(FOLDER, "ids").prompt({"messages": CHAT}, "There are")
    assert ids == [
        *tokenizer(shown, add_special_tokens=False)["input_ids"],
        *tokenizer("There are", add_special_tokens=False)["input_ids"],
    ]


def test_a_mark_in_the_prefix_is_text(tokenizer) -> None:
    mark = tokenizer.eos_token
    ids = LocalTemplate(FOLDER, "ids").prompt({"messages": CHAT}, f"It is {mark} here")
    assert tokenizer.eos_token_id not in ids[-12:]
    assert tokenizer.decode(ids).endswith(f"It is {mark} here")


def test_a_beginning_mark_is_not_sent_twice(tmp_path: Path) -> None:
    """Servers put it before every text; the template has it already."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}|{% endfor %}"
    folder = changed(tmp_path, chat_template=template, bos_token="<|user|>")
    sent = LocalTemplate(folder, "text").prompt({"messages": PLAIN[1:2]}, "So")
    assert sent == "<|user|>How many?|So"  # this tokenizer adds none of itself
    told = json.loads((folder / "tokenizer.json").read_text())
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|user|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [],
        "special_tokens": {
            "<|user|>": {
                "id": "<|user|>",
                "ids": [next(t["id"] for t in told["added_tokens"] if t["content"] == "<|user|>")],
                "tokens": ["<|user|>"],
            }
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(told))
    assert LocalTemplate(folder, "text").prompt({"messages": PLAIN[1:2]}, "So") == "How many?|So"


def test_a_thought_that_the_template_opens_is_closed(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{% if add_generation_prompt %}|<think>\n{% endif %}"
    folder = changed(tmp_path, chat_template=template)
    sent = LocalTemplate(folder, "text").prompt({"messages": PLAIN[1:2]}, "So")
    assert sent == "How many?|<think>\n</think>\n\nSo"


def test_thinking_is_off_but_for_the_clients_own_words(tmp_path: Path) -> None:
    folder = changed(tmp_path, chat_template="{{ enable_thinking }}/{{ tone }}|")
    body = {"messages": PLAIN, "chat_template_kwargs": {"tone": "dry"}}
    assert LocalTemplate(folder, "text").prompt(body, "So") == "False/dry|So"


def test_what_a_template_cannot_render_is_no_continuation(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(ContinuationFailed):
        LocalTemplate(FOLDER, "text").prompt(
            {"messages": [{"role": "user", "content": [picture]}]}, ""
        )
    folder = changed(tmp_path, chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(ContinuationFailed):
        LocalTemplate(folder, "text").prompt({"messages": PLAIN}, "So")


def test_the_turns_end_joins_the_clients_stops(tokenizer) -> None:
    template = LocalTemplate(FOLDER, "text")
    assert template.stop(None) == [tokenizer.eos_token]
    assert template.stop("x") == ["x", tokenizer.eos_token]
    assert template.stop(["a", "b", "c", "d"]) == ["a", "b", "c", "d"]


def test_what_cannot_work_is_told_at_the_start(tmp_path: Path) -> None:
    def make(dialect: str, **options: object) -> None:
        HttpUpstream("up", "http://127.0.0.1:9/v1", dialect, **options)

    with pytest.raises(ConfigError, match=r"upstreams\.up\.tokenizer: .* no tokenizer"):
        make("together", tokenizer=tmp_path)
    with pytest.raises(ConfigError, match=r"upstreams\.up\.tokenizer: .* completes no prompts"):
        make("anthropic", tokenizer=FOLDER)
    with pytest.raises(ConfigError, match=r"upstreams\.up\.continuation: ids need `tokenizer`"):
        make("together", continuation="ids")
    folder = changed(tmp_path, chat_template=None)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"upstreams\.up\.tokenizer: .* no chat template"):
        make("together", tokenizer=folder)


@pytest.mark.parametrize("dialect", ["together", "fireworks", "transformers", "tgi", "generic"])
async def test_a_reply_is_continued_through_completions(dialect: str, tokenizer) -> None:
    """The conversation is chat; what continues it is a completion of the same prompt."""
    async with CompletingServer.running(" Two. Three.") as (server, address):
        upstream = HttpUpstream("up", f"{address}/v1", dialect, tokenizer=FOLDER)
        try:
            body = {"model": "m", "messages": CHAT, "stop": "Four", "temperature": 0.5, "tools": []}
            request = ChatRequest("m", body, ())
            assert upstream.continuation(request).way == "ids"
            assert upstream.continuation(request).sure
            async with upstream.open(request, prefix="One.", max_tokens=7) as chunks:
                assert "".join([chunk.text async for chunk in chunks]) == " Two. Three."
        finally:
            await upstream.aclose()
    (sent,) = server.bodies
    shown = tokenizer.apply_chat_template(PLAIN, tokenize=False, add_generation_prompt=True)
    got = sent["prompt"] if isinstance(sent["prompt"], str) else tokenizer.decode(sent["prompt"])
    assert got == shown + "One."
    assert isinstance(sent["prompt"], list) is (dialect == "fireworks")
    assert (sent["max_tokens"], sent["temperature"], sent["model"]) == (7, 0.5, "m")
    assert sent["stop"] == ["Four", tokenizer.eos_token]
    assert "messages" not in sent


async def test_a_picture_in_the_history_leaves_the_other_ways() -> None:
    async with CompletingServer.running(" Two.") as (server, address):
        upstream = HttpUpstream("up", f"{address}/v1", "transformers", tokenizer=FOLDER)
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        body = {"model": "m", "messages": [{"role": "user", "content": [picture]}]}
        try:
            async with upstream.open(ChatRequest("m", body, ()), prefix="One.") as chunks:
                assert "".join([chunk.text async for chunk in chunks]) == " Two."
        finally:
            await upstream.aclose()
    (sent,) = server.bodies
    assert sent["messages"][-1]["role"] == "user"  # told to go on
