"""What vLLM's engine is started with: a checkpoint's folder and the settings, checked and read.

Nothing here imports vLLM, so that what is wrong is told before the seconds that this takes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from stream_aligner_proxy.aligners import lora
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.aligners.vllm_drafts import Marks
from stream_aligner_proxy.aligners.vocabulary import (
    Vocabulary,
    load_vocabulary,
    read_object,
    training_config,
)
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.prompts import Segment
from stream_aligner_proxy.core.records import Review

Draft = Literal["sentence", "ngram", "none"]

# On a CPU vLLM would take most of the machine's memory; an aligner's prompts are short.
CPU_KV_CACHE_BYTES = 1 << 30
# vLLM shares the cache by whole blocks, and its own 128 tokens on a CPU are more than many reviews.
CPU_BLOCK_TOKENS = 32
NGRAM_LOOKUP = (1, 4)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine is started with; see `VllmAligner` for the settings' meaning.

    `window` is the model's at most. `rank`: of the adapter, None without one. `marks` are needed
    for the draft `sentence`.
    """

    path: Path
    dtype: str
    window: int
    max_batch: int
    draft: Draft
    draft_tokens: int
    marks: Marks | None = None
    rank: int | None = None
    threads: int | None = None
    gpu_memory: float | None = None
    kv_cache_gib: float | None = None


def arguments(plan: Plan, *, cpu: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's `AsyncEngineArgs`."""
    dtype = _DTYPES.get(plan.dtype, plan.dtype)
    given: dict[str, Any] = {
        "model": str(plan.path),
        # As in the other in-process engine, whatever the checkpoint was saved in.
        "dtype": ("float32" if cpu else "bfloat16") if dtype == "auto" else dtype,
        "max_model_len": plan.window,
        "max_num_seqs": plan.max_batch,
        "enable_prefix_caching": True,
        # Prompts and outputs are ids: the tokenizer here is the only one that may touch text.
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
    }
    if cpu:
        # Compiled graphs win nothing for a small model on a CPU, and compile in the first requests.
        given.update(enforce_eager=True, block_size=CPU_BLOCK_TOKENS)
        given["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    if plan.kv_cache_gib is not None:
        given["kv_cache_memory_bytes"] = int(plan.kv_cache_gib * (1 << 30))
    if plan.gpu_memory is not None:
        given["gpu_memory_utilization"] = plan.gpu_memory
    if plan.rank is not None:
        given.update(enable_lora=True, max_loras=1, max_lora_rank=plan.rank)
    if plan.draft == "ngram":
        least, most = NGRAM_LOOKUP
        given["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": plan.draft_tokens,
            "prompt_lookup_min": least,
            "prompt_lookup_max": most,
        }
    elif plan.draft == "sentence":
        assert plan.marks is not None
        given["speculative_config"] = {
            "method": "custom_class",
            "model": "stream_aligner_proxy.aligners.vllm_drafts.SentenceProposer",
            "num_speculative_tokens": plan.draft_tokens,
        }
        given["additional_config"] = plan.marks.section()
    return given


def load(path: Path, adapter: Path | None) -> Vocabulary:
    """Read the checkpoint's folder, and the adapter's: what that has comes first. Raises
    `ConfigError`."""
    base = load_vocabulary(path)
    if not (path / "config.json").is_file():
        raise ConfigError(f"aligner.path: {path}: has no config.json, so it is no model's folder")
    if adapter is None:
        return base
    lora.check(adapter)
    trained = training_config(adapter).get("prompt_profile") or base.profile
    if not (adapter / "tokenizer_config.json").is_file():
        return replace(base, profile=trained)
    own = load_vocabulary(adapter)
    if len(own.tokenizer) > len(base.tokenizer):
        raise ConfigError(
            f"aligner.adapter: {adapter}: has tokens that the model lacks, and vLLM cannot add"
            " them: merge it into the model"
        )
    return replace(own, ends=own.ends | base.ends, window=base.window, profile=trained)


def marks_of(encoder: Encoder) -> Marks | None:
    """The tokens around the sentence, for a profile that has such."""
    opens: list[int] = []
    close = end = -1
    for scope in sorted(encoder.profile.scopes):
        review = Review((), "", "x", scope)
        segments = encoder.profile.render(review)
        if len(segments) < 3 or segments[-2] != Segment("x"):
            return None
        before, sentence, after = map(encoder.count, segments[-3:])
        if (before, after) != (1, 1):
            return None
        prompt = encoder.prompt(review)
        opens.append(prompt[-2 - sentence])
        close, end = prompt[-1], encoder.draft(review)[-1]
    return Marks(tuple(opens), close, end, encoder.keep)


def rank_of(adapter: Path) -> int:
    """The least rank that vLLM can be set up for and that holds the adapter's."""
    own = read_object(adapter / "adapter_config.json").get("r")
    for rank in LORA_RANKS:
        if isinstance(own, int) and own <= rank:
            return rank
    raise ConfigError(f"aligner.adapter: {adapter}: has a rank that vLLM cannot run: {own!r}")
