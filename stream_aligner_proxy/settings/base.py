"""What all sections of the configuration share: strictness, and checks of single values."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors: a typo must not go unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return check


def base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address, such as http://127.0.0.1:9001/v1")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password; use api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("must not hold a query or a fragment")
    return url.rstrip("/")


class HasKey(Protocol):
    @property
    def api_key(self) -> SecretStr | None: ...

    @property
    def api_key_env(self) -> str | None: ...


def give_one_key(section: HasKey) -> None:
    if section.api_key is not None and section.api_key_env is not None:
        raise ValueError("give api_key or api_key_env, not both")


def relative_to_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None else Path(base) / path.expanduser()


def sendable(value: str) -> bool:
    """Whether a header can carry it."""
    return value.isascii() and value.isprintable() and value == value.strip() and bool(value)
