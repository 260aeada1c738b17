"""At temperature 0, is a reply continued from its own beginning the reply in one go? Per server and
way: on every server that is installed here, cut at every sentence end. Nothing is timed."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from bench.continuing import Cut, Tokens, Write, measure, misses, questions, through
from bench.raw_ways import llamacpp_ids, template, vllm_ids
from bench.real_servers import MODEL, Running, servers
from bench.report import Row, publish
from stream_aligner_proxy.upstream.client import HttpUpstream

# (way, dialect): a branch of the proxy's own client. (way, ""): requests made by hand.
WAYS: dict[str, tuple[tuple[str, str], ...]] = {
    "demo": (("prefill", "vllm"),),
    "transformers": (("prefill", "vllm"), ("prefill", "ollama"), ("template", "")),
    "llamacpp": (
        ("prefill", "llamacpp"),
        ("prefill", "vllm"),
        ("prefill", "ollama"),
        ("template", ""),
        ("ids", ""),
    ),
    "vllm": (("prefill", "vllm"), ("template", ""), ("ids", "")),
}


def tokenizer() -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import)

    return AutoTokenizer.from_pretrained(MODEL)


@asynccontextmanager
async def writing(server: str, running: Running, way: str, dialect: str) -> AsyncIterator[Write]:
    if dialect:
        upstream = HttpUpstream(server, f"{running.address}/v1", dialect)
        try:
            yield through(upstream, running.model)
        finally:
            await upstream.aclose()
        return
    async with httpx.AsyncClient(base_url=running.address, trust_env=False, timeout=60) as client:
        if way == "template":
            yield template(client, running.model, tokenizer())
        elif server == "vllm":
            yield vllm_ids(client, running.model)
        else:
            yield llamacpp_ids(client, running.model)


def compared(cuts: list[Cut], tokens: Tokens) -> Row:
    equal = sum(cut.equal for cut in cuts)
    return {
        "cuts": len(cuts),
        "equal": equal,
        "rate": equal / len(cuts),
        "misses": misses(cuts, tokens),
    }


async def rows_of(server: str, running: Running, asked: list[str], tokens: Tokens) -> list[Row]:
    rows = []
    for way, dialect in WAYS[server]:
        async with writing(server, running, way, dialect) as write:
            cuts = await measure(write, asked)
        how = f"dialect {dialect}" if dialect else "by hand"
        asked_so: Row = {"server": server, "version": running.version, "way": way, "asked": how}
        rows.append(asked_so | compared(cuts, tokens))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="questions (default 40)")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    encode = tokenizer()
    rows: list[Row] = []
    for name in options.only:
        server = servers()[name]
        if server.missing:
            print(f"{name}: skipped, {server.missing}", file=sys.stderr)
            continue
        with server.run() as running:
            rows += asyncio.run(
                rows_of(
                    name,
                    running,
                    questions(options.count),
                    lambda text: encode(text, add_special_tokens=False)["input_ids"],
                )
            )
    publish("continuation", rows, "bench.continuation")


if __name__ == "__main__":
    main()
