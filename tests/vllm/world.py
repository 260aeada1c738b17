"""Reviews from the demo world, and models for engines: the embedded one, and one without an end."""

import random
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from stream_aligner_proxy.core.records import Review, Turn
from training.world.judge import sentences_of
from training.world.problems import problems

MODELS = Path(__file__).parents[2] / "stream_aligner_proxy" / "demo" / "models"
DEMO = MODELS / "aligner"
# Small enough for several engines beside each other; bound to no core.
CPU: dict[str, Any] = {"threads": 1, "kv_cache_gib": 0.25}
BOUND = 60.0


def reviews(count: int, seed: int = 5) -> list[Review]:
    """Sentences of held-out problems with what was committed before them: half as they should be,
    half with one digit changed."""
    rng = random.Random(seed)
    found: list[Review] = []
    for problem in problems(seed, count, "test"):
        sentences = sentences_of(problem.reply)
        number = rng.randrange(len(sentences))
        sentence = sentences[number]
        digits = [at for at, letter in enumerate(sentence) if letter.isdigit()]
        if len(found) % 2 and digits:
            at = rng.choice(digits)
            sentence = f"{sentence[:at]}{(int(sentence[at]) + 3) % 10}{sentence[at + 1 :]}"
        question = (Turn("user", problem.question),)
        found.append(Review(question, " ".join(sentences[:number]), sentence))
    return found


def endless_model(folder: Path) -> Path:
    """A copy of the demo aligner with weights that write one word for ever."""
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer: Any = AutoTokenizer.from_pretrained(DEMO)
    # One whose text begins with a space, so that each ends the word before it.
    word = next(at for at in range(len(tokenizer)) if tokenizer.decode([at]).startswith(" w"))
    config: Any = AutoConfig.from_pretrained(DEMO)
    config.tie_word_embeddings = False
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight[word].fill_(1.0)
    config.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def offspring(pid: int) -> list[psutil.Process]:
    """All processes that descend from `pid`, without Python's own helper for shared memory."""
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def all_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for the end of `processes`, with a bound; those that are still there."""
    _, alive = psutil.wait_procs(processes, timeout=BOUND)
    return [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
