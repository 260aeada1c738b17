"""The sections `aligner`, `aligners.NAME` and `alignment`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from stream_aligner_proxy.aligners.registry import BACKENDS
from stream_aligner_proxy.core.records import Mode, Policy, RestartOn
from stream_aligner_proxy.settings.base import (
    Seconds,
    Section,
    base_url,
    give_one_key,
    one_of,
    relative_to_file,
)
from stream_aligner_proxy.settings.breakers import AlignerBreakerSettings

_MODES = ", ".join(Mode)
_POLICY = Policy()


class AlignerSettings(Section):
    """The model that reviews. Which keys matter depends on the backend; its own defaults hold for
    what is not given."""

    backend: Annotated[str, AfterValidator(one_of(BACKENDS))]
    path: Annotated[Path, AfterValidator(relative_to_file)]
    adapter: Annotated[Path, AfterValidator(relative_to_file)] | None = None
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
        Annotated[tuple[Annotated[str, AfterValidator(base_url)], ...], Field(min_length=1)] | None
    ) = None
    model: Annotated[str, Field(min_length=1)] | None = None
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    breaker: AlignerBreakerSettings = AlignerBreakerSettings()

    @model_validator(mode="after")
    def _one_key(self) -> "AlignerSettings":
        give_one_key(self)
        return self

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the backend, its key in the open."""
        options = self.model_dump(exclude={"api_key", "api_key_env", "breaker"})
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
    logprobs: Literal["refuse", "unchanged"] = "refuse"
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
