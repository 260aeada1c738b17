"""Names of models, and patterns of names: plain text in which one `*` may stand for any text."""


class Pattern:
    """Raises `ValueError` for a text that is empty or has more than one `*`."""

    __slots__ = ("_head", "_tail", "text", "wild")

    def __init__(self, text: str) -> None:
        if not text or text.count("*") > 1:
            raise ValueError("must be a model's name, or a pattern with one *")
        self.text = text
        self.wild = "*" in text
        self._head, _, self._tail = text.partition("*")

    def match(self, name: str) -> str | None:
        """What the `*` stands for in `name`, "" where there is no `*`; None if it does not fit."""
        if not self.wild:
            return "" if name == self.text else None
        end = len(name) - len(self._tail)
        fits = end >= len(self._head) and name.startswith(self._head) and name.endswith(self._tail)
        return name[len(self._head) : end] if fits else None
