"""Strict YAML: what is read differently from how it was written is worse than what is refused.

A key given twice is an error, and only `true` and `false` are booleans (YAML 1.2), so that
`mode: off` is the word `off`.
"""

import re
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


def load_yaml(text: str, name: str) -> Any:
    """What is in `text`. `name` is the file's, for messages. Raises `ConfigError`, in one line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError, OverflowError):  # the latter two: a date that there is not
        raise ConfigError(f"{name}: not YAML") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deep") from None
