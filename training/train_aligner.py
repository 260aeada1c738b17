"""Train the demo aligner: identity warm-up, then corrections.

    python -m training.train_aligner --config training/configs/demo-aligner.yaml \\
        --base DIR --mistakes FILE --out DIR

Loss is on what the aligner answers (`<|keep|>` or the corrected sentence), with more weight on the
first token, which decides; a little on the right reply that the reviews share, to keep the sums.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.config import load_config
from training.corrections import Mix, Reviewed, examples
from training.engine import Deep, Optim, device, grow, save, train
from training.mistakes import read
from training.packing import pack
from training.tokenizer import Coder
from training.world.split import stream


@dataclass(frozen=True, slots=True)
class AlignerConfig:
    """One aligner: how long it warms up on unchanged sentences, then what it is corrected with.

    `layers`: how many it has, those on top of the base's new; 0 for the base's.
    """

    name: str
    seed: int
    optim: Optim
    layers: int = 0
    deep: Deep | None = None
    warmup_steps: int = 100
    snapshot_every: int = 0
    mix: Mix = field(default_factory=Mix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("--base", type=Path, required=True, help="pre-trained model to start from")
    parser.add_argument("--mistakes", type=Path, help="the upstream's own mistakes (JSON lines)")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--steps", type=int, help="train this many steps instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = load_config(AlignerConfig, args.config, {"optim.steps": args.steps})
    sampled: list[Reviewed] = read(args.mistakes) if args.mistakes else []
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model: Any = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    torch.manual_seed(config.seed)
    if config.layers:
        model = grow(model, config.layers)
    model = model.to(device())
    coder, optim = Coder(tokenizer), config.optim
    rng = stream("train", f"aligner-{config.name}", config.seed)
    if config.warmup_steps:
        keep = replace(config.mix, wrong=0.0, whole=0.0, notes=0.0, sampled=0.0)
        first = replace(optim, steps=config.warmup_steps, warmup=config.warmup_steps // 2, floor=1)
        batches = pack(
            examples(rng, coder, keep, ()), optim.rows, optim.length, tokenizer.pad_token_id
        )
        train(model, batches, first, name="identity warm-up", deep=config.deep)
    batches = pack(
        examples(rng, coder, config.mix, sampled), optim.rows, optim.length, tokenizer.pad_token_id
    )
    record = {
        "prompt_profile": "compact",
        "config": config,
        "sampled_rows": sum(len(one.rows) + len(one.whole) for one in sampled),
    }

    def snapshot(step: int) -> None:
        out = args.out.with_name(f"{args.out.name}-partial")
        save(model, tokenizer, out, {**record, "steps_done": step})

    losses = train(
        model,
        batches,
        optim,
        name=config.name,
        deep=config.deep,
        every=config.snapshot_every,
        snapshot=snapshot,
    )
    record["final_loss"] = sum(losses[-50:]) / len(losses[-50:])
    save(model, tokenizer, args.out, record)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
