"""Settings: one YAML file plus the environment. The only module that reads the environment.

`STREAM_ALIGNER_ALIGNMENT__MODE=shadow` overrides `alignment.mode`; lists are reached by index
(`STREAM_ALIGNER_UPSTREAMS__0__API_KEY`) or given as JSON. The environment wins over the file.

Everything that can be wrong is found here, before anything listens: a `ConfigError` names the
key's dotted path and what is allowed, never a value, for a value may be a secret.
"""

import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from stream_aligner_proxy.aligners.registry import BACKENDS
from stream_aligner_proxy.configfile import merge_environment, parse_yaml
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Mode, Policy, RestartOn
from stream_aligner_proxy.upstream.dialects import DIALECTS

PREFIX = "STREAM_ALIGNER_"
_MODES = ", ".join(Mode)
_POLICY = Policy()

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors: a typo must not go unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Timeouts(Section):
    """How long an upstream may take, in seconds."""

    connect: Seconds = 5.0
    first_byte: Seconds = 120.0
    between_chunks: Seconds = 60.0
    total: Seconds = 1800.0


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    known = tuple(names)

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return check


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address, such as http://127.0.0.1:9001/v1")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password; use api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("must not hold a query or a fragment")
    return url.rstrip("/")


class _HasKey(Protocol):
    @property
    def api_key(self) -> SecretStr | None: ...

    @property
    def api_key_env(self) -> str | None: ...


def _give_one_key(section: _HasKey) -> None:
    if section.api_key is not None and section.api_key_env is not None:
        raise ValueError("give api_key or api_key_env, not both")


class UpstreamSettings(Section):
    """One LLM service. Its key is either written here or read from a named variable."""

    name: Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")]
    base_url: Annotated[str, AfterValidator(_base_url)]
    dialect: Annotated[str, AfterValidator(_one_of(DIALECTS))]
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    timeouts: Timeouts = Timeouts()

    @model_validator(mode="after")
    def _one_key(self) -> "UpstreamSettings":
        _give_one_key(self)
        return self


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    return path if base is None else Path(base) / path.expanduser()


class AlignerSettings(Section):
    """The model that reviews. Which keys matter depends on the backend; its own defaults hold for
    what is not given."""

    backend: Annotated[str, AfterValidator(_one_of(BACKENDS))]
    path: Annotated[Path, AfterValidator(_relative_to_file)]
    adapter: Annotated[Path, AfterValidator(_relative_to_file)] | None = None
    profile: str | None = None
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"] | None = None
    max_batch: Annotated[int, Field(ge=1)] | None = None
    queue: Annotated[int, Field(ge=1)] | None = None
    timeout: Seconds | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    window: Annotated[int, Field(ge=64)] | None = None
    max_new_factor: Annotated[float, Field(gt=0, le=100)] | None = None
    max_new_extra: Annotated[int, Field(ge=1)] | None = None
    prefix_cache_tokens: Annotated[int, Field(ge=0)] | None = None
    prefill: bool | None = None
    method: Literal["verify", "greedy"] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    draft: Literal["sentence", "ngram", "none"] | None = None
    draft_tokens: Annotated[int, Field(ge=1, le=128)] | None = None
    gpu_memory: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    urls: (
        Annotated[tuple[Annotated[str, AfterValidator(_base_url)], ...], Field(min_length=1)] | None
    ) = None
    model: Annotated[str, Field(min_length=1)] | None = None
    api_key: SecretStr | None = None
    api_key_env: str | None = None

    @model_validator(mode="after")
    def _one_key(self) -> "AlignerSettings":
        _give_one_key(self)
        return self

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the backend, its key in the open."""
        options = self.model_dump(exclude={"api_key", "api_key_env"})
        key = self.api_key
        return {**options, "api_key": None if key is None else key.get_secret_value()}


def _modes(value: object) -> object:
    if value is True:
        return frozenset(Mode)
    if value is False:
        return frozenset()
    if isinstance(value, str):
        value = _yes_no_or_list(value)
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError(f"must be true, false or a list of modes ({_MODES})")
    modes = list(value)
    if any(mode not in list(Mode) for mode in modes):
        raise ValueError(f"must be true, false or a list of modes ({_MODES})")
    return frozenset(Mode(mode) for mode in modes)


def _yes_no_or_list(text: str) -> object:
    """An environment variable has no types: `true`, `false` or `stream,whole`."""
    match text.strip().lower():
        case "true":
            return frozenset(Mode)
        case "false" | "":
            return frozenset()
        case other:
            return [mode.strip() for mode in other.split(",")]


class AlignmentSettings(Section):
    """How replies are aligned; see `Policy` for the numbers.

    `allow_override` holds the modes a request may choose beside `mode`. By default all: whoever can
    reach the proxy can usually reach the upstream too. Where the reviewing must hold, give the list
    or `false`, and let `structured_output` be refused: JSON passes through unreviewed otherwise.
    """

    mode: Mode = Mode.STREAM
    allow_override: Annotated[frozenset[Mode], BeforeValidator(_modes)] = frozenset(Mode)
    lookahead: Annotated[int, Field(ge=1)] = _POLICY.lookahead
    review_ahead: Annotated[int, Field(ge=1)] = _POLICY.review_ahead
    adaptive: bool = _POLICY.adaptive
    restart_on: RestartOn = _POLICY.restart_on
    material_edit: Annotated[float, Field(ge=0, le=1)] = _POLICY.material_edit
    max_continuations: Annotated[int, Field(ge=0)] = _POLICY.max_continuations
    max_reviews: Annotated[int, Field(ge=0)] | None = _POLICY.max_reviews
    max_resumes: Annotated[int, Field(ge=0)] = _POLICY.max_resumes
    merge_below: Annotated[int, Field(ge=0, le=1000)] = _POLICY.merge_below
    max_sentence_chars: Annotated[int, Field(ge=16)] = _POLICY.max_sentence_chars
    max_whole_chars: Annotated[int, Field(ge=16)] = _POLICY.max_whole_chars
    early_review: bool = _POLICY.early_review
    fail_open: bool = _POLICY.fail_open
    review_code: bool = _POLICY.review_code
    strength: Annotated[float, Field(ge=0, le=1)] = _POLICY.strength
    structured_output: Literal["pass", "refuse"] = "pass"
    provenance: bool = False

    def policy(self, mode: Mode, strength: float) -> Policy:
        return Policy(
            mode=mode,
            strength=strength,
            lookahead=self.lookahead,
            review_ahead=self.review_ahead,
            adaptive=self.adaptive,
            restart_on=self.restart_on,
            material_edit=self.material_edit,
            max_reviews=self.max_reviews,
            max_resumes=self.max_resumes,
            merge_below=self.merge_below,
            max_continuations=self.max_continuations,
            early_review=self.early_review,
            max_sentence_chars=self.max_sentence_chars,
            max_whole_chars=self.max_whole_chars,
            fail_open=self.fail_open,
            review_code=self.review_code,
        )


class ServerSettings(Section):
    """Where to listen, and the limits of the HTTP side."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024 * 1024
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_seconds: Annotated[int, Field(ge=0)] = 30
    page: bool = True


