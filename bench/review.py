"""What a review costs: the draft verified, the keep token, and every token written anew.

Random weights cannot review anything, so the draft is the model's own greedy output with a share of
its tokens changed (replaced, dropped, doubled, or preceded by others): what the engine does with it
is what it does with a sentence of which the aligner changes as much. A prompt holds 64 tokens of
context, read before as in the middle of a reply, and the sentence. `verify_ahead` is `verify` where
the sentence, too, was read while it arrived, all but its last two tokens. `keep_token` is a model
that says keep: its dial is turned to 0.

A decoder learns how far drafts can be trusted (`drafting.Trust`): each cell has its own, which has
seen one round of such drafts before, untimed. A cell's time is the median over rounds in which all
methods take turns; `ratio_to_greedy` sets it beside plain greedy decoding of the same rows in the
same rounds. `identical` counts rows whose output is that of plain greedy, token for token.
"""

import argparse
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bench.report import Row as Line
from bench.report import publish
from stream_aligner_proxy.aligners.choosing import MOST
from stream_aligner_proxy.aligners.decoding import Decoder
from stream_aligner_proxy.aligners.kv import Prefixes
from stream_aligner_proxy.aligners.network import Network
from stream_aligner_proxy.aligners.pacing import pass_cost
from stream_aligner_proxy.aligners.row import Row

CONTEXT = 64
MARKS = 3  # control tokens around the sentence
KEEP, END = 5, 6  # ids that nothing else has; random weights end nothing by themselves
LENGTHS = (8, 16, 32, 64, 128)
BATCHES = (1, 4, 16, 64)
SHARES = (0.0, 0.1, 0.25, 0.5)


def _llama(sizes: dict[str, int]) -> Any:
    shape = {
        **sizes,
        "max_position_embeddings": 4096,
        # Wide enough that two best tokens are seldom a rounding error apart.
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**shape))


def _gemma_2b() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(initializer_range=0.1))


_SMALL = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 8192,
}
_LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}


def _qwen_small() -> Any:
    shape: dict[str, Any] = {**_SMALL, "num_key_value_heads": 4, "initializer_range": 0.1}
    return Qwen2ForCausalLM(Qwen2Config(**shape))


SHAPES: dict[str, Callable[[], Any]] = {
    "llama-100m": lambda: _llama(_SMALL),
    "qwen-100m": _qwen_small,
    "gemma-2b": _gemma_2b,
    "llama-8b": lambda: _llama(_LARGE),
}


@dataclass(frozen=True)
class Case:
    """Rows of one cell: the prompts, and what plain greedy decoding makes of them."""

    prompts: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    vocabulary: int

    def rows(self, share: float, seed: int) -> list[Row]:
        """The rows with fresh drafts; each stops after as many tokens as its output has."""
        rng = random.Random(seed)
        return [
            Row(prompt, (*_edited(output, share, self.vocabulary, rng), END), len(output))
            for prompt, output in zip(self.prompts, self.outputs, strict=True)
        ]


def _edited(output: Sequence[int], share: float, vocabulary: int, rng: random.Random) -> list[int]:
    def other() -> int:
        return rng.randrange(END + 1, vocabulary)

    draft: list[int] = []
    for token in output:
        if rng.random() >= share:
            draft.append(token)
            continue
        match rng.randrange(4):
            case 0:
                draft.append(other())
            case 1:
                pass
            case 2:
                draft.extend((token, token))
            case _:
                draft.extend((other(), token))
    return draft


class Bench:
    """One model, and the time it takes to decode rows one way or another."""

    def __init__(self, model: Any) -> None:
        self.network = Network(model)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.cost = pass_cost(self.network)

    def decoder(self, **options: Any) -> tuple[Decoder, Prefixes]:
        """A decoder and its cache. It learns how far drafts can be trusted, as in a server."""
        prefixes = Prefixes(1 << 20)
        options = {"keep": KEEP, "pass_cost": self.cost, "prefixes": prefixes, **options}
        return Decoder(self.network, frozenset({END}), **options), prefixes

    def decode(
        self, rows: list[Row], using: tuple[Decoder, Prefixes], *, read: int = CONTEXT
    ) -> float:
        """Seconds from the rows' arrival to their last token.

        `read`: how many tokens of each prompt were read before.
        """
        decoder, prefixes = using
        prefixes.clear()
        for row in rows:
            decoder.prefill(row.prompt[:read], least=1, most=read)
        self._wait()
        begun = time.perf_counter()
        batch = decoder.begin(rows)
        while batch.lanes:
            decoder.step(batch)
        self._wait()
        return time.perf_counter() - begun

    def _wait(self) -> None:
        if self.network.device.type == "cuda":
            torch.cuda.synchronize()

    def case(self, tokens: int, batch: int, seed: int) -> Case:
        rng = random.Random(seed)
        ids = range(END + 1, self.vocabulary)
        prompts = tuple(tuple(rng.choices(ids, k=CONTEXT + tokens + MARKS)) for _ in range(batch))
        rows = [Row(prompt, (), tokens) for prompt in prompts]
        self.decode(rows, self.decoder(method="greedy", keep=None))
        return Case(prompts, tuple(tuple(row.output) for row in rows), self.vocabulary)


