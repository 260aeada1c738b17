"""How many files the process may open."""

import resource
from pathlib import Path

import psutil
import pytest

from tests.operating.processes import serving, upstream, write_config

pytestmark = pytest.mark.anyio


async def test_the_process_may_open_as_many_files_as_the_hard_limit_says(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = limits[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        async with upstream() as (_, behind), serving(write_config(tmp_path, behind)) as proxy:
            told = psutil.Process(proxy.process.pid).rlimit(resource.RLIMIT_NOFILE)
            assert told == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
