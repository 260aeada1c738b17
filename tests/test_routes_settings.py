"""Several upstreams in the configuration: what works, and how mistakes are told."""

from pathlib import Path

import pytest

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Mode
from stream_aligner_proxy.settings import Settings, build

UP = {"name": "a", "base_url": "http://a/v1", "dialect": "vllm"}
OTHER = {"name": "b", "base_url": "http://b/v1", "dialect": "openai"}


def read(routes: object = (), **sections: object) -> Settings:
    rules = {"backend": "rules", "path": __file__}
    data = {"upstreams": [UP, OTHER], "aligner": rules, "routes": routes, **sections}
    return build(data, base=Path(__file__).parent, environ={"KEY": "sk-strict"})


def test_a_route_lays_its_own_keys_over_the_alignment() -> None:
    settings = read(
        [
            {"model": "x", "to": [{"upstream": "a"}], "alignment": {"mode": "shadow"}},
            {"model": "y", "to": [{"upstream": "a", "weight": 2}]},
        ],
        alignment={"mode": "whole", "lookahead": 3},
    )
    own = settings.routes[0].alignment
    assert own is not None
    assert (own.mode, own.lookahead) == (Mode.SHADOW, 3)
    assert settings.routes[1].alignment is None
    assert settings.routes[1].to[0].weight == 2


def test_named_aligners_have_keys_of_their_own() -> None:
    strict = {"backend": "rules", "path": __file__, "api_key_env": "KEY"}
    settings = read(
        [{"model": "x", "to": [{"upstream": "a"}], "aligner": "strict"}],
        aligners={"strict": strict},
    )
    key = settings.aligners["strict"].api_key
    assert key is not None
    assert key.get_secret_value() == "sk-strict"
    assert "sk-strict" not in repr(settings)


TO = {"upstream": "a"}
ROUTE_MISTAKES = [
    ([{"to": [TO]}], r"routes\[0\]\.model: is required"),
    ([{"model": "x"}], r"routes\[0\]\.to: is required"),
    ([{"model": "x", "to": []}], r"routes\[0\]\.to: must not be empty"),
    ([{"model": "a*b*", "to": [TO]}], r"routes\[0\]\.model: must be a model's name, or a pattern"),
    (
        [{"model": "x", "to": [{"upstream": "c"}]}],
        r"routes\[0\]\.to\[0\]\.upstream: unknown .*a, b",
    ),
    (
        [{"model": "x", "to": [TO], "fallback": [{"upstream": "c"}]}],
        r"routes\[0\]\.fallback\[0\]\.upstream: unknown upstream",
    ),
    (
        [{"model": "x", "to": [TO | {"weight": 0}]}],
        r"routes\[0\]\.to\[0\]\.weight: .*greater than 0",
    ),
    ([{"model": "x", "to": [TO | {"weight": -1}]}], r"routes\[0\]\.to\[0\]\.weight: "),
    ([{"model": "x", "to": [TO | {"wait": 1}]}], r"to\[0\]\.wait: unknown key; .*upstream, model"),
    (
        [{"model": "x", "to": [TO], "fallback": [TO | {"weight": 1, "model": "y"}]}],
        r"routes\[0\]\.fallback\[0\]\.weight: unknown key",
    ),
    ([{"model": "x", "to": [TO | {"model": "y*"}]}], r"routes\[0\]\.to\[0\]\.model: has a \*"),
    ([{"model": "x", "to": [TO, TO]}], r"routes\[0\]\.to\[1\]: is to\[0\] once more"),
    ([{"model": "x", "to": [TO], "fallback": [TO]}], r"fallback\[0\]: is to\[0\] once more"),
    ([{"model": "x", "to": [TO]}] * 2, r"routes\[1\]\.model: routes\[0\] has the same model"),
    (
        [{"model": "gpt-*", "to": [TO]}, {"model": "gpt-4", "to": [TO]}],
        r"routes\[1\]\.model: is never reached, for routes\[0\]",
    ),
    (
        [{"model": "*", "to": [TO]}, {"model": "gpt-*", "to": [TO]}],
        r"routes\[1\]\.model: is never reached",
    ),
    ([{"model": "x", "to": [TO], "aligner": "z"}], r"routes\[0\]\.aligner: unknown aligner"),
    (
        [{"model": "x", "to": [TO], "alignment": {"mode": "loud"}}],
        r"routes\[0\]\.alignment\.mode: .*'stream', 'whole'",
    ),
    (
        [{"model": "x", "to": [TO], "alignment": {"moode": "off"}}],
        r"routes\[0\]\.alignment\.moode: unknown key; did you mean mode\?",
    ),
    ([{"model": "x", "to": [TO], "alignment": 3}], r"routes\[0\]\.alignment: must be a section"),
    ([3], r"routes\[0\]: must be a section with the keys model, to,"),
    (3, r"routes: must be a list"),
]


