"""What a checkpoint answers to each row, and how likely it was to leave the sentence alone.

Both offline and in batches, with transformers alone; the prompt and the reading of the answer are
the profile's, so that they are the same in use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stream_aligner_proxy.core.errors import ReviewError
from stream_aligner_proxy.core.prompts import KEEP, PROFILES, PromptProfile, Revision, Segment
from stream_aligner_proxy.core.records import Verdict
from training.config import ConfigError
from training.recipe.rows import IGNORE, Encoder, Sample

# A revision has at most this many tokens for each of the sentence, and so many more.
_FACTOR, _EXTRA = 2, 64


@dataclass(frozen=True, slots=True)
class Answer:
    """`verdict` is None where the output could not be trusted (`error` says why). `keep_chance`:
    the probability of leaving the sentence as it is, by the keep token or by writing it again."""

    verdict: Verdict | None
    keep_chance: float
    error: str = ""


class Judge:
    """A checkpoint with its profile. Raises `ConfigError` for a folder that is no model."""

    def __init__(
        self,
        folder: Path,
        *,
        profile: str | None = None,
        batch: int = 32,
    ) -> None:
        named = profile or _profile_in(folder)
        if named not in PROFILES:
            raise ConfigError(
                f"{folder.name}: no profile is known; give one of {', '.join(PROFILES)}"
            )
        self.profile: PromptProfile = PROFILES[named]
        place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder.name}: is no model that can be loaded") from error
        self._model = model.eval().to(place)
        self._place = place
        self._batch = batch
        self._encoder = Encoder(self._tokenizer, self.profile, keep_token=False)
        self._keeping = (
            Encoder(self._tokenizer, self.profile, keep_token=True)
            if KEEP in self.profile.control_tokens
            else None
        )
        self._controls = {
            self._tokenizer.convert_tokens_to_ids(token): token
            for token in self.profile.control_tokens
        }
        self._pad = self._tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self._tokenizer.eos_token_id

    def answer(
        self,
        samples: Sequence[Sample],
        told: Callable[[int], object] = lambda done: None,
        *,
        temperature: float = 0.0,
        chances: bool = True,
    ) -> list[Answer]:
        """In the order of `samples`; `told` hears how many are done. `temperature` 0 takes the best
        token each time; otherwise answers are drawn, by torch's own seed. Without `chances`, which
        cost a pass or two of their own, `keep_chance` is NaN."""
        order = sorted(range(len(samples)), key=lambda at: len(samples[at].review.sentence))
        found: dict[int, Answer] = {}
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            chosen = [samples[at] for at in some]
            for at, answer in zip(some, self._some(chosen, temperature, chances), strict=True):
                found[at] = answer
            told(len(some))
        return [found[at] for at in range(len(samples))]

    def _some(self, samples: list[Sample], temperature: float, chances: bool) -> list[Answer]:
        found = self._keep_chances(samples) if chances else [math.nan] * len(samples)
        written = self._write(samples, temperature)
        return [
            self._read(sample, ids, finished, chance)
            for sample, (ids, finished), chance in zip(samples, written, found, strict=True)
        ]

    def _keep_chances(self, samples: list[Sample]) -> list[float]:
        left = [_left_alone(sample) for sample in samples]
        chances = self._chances([self._encoder.encode(one) for one in left])
        if self._keeping is not None:
            kept = self._chances([self._keeping.encode(one) for one in left])
            chances = [min(1.0, a + b) for a, b in zip(chances, kept, strict=True)]
        return chances

    def _read(self, sample: Sample, ids: list[int], finished: bool, chance: float) -> Answer:
        controls = tuple(self._controls[token] for token in ids if token in self._controls)
        plain = [token for token in ids if token not in self._controls]
        text = self._tokenizer.decode(plain, skip_special_tokens=True)
        try:
            verdict = self.profile.read(Revision(text, controls, finished), sample.review)
        except ReviewError as error:
            return Answer(None, chance, str(error))
        return Answer(verdict, chance)

    @torch.inference_mode()
    def _chances(self, encoded: Sequence[Any]) -> list[float]:
        """The probability of each answer, from its first token to the end mark."""
        width = max(len(one.ids) for one in encoded)
        ids = torch.tensor([[*one.ids, *[self._pad] * (width - len(one.ids))] for one in encoded])
        mask = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in encoded])
        logits = self._model(
            input_ids=ids.to(self._place), attention_mask=mask.to(self._place)
        ).logits
        labels = torch.tensor(
            [[*one.labels, *[IGNORE] * (width - len(one.ids))] for one in encoded],
            device=self._place,
        )
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
        )
        chances: list[float] = (-loss.sum(1)).exp().tolist()
        return chances

    @torch.inference_mode()
    def _write(self, samples: list[Sample], temperature: float) -> list[tuple[list[int], bool]]:
        """The answers without their end mark; whether that came."""
        prompts = [self._prompt(sample) for sample in samples]
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        longest = max(
            len(self._encoder.segment(Segment(sample.review.sentence))) for sample in samples
        )
        drawing = {"temperature": temperature, "top_k": 0} if temperature else {}
        out = self._model.generate(
            input_ids=ids.to(self._place),
            attention_mask=mask.to(self._place),
            max_new_tokens=_FACTOR * longest + _EXTRA,
            num_beams=1,
            do_sample=bool(temperature),
            **drawing,
            pad_token_id=self._pad,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        end = self._tokenizer.eos_token_id
        found = []
        for row in out[:, width:].tolist():
            at = row.index(end) if end in row else len(row)
            found.append((row[:at], end in row))
        return found

    def _prompt(self, sample: Sample) -> list[int]:
        encoded = self._encoder.encode(sample)
        return encoded.ids[: encoded.start]


def _left_alone(sample: Sample) -> Sample:
    """The same review, answered by the sentence itself."""
    return Sample(sample.review, sample.review.sentence, False, sample.group, sample.where)


def _profile_in(folder: Path) -> str:
    try:
        trained = json.loads((folder / "training_config.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(trained.get("prompt_profile", "")) if isinstance(trained, dict) else ""