class Settings(Section):
    """The whole configuration."""

    upstreams: Annotated[tuple[UpstreamSettings, ...], Field(min_length=1)]
    aligner: AlignerSettings
    alignment: AlignmentSettings = AlignmentSettings()
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _unique_names(self) -> "Settings":
        names = [upstream.name for upstream in self.upstreams]
        if len(set(names)) != len(names):
            raise ValueError("upstreams: each needs its own name")
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


def build(
    data: Mapping[str, Any], *, base: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Validate `data`; paths in it are relative to `base`. Raises `ConfigError`."""
    try:
        settings = Settings.model_validate(data, context={"base": base})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(error))) from None
    env = os.environ if environ is None else environ
    if not settings.aligner.path.exists():
        raise ConfigError(f"aligner.path: {settings.aligner.path} does not exist")
    upstreams = tuple(
        _with_key(upstream, f"upstreams[{index}]", env)
        for index, upstream in enumerate(settings.upstreams)
    )
    aligner = _with_key(settings.aligner, "aligner", env)
    return settings.model_copy(update={"upstreams": upstreams, "aligner": aligner})


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
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(f"{where}: the key has spaces or characters that no header can carry")
    return section.model_copy(update={"api_key": SecretStr(key)})


def _dotted(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}"
    return path.removeprefix(".")


def _allowed_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section that holds `location`."""
    section: type[BaseModel] = Settings
    sections: dict[str, type[BaseModel]] = {
        "upstreams": UpstreamSettings,
        "timeouts": Timeouts,
        "aligner": AlignerSettings,
        "alignment": AlignmentSettings,
        "server": ServerSettings,
    }
    for step in location[:-1]:
        section = sections.get(str(step), section)
    return list(section.model_fields)


def _explain(error: ValidationError) -> list[str]:
    """One line per mistake: the key, and what is allowed. Input values are left out."""
    lines = []
    details = error.errors(include_input=False, include_url=False)
    for detail in details:
        location = detail["loc"]
        depth = len(location)
        if any(len(e["loc"]) > depth and e["loc"][:depth] == location for e in details):
            continue  # a list is also "too short" when its items are wrong: say what is wrong
        where = _dotted(location)
        match detail["type"]:
            case "extra_forbidden":
                allowed = _allowed_keys(location)
                near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                what = f"unknown key; {hint}allowed: {', '.join(allowed)}"
            case "missing":
                what = "is required"
            case "model_type":
                allowed = _allowed_keys((*location, ""))
                what = f"must be a section with the keys {', '.join(allowed)}"
            case "tuple_type" | "list_type":
                what = "must be a list"
            case "path_type":
                what = "must be a path"
            case "too_short":
                what = "must not be empty"
            case "value_error":
                what = detail["msg"].removeprefix("Value error, ")
            case _:
                what = detail["msg"][:1].lower() + detail["msg"][1:]
        lines.append(f"{where}: {what}" if where else what)
    return lines
