"""One review as token ids: what the model is asked, and what it has answered so far."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(eq=False, slots=True)
class Row:
    """One review on its way through the model. Token ids throughout.

    `draft` ends with the end token. `bias` is added to the logit of the keep token and, where it is
    positive, to those of the draft's own tokens as long as the output is the draft. `seed` makes
    the row's drawn tokens its own. `finished` is None while decoding, then `end` (an end token was
    chosen; it is the last of `output`), `limit` (`max_new` tokens without one) or `broken` (the
    model gave a logit that is no number).
    """

    prompt: tuple[int, ...]
    draft: tuple[int, ...]
    max_new: int
    bias: float = 0.0
    seed: int = 0
    output: list[int] = field(default_factory=list)
    finished: Literal["end", "limit", "broken"] | None = None
    passes: int = 0
