"""Ways of continuing spoken by hand: what a server can do, whatever the proxy's client asks of it.

Each gives a `Write`; all go through a route that completes a prompt instead of a chat.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from bench.continuing import MAX_TOKENS, Write, Written

# (client, messages) -> the prompt: a text, or token ids.
Prompt = Callable[[httpx.AsyncClient, list[dict[str, str]]], Awaitable[str | list[int]]]


def _completing(client: httpx.AsyncClient, model: str, prompt: Prompt) -> Write:
    async def write(question: str, prefix: str) -> Written:
        messages = [{"role": "user", "content": question}]
        if prefix:
            messages.append({"role": "assistant", "content": prefix})
        body = {
            "model": model,
            "prompt": await prompt(client, messages),
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        choice = (await _post(client, "/v1/completions", body))["choices"][0]
        return Written(choice["text"], choice["finish_reason"])

    return write


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def template(client: httpx.AsyncClient, model: str, tokenizer: Any) -> Write:
    """The chat template applied here, by `tokenizer`; the server sees one text."""

    async def prompt(_: httpx.AsyncClient, messages: list[dict[str, str]]) -> str:
        continues = messages[-1]["role"] == "assistant"
        text: str = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
        )
        return text

    return _completing(client, model, prompt)


def vllm_ids(client: httpx.AsyncClient, model: str) -> Write:
    """vLLM's own ids of the conversation and the prefix, from its `/tokenize`."""

    async def prompt(client: httpx.AsyncClient, messages: list[dict[str, str]]) -> list[int]:
        continues = messages[-1]["role"] == "assistant"
        body = {
            "model": model,
            "messages": messages,
            "add_generation_prompt": not continues,
            "continue_final_message": continues,
        }
        ids: list[int] = (await _post(client, "/tokenize", body))["tokens"]
        return ids

    return _completing(client, model, prompt)


def llamacpp_ids(client: httpx.AsyncClient, model: str) -> Write:
    """llama.cpp's ids: its `/apply-template` for the conversation, then `/tokenize`."""

    async def prompt(client: httpx.AsyncClient, messages: list[dict[str, str]]) -> list[int]:
        asked = [message for message in messages if message["role"] != "assistant"]
        prefix = "".join(one["content"] for one in messages if one["role"] == "assistant")
        rendered = (await _post(client, "/apply-template", {"messages": asked}))["prompt"]
        # Only the template's own marks are special tokens: the prefix is read apart, as text.
        ids: list[int] = []
        for text, special in ((rendered, True), (prefix, False)):
            body = {"content": text, "parse_special": special, "add_special": False}
            ids += (await _post(client, "/tokenize", body))["tokens"]
        return ids

    return _completing(client, model, prompt)
