"""The client's stop strings over text that the upstream did not write as it stands.

The upstream stops at them by itself, but it knows neither rewritten text nor, on a new branch, the
text before the seam.
"""


def until_stop(
    stops: tuple[str, ...], committed: str, text: str, *, inclusive: bool = False
) -> tuple[str, bool]:
    """`text`, which follows `committed`, up to the first stop string, and whether there is one.

    `inclusive`: up to the end of that string."""
    if not stops:
        return text, False
    reach = max(map(len, stops)) - 1
    before = committed[-reach:] if reach else ""
    joined = before + text
    found = [
        (at, at + len(stop) if inclusive else at)
        for stop in stops
        if (at := joined.find(stop, max(0, len(before) - len(stop) + 1))) >= 0
    ]
    if not found:
        return text, False
    _, end = min(found)
    return text[: max(0, end - len(before))], True
