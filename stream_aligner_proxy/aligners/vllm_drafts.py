"""Speculative drafts inside vLLM: the reviewed sentence, proposed as its own revision.

vLLM imports `SentenceProposer` by name in its worker process (`method: custom_class`) and asks it
after each step for every row's next guess. A row's ids hold the sentence, between control tokens
that no data can contain (rule 8), and after the last of them what was generated. So a proposal is
a function of the ids alone: rows may come, go and change places between steps, and nothing is kept.
A wrong guess costs width of a step, never correctness: vLLM accepts what the model would have said.

This module is imported without the rest of the proxy and needs numpy only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_aligner_proxy.aligners.drafting import DraftCursor

# A guess that costs a token's work saves a step, which costs that of ten tokens at the least.
WORTH = 0.1

# The name of our part of vLLM's `additional_config`.
SECTION = "stream_aligner"

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Marks:
    """Token ids around the sentence. `opens`: one of them comes right before it; `close`: right
    after it, and the revision follows. `end` closes an output; `keep` is one that needs no more."""

    opens: tuple[int, ...]
    close: int
    end: int
    keep: int | None = None

    def section(self) -> dict[str, Any]:
        """For vLLM's `additional_config`."""
        return {SECTION: asdict(self)}

    @classmethod
    def of(cls, additional_config: Mapping[str, Any]) -> "Marks":
        held = additional_config[SECTION]
        return cls(tuple(held["opens"]), held["close"], held["end"], held["keep"])


class SentenceProposer:
    """vLLM's side: batches. One instance in each worker."""

    def __init__(self, vllm_config: Any) -> None:
        self._marks = Marks.of(vllm_config.additional_config)
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._window = int(vllm_config.model_config.max_model_len)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """There is no draft model."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """A guess for each row, maybe empty.

        `sampled_token_ids`: what this step gave each row, nothing where its prompt is still being
        read. `token_ids_cpu`: (rows, window), of which a row has `num_tokens_no_spec`.
        """
        proposals: list[list[int]] = []
        for row, sampled in enumerate(sampled_token_ids):
            length = int(num_tokens_no_spec[row])
            room = min(self._most, self._window - length - 1)
            if not sampled or room <= 0:
                proposals.append([])
                continue
            proposals.append(propose(token_ids_cpu[row, :length], self._marks, room))
        return proposals


def propose(ids: Ids, marks: Marks, room: int) -> list[int]:
    """What may come after `ids` (a prompt and the output so far): at most `room` tokens."""
    # The prompt has one mark of each kind; what the model wrote after it may hold any.
    opens = [found[0] for mark in marks.opens if (found := np.flatnonzero(ids == mark)).size]
    if not opens:
        return []
    start = int(min(opens)) + 1
    closes = np.flatnonzero(ids[start:] == marks.close)
    if not closes.size:
        return []
    close = start + int(closes[0])
    output = ids[close + 1 :].tolist()
    if marks.keep is not None and output[:1] == [marks.keep]:
        return [marks.end] if len(output) == 1 else []
    return _follow([*ids[start:close].tolist(), marks.end], output)[:room]


def _follow(draft: list[int], output: list[int]) -> list[int]:
    """The rest of the draft, after `output`: the cursor is led through it as if it had proposed all
    of the draft each time, as the in-process engine does."""
    cursor = DraftCursor(draft)
    at = 0
    while True:
        proposal = cursor.propose(len(draft))
        run = 0
        while run < len(proposal) and at + run < len(output) and proposal[run] == output[at + run]:
            run += 1
        if at + run == len(output):
            return proposal[run : run + _width(cursor, run)]
        cursor.advance(len(proposal), run, output[at + run])
        at += run + 1


def _width(cursor: DraftCursor, run: int) -> int:
    """How many tokens are worth a guess, where `run` of the proposal were right before them."""
    first, each = cursor.odds()
    chance = each if run else first
    if chance < WORTH:
        return 0
    # chance * each ** more >= WORTH
    return 1 + int(math.log(WORTH / chance) / math.log(each))