def measure(
    bench: Bench, tokens: int, batch: int, shares: Sequence[float], rounds: int
) -> list[Line]:
    """The lines of one length and batch: greedy, the keep token, and a draft for each share."""
    ways = [("greedy", 0.0), ("keep_token", 0.0), ("verify_ahead", 0.0)]
    ways += [("verify", share) for share in shares]
    case = bench.case(tokens, batch, seed=tokens * 1000 + batch)
    times: dict[tuple[str, float], list[float]] = defaultdict(list)
    same: dict[tuple[str, float], int] = defaultdict(int)
    decoders = {
        (method, share): bench.decoder(
            keep=KEEP if method == "keep_token" else None,
            method="greedy" if method == "greedy" else "verify",
        )
        for method, share in ways
    }
    for number in range(-1, rounds):
        # Whoever goes first meets other caches than the rest: take turns at that, too.
        for method, share in (*ways[max(number, 0) :], *ways[: max(number, 0)]):
            if number < 0 and (method != "verify" or not share):
                continue  # the round before the first: drafts that need it lose their credit
            rows = case.rows(share, seed=number)
            expected = case.outputs
            if method == "keep_token":
                for row in rows:
                    row.draft, row.bias = (), MOST
                expected = tuple((KEEP,) for _ in rows)
            read = CONTEXT + tokens - 2 if method == "verify_ahead" else CONTEXT
            seconds = bench.decode(rows, decoders[method, share], read=read)
            if number < 0:
                continue
            times[method, share].append(seconds)
            same[method, share] += sum(
                tuple(row.output[: len(right)]) == right
                for row, right in zip(rows, expected, strict=True)
            )
    greedy = statistics.median(times["greedy", 0.0])
    return [
        {
            "method": method,
            "tokens": tokens,
            "batch": batch,
            "changed": share,
            "ratio_to_greedy": statistics.median(taken) / greedy,
            "ms": 1000 * statistics.median(taken),
            "identical": f"{same[method, share]}/{rounds * batch}",
        }
        for (method, share), taken in times.items()
    ]


def summary(lines: Sequence[Line]) -> None:
    """The aims, and how far they are reached."""
    reviews = [line for line in lines if line["method"] == "verify"]
    unchanged = next(
        (
            line["ratio_to_greedy"]
            for line in reviews
            if (line["tokens"], line["batch"], line["changed"]) == (32, 1, 0.0)
        ),
        None,
    )
    worst = max(reviews, key=lambda line: float(line["ratio_to_greedy"] or 0))
    same = [tuple(map(int, str(line["identical"]).split("/"))) for line in reviews]
    if unchanged is not None:
        print(f"\nunchanged, 32 tokens, batch 1: {unchanged:.3f} of greedy (aim: at most 0.15)")
    print(
        f"worst cell: {worst['ratio_to_greedy']:.3f} of greedy ({worst['tokens']} tokens, batch "
        f"{worst['batch']}, {worst['changed']:.0%} changed; aim: at most 1.05)"
    )
    print(f"identical to greedy: {sum(a for a, _ in same)} of {sum(b for _, b in same)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-100m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None)
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--changed", type=float, nargs="+", default=SHARES)
    parser.add_argument(
        "--most", type=int, default=2048, help="leave out cells of more than this: tokens x batch"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    kind = arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    with device:
        torch.set_default_dtype(getattr(torch, kind))
        model = SHAPES[arguments.shape]().eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
    bench = Bench(model)
    size = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"{arguments.shape}: {size:.0f}M random weights, {kind}, {device}; ", end="")
    print(f"a pass costs as much as {bench.cost:.0f} tokens of it\n")
    lines: list[Line] = []
    cells = [(t, b) for t in arguments.tokens for b in arguments.batch if t * b <= arguments.most]
    for tokens, batch in tqdm(cells, unit="cell", disable=None):
        # Many rows even out a disturbance by themselves.
        rounds = arguments.rounds if batch <= 4 else min(arguments.rounds, 3)
        lines += measure(bench, tokens, batch, arguments.changed, rounds)
    name = "review" if arguments.shape == "llama-100m" and device.type == "cpu" else None
    publish(name or f"review-{arguments.shape}-{device.type}", lines, "bench.review")
    summary(lines)


if __name__ == "__main__":
    main()
