"""How much faster does an aligner learn from packed rows than from padded ones?

Reviews of MR-Ben's and PRMBench's solutions (a row for each step up to the first wrong one) are
laid out by the recipe's own `schedule`, packed and one to a row, for a small random model. Steps of
both kinds (forward, backward) take turns in one run, with as many rows to a batch. A token is
useful if it is of an example, not padding.

First every example's loss is computed both ways: they must be equal, or the figures mean nothing.

The data is in the folder that STREAM_ALIGNER_DATA names, or in `../shared/data`.
"""

import argparse
import gzip
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.report import Row, publish
from stream_aligner_proxy.core.prompts import COMPACT_TOKENS, PROFILES
from stream_aligner_proxy.core.records import Review, Turn
from training.recipe import segments
from training.recipe.batches import Collate
from training.recipe.rows import IGNORE, Encoded, Encoder, Sample
from training.recipe.schedule import pack

ROOT = Path(__file__).parents[1]
Batches = list[list[list[Encoded]]]


def data_folder() -> Path:
    named = os.environ.get("STREAM_ALIGNER_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "mr-ben").is_dir() or not (folder / "prmbench").is_dir():
        print(f"skipped: {folder} has no mr-ben and prmbench; STREAM_ALIGNER_DATA names a folder")
        sys.exit(0)
    return folder


def solutions(folder: Path) -> Iterator[tuple[str, list[str], int]]:
    """Question, steps, and how many of the steps stand before the first wrong one."""
    for path in sorted(folder.glob("mr-ben/*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            groups = json.load(file).values()
        for one in (record for group in groups for record in group):
            steps, wrong = one["Model_Solution_Steps"], str(one["Model_Solution_First_Error_Step"])
            if isinstance(steps, list):
                yield one["Question"], steps, int(wrong) - 1 if wrong.isdigit() else len(steps)
    for path in sorted(folder.glob("prmbench/*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for one in map(json.loads, filter(str.strip, file)):
                steps = one["modified_process"]
                yield one["question"], steps, min(one["error_steps"] or [len(steps) + 1]) - 1


def samples(folder: Path) -> Iterator[Sample]:
    """A review of every step up to the first wrong one. What is answered there makes no difference
    to the speed; that step again will do."""
    for question, steps, right in solutions(folder):
        for at, step in enumerate(steps[: right + 1]):
            if text := step.strip():
                review = Review((Turn("user", question),), " ".join(steps[:at]), text)
                yield Sample(review, text, False, question, "")


def tokenizer_of(texts: Iterator[str]) -> Any:
    """Byte-level BPE learnt from the data, for lengths as those of a tokenizer that fits it."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|eos|>", *COMPACT_TOKENS]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=8192,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|eos|>")


def small_model(vocabulary: int, hidden: int, layers: int, length: int) -> Any:
    torch.manual_seed(1)
    config: Any = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, intermediate_size=hidden * 5 // 2,
        max_position_embeddings=length, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def padded(batch: list[list[Encoded]], pad: int) -> dict[str, Any]:
    """What is usual: each row padded to the longest, with a mask."""
    examples = [one for row in batch for one in row]
    longest = max(len(one.ids) for one in examples)

    def filled(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (longest - len(values))

    return {
        "input_ids": torch.tensor([filled(one.ids, pad) for one in examples]),
        "labels": torch.tensor([filled(one.labels, IGNORE) for one in examples]),
        "attention_mask": torch.tensor([filled([1] * len(one.ids), 0) for one in examples]),
    }


def packed(batch: list[list[Encoded]], pad: int) -> dict[str, Any]:
    return Collate(batch, pad, flat=True)([{"row": number} for number in range(len(batch))])


def token_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The loss of every answered token, in the order of the rows; the head runs there only."""
    labels = batch.pop("labels")[:, 1:]
    hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    answered = labels != IGNORE
    logits = model.lm_head(hidden[answered])
    return torch.nn.functional.cross_entropy(logits, labels[answered], reduction="none")


# As the recipe chooses it on a CPU; padded rows have torch's own.
LAYOUTS = {"padded": (padded, "sdpa"), "packed": (packed, segments.NAME)}


def step(model: Any, batch: dict[str, Any], attention: str) -> float:
    """Seconds of one forward and backward pass."""
    model.set_attn_implementation(attention)
    began = time.perf_counter()
    token_losses(model, batch).mean().backward()
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - began


@torch.no_grad()
def difference(model: Any, batches: Batches, pad: int) -> float:
    """The largest difference between an example's mean loss in a packed row and in a padded one."""
    worst = 0.0
    for batch in tqdm(batches, desc="losses"):
        examples = [one for row in batch for one in row]
        model.set_attn_implementation("sdpa")
        alone = torch.cat([token_losses(model, padded([[one]], pad)) for one in examples])
        counts = [len(one.ids) - one.start for one in examples]
        model.set_attn_implementation(segments.NAME)
        inside = token_losses(model, packed(batch, pad))
        for a, b in zip(alone.split(counts), inside.split(counts), strict=True):
            worst = max(worst, abs(float(a.mean() - b.mean())))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="batches of each kind (default 10)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row (default 2048)")
    parser.add_argument("--batch", type=int, default=8, help="rows in a batch (default 8)")
    parser.add_argument("--hidden", type=int, default=256, help="of the model (default 256)")
    parser.add_argument("--layers", type=int, default=4, help="of the model (default 4)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    every = list(samples(data_folder()))
    rng = random.Random(1)
    rng.shuffle(every)
    texts = (one.review.committed + one.review.sentence for one in every[:6000])
    tokenizer = tokenizer_of(texts)
    encoder = Encoder(tokenizer, PROFILES["compact"], keep_token=True)
    encoded = [encoder.encode(one) for one in every[:6000]]
    examples = [one for one in encoded if len(one.ids) <= options.length]
    lengths = [len(one.ids) for one in examples]
    print(
        f"{len(every)} reviews; {len(examples)} of {len(encoded)} drawn fit in {options.length} "
        f"tokens: mean {mean(lengths):.0f}, median {median(lengths):.0f}, longest {max(lengths)}"
    )
    rows = {"padded": [[one] for one in examples], "packed": pack(examples, options.length)}
    for kind in rows.values():
        rng.shuffle(kind)
    batches: dict[str, Batches] = {
        kind: [
            all_rows[at : at + options.batch]
            for at in range(0, options.batch * options.rounds, options.batch)
        ]
        for kind, all_rows in rows.items()
    }
    model = small_model(len(tokenizer), options.hidden, options.layers, options.length)
    pad = tokenizer.pad_token_id
    worst = difference(model, batches["packed"][:2], pad)
    assert worst < 1e-4, f"an example's loss in a packed row differs by {worst}"

    for kind, (
        layout,
        attention,
    ) in LAYOUTS.items():  # everything is warm before the first measurement
        step(model, layout(batches[kind][0], pad), attention)
    speeds: dict[str, list[float]] = {kind: [] for kind in LAYOUTS}
    filled: dict[str, list[float]] = {kind: [] for kind in LAYOUTS}
    for number in tqdm(range(options.rounds), desc="rounds"):
        for kind, (layout, attention) in LAYOUTS.items():
            batch = batches[kind][number]
            tensors = layout(batch, pad)
            useful = sum(len(one.ids) for row in batch for one in row)
            filled[kind].append(useful / tensors["input_ids"].numel())
            speeds[kind].append(useful / step(model, tensors, attention))
    result: list[Row] = [
        {
            "method": kind,
            "useful_tokens_per_s": round(median(speeds[kind]), 1),
            "speedup": round(median(speeds[kind]) / median(speeds["padded"]), 3),
            "useful_share": round(mean(filled[kind]), 4),
            "rounds": options.rounds,
            "row_tokens": options.length,
            "largest_loss_difference": worst,
        }
        for kind in LAYOUTS
    ]
    publish("packing", result, "bench.packing")


if __name__ == "__main__":
    main()
