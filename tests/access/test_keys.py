"""Keys at rest, and how what a client shows is compared with them."""

import hmac
from pathlib import Path

import pytest

from stream_aligner_proxy.access.keyring import Keyring
from stream_aligner_proxy.access.keys import Key, Keys, hash_of, new_key
from stream_aligner_proxy.core.errors import ConfigError, ModelNotFound, Unauthorized
from stream_aligner_proxy.settings.access import AccessSettings
from stream_aligner_proxy.upstream.routing.patterns import Pattern

OLD, NEW = new_key(), new_key()
OLDER_HASH = hash_of(OLD)


def entry(name: str, *keys: str, **fields: object) -> Key:
    return Key(name, tuple(bytes.fromhex(hash_of(key)[7:]) for key in keys), **fields)  # type: ignore[arg-type]


def test_keys_are_long_and_no_two_are_the_same() -> None:
    assert OLD != NEW
    assert len(OLD.removeprefix("sk-sa-")) == 43  # 256 bits in base64
    assert hash_of(OLD) != hash_of(NEW)
    assert OLD not in repr(entry("a", OLD))


@pytest.mark.parametrize("key", ["", "secret", "x" * 31, "k" * 40 + "\u00e9", "k" * 20 + " " * 20])
def test_what_somebody_made_up_is_not_hashed(key: str) -> None:
    with pytest.raises(ValueError, match="at random"):
        hash_of(key)


def test_two_hashes_of_one_name_are_good_at_once() -> None:
    keys = Keys([entry("team", OLD, NEW), entry("other", new_key())])
    assert keys.identify(OLD).name == keys.identify(NEW).name == "team"


@pytest.mark.parametrize(
    "shown",
    ["", "x", OLD[:-1], OLD + "x", OLD.upper(), OLDER_HASH, "\udc80"],
    ids=["none", "short", "cut", "longer", "capitals", "hash", "surrogate"],
)
def test_what_is_not_the_key_is_none(shown: str) -> None:
    with pytest.raises(Unauthorized) as raised:
        Keys([entry("team", OLD)]).identify(shown)
    assert shown == "" or shown not in raised.value.message


def test_every_entry_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr("stream_aligner_proxy.access.keys.hmac.compare_digest", counting)
    keys = Keys([entry("first", OLD), entry("second", NEW, new_key()), entry("third", new_key())])
    keys.identify(OLD)
    with pytest.raises(Unauthorized):
        keys.identify("none")
    assert len(compared) == 8


def test_a_key_is_good_until_it_expires() -> None:
    now = 100.0
    keys = Keys([entry("team", OLD, expires=200.0)], clock=lambda: now)
    assert keys.identify(OLD).name == "team"
    now = 200.0
    with pytest.raises(Unauthorized, match="expired"):
        keys.identify(OLD)


def test_models_are_names_and_patterns() -> None:
    key = entry("team", OLD, models=(Pattern("gpt-4o"), Pattern("llama/*")))
    assert [key.may_use(m) for m in ("gpt-4o", "llama/3", "gpt-4o-mini", "")] == [
        *(True, True, False, False)
    ]
    with pytest.raises(ModelNotFound, match="gpt-5"):
        key.check_model("gpt-5")
    assert not entry("metrics", OLD, models=()).may_use("gpt-4o")


def keyring(file: Path, told: list[bool]) -> Keyring:
    access = AccessSettings(keys_file=file)
    return Keyring((), file, access.from_file, reloaded=told.append)


def write(file: Path, *entries: str) -> None:
    file.write_text("".join(f"- {entry}\n" for entry in entries) or "[]\n")


def line(name: str, key: str) -> str:
    return f"{{name: {name}, hash: '{hash_of(key)}'}}"


@pytest.mark.anyio
async def test_a_changed_file_is_taken_over_and_an_old_key_is_worth_nothing(tmp_path: Path) -> None:
    file, told = tmp_path / "keys.yaml", list[bool]()
    write(file, line("a", OLD))
    ring = keyring(file, told)
    await ring.look()
    assert told == []
    write(file, line("a", OLD), line("a", NEW))
    await ring.look()
    assert ring.identify(OLD).name == ring.identify(NEW).name == "a"
    write(file, line("a", NEW))
    await ring.look()
    with pytest.raises(Unauthorized):
        ring.identify(OLD)
    write(file)
    await ring.look()
    with pytest.raises(Unauthorized):
        ring.identify(NEW)
    assert told == [True, True, True]


@pytest.mark.anyio
async def test_a_volume_that_swaps_its_link_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes does: the file is a link into a folder that is a link."""
    for version, key in (("v1", OLD), ("v2", NEW)):
        (tmp_path / version).mkdir()
        write(tmp_path / version / "keys.yaml", line("a", key))
    (tmp_path / "data").symlink_to("v1")
    file = tmp_path / "keys.yaml"
    file.symlink_to("data/keys.yaml")
    ring = keyring(file, [])
    (tmp_path / "swap").symlink_to("v2")
    (tmp_path / "swap").replace(tmp_path / "data")
    await ring.look()
    assert ring.identify(NEW).name == "a"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "must be a list"),
        ("- {name: a", "line 1"),
        ("- {name: a}", r"keys\[0\]\.hash"),
        ("- {name: a, hash: 'sha256:00'}", r"keys\[0\]\.hash"),
        ("- {name: a, hash: HASH, expires: 2027-13-01}", "not YAML"),
        ("- {name: a, hash: HASH, model: x}", r"did you mean models"),
        ("- {name: a, hash: HASH}\n- {name: b, hash: HASH}", "same hash"),
        ("[" * 2000, "nested too deep"),
        (None, "cannot be read"),
    ],
)
async def test_a_broken_file_changes_nothing_and_is_told(
    tmp_path: Path, content: str | None, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, told = tmp_path / "keys.yaml", list[bool]()
    write(file, line("a", OLD))
    ring = keyring(file, told)
    if content is None:
        file.unlink()
    else:
        file.write_text(content.replace("HASH", f"'{hash_of(NEW)}'"))
    await ring.look()
    assert ring.identify(OLD).name == "a"
    assert told == [False]
    assert ring.error is not None
    assert ring.error.startswith("access.keys")
    assert ring.error in caplog.text
    with pytest.raises(ConfigError, match=named):
        keyring(file, [])
    write(file, line("b", NEW))
    await ring.look()
    assert ring.identify(NEW).name == "b"
    assert ring.error is None