@pytest.mark.parametrize(("routes", "message"), ROUTE_MISTAKES)
def test_a_mistake_in_a_route_is_told_with_its_place(routes: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(routes)


UPSTREAM_MISTAKES = {
    "continuation": ("loud", r"upstreams\[0\]\.continuation: .*'auto', 'ids'"),
    "tokenizer": ("nowhere", r"upstreams\[0\]\.tokenizer: .* does not exist"),
    "ca_file": ("nowhere", r"upstreams\[0\]\.ca_file: .* does not exist"),
    "max_concurrent": (0, r"upstreams\[0\]\.max_concurrent: "),
    "retries": (-1, r"upstreams\[0\]\.retries: "),
    "models": ([], r"upstreams\[0\]\.models: must not be empty"),
    "session_header": ("content-length", r"upstreams\[0\]\.session_header: must be the name"),
    "headers": ({"x y": "1"}, r"upstreams\[0\]\.headers: 'x y' cannot be set"),
    "query": (3, r"upstreams\[0\]\.query: must be a section"),
    "probe_model": ("", r"upstreams\[0\]\.probe_model: "),
}


@pytest.mark.parametrize("key", UPSTREAM_MISTAKES)
def test_a_mistake_in_an_upstream_is_told_with_its_key(key: str) -> None:
    value, message = UPSTREAM_MISTAKES[key]
    with pytest.raises(ConfigError, match=message):
        read(upstreams=[UP | {key: value}])


def test_a_secret_header_is_never_shown_not_even_where_it_is_wrong() -> None:
    settings = read(upstreams=[UP | {"headers": {"X-Key": "sk-header"}}])
    assert settings.upstreams[0].headers["x-key"].get_secret_value() == "sk-header"
    assert "sk-header" not in repr(settings) + settings.model_dump_json()
    with pytest.raises(ConfigError, match="x-key") as raised:
        read(upstreams=[UP | {"headers": {"x-key": "sk-header\n"}}])
    assert "sk-header" not in str(raised.value)


ALIGNER_MISTAKES = [
    ({"strict": {"backend": "rules", "path": "no"}}, r"aligners\.strict\.path: .* does not exist"),
    ({"strict": {"backend": "magic", "path": "x"}}, r"aligners\.strict\.backend: must be one of"),
    (
        {"strict": {"backend": "rules", "path": "x", "batch": 1}},
        r"aligners\.strict\.batch: unknown key; .*backend, path",
    ),
    ({"default": {"backend": "rules", "path": __file__}}, r"aligners\.default: this name"),
    (
        {"strict": {"backend": "rules", "path": __file__, "api_key_env": "NO"}},
        r"aligners\.strict\.api_key_env: ",
    ),
    (3, r"aligners: must be a section"),
]


@pytest.mark.parametrize(("aligners", "message"), ALIGNER_MISTAKES)
def test_a_mistake_in_a_named_aligner_is_told_with_its_place(aligners, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(aligners=aligners)
