"""How long a reply may take, and how long a client may let it wait."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: what a whole reply may take, and for how long a client may take nothing of what is
    written to it."""

    reply: float = 3600.0
    client: float = 120.0
