"""What a reply took of its key's tokens, told to the limiter when it has ended."""

from collections.abc import Callable

from stream_aligner_proxy.core.records import Committed, Cost, Finished
from stream_aligner_proxy.core.watching import Observer, Opening, Watch

# Where nobody counted: a reply that was left, an upstream that tells no usage.
_CHARS_PER_TOKEN = 4


class Spending(Observer):
    """`spend` is told of a key's name and tokens: prompt and reply as the client is told of them;
    for `/v1/align` those of the aligner, which is the model there."""

    def __init__(self, spend: Callable[[str, int], None]) -> None:
        self._spend = spend

    def opened(self, opening: Opening) -> Watch:
        return Watch() if opening.key is None else _Spent(opening, opening.key, self._spend)


class _Spent(Watch):
    __slots__ = ("_answered", "_chars", "_key", "_opening", "_spend", "_tokens")

    def __init__(self, opening: Opening, key: str, spend: Callable[[str, int], None]) -> None:
        self._opening = opening
        self._key = key
        self._spend = spend
        self._chars = 0
        self._tokens: int | None = None
        self._answered = False

    def branch_answered(self, branch: int, upstream: str) -> None:
        self._answered = True

    def committed(self, unit: Committed, review_seconds: float | None) -> None:
        self._chars += len(unit.text)

    def relayed(self, tokens: int) -> None:
        self._tokens = tokens

    def closed(
        self, outcome: str, seconds: float, cost: Cost, finished: Finished | None = None
    ) -> None:
        if self._opening.path == "align":
            tokens = cost.aligner_prompt_tokens + cost.aligner_completion_tokens
        elif finished is not None and finished.usage is not None:
            tokens = finished.usage.prompt_tokens + finished.usage.completion_tokens
        elif self._tokens is not None:
            tokens = self._tokens
        elif self._answered:  # the prompt was read, whatever became of the reply
            asked = sum(len(turn.text) for turn in self._opening.request.conversation)
            tokens = (asked + self._chars) // _CHARS_PER_TOKEN + 1
        else:
            return
        if tokens > 0:
            self._spend(self._key, tokens)
