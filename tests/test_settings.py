"""Configuration: what works, what the environment changes, and how mistakes are told."""

from pathlib import Path

import pytest

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import Mode, Policy
from stream_aligner_proxy.settings import Settings, load

SMALLEST = """\
upstreams: [{name: main, base_url: "http://127.0.0.1:9001/v1", dialect: vllm}]
aligner: {backend: rules, path: rules.yaml}
alignment: {mode: stream}
"""
UPSTREAM = SMALLEST.splitlines()[0]
ALIGNER = SMALLEST.splitlines()[1]


@pytest.fixture
def read(tmp_path: Path):
    (tmp_path / "rules.yaml").write_text("[]")
    file = tmp_path / "proxy.yaml"

    def read(text: str = SMALLEST, **environ: str) -> Settings:
        file.write_text(text)
        return load(file, environ)

    return read


def test_the_smallest_file_works_and_paths_are_relative_to_it(read, tmp_path: Path) -> None:
    settings = read()
    assert settings.upstreams[0].base_url == "http://127.0.0.1:9001/v1"
    assert settings.aligner.path == tmp_path / "rules.yaml"
    assert settings.alignment.policy(Mode.STREAM, 0.5) == Policy()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)


def test_a_request_may_choose_any_mode_unless_the_operator_says_otherwise(read) -> None:
    assert read().alignment.allow_override == set(Mode)


@pytest.mark.parametrize(
    ("value", "modes"),
    [
        ("true", set(Mode)),
        ("false", set()),
        ("[off, shadow]", {Mode.OFF, Mode.SHADOW}),
        ("[]", set()),
    ],
)
def test_overrides_are_a_list_or_all_or_none(read, value: str, modes: set[Mode]) -> None:
    text = f"{UPSTREAM}\n{ALIGNER}\nalignment: {{allow_override: {value}}}"
    assert read(text).alignment.allow_override == modes


def test_off_is_a_mode_and_not_false(read) -> None:
    assert read(f"{UPSTREAM}\n{ALIGNER}\nalignment: {{mode: off}}").alignment.mode is Mode.OFF


def test_the_environment_wins(read) -> None:
    settings = read(
        STREAM_ALIGNER_ALIGNMENT__MODE="shadow",
        STREAM_ALIGNER_ALIGNMENT__ALLOW_OVERRIDE="off,whole",
        STREAM_ALIGNER_ALIGNMENT__FAIL_OPEN="true",
        STREAM_ALIGNER_SERVER__PORT="9000",
        STREAM_ALIGNER_UPSTREAMS__0__DIALECT="openai",
        STREAM_ALIGNER_UPSTREAMS__0__TIMEOUTS__CONNECT="1.5",
        STREAM_ALIGNER_UPSTREAMS__1='{"name": "b", "base_url": "http://b/v1", "dialect": "vllm"}',
    )
    assert settings.alignment.mode is Mode.SHADOW
    assert settings.alignment.allow_override == {Mode.OFF, Mode.WHOLE}
    assert settings.alignment.fail_open is True
    assert settings.server.port == 9000
    assert [u.dialect for u in settings.upstreams] == ["openai", "vllm"]
    assert settings.upstreams[0].timeouts.connect == 1.5


def test_variables_that_kubernetes_sets_for_a_service_are_left_alone(read) -> None:
    read(
        STREAM_ALIGNER_PORT="tcp://10.0.0.1:8000",
        STREAM_ALIGNER_SERVICE_HOST="10.0.0.1",
        STREAM_ALIGNER_PORT_8000_TCP_PROTO="tcp",
    )


def test_a_key_comes_from_its_variable_and_is_never_shown(read) -> None:
    text = f"{UPSTREAM.replace('}]', ', api_key_env: UP_KEY}]')}\n{ALIGNER}"
    settings = read(text, UP_KEY="sk-secret")
    key = settings.upstreams[0].api_key
    assert key is not None
    assert key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(settings) + str(settings) + settings.model_dump_json()


REMOTE = "backend: remote, path: rules.yaml"


def test_the_aligners_servers_and_key_are_read_and_the_key_is_never_shown(read) -> None:
    text = f"{UPSTREAM}\naligner: {{{REMOTE}, urls: ['http://a:1/v1/'], api_key_env: MY_KEY}}"
    settings = read(text, MY_KEY="sk-aligner", STREAM_ALIGNER_ALIGNER__MODEL="small")
    options = settings.aligner.options()
    assert options["urls"] == ("http://a:1/v1",)
    assert (options["model"], options["api_key"]) == ("small", "sk-aligner")
    assert "api_key_env" not in options
    assert "sk-aligner" not in repr(settings) + str(settings) + settings.model_dump_json()


ALIGNER_MISTAKES = {
    "urls: []": r"aligner\.urls: must not be empty",
    "urls: [ftp://x]": r"aligner\.urls\[0\]: must be an http",
    "urls: ['http://a/v1', 'http://me:pw@x/v1']": r"aligner\.urls\[1\]: must not hold a user",
    "urls: 'http://a/v1'": r"aligner\.urls: must be a list",
    "model: ''": r"aligner\.model: ",
    "api_key: a, api_key_env: B": r"aligner: give api_key or api_key_env",
    "api_key_env: UNSET": r"aligner\.api_key_env: .*UNSET is not set",
    "temperature: -1": r"aligner\.temperature: ",
}


