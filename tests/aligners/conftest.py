"""Tiny models run fastest on one thread; the engine sets the same when it starts."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
