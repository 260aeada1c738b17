"""Small tokenizers of the kinds that model families use, with the special tokens of all of them.

Vocabularies are letters and a few merges: what matters here is how text is cut, not how well.
"""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench.hostile import FAMILIES
from bench.stack import MODELS
from stream_aligner_proxy.core.prompts import COMPACT_TOKENS

_PLAIN = ("<tool_call>", "##Question", "▁", "Ġ", "<0x0A>", "<0x3C>")
_SPECIAL = tuple(dict.fromkeys((*COMPACT_TOKENS, *(t for t in FAMILIES if t not in _PLAIN))))
_WORDS = ("he", "the", "in", "on", "an", "er", "or", "ing", "keep", "an", "<|", "|>")


def _wrapped(backend: Tokenizer, *, unknown: str | None = None) -> Any:
    backend.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    backend.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|eos|>",
        bos_token="<bos>",
        unk_token=unknown,
        additional_special_tokens=[t for t in _SPECIAL if t not in ("<|eos|>", "<bos>")],
    )


def byte_level() -> Any:
    """As GPT-2, Llama 3, Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    merges = [("h", "e"), ("t", "he"), ("<", "|"), ("|", ">"), ("i", "n"), ("#", "#")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _wrapped(backend)


def byte_fallback() -> Any:
    """As Llama 2, Mistral and Gemma: spaces are "▁", unknown characters are `<0x..>` bytes."""
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    merges = [("h", "e"), ("t", "he"), ("▁", "t"), ("<", "|"), ("|", ">")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrapped(backend, unknown="<unk>")


def unigram() -> Any:
    """As T5 and other SentencePiece unigram models, with byte fallback."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256))]
    pieces += [(chr(code), -6.0) for code in range(33, 127)] + [("▁", -4.0)]
    pieces += [(word, -3.0) for word in dict.fromkeys(_WORDS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrapped(backend, unknown="<unk>")


def demo() -> Any:
    """The demo aligner's own, with the turn marks that published formats want."""
    words = AutoTokenizer.from_pretrained(MODELS / "aligner")
    words.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]},
        replace_extra_special_tokens=False,
    )
    return words


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level,
    "BPE with byte fallback": byte_fallback,
    "unigram": unigram,
    "demo": demo,
}
