"""The dial (`Review.strength`) for servers that tell the chances of an answer's first token.

Rule: the decision is a pure function of those chances. It is greedy: the odds of keeping are
multiplied by (1 - strength) / strength, and then the likelier of keep and the best other token
begins the answer.
"""

import math
from collections.abc import Mapping


def bias(strength: float) -> float:
    """The logarithm of what the odds of keeping are multiplied by; infinite at both ends."""
    if strength <= 0:
        return math.inf
    if strength >= 1:
        return -math.inf
    return math.log((1 - strength) / strength)


def decide(first: Mapping[int, float], keep: int, strength: float) -> int:
    """The token that the dialled answer begins with: `keep`, or the best of the others.

    `first`: log-probabilities of the likeliest first tokens, by id, as the model gives them without
    the dial. What is not in it is too unlikely to be chosen, except for keep at strength 0, which
    leaves all alone. A tie is kept.
    """
    moved = bias(strength)
    others = [(chance, -token) for token, chance in first.items() if token != keep]
    if not others or moved == math.inf:
        return keep
    best, token = max(others)
    if keep in first and first[keep] + moved >= best:
        return keep
    return -token
