"""What is worth a second try, and after how long. Pure.

Only before anything was handed out: whoever calls this knows that.
"""

from random import Random

from stream_aligner_proxy.core.errors import (
    ContinuationFailed,
    UpstreamDown,
    UpstreamError,
    UpstreamUnreachable,
)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
# A longer wait is the client's affair: it is told how long.
_SHORT_SECONDS = 2.0
_dice = Random()  # not the shared one, whose numbers may be somebody's experiment


def same_target(error: UpstreamError, tried_again: int, most: int) -> float | None:
    """Seconds until the same target is asked once more, None where it shall not be.

    Only where the connection failed. That is also how a kept connection ends which the server
    closed just when it was used again: at once the first time, the client need not know.
    """
    if not isinstance(error, UpstreamUnreachable) or tried_again >= most:
        return None
    if tried_again == 0:
        return _dice.uniform(0, _FIRST_PAUSE)
    longest: float = min(_FIRST_PAUSE * 2**tried_again, _LONGEST_PAUSE)
    return _dice.uniform(longest / 2, longest)


def next_target(error: UpstreamError) -> bool:
    """Whether another target may do better. One that would not continue a text, or may not be
    asked, says nothing about the others."""
    return error.transient or isinstance(error, ContinuationFailed | UpstreamDown)


def asked_for_patience(error: UpstreamError) -> float | None:
    """The `retry-after` of a refusal in seconds, where it is short enough to be waited for here."""
    if error.status not in (429, 503) or isinstance(error, UpstreamDown):
        return None
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(error.headers.get(name, "")) * unit
        except ValueError:
            continue  # or a date: never that short
        return seconds if 0 <= seconds <= _SHORT_SECONDS else None
    return None
