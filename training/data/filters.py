"""Which rows are left out, and the reason each is counted under."""

from __future__ import annotations

from collections.abc import Callable

from training.data.config import FilterConfig
from training.data.files import DataError
from training.data.rows import Example, Row, edit_share

CountTokens = Callable[[str], int]


def token_counter(name: str) -> CountTokens:
    """Tokens of a text by this tokenizer. Raises `DataError` where it cannot be loaded."""
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415
    except ImportError:
        raise DataError("filters.tokenizer needs transformers, from the `training` extra") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(f"filters.tokenizer: {name!r} cannot be loaded: {error}") from error
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


class Filter:
    """Says why a row is left out."""

    def __init__(self, config: FilterConfig) -> None:
        self._config = config
        self._count = token_counter(config.tokenizer) if config.tokenizer else None

    def reason(self, example: Example) -> str | None:
        """None for a row that stays."""
        config = self._config
        question = sum(len(turn.text) for turn in example.question)
        if question > config.max_question_chars:
            return "question too long"
        if isinstance(example, Row):
            if example.kind in config.leave_out:
                return f"kind {example.kind} is not wanted"
            if len(example.prefix) > config.max_prefix_chars:
                return "prefix too long"
            if max(len(example.last), len(example.correction)) > config.max_last_chars:
                return "sentence too long"
            texts = [example.prefix, example.last, example.correction]
        else:
            if max(len(example.answer), len(example.correction)) > config.max_answer_chars:
                return "answer too long"
            texts = [example.answer, example.correction]
            if not example.correction:
                return "nothing left of the answer"
        if self._count and self._tokens(example, texts) > config.max_tokens:
            return "too many tokens"
        if isinstance(example, Row) and example.kind in ("fix", "merge"):
            share = edit_share(example.last, example.correction)
            if share < config.min_edit:
                return "too small a change"
            if share > config.max_edit:
                return "too great a change"
        return None

    def _tokens(self, example: Example, texts: list[str]) -> int:
        assert self._count is not None
        return sum(self._count(text) for text in (*(t.text for t in example.question), *texts))
