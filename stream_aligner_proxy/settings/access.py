"""The section `access`: who may use the proxy, and how much of it; and the file of keys."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from stream_aligner_proxy.access.keys import ALGORITHM, Key
from stream_aligner_proxy.access.limits import Limits
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.settings.base import Name, Seconds, Section, relative_to_file
from stream_aligner_proxy.settings.explaining import explain
from stream_aligner_proxy.settings.upstreams import UpstreamSettings, header_name, pattern
from stream_aligner_proxy.strictyaml import load_yaml
from stream_aligner_proxy.upstream.routing.patterns import Pattern

AccessMode = Literal["open", "pass-through", "keys", "both"]
Count = Annotated[int, Field(ge=0)]


def _hashes(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _hash(text: str) -> str:
    digest = text.removeprefix(ALGORITHM)
    if digest == text or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("must be sha256: and 64 hex digits, as `stream-aligner key new` prints it")
    return text


class LimitSettings(Section):
    """Limits of each key (or address). None: as `access.defaults` says; 0: none at all."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_open: Count | None = None

    def over(self, defaults: "LimitSettings") -> Limits:
        """With what is not given here taken from `defaults`."""
        given = self.model_dump(include=set(LimitSettings.model_fields))
        return Limits(
            **{
                name: getattr(defaults, name) or 0 if value is None else value
                for name, value in given.items()
            }
        )


class AddressLimits(Section):
    """Limits of each client address. Tokens belong to keys."""

    requests_per_minute: Count = 0
    max_open: Count = 0


class KeySettings(LimitSettings):
    """One key, or several that follow one another, by hash. `models` and `modes`: what it may ask
    for; all where they are not given."""

    name: Name
    hash: Annotated[
        tuple[Annotated[str, AfterValidator(_hash)], ...],
        BeforeValidator(_hashes),
        Field(min_length=1),
    ]
    models: tuple[Annotated[str, AfterValidator(pattern)], ...] | None = None
    modes: Annotated[tuple[Mode, ...], Field(min_length=1)] | None = None
    expires: datetime | None = None

    def key(self, defaults: LimitSettings) -> Key:
        expires = self.expires
        if expires is not None and expires.tzinfo is None:
            expires = expires.replace(tzinfo=UTC)
        return Key(
            self.name,
            tuple(bytes.fromhex(hash.removeprefix(ALGORITHM)) for hash in self.hash),
            None if self.models is None else tuple(map(Pattern, self.models)),
            self.modes,
            self.over(defaults),
            None if expires is None else expires.timestamp(),
        )


class RedisSettings(Section):
    """Where limits are counted for several processes together; see `RedisOptions`."""

    url: SecretStr | None = None
    url_env: str | None = None
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")] = "stream-aligner"
    on_failure: Literal["open", "closed"] = "open"
    timeout: Seconds = 0.25
    lease_seconds: Seconds = 30.0

    @model_validator(mode="after")
    def _one_address(self) -> "RedisSettings":
        if (self.url is None) == (self.url_env is None):
            raise ValueError("give url or url_env")
        return self


def _open_path(path: str) -> str:
    if not path.startswith("/") or path.startswith("/v1"):
        raise ValueError("must be a path such as /metrics, and none of the API's")
    return path


class AccessSettings(Section):
    """Who may use the proxy. `mode`: by default `keys` where there are keys, else `open`.

    `open`: everybody. `pass-through`: who brings a key of the upstream's; the upstream checks it.
    `keys`: who has a key of the proxy's, which goes no further. `both`: a key of the proxy's in
    `header`, and the client's `Authorization` goes on to the upstream.
    """

    mode: AccessMode | None = None
    keys: tuple[KeySettings, ...] = ()
    keys_file: Annotated[Path, AfterValidator(relative_to_file)] | None = None
    watch_seconds: Seconds = 5.0
    header: Annotated[str, AfterValidator(header_name)] = "x-stream-aligner-key"
    open_paths: tuple[Annotated[str, AfterValidator(_open_path)], ...] = ()
    defaults: LimitSettings = LimitSettings()
    per_address: AddressLimits = AddressLimits()
    redis: RedisSettings | None = None

    @property
    def wanted(self) -> AccessMode:
        """The mode, given or implied."""
        return self.mode or ("keys" if self.has_keys else "open")

    @property
    def has_keys(self) -> bool:
        return bool(self.keys) or self.keys_file is not None

    @property
    def asks(self) -> bool:
        """Whether clients need a key of the proxy's."""
        return self.wanted in ("keys", "both")

    def inline(self) -> tuple[Key, ...]:
        return tuple(key.key(self.defaults) for key in self.keys)

    def from_file(self) -> tuple[Key, ...]:
        """The keys of `keys_file` as it is now. Raises `ConfigError`."""
        if self.keys_file is None:
            return ()
        listed = _KeysFile.read(self.keys_file).keys
        return tuple(key.key(self.defaults) for key in listed)


class _KeysFile(Section):
    keys: tuple[KeySettings, ...]

    @classmethod
    def read(cls, path: Path) -> "_KeysFile":
        where = f"access.keys_file: {path.name}"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"{where}: cannot be read: {why}") from None
        data = load_yaml(text, where)
        if not isinstance(data, list):  # an empty file is one that was half written
            raise ConfigError(f"{where}: must be a list of keys; [] for none")
        try:
            return cls.model_validate({"keys": data})
        except ValidationError as error:
            raise ConfigError(f"{where}: {'; '.join(explain(error, cls))}") from None


def checked_access(
    access: AccessSettings, upstreams: tuple[UpstreamSettings, ...], environ: Mapping[str, str]
) -> AccessSettings:
    """What only all together can show, and with the address of Redis. Raises `ConfigError`."""
    if access.asks and not access.has_keys:
        raise ConfigError(
            f"access.mode: {access.wanted} needs keys: give access.keys_file or access.keys"
        )
    if access.has_keys and not access.asks:
        raise ConfigError(
            f"access.mode: {access.wanted} asks for no key, but there are some; leave the mode out"
        )
    if access.wanted == "pass-through":
        for index, upstream in enumerate(upstreams):
            if upstream.api_key is not None:
                raise ConfigError(
                    "access.mode: pass-through lets the upstreams check keys, but "
                    f"upstreams[{index}] has an api_key, which every client could use then; "
                    "use keys or both"
                )
    if access.mode == "both" and access.header in ("authorization", "x-api-key"):
        raise ConfigError("access.header: this one is the upstream's; name another")
    if access.redis is None or access.redis.url_env is None:
        return access
    if not (url := environ.get(access.redis.url_env)):
        raise ConfigError(
            f"access.redis.url_env: the environment variable {access.redis.url_env} is not set"
        )
    redis = access.redis.model_copy(update={"url": SecretStr(url)})
    return access.model_copy(update={"redis": redis})