@pytest.mark.parametrize("change", ALIGNER_MISTAKES)
def test_a_mistake_in_the_aligner_is_told_with_its_place(read, change: str) -> None:
    with pytest.raises(ConfigError, match=ALIGNER_MISTAKES[change]) as raised:
        read(f"{UPSTREAM}\naligner: {{{REMOTE}, {change}}}")
    assert "pw" not in str(raised.value)


MISTAKES = {
    "alignment: {mode: loud}": r"alignment\.mode: .*'stream', 'whole', 'shadow' or 'off'",
    "alignment: {moode: off}": r"alignment\.moode: unknown key; did you mean mode\?",
    "alignment: {lookahead: -1}": r"alignment\.lookahead: .*greater than or equal to 1",
    "alignment: {allow_override: loud}": r"alignment\.allow_override: must be true, false or a",
    "alignment: {allow_override: 3}": r"alignment\.allow_override: must be true, false or a list",
    "alignment: 3": r"alignment: must be a section with the keys mode,",
    "server: {port: 99999}": r"server\.port: ",
    "sever: {port: 1}": r"sever: unknown key; did you mean server\?",
    "server: {port: 1}\nserver: {port: 2}": r"line 4: the key 'server' is given twice",
}


@pytest.mark.parametrize("addition", MISTAKES)
def test_a_mistake_is_told_with_its_key_and_what_is_allowed(read, addition: str) -> None:
    with pytest.raises(ConfigError, match=MISTAKES[addition]):
        read(f"{UPSTREAM}\n{ALIGNER}\n{addition}")


UPSTREAM_MISTAKES = {
    "dialect: klingon": r"upstreams\[0\]\.dialect: must be one of vllm,",
    "base_url: ftp://x": r"upstreams\[0\]\.base_url: must be an http",
    "base_url: 'http://me:pw@x/v1'": r"upstreams\[0\]\.base_url: must not hold a user",
    "api_key_env: UNSET": r"upstreams\[0\]\.api_key_env: .*UNSET is not set",
    "api_key: a, api_key_env: B": r"upstreams\[0\]: give api_key or api_key_env",
    "timeouts: {connect: 0}": r"upstreams\[0\]\.timeouts\.connect: ",
    "timeouts: {conect: 1}": r"upstreams\[0\]\.timeouts\.conect: unknown .*allowed: connect,",
    "name: 'a b'": r"upstreams\[0\]\.name: ",
}


@pytest.mark.parametrize("change", UPSTREAM_MISTAKES)
def test_a_mistake_in_an_upstream_is_told_with_its_place(read, change: str) -> None:
    keys = {
        "name": "main",
        "base_url": "http://x/v1",
        "dialect": "vllm",
    }
    for key in list(keys):
        if change.startswith(f"{key}:"):
            del keys[key]
    flow = ", ".join([*(f"{k}: {v!r}" for k, v in keys.items()), change])
    with pytest.raises(ConfigError, match=UPSTREAM_MISTAKES[change]):
        read(f"upstreams: [{{{flow}}}]\n{ALIGNER}")


@pytest.mark.parametrize("key", ["sk-é", "sk with space ", "sk\nnewline"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(read, key: str) -> None:
    with pytest.raises(ConfigError, match=r"upstreams\[0\]: the key has") as raised:
        read(STREAM_ALIGNER_UPSTREAMS__0__API_KEY=key)
    assert key not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("a: [", "line"),
        ("a: \x00", "not YAML"),
        ("{}", "upstreams: is required"),
        (f"upstreams: []\n{ALIGNER}", "upstreams: must not be empty"),
        (f"upstreams: [1]\n{ALIGNER}", r"upstreams\[0\]: must be a section"),
        (f"{UPSTREAM}\naligner: {{backend: magic, path: x}}", r"aligner\.backend: must be one of"),
        (f"{UPSTREAM}\naligner: {{backend: rules, path: x}}", r"aligner\.path: .* does not exist"),
        (f"{UPSTREAM}\naligner: {{backend: rules}}", r"aligner\.path: is required"),
        (f"{UPSTREAM[:-1]}, {UPSTREAM.split('[')[1]}\n{ALIGNER}", "upstreams: each needs its own"),
    ],
)
def test_a_file_that_cannot_work_is_told_so(read, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "nowhere.yaml", {})


def test_a_variable_that_leads_nowhere_is_named(read) -> None:
    with pytest.raises(ConfigError, match="STREAM_ALIGNER_UPSTREAMS__5__NAME: upstreams is a list"):
        read(STREAM_ALIGNER_UPSTREAMS__5__NAME="x")
    with pytest.raises(ConfigError, match=r"alignment\.x: unknown key"):
        read(STREAM_ALIGNER_ALIGNMENT__X="1")
    with pytest.raises(ConfigError, match=r"not a section"):
        read(STREAM_ALIGNER_ALIGNMENT__MODE__DEEP="1")
