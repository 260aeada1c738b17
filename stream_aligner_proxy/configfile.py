"""Reading configuration text: strict YAML, and variables laid over it.

Strict, for a configuration read differently from how it was written is worse than one refused:
a key given twice is an error, and only `true` and `false` are booleans (YAML 1.2), so that
`mode: off` is the word `off`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from stream_aligner_proxy.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 booleans and without duplicate keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (declared so by PyYAML)
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """The mapping in `text`. `name` is the file's, for messages. Raises `ConfigError`."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: {error.problem or 'not YAML'}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{name}: not YAML") from None
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
