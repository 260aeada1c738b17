"""What a speculative draft wins inside vLLM: engine steps and time for one review, by method.

Run from the environment that has vLLM: `.venv-vllm/bin/python -m bench.vllm_drafts`.

`edited`: a model of 60 million parameters that writes the same sentence whatever the prompt holds:
attention and MLP are computed but add nothing, and the head maps each token to its successor. So
the prompt can hold that sentence with any share of its words changed (a word: a run of one to three
tokens, replaced, dropped, doubled or preceded by another), and what the engine does is what it does
with an aligner that changes as much. `demo`: the embedded aligner on sentences of its own world, as
they are and with a wrong number.

Reviews come one at a time. A step is one that gave tokens; `identical` counts rows whose output is
that of `none`, token for token.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.report import Row as Line
from bench.report import publish
from stream_aligner_proxy.aligners import vllm_launch
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.vllm_drafts import Marks
from stream_aligner_proxy.aligners.vllm_plan import Draft, Plan, arguments
from stream_aligner_proxy.aligners.vocabulary import choose_profile, load_vocabulary
from stream_aligner_proxy.core.records import Review, Turn
from training.world.judge import sentences_of
from training.world.problems import problems

DEMO = Path(__file__).resolve().parent.parent / "stream_aligner_proxy" / "demo" / "models"
VOCABULARY = 4096
FIRST = 16  # ids below are marks
MARKS = Marks((3,), 4, 6, 5)
CONTEXT = 64
LENGTHS = (16, 48)
SHARES = (0.0, 0.1, 0.3)


@dataclass(frozen=True)
class Method:
    """A way to draft: `lookup` is vLLM's least n-gram."""

    draft: Draft
    tokens: int = 1
    lookup: int = 1

    @property
    def name(self) -> str:
        if self.draft == "ngram":
            return f"ngram {self.tokens}, lookup {self.lookup}-4"
        return self.draft if self.draft == "none" else f"{self.draft} {self.tokens}"


METHODS = (
    Method("none"),
    Method("ngram", 8),
    Method("ngram", 16),
    Method("ngram", 24),
    Method("ngram", 32),
    Method("ngram", 16, lookup=2),
    Method("sentence", 8),
    Method("sentence", 16),
    Method("sentence", 32),
    Method("sentence", 64),
)


@dataclass(frozen=True)
class Case:
    """One review, and its cell of the table."""

    model: str
    tokens: int
    share: float
    prompt: tuple[int, ...]
    room: int


def successor_model(folder: Path) -> list[int]:
    """Save the model; returns the order of its tokens: each writes the next."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=1728,
        num_hidden_layers=10,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        eos_token_id=MARKS.end,
        bos_token_id=None,
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config).eval()
    order = list(range(FIRST, VOCABULARY))
    random.Random(0).shuffle(order)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        known = torch.nn.init.normal_(model.model.embed_tokens.weight)
        model.lm_head.weight.zero_()
        model.lm_head.weight[order[1:]] = known[order[:-1]]
    model.save_pretrained(folder)
    return order


def edited(sentence: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """The sentence with about this share of its words changed."""
    draft: list[int] = []
    at = 0
    while at < len(sentence):
        word = list(sentence[at : at + rng.randint(1, 3)])
        at += len(word)
        other = [rng.randrange(FIRST, VOCABULARY) for _ in word]
        if rng.random() >= share:
            draft += word
            continue
        draft += rng.choice((other, [], [*word, *word], [*other, *word]))
    return draft


def edited_cases(order: Sequence[int], rows: int) -> list[Case]:
    """Reviews of the successor model. The output's first token is given, so that rows differ."""
    cases = []
    for length in LENGTHS:
        for share in SHARES:
            rng = random.Random(f"{length} {share}")
            for _ in range(rows):
                start = rng.randrange(len(order) - length - 1)
                sentence = order[start : start + length + 1]
                context = [rng.randrange(FIRST, VOCABULARY) for _ in range(CONTEXT)]
                draft = edited(sentence, share, rng)
                prompt = (2, *context, *MARKS.opens, *draft, MARKS.close, sentence[0])
                cases.append(Case("edited", length, share, prompt, length))
    return cases


