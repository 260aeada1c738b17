"""What real vLLM writes greedily after prompts of token ids; for `test_recipe_vllm`.

    .venv-vllm/bin/python -m tests.training.vllm_greedy MODEL PROMPTS TOKENS OUT

PROMPTS is JSON, a list of lists of ids; OUT gets a list of lists of at most TOKENS ids, which end
with the token that ended the answer. The engine is set up as the proxy's own on a CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stream_aligner_proxy.aligners.vllm_launch import set_up_cpu, set_up_environment
from stream_aligner_proxy.aligners.vllm_plan import Plan, arguments


def main(model: Path, prompts: Path, tokens: int, out: Path) -> None:
    set_up_environment()
    set_up_cpu(threads=1)
    from vllm import LLM, SamplingParams
    from vllm.inputs import tokens_input

    plan = Plan(model, "float32", 512, 4, "none", 1, threads=1, kv_cache_gib=0.25)
    engine = LLM(**arguments(plan, cpu=True))
    how = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False)
    asked = [tokens_input(ids) for ids in json.loads(prompts.read_text())]
    answers = engine.generate(asked, how, use_tqdm=False)
    out.write_text(json.dumps([list(one.outputs[0].token_ids) for one in answers]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
