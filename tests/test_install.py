"""Environments are installed by uv from where pip is told to look."""

import subprocess
import sys

from tests.install import settings


def test_the_settings_of_pip_are_those_of_uv_and_variables_come_before_files() -> None:
    listed = """:env:.index-url='https://one.test/simple'
global.index-url='https://two.test/simple'
global.extra-index-url='file:///a/simple\\nfile:///b/simple'
install.find-links='/wheels /more'
global.disable-pip-version-check='1'
"""
    assert settings(listed) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://one.test/simple",
        "UV_INDEX": "file:///a/simple file:///b/simple",
        "UV_FIND_LINKS": "/wheels,/more",
    }


def test_what_pip_lists_here_can_be_read() -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert settings(listed)["UV_INDEX_STRATEGY"]
