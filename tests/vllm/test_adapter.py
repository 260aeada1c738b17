"""A LoRA adapter on vLLM says what the model with the adapter merged into its weights says."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stream_aligner_proxy.aligners.registry import create
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.ports import Aligner
from stream_aligner_proxy.core.records import Review
from tests.vllm.world import BOUND, CPU, DEMO, reviews

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

RANK, ALPHA = 4, 8
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def write_adapter(folder: Path, merged: Path) -> None:
    """An adapter as PEFT writes it, and a copy of the model with its product added."""
    shutil.copytree(DEMO, merged)
    weights = load_file(DEMO / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    adapter: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if not any(f"{target}.weight" in name for target in TARGETS):
            continue
        out, inner = weight.shape
        down = torch.randn(RANK, inner, generator=generator) / inner**0.5
        up = 0.6 * torch.randn(out, RANK, generator=generator) / RANK**0.5
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter[f"{module}.lora_A.weight"], adapter[f"{module}.lora_B.weight"] = down, up
        weights[name] = weight.float() + ALPHA / RANK * up @ down
    save_file(
        {name: weight.float() for name, weight in weights.items()}, merged / "model.safetensors"
    )
    folder.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [target.rsplit(".", 1)[1] for target in TARGETS],
        "bias": "none",
        "base_model_name_or_path": str(DEMO),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Aligner]:
    aligner = create({"dtype": "float32", "threads": 1, **options})
    await aligner.start()
    try:
        yield aligner
    finally:
        await aligner.close()


async def said(aligner: Aligner, review: Review) -> str:
    try:
        verdict = await aligner.review(review)
    except ReviewError as error:
        return f"error: {error}"
    return repr((verdict.replacement, verdict.end))


async def test_an_adapter_changes_the_verdicts_as_if_it_were_merged(tmp_path: Path) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    write_adapter(adapter, merged)
    asked = reviews(40)
    async with running(backend="transformers", path=DEMO) as aligner:
        without = [await said(aligner, review) for review in asked]
    async with running(backend="transformers", path=merged) as aligner:
        expected = [await said(aligner, review) for review in asked]
    assert sum(a != b for a, b in zip(without, expected, strict=True)) > 5
    async with running(backend="vllm", path=DEMO, adapter=adapter, **CPU) as aligner:
        assert [await said(aligner, review) for review in asked] == expected
        # No engine of its own for this: closing fails what is unfinished.
        unfinished = [asyncio.create_task(said(aligner, review)) for review in reviews(60)]
        done, _ = await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
        assert done
    async with asyncio.timeout(BOUND):
        results = await asyncio.gather(*unfinished)
    assert any("closed" in result for result in results)


async def test_an_adapter_of_another_kind_is_found_at_the_start(tmp_path: Path) -> None:
    for content, message in (
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"peft_type": "LORA", "r": 4096}, "a rank that vLLM cannot run: 4096"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=rf"^aligner\.adapter: .*{message}"):
            await create({"backend": "vllm", "path": DEMO, "adapter": tmp_path}).start()
