"""Settings: one YAML file plus the environment. The only package that reads the environment.

`STREAM_ALIGNER_ALIGNMENT__MODE=shadow` overrides `alignment.mode`; lists are reached by index
(`STREAM_ALIGNER_UPSTREAMS__0__API_KEY`) or given as JSON. The environment wins over the file.

Everything that can be wrong is found here, before anything listens: a `ConfigError` names the
key's dotted path and what is allowed, never a value, for a value may be a secret.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator

from stream_aligner_proxy.configfile import merge_environment, parse_yaml
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.settings.access import AccessSettings, checked_access
from stream_aligner_proxy.settings.base import Name, Section, sendable
from stream_aligner_proxy.settings.breakers import BreakerSettings
from stream_aligner_proxy.settings.candidate import CandidateSettings
from stream_aligner_proxy.settings.explaining import explain
from stream_aligner_proxy.settings.observing import AuditSettings, TracingSettings
from stream_aligner_proxy.settings.routes import (
    FallbackSettings,
    RouteSettings,
    TargetSettings,
    check_candidate,
    check_routes,
    with_alignment,
)
from stream_aligner_proxy.settings.sections import (
    AlignerSettings,
    AlignmentSettings,
)
from stream_aligner_proxy.settings.server import ServerSettings, check_server
from stream_aligner_proxy.settings.upstreams import Timeouts, UpstreamSettings

__all__ = [
    "DEFAULT",
    "AccessSettings",
    "AlignerSettings",
    "AlignmentSettings",
    "AuditSettings",
    "BreakerSettings",
    "CandidateSettings",
    "FallbackSettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "TargetSettings",
    "Timeouts",
    "TracingSettings",
    "UpstreamSettings",
    "build",
    "load",
]

PREFIX = "STREAM_ALIGNER_"
CHECKPOINTS = ("transformers", "vllm")  # backends whose `path` is a model's folder
DEFAULT = "default"  # the name of the aligner that routes have which name none


class Settings(Section):
    """The whole configuration."""

    upstreams: Annotated[tuple[UpstreamSettings, ...], Field(min_length=1)]
    aligner: AlignerSettings
    aligners: dict[Name, AlignerSettings] = Field(default_factory=dict)
    candidate: CandidateSettings | None = None
    routes: tuple[RouteSettings, ...] = ()
    alignment: AlignmentSettings = AlignmentSettings()
    server: ServerSettings = ServerSettings()
    audit: AuditSettings | None = None
    tracing: TracingSettings | None = None
    access: AccessSettings = AccessSettings()

    @model_validator(mode="after")
    def _unique_names(self) -> "Settings":
        names = [upstream.name for upstream in self.upstreams]
        if len(set(names)) != len(names):
            raise ValueError("upstreams: each needs its own name")
        if DEFAULT in self.aligners:
            raise ValueError(f"aligners.{DEFAULT}: this name is that of the section `aligner`")
        return self


def load(path: Path, environ: Mapping[str, str] | None = None) -> Settings:
    """Read `path` and the environment. Raises `ConfigError`."""
    env = os.environ if environ is None else environ
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
    data = merge_environment(parse_yaml(text, str(path)), env, PREFIX, tuple(Settings.model_fields))
    return build(data, base=path.resolve().parent, environ=env)


def with_aligner(settings: Settings, folder: Path) -> Settings:
    """The same, with the checkpoint in `folder` as the section `aligner`: on the engine that the
    section names where that loads checkpoints, else in this process."""
    section = settings.aligner
    if section.backend in CHECKPOINTS:
        # An adapter and a profile are the other checkpoint's.
        new = section.model_copy(update={"path": folder, "adapter": None, "profile": None})
    else:
        new = AlignerSettings(backend="transformers", path=folder)
    return settings.model_copy(update={"aligner": new})


def build(
    data: Mapping[str, Any], *, base: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Validate `data`; paths in it are relative to `base`. Raises `ConfigError`."""
    try:
        settings = Settings.model_validate(with_alignment(data), context={"base": base})
    except ValidationError as error:
        raise ConfigError("; ".join(explain(error, Settings))) from None
    env = os.environ if environ is None else environ
    upstreams = tuple(
        _with_key(upstream, f"upstreams[{index}]", env)
        for index, upstream in enumerate(settings.upstreams)
    )
    for index, upstream in enumerate(settings.upstreams):
        for key, path in (("tokenizer", upstream.tokenizer), ("ca_file", upstream.ca_file)):
            if path is not None:
                _must_exist(path, f"upstreams[{index}].{key}")
    named = {
        name: _ready(aligner, f"aligners.{name}", env)
        for name, aligner in settings.aligners.items()
    }
    check_server(settings.server)
    check_routes(settings.routes, [upstream.name for upstream in upstreams], list(named))
    if settings.candidate is not None:
        check_candidate(settings.candidate, None, "candidate", list(named))
        if settings.routes and all(route.aligner is not None for route in settings.routes):
            raise ConfigError(
                "candidate: every route has an aligner of its own; give the routes their candidates"
            )
    return settings.model_copy(
        update={
            "upstreams": upstreams,
            "aligner": _ready(settings.aligner, "aligner", env),
            "aligners": named,
            "tracing": settings.tracing and _with_headers(settings.tracing, env),
            "access": checked_access(settings.access, upstreams, env),
        }
    )


def _with_headers(section: TracingSettings, environ: Mapping[str, str]) -> TracingSettings:
    """Resolve `headers_env`."""
    if (name := section.headers_env) is None:
        return section
    if section.headers is not None:
        raise ConfigError("tracing: give headers or headers_env, not both")
    if not (headers := environ.get(name)):
        raise ConfigError(f"tracing.headers_env: the environment variable {name} is not set")
    return section.model_copy(update={"headers": SecretStr(headers)})


def _must_exist(path: Path, where: str) -> None:
    if not path.exists():
        raise ConfigError(f"{where}: {path} does not exist")


def _ready(aligner: AlignerSettings, where: str, environ: Mapping[str, str]) -> AlignerSettings:
    _must_exist(aligner.path, f"{where}.path")
    return _with_key(aligner, where, environ)


_Keyed = TypeVar("_Keyed", UpstreamSettings, AlignerSettings)


def _with_key(section: _Keyed, where: str, environ: Mapping[str, str]) -> _Keyed:
    """Resolve `api_key_env`, so that nobody below has to read the environment."""
    key = section.api_key.get_secret_value() if section.api_key else None
    if section.api_key_env is not None:
        key = environ.get(section.api_key_env)
        if not key:
            raise ConfigError(
                f"{where}.api_key_env: the environment variable {section.api_key_env} is not set"
            )
        where += ".api_key_env"
    if key is None:
        return section
    # What a header cannot carry would fail on every request, with the key in the message.
    if not sendable(key):
        raise ConfigError(f"{where}: the key has spaces or characters that no header can carry")
    return section.model_copy(update={"api_key": SecretStr(key)})
