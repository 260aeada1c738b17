"""The demo models' tokenizer: byte-level BPE over the demo world's text, digits one by one.

Rules: any text survives encode and decode unchanged; only `encode_prompt` makes special tokens, so
special-token text inside data stays data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.world.chat import drill, sample_conversation
from training.world.slips import Carelessness
from training.world.split import stream

PAD, EOS = "<|pad|>", "<|eos|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
COMMITTED, SENTENCE, ANSWER = "<|committed|>", "<|sentence|>", "<|answer|>"
REVISION, KEEP, END = "<|revision|>", "<|keep|>", "<|end|>"
SPECIAL = (
    PAD, EOS, SYSTEM, USER, ASSISTANT, COMMITTED, SENTENCE, ANSWER, REVISION, KEEP, END,
)  # fmt: skip
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}

# `<|role|>text` for each turn, earlier assistant turns closed by <|eos|>. It never trims.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant') -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|eos|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def corpus(seed: int, count: int) -> Iterator[str]:
    """Yield the text that the merges are learnt from (train split only)."""
    rng = stream("train", "tokenizer", seed)
    for _ in range(count):
        talk = sample_conversation(rng, "train", how=Carelessness(), rude=0.5, notes=0.5)
        for message in talk.messages:
            yield message["content"]
        yield talk.reply
        yield drill(rng)


def train_tokenizer(seed: int, vocab_size: int = 1024, count: int = 6000) -> Any:
    """Learn the merges and return the `PreTrainedTokenizerFast`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(seed, count), trainer)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=[token for token in SPECIAL if token not in (PAD, EOS)],
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


class Coder:
    """Encodes data and control text apart, so that no data can become a special token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}

    def data(self, text: str) -> list[int]:
        """Encode text in which special-token text is only text."""
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True
        ).input_ids
        return ids

    def text(self, ids: list[int]) -> str:
        """Decode; special tokens are left out."""
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def turns(self, messages: tuple[dict[str, str], ...]) -> list[int]:
        """Encode a conversation as the chat template does, with the generation prompt."""
        ids: list[int] = []
        for message in messages:
            ids += [self.ids[ROLES[message["role"]]], *self.data(message["content"])]
            if message["role"] == "assistant":
                ids.append(self.ids[EOS])
        return [*ids, self.ids[ASSISTANT]]

    def review_head(self, messages: tuple[dict[str, str], ...]) -> list[int]:
        """Encode a conversation as the aligner sees it, up to where the committed text begins."""
        ids: list[int] = []
        for message in messages:
            ids += [self.ids[ROLES[message["role"]]], *self.data(message["content"])]
        return [*ids, self.ids[COMMITTED]]
