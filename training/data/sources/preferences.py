"""Published preference sets. Their pairs are different answers: each gives its first difference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from stream_aligner_proxy.core.records import Turn
from training.data.make import Maker
from training.data.rows import BadRecord, Example, SetAside, text_of
from training.data.sources.source import Record, Source
from training.data.sources.texts import asked, pair

_SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")


def _transcript(text: str, name: str) -> tuple[Turn, ...]:
    parts = _SPEAKER.split(text)
    if len(parts) < 5 or parts[0].strip():
        raise BadRecord(f"{name!r} is no transcript of Human and Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Turn(roles[who], said.strip())
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    )  # fmt: skip


def hh(record: Record, make: Maker) -> Iterator[Example]:
    """Two transcripts that differ in their last answer."""
    chosen = _transcript(text_of(record, "chosen"), "chosen")
    rejected = _transcript(text_of(record, "rejected"), "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise SetAside("the two conversations part before the last answer")
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise SetAside("the last word is the human's")
    if not chosen[-1].text or not rejected[-1].text:
        raise SetAside("an answer is empty")
    if chosen == rejected:
        raise SetAside("the two answers are the same")
    return make.pair(chosen[:-1], rejected[-1].text, chosen[-1].text)


def safe(record: Record, make: Maker) -> Iterator[Example]:
    """Two answers with labels; the safer one is a correction only where it is safe itself."""
    answers = (text_of(record, "response_0"), text_of(record, "response_1"))
    better = record.get("safer_response_id")
    labels = (record.get("is_response_0_safe"), record.get("is_response_1_safe"))
    if better not in (0, 1):
        raise BadRecord(f"'safer_response_id' must be 0 or 1, not {better!r}")
    if labels[better] is not True:
        raise SetAside("neither answer is safe")
    if answers[0].strip() == answers[1].strip():
        raise SetAside("the two answers are the same")
    return make.pair(asked(record), answers[1 - better].strip(), answers[better].strip())


def beaver(record: Record, make: Maker) -> Iterator[Example]:
    """Single answers: safe ones are kept; nobody wrote what the others should have been."""
    if record.get("is_safe") is not True:
        raise SetAside("unsafe, and no correction is known")
    return make.keep(asked(record), text_of(record, "response").strip())


def ultra(record: Record, make: Maker) -> Iterator[Example]:
    """The best and the worst of scored completions, or the binarised pair."""
    completions = record.get("completions")
    if completions is None:
        return pair(record, make)
    if not isinstance(completions, list):
        raise BadRecord("'completions' must be a list")
    scored = [
        (float(one["overall_score"]), one["response"].strip())
        for one in completions
        if isinstance(one, Mapping)
        and isinstance(one.get("overall_score"), int | float)
        and isinstance(one.get("response"), str)
        and one["response"].strip()
    ]
    if len(scored) < 2:
        raise SetAside("fewer than two scored completions")
    best, worst = max(scored), min(scored)
    if best[0] == worst[0] or best[1] == worst[1]:
        raise SetAside("no completion is better than another")
    return make.pair(asked(record), worst[1], best[1])


SOURCES = (
    Source("hh-rlhf", "Anthropic's transcripts in pairs", "chosen, rejected", hh,
           hub="Anthropic/hh-rlhf"),
    Source("pku-saferlhf", "answers with safety labels",
           "prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, "
           "safer_response_id", safe, hub="PKU-Alignment/PKU-SafeRLHF"),
    Source("beavertails", "answers with a safety label (keep rows)", "prompt, response, is_safe",
           beaver, hub="PKU-Alignment/BeaverTails", split="330k_train"),
    Source("ultrafeedback", "scored completions, or their binarised pairs",
           "instruction, completions; or prompt, chosen, rejected", ultra,
           hub="openbmb/UltraFeedback"),
)  # fmt: skip
