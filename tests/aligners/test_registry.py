"""The registry: which backends there are, loaded only when asked for."""

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

from stream_aligner_proxy.aligners.registry import BACKENDS, create
from stream_aligner_proxy.core.errors import ConfigError

PACKAGE = "stream_aligner_proxy.aligners."


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"aligner\.backend: unknown .*'oracle'.*rules, transf"):
        create({"backend": "oracle", "path": "x"})


def test_a_missing_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aligner\.backend"):
        create({"path": "x"})


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aligner\.colour: unknown key; known are \w+, "):
        create({"backend": "rules", "path": "x", "colour": "red"})


def test_a_missing_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"aligner\.path: backend rules needs it"):
        create({"backend": "rules", "path": None})


@pytest.mark.parametrize("name", BACKENDS)
def test_the_options_listed_are_the_arguments_of_the_class(name: str) -> None:
    backend = BACKENDS[name]
    factory = getattr(import_module(backend.module), backend.attribute)
    assert backend.options == set(inspect.signature(factory).parameters) - {"load"}


def test_the_rules_backend_does_not_import_torch() -> None:
    code = (
        "import sys; from stream_aligner_proxy.aligners.registry import create;"
        "create({'backend': 'rules', 'path': 'x'});"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_backend_without_its_libraries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"transformers needs the package .*torch"):
        create({"backend": "transformers", "path": "x"})
