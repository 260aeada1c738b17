"""The sections `access`, and what of `server` is about safety: mistakes are told by their key."""

from pathlib import Path
from typing import Any

import pytest
import trustme

from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.access.limits import Limits
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.settings import Settings, build

KEY = {"name": "a", "hash": hash_of(new_key())}


def made(
    environ: dict[str, str] | None = None, api_key: str | None = None, **sections: Any
) -> Settings:
    upstream = {"name": "main", "base_url": "http://127.0.0.1:9/v1", "dialect": "vllm"}
    if api_key:
        upstream["api_key"] = api_key
    aligner = {"backend": "rules", "path": __file__}
    data = {"upstreams": [upstream], "aligner": aligner, **sections}
    return build(data, environ=environ or {})


def test_keys_imply_their_mode() -> None:
    assert made().access.wanted == "open"
    assert made(access={"keys": [KEY]}).access.wanted == "keys"


@pytest.mark.parametrize(
    ("access", "named"),
    [
        ({"mode": "keys"}, r"access\.mode: keys needs keys"),
        ({"mode": "both"}, r"access\.mode: both needs keys"),
        ({"mode": "open", "keys": [KEY]}, r"access\.mode: open asks for no key"),
        ({"mode": "pass-through", "keys": [KEY]}, r"access\.mode: pass-through asks for no key"),
        ({"mode": "closed"}, r"access\.mode: "),
        (
            {"keys": [{"name": "a", "hash": "secret-in-clear"}]},
            r"access\.keys\[0\]\.hash\[0\]: must",
        ),
        ({"keys": [{**KEY, "models": ["a*b*"]}]}, r"access\.keys\[0\]\.models\[0\]: "),
        ({"keys": [{**KEY, "modes": ["loud"]}]}, r"access\.keys\[0\]\.modes\[0\]: "),
        ({"keys": [{**KEY, "modes": []}]}, r"access\.keys\[0\]\.modes: must not be empty"),
        ({"keys": [{**KEY, "max_open": -1}]}, r"access\.keys\[0\]\.max_open: "),
        ({"keys": [{**KEY, "rpm": 1}]}, r"access\.keys\[0\]\.rpm: unknown key"),
        ({"open_paths": ["/v1/models"]}, r"access\.open_paths\[0\]: "),
        ({"mode": "both", "keys": [KEY], "header": "authorization"}, r"access\.header: "),
        ({"header": "a b"}, r"access\.header: "),
        ({"redis": {}}, r"access\.redis: give url or url_env"),
        ({"redis": {"url_env": "NO_SUCH"}}, r"access\.redis\.url_env: .*NO_SUCH is not set"),
        ({"redis": {"url": "redis://h", "on_failure": "retry"}}, r"access\.redis\.on_failure"),
    ],
)
def test_mistakes_in_access_are_told_by_their_key(access: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as raised:
        made(access=access)
    assert "secret-in-clear" not in str(raised.value)


def test_passing_keys_through_does_not_lend_out_the_proxys_own() -> None:
    with pytest.raises(ConfigError, match=r"access\.mode: .*upstreams\[0\] has an api_key"):
        made(api_key="sk-upstream", access={"mode": "pass-through"})
    made(access={"mode": "pass-through"})


def test_a_key_has_the_limits_of_all_where_it_has_none_of_its_own() -> None:
    access = {
        "keys": [KEY | {"max_open": 0, "tokens_per_minute": 9}],
        "defaults": {"requests_per_minute": 7, "max_open": 3},
    }
    [key] = made(access=access).access.inline()
    assert key.limits == Limits(requests_per_minute=7, tokens_per_minute=9, max_open=0)


def test_the_address_of_redis_can_come_from_the_environment_and_is_a_secret() -> None:
    url = "redis://:hidden@h:1"
    settings = made({"REDIS": url}, access={"redis": {"url_env": "REDIS"}})
    assert settings.access.redis is not None
    assert settings.access.redis.url is not None
    assert settings.access.redis.url.get_secret_value() == url
    assert "hidden" not in repr(settings)


def test_an_address_of_redis_that_is_none_stops_the_start() -> None:
    from stream_aligner_proxy.app import create_app

    with pytest.raises(ConfigError, match=r"access\.redis\.url: ") as raised:
        create_app(made(access={"redis": {"url": "http://:hidden@h"}}))
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("server", "named"),
    [
        ({"trusted_proxies": ["*"]}, r"server\.trusted_proxies\[0\]: "),
        ({"trusted_proxies": ["10.0.0.1/8"]}, r"server\.trusted_proxies\[0\]: "),
        ({"cors": {"origins": []}}, r"server\.cors\.origins: must not be empty"),
        ({"cors": {"origins": ["https://a/b"]}}, r"server\.cors\.origins\[0\]: "),
        ({"cors": {"origins": ["app.example"]}}, r"server\.cors\.origins\[0\]: "),
        ({"max_headers": 1}, r"server\.max_headers: "),
        ({"head_seconds": 0}, r"server\.head_seconds: "),
        ({"tls": {"certificate": "a"}}, r"server\.tls\.key: is required"),
    ],
)
def test_mistakes_in_server_are_told_by_their_key(server: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        made(server=server)


def test_certificates_are_tried_at_the_start(tmp_path: Path) -> None:
    authority = trustme.CA()
    own, other = authority.issue_cert("127.0.0.1"), authority.issue_cert("127.0.0.2")
    certificate, key, wrong = (str(tmp_path / name) for name in ("c.pem", "k.pem", "w.pem"))
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    other.private_key_pem.write_to_path(wrong)
    made(server={"tls": {"certificate": certificate, "key": key}})
    with pytest.raises(ConfigError, match=r"server\.tls: .*belong together"):
        made(server={"tls": {"certificate": certificate, "key": wrong}})
    with pytest.raises(ConfigError, match=r"server\.tls\.key: .* does not exist"):
        made(server={"tls": {"certificate": certificate, "key": "none.pem"}})
    with pytest.raises(ConfigError, match=r"server\.tls\.client_ca: holds no certificates"):
        made(server={"tls": {"certificate": certificate, "key": key, "client_ca": __file__}})
