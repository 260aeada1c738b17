"""Tiny models run fastest on one thread; the engine sets the same when it starts."""

from pathlib import Path

import pytest
import torch

from stream_aligner_proxy.aligners import remote, remote_pool
from tests.aligners.models import tokenizer


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, as a copy of the checkpoint without its weights has it."""
    path = tmp_path_factory.mktemp("words")
    tokenizer().save_pretrained(path)
    (path / "training_config.json").write_text('{"prompt_profile": "compact"}')
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life and second attempts without much waiting."""
    monkeypatch.setattr(remote_pool, "UP_SECONDS", 0.1)
    monkeypatch.setattr(remote_pool, "DOWN_SECONDS", 0.02)
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", 0.001)


@pytest.fixture
def no_watching(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No signs of life in between: what a test counts are its own requests."""
    monkeypatch.setattr(remote_pool, "UP_SECONDS", 60.0)
    monkeypatch.setattr(remote_pool, "DOWN_SECONDS", 60.0)
