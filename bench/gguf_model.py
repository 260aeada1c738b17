"""The demo upstream as a GGUF file for llama.cpp: `python -m bench.gguf_model OUT.gguf`.

llama.cpp's own converter knows a tokenizer by a fingerprint, and ours is not among them; so the few
fields are written here. A process of its own: it needs torch, and the server need not keep that.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file

from bench.stack import MODELS

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def name_of(weight: str) -> str:
    """llama.cpp's name of a weight of ours."""
    if weight == "model.embed_tokens.weight":
        return "token_embd.weight"
    if weight == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, part = weight.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Queries or keys as llama.cpp turns them: pairs side by side, not half a head apart."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def write(model: Path, out: Path) -> None:
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    tokenizer: dict[str, Any] = json.loads((model / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    ids = {**{at: text for text, at in tokenizer["model"]["vocab"].items()}, **special}
    merges = [
        one if isinstance(one, str) else " ".join(one) for one in tokenizer["model"]["merges"]
    ]
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)

    file = gguf.GGUFWriter(str(out), "llama")
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(config["num_attention_heads"])
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_rope_dimension_count(config["head_dim"])
    file.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    file.add_vocab_size(config["vocab_size"])
    file.add_tokenizer_model("gpt2")
    # Among its patterns the one that is ours: each digit alone, the rest as GPT-2 has it.
    file.add_tokenizer_pre("smollm")
    file.add_token_list([ids.get(at, f"<unused {at}>") for at in range(config["vocab_size"])])
    file.add_token_types(
        [
            control if at in special or at not in ids else normal
            for at in range(config["vocab_size"])
        ]
    )
    file.add_token_merges(merges)
    file.add_eos_token_id(config["eos_token_id"])
    file.add_pad_token_id(config["pad_token_id"])
    file.add_add_bos_token(False)
    file.add_chat_template((model / "chat_template.jinja").read_text())
    for name, weight in load_file(model / "model.safetensors").items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        kind = name.split(".")[-2]
        turned = interleaved(weight, config[heads[kind]]) if kind in heads else weight
        file.add_tensor(name_of(name), turned.float().contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    write(MODELS / "upstream", Path(sys.argv[1]))
