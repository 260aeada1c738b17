"""Reading configuration text: one mapping of YAML, and variables laid over it."""

import json
from collections.abc import Mapping
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.strictyaml import load_yaml


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping in `text`. `name` is the file's, for messages. Raises `ConfigError`."""
    data = load_yaml(text, name)
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: must be a mapping with the keys upstreams and aligner")
    return data


def merge_environment(
    data: Mapping[str, Any], environ: Mapping[str, str], prefix: str, sections: tuple[str, ...]
) -> dict[str, Any]:
    """Lay the variables that begin with `prefix` over `data`.

    A variable counts when its name has `__` after the prefix or is one of the `sections`. Others
    are left alone: Kubernetes sets `STREAM_ALIGNER_PORT` and more for a service of that name.
    """
    merged: dict[str, Any] = dict(data)
    for name in sorted(environ):
        if not name.startswith(prefix):
            continue
        path = name.removeprefix(prefix).lower().split("__")
        if len(path) == 1 and path[0] not in sections:
            continue
        _put(merged, path, _value(environ[name]), name)
    return merged


def _value(text: str) -> Any:
    """Text, or what it holds where it is a JSON list or object; pydantic does the rest."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _put(holder: Any, path: list[str], value: Any, name: str) -> None:
    """Set `value` at `path`, copying on the way down so that the caller's data stay as they are."""
    for depth, step in enumerate(path):
        last = depth == len(path) - 1
        key: Any = step
        if isinstance(holder, list):
            if not step.isdecimal() or int(step) > len(holder):
                raise ConfigError(
                    f"{name}: {'.'.join(path[:depth])} is a list of {len(holder)}; "
                    f"use an index from 0 to {len(holder)}"
                )
            key = int(step)
            if key == len(holder):
                holder.append({})
        elif not isinstance(holder, dict):
            raise ConfigError(f"{name}: {'.'.join(path[:depth])} is not a section")
        if last:
            holder[key] = value
            return
        below = holder[key] if isinstance(holder, list) else holder.get(key)
        if below is None:
            below = [] if path[depth + 1].isdecimal() else {}
        holder[key] = list(below) if isinstance(below, list) else below
        if isinstance(below, dict):
            holder[key] = dict(below)
        holder = holder[key]
