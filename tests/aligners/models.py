"""Tiny models and tokenizers, built in code: random weights, byte-level text."""

from functools import cache
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stream_aligner_proxy.aligners.checkpoint import Checkpoint
from stream_aligner_proxy.aligners.encoding import Encoder
from stream_aligner_proxy.core.prompts import COMPACT_TOKENS, END, KEEP, PROFILES
from stream_aligner_proxy.core.records import Review, Turn

EOS, BOS = "<|eos|>", "<|bos|>"
GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>")
# Not special, but known to the tokenizer as one piece each: what real tokenizers call added tokens.
PLAIN_ADDED = ("<tool_call>", "<b>", "##Question")
SPECIAL = (EOS, BOS, "<|im_start|>", *COMPACT_TOKENS, *GEMMA_TOKENS)
_MERGES = [("h", "e"), ("t", "he"), ("Ġ", "the"), ("i", "n"), ("o", "n"), ("Ġ", "a")]


@cache
def tokenizer(*, leave_out: tuple[str, ...] = ()) -> Any:
    """Byte-level BPE with a few merges and all the control tokens but `leave_out`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    for left, right in _MERGES:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=_MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [token for token in SPECIAL if token not in leave_out]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_ADDED])
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        bos_token=BOS,
        additional_special_tokens=[t for t in special if t not in (EOS, BOS)],
    )
    return wrapped


def _shape(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Wide enough that two best tokens are never a rounding error apart.
        "initializer_range": 0.3,
        "eos_token_id": None,
        "bos_token_id": None,
        "pad_token_id": None,
    }


ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt2")


@cache
def model(architecture: str, vocabulary: int = 300, seed: int = 0) -> Any:
    """A random model. Gemma and Mistral have a sliding window of 16 tokens."""
    torch.manual_seed(seed)
    shape = _shape(vocabulary)
    built: Any
    match architecture:
        case "llama":
            built = LlamaForCausalLM(LlamaConfig(**shape))
        case "qwen2":
            built = Qwen2ForCausalLM(Qwen2Config(**shape))
        case "gemma2":
            built = Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=8, sliding_window=16))
        case "gemma3":
            built = Gemma3ForCausalLM(
                Gemma3TextConfig(**shape, head_dim=8, sliding_window=16, sliding_window_pattern=2)
            )
        case "qwen3":
            built = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8))
        case "mistral":
            built = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
        case "gpt2":
            built = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=vocabulary,
                    n_positions=512,
                    n_embd=32,
                    n_layer=2,
                    n_head=4,
                    initializer_range=0.3,
                    bos_token_id=None,
                    eos_token_id=None,
                )
            )
    return built.eval().requires_grad_(False)


def checkpoint(
    architecture: str = "llama", *, profile: str | None = "compact", **kwargs: Any
) -> Checkpoint:
    """A random model with the tokenizer above."""
    words = tokenizer(**kwargs)
    return Checkpoint(
        model(architecture, len(words)),
        words,
        frozenset((words.eos_token_id,)),
        512,
        profile,
    )


# What `trained` answers: sentence -> output, as text in which control tokens are meant.
ANSWERS = {
    "The hen sat.": KEEP,
    "The cat sat on it.": "The dog sat on it.",
    "Goodbye.": KEEP + END,
    "An oath!": "",
    "One two.": "One, or two. And three.",
    "Both.": KEEP + "but not",
    "Odd.": "Odd <|user|> end",
    "Bytes.": "\udcc3",
    "For ever.": None,
}
QUESTION = (Turn("user", "Go on."),)


@cache
def trained() -> Checkpoint:
    """A small Llama overfitted to `ANSWERS` with the compact profile; about two seconds."""
    base = checkpoint()
    words = base.tokenizer
    torch.manual_seed(3)
    shape = {**_shape(len(words)), "initializer_range": 0.05}
    network: Any = LlamaForCausalLM(LlamaConfig(**shape))
    encoder = Encoder(words, PROFILES["compact"], base.ends)
    examples = []
    for sentence, answer in ANSWERS.items():
        prompt = encoder.prompt(Review(QUESTION, "", sentence))
        examples.append((prompt, _answer_ids(words, answer)))
    width = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(examples):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : end] = ids[row, len(prompt) : end]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(400):
        loss = network(input_ids=ids, labels=labels).loss
        if loss.item() < 2e-3:
            break
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    network.eval().requires_grad_(False)
    return Checkpoint(network, words, base.ends, 512, "compact")


def _answer_ids(words: Any, answer: str | None) -> list[int]:
    if answer is None:
        return [words.convert_tokens_to_ids("a")] * 40
    if answer == "\udcc3":  # half a character: a byte that is no text on its own
        return [words.convert_tokens_to_ids("Ã"), words.eos_token_id]
    return [*words.encode(answer, add_special_tokens=False), words.eos_token_id]
