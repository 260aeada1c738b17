"""Configs: YAML files read into frozen dataclasses. An unknown key is an error that names it."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(Exception):
    """A config file that cannot be used; the message names the key."""


def build(kind: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass from plain data. Raises `ConfigError`."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where or 'the config'} must be a mapping, got {data!r}")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ConfigError(
                f"unknown key {where + str(key)!r}; known here: {', '.join(sorted(known))}"
            )
    values = {key: _value(hints[key], value, f"{where}{key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where or 'the config'}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value, f"{where}.")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is not hint:
        raise ConfigError(f"{where} must be {hint.__name__}, got {value!r}")
    if hint is float:
        raise ConfigError(f"{where} must be a number, got {value!r}")
    return value


def load_config(kind: type[T], path: Path, overrides: dict[str, Any] | None = None) -> T:
    """Read a YAML config; `overrides` maps dotted keys to values (None = leave as it is)."""
    data = yaml.safe_load(path.read_text()) or {}
    for dotted, value in (overrides or {}).items():
        if value is None:
            continue
        *parents, last = dotted.split(".")
        target = data
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return build(kind, data)
