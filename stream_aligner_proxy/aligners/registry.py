"""Which aligners there are. A backend is imported when it is asked for, so that only those who
configure a model pay for torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.ports import Aligner


@dataclass(frozen=True, slots=True)
class Backend:
    """Where an aligner's class is, and the settings it understands."""

    module: str
    attribute: str
    options: frozenset[str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BACKENDS: dict[str, Backend] = {
    "rules": Backend("stream_aligner_proxy.aligners.rules", "RulesAligner", _words("path name")),
    "transformers": Backend(
        "stream_aligner_proxy.aligners.transformers_engine",
        "TransformersAligner",
        _words(
            "path name adapter profile device dtype window max_batch queue timeout max_new_factor"
            " max_new_extra threads prefix_cache_tokens prefill method temperature top_k top_p seed"
        ),
    ),
    "remote": Backend(
        "stream_aligner_proxy.aligners.remote",
        "RemoteAligner",
        _words(
            "path name urls model api_key profile window queue timeout max_new_factor"
            " max_new_extra temperature top_p top_k seed prefill"
        ),
    ),
    "vllm": Backend(
        "stream_aligner_proxy.aligners.vllm_engine",
        "VllmAligner",
        _words(
            "path name adapter profile dtype window max_batch queue timeout max_new_factor"
            " max_new_extra threads prefill draft draft_tokens gpu_memory kv_cache_gib temperature"
            " top_k top_p seed"
        ),
    ),
}


def create(params: Mapping[str, Any]) -> Aligner:
    """The aligner that `params` describe; not started yet.

    `params["backend"]` names it, `params["path"]` is required, the other keys are the keyword
    arguments of its class; None means not given. A key that only another backend understands is
    ignored, so that a backend can be swapped by one line. Raises `ConfigError` for an unknown
    backend or key, and for a backend whose libraries are not installed.
    """
    options = {key: value for key, value in params.items() if value is not None}
    name = options.pop("backend", None)
    backend = BACKENDS.get(name) if isinstance(name, str) else None
    if backend is None:
        raise ConfigError(
            f"aligner.backend: unknown backend {name!r}; known are {', '.join(BACKENDS)}"
        )
    known = frozenset[str]().union(*(other.options for other in BACKENDS.values()))
    for key in options:
        if key not in known:
            raise ConfigError(f"aligner.{key}: unknown key; known are {', '.join(sorted(known))}")
    if "path" not in options:
        raise ConfigError(f"aligner.path: backend {name} needs it")
    try:
        factory = getattr(import_module(backend.module), backend.attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"aligner.backend: {name} needs the package {error.name!r}, which is not installed"
        ) from error
    aligner: Aligner = factory(
        **{key: value for key, value in options.items() if key in backend.options}
    )
    return aligner
