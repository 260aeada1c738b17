"""Fixtures of the training tests."""

import sys
from pathlib import Path

import pytest

from tests.training.making import jsonl, record


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Corrections of answers to 200 questions; a sentence in every fourth is wrong."""
    return jsonl(tmp_path / "mine.jsonl", [record(at, wrong=at % 4 == 0) for at in range(200)])


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed; drawing takes longer than all the rest."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