def demo_cases(rows: int) -> tuple[list[Case], Marks]:
    """Sentences of held-out problems, right and with one number wrong."""
    vocabulary = load_vocabulary(DEMO / "aligner")
    encoder = Encoder(vocabulary.tokenizer, choose_profile(None, vocabulary), vocabulary.ends)
    rng = random.Random(1)
    cases = []
    for problem in problems(11, rows, "test"):
        sentences = sentences_of(problem.reply)
        number = rng.randrange(len(sentences))
        right = sentences[number].strip()
        digits = [at for at, letter in enumerate(right) if letter.isdigit()]
        at = digits[-1] if digits else 0
        wrong = f"{right[:at]}{(int(right[at]) + 3) % 10}{right[at + 1 :]}" if digits else right
        for share, sentence in ((0.0, right), (1.0, wrong)):
            committed = " ".join(sentences[:number])
            review = Review((Turn("user", problem.question),), committed, sentence)
            draft = encoder.draft(review)
            cases.append(Case("demo", 0, share, encoder.prompt(review), 2 * len(draft) + 16))
    keep = encoder.keep
    probe = encoder.prompt(Review((), "", "x"))
    return cases, Marks((probe[-3],), probe[-1], encoder.draft(Review((), "", "x"))[-1], keep)


class Steps:
    """vLLM's statistics, of which only the steps that gave tokens are counted."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> "Steps":
        return self

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **more: Any) -> None:
        if iteration_stats is not None and iteration_stats.num_generation_tokens:
            self.count += 1

    def log_engine_initialized(self) -> None: ...

    def log(self) -> None: ...

    def record_sleep_state(self, *args: Any) -> None: ...


@dataclass(frozen=True)
class Got:
    """What one review took."""

    seconds: float
    steps: int
    ids: tuple[int, ...]


async def measure(plan: Plan, method: Method, cases: list[Case], rounds: int) -> list[Got]:
    """Run all cases through a new engine; times are medians over the rounds."""
    from vllm import SamplingParams  # noqa: PLC0415  (its children import this module, too)
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.inputs import tokens_input  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    assert plan.marks is not None
    steps = Steps()
    given = arguments(plan, cpu=True)
    given["disable_log_stats"] = False
    if method.draft == "ngram":
        given["speculative_config"]["prompt_lookup_min"] = method.lookup
    engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(**given), stat_loggers=[steps])
    results: list[list[Got]] = [[] for _ in cases]
    try:
        for number in range(-1, rounds):  # one round to warm up
            await engine.reset_prefix_cache()
            for index, case in enumerate(cases):
                parameters = SamplingParams(
                    temperature=0,
                    max_tokens=case.room,
                    stop_token_ids=[plan.marks.end],
                    detokenize=False,
                )
                before, begun = steps.count, time.perf_counter()
                ids: tuple[int, ...] = ()
                async for output in engine.generate(
                    tokens_input(list(case.prompt)), parameters, f"{number} {index}"
                ):
                    ids = tuple(output.outputs[0].token_ids)
                seconds = time.perf_counter() - begun
                if number >= 0:
                    results[index].append(Got(seconds, steps.count - before, ids))
    finally:
        engine.shutdown()
    return [
        replace(got[-1], seconds=statistics.median(one.seconds for one in got)) for got in results
    ]


def line(method: Method, cell: tuple[str, int, float], got: list[Got], plain: list[Got]) -> Line:
    model, tokens, share = cell
    seconds = statistics.median(one.seconds for one in got)
    return {
        "model": model,
        "tokens": tokens or None,
        "changed": share if model == "edited" else "one number" if share else "nothing",
        "draft": method.name,
        "n": len(got),
        "steps": statistics.mean(one.steps for one in got),
        "milliseconds": 1000 * seconds,
        "ratio_to_none": seconds / statistics.median(one.seconds for one in plain),
        "identical": sum(a.ids == b.ids for a, b in zip(got, plain, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=8, help="reviews in a cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", help="only these, `none` besides")
    parser.add_argument("--models", nargs="+", default=["edited", "demo"])
    options = parser.parse_args()
    methods = [
        m for m in METHODS if not options.methods or m.name in options.methods or m.draft == "none"
    ]
    vllm_launch.set_up_environment()
    vllm_launch.set_up_cpu(1)
    rows: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            if name == "edited":
                order = successor_model(Path(folder))
                cases, marks, path = edited_cases(order, options.rows), MARKS, Path(folder)
            else:
                (cases, marks), path = demo_cases(4 * options.rows), DEMO / "aligner"
            plan = Plan(path, "float32", 1024, 1, "none", 1, marks, threads=1, kv_cache_gib=0.5)
            plain: list[Got] = []
            for method in methods:
                plan = replace(plan, draft=method.draft, draft_tokens=method.tokens)
                got = asyncio.run(measure(plan, method, cases, options.rounds))
                plain = plain or got
                for cell in dict.fromkeys((c.model, c.tokens, c.share) for c in cases):
                    of = [i for i, c in enumerate(cases) if (c.model, c.tokens, c.share) == cell]
                    rows.append(line(method, cell, [got[i] for i in of], [plain[i] for i in of]))
                    print(rows[-1], flush=True)
    publish("vllm_drafts", rows, "bench.vllm_drafts")


if __name__ == "__main__":
    main()
