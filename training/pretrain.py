"""Pre-train a demo model from scratch on the demo world's text.

    python -m training.pretrain --config training/configs/demo-upstream.yaml --out DIR

The upstream reads careless writers (`carelessness`, `rude_opening`) and is therefore fallible; the
aligner's base reads right replies only. Loss is on replies and drills, not on questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from training.config import load_config
from training.engine import Optim, Shape, build_model, device, save, train
from training.packing import Example, pack
from training.tokenizer import ASSISTANT, COMMITTED, EOS, USER, Coder, train_tokenizer
from training.world.chat import drill, sample_conversation
from training.world.slips import Carelessness
from training.world.split import stream


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """One pre-training run."""

    name: str
    seed: int
    optim: Optim
    shape: Shape = field(default_factory=Shape)
    tokenizer_seed: int = 1
    vocab_size: int = 1024
    carelessness: Carelessness | None = None
    rude_opening: float = 0.0
    notes: float = 0.2
    drills: float = 0.35
    review_layout: bool = False


def examples(config: PretrainConfig, coder: Coder) -> Iterator[Example]:
    """Yield training text without end: conversations, and lines of sums among them."""
    rng = stream("train", f"pretrain-{config.name}", config.seed)
    eos = [coder.ids[EOS]]
    after = COMMITTED if config.review_layout else ASSISTANT
    while True:
        example = Example()
        if rng.random() < config.drills:
            example.add([coder.ids[USER], *coder.data("Sums:")], weight=0)
            example.add([coder.ids[after], *coder.data(drill(rng)), *eos], weight=1)
            yield example
            continue
        talk = sample_conversation(
            rng,
            "train",
            how=config.carelessness,
            rude=config.rude_opening,
            notes=config.notes,
        )
        if config.review_layout:
            # As the aligner sees it: turns are not closed, the reply is committed text.
            head = coder.review_head(talk.messages)
        else:
            head = coder.turns(talk.messages)
        example.add(head, weight=0)
        example.add([*coder.data(talk.reply), *eos], weight=1)
        yield example


def pretrain(config: PretrainConfig, out: Path) -> None:
    """Train a model of this shape, and its tokenizer, into `out`."""
    tokenizer = train_tokenizer(config.tokenizer_seed, config.vocab_size)
    model = build_model(config.shape, tokenizer, config.seed).to(device())
    print(f"{config.name}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    batches = pack(
        examples(config, Coder(tokenizer)),
        config.optim.rows,
        config.optim.length,
        tokenizer.pad_token_id,
    )
    losses = train(model, batches, config.optim, name=config.name)
    save(model, tokenizer, out, {"config": config, "final_loss": sum(losses[-50:]) / 50})
    print(f"saved {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see configs/")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--steps", type=int, help="train this many steps instead")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pretrain(load_config(PretrainConfig, args.config, {"optim.steps": args.steps}), args.out)


if __name__ == "__main__":
    main()
