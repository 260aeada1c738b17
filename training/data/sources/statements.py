"""Sets about facts and manners: false to true, rude to polite, and what should be left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from training.data.make import Maker
from training.data.rows import BadRecord, Example, SetAside, conversation, text_of
from training.data.sources.source import Record, Source


def factcheck(record: Record, make: Maker) -> Iterator[Example]:
    """Replies and what is left of them after people checked each claim."""
    question = conversation(text_of(record, "prompt"))
    reply = text_of(record, "response").strip()
    if record.get("response_factuality") is True:
        return make.keep(question, reply)
    revised = text_of(record, "revised_response", empty=True).strip()
    if not revised:
        raise SetAside("false, and nobody wrote it anew")
    return make.edit(question, reply, revised)


def feedback(record: Record, make: Maker) -> Iterator[Example]:
    """Answers from given passages, with people's corrections."""
    question = text_of(record, "question").strip()
    passages = record.get("passages")
    notes = record.get("feedback")
    if not isinstance(passages, list) or not isinstance(notes, Mapping):
        raise BadRecord("'passages' must be a list and 'feedback' an object")
    if not all(isinstance(one, list) for one in passages):
        raise BadRecord("each of 'passages' must be a list of texts")
    better = notes.get("corrected-prediction")
    if not isinstance(better, str) or not better.strip():
        raise SetAside("no corrected text")
    # Each passage is a list: its title, then its sentences, the first of which repeats the title.
    given = "\n\n".join(" ".join(str(part).strip() for part in one[1:]) for one in passages)
    asked = conversation(f"{given}\n\n{question}")
    return make.edit(asked, text_of(record, "prediction 1").strip(), better.strip(), key=question)


def truthful(record: Record, make: Maker) -> Iterator[Example]:
    """Each false answer becomes the best one; the true ones are kept."""
    question = text_of(record, "Question").strip()
    best = text_of(record, "Best Answer").strip()
    turns = conversation(question)
    for good in _answers(record, "Correct Answers"):
        yield from make.keep(turns, good)
    for bad in _answers(record, "Incorrect Answers"):
        yield from make.edit(turns, bad, best)


def _answers(record: Record, name: str) -> list[str]:
    return [one.strip() for one in text_of(record, name).split(";") if one.strip()]


def detox(record: Record, make: Maker) -> Iterator[Example]:
    """Toxic sentences and their rewrites; a rewrite itself is kept. There is no question."""
    toxic = text_of(record, "toxic").strip()
    rewrites = [
        one.strip()
        for name in ("neutral1", "neutral2", "neutral3")
        if isinstance(one := record.get(name), str) and one.strip()
    ]
    if not rewrites:
        raise BadRecord("no rewrite")
    yield from make.keep((), rewrites[0], key=toxic)
    for better in rewrites:
        yield from make.edit((), toxic, better, key=toxic, ends=False)


def xstest(record: Record, make: Maker) -> Iterator[Example]:
    """Compliance with a safe prompt, and refusal of an unsafe one, should be left alone."""
    wanted = (
        "2_full_refusal" if text_of(record, "type").startswith("contrast") else "1_full_compliance"
    )
    if text_of(record, "final_label") != wanted:
        raise SetAside("not what the prompt asks for, and no correction is known")
    turns = conversation(text_of(record, "prompt"))
    return make.keep(turns, text_of(record, "completion").strip())


SOURCES = (
    Source("factcheck-gpt", "replies and their checked versions",
           "prompt, response, response_factuality, revised_response", factcheck,
           files="factcheck-GPT*"),
    Source("qa-feedback", "answers from passages, corrected by people",
           "question, passages, prediction 1, feedback", feedback),
    Source("truthfulqa", "false answers and the best one",
           "Question, Best Answer, Correct Answers, Incorrect Answers", truthful,
           files="TruthfulQA.csv*", similarity=0.0),
    Source("paradetox", "toxic sentences and neutral rewrites", "toxic, neutral1..3", detox,
           similarity=0.2),
    Source("xstest", "replies that should be left alone (keep rows)",
           "prompt, type, completion, final_label", xstest, files="xstest_v2_completions*"),
)  # fmt: skip
