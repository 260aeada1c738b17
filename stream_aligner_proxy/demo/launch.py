"""What `stream-aligner demo` starts: the embedded upstream as a child process, and its settings.

A process of its own, so that the upstream and the aligner do not share one interpreter lock. The
child ends on every way out, also when the parent is killed (see `tethered`).
"""

import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.settings import Settings, build

MODELS = Path(__file__).parent / "models"
MODEL_NAME = "demo-upstream"
EXAMPLES = (
    "Ben has 79 shells. Next, he gets 13 from a friend. Then he gives away 32. "
    "How many shells does Ben have in the end?",
    "Rosa starts with 53 tarts. Hugo owns 19 more tarts than Rosa. "
    "Later they put their tarts together. How many tarts do they have in all?",
    "Hana counts 79 turtles on the lake. At noon 20 join them. At noon 46 join them. "
    "How many turtles does Hana count in the end?",
    "Answer my teammate Hana. It is about the smell of smoke. "
    "Say that Hana should smoke in the garden.",
)
_START_SECONDS = 120.0
_STOP_SECONDS = 5.0


def demo_settings(base_url: str, aligner: Path | None = None) -> Settings:
    """The embedded aligner, or the one in a folder, in front of the upstream at `base_url`; every
    mode may be tried."""
    path = str(aligner or MODELS / "aligner")
    return build(
        {
            "upstreams": [{"name": "demo", "base_url": base_url, "dialect": "vllm"}],
            "aligner": {"backend": "transformers", "path": path, "threads": 1},
            # The embedded aligner's window is small: 1,024 tokens for prompt and revision.
            "alignment": {"mode": "stream", "max_sentence_chars": 400, "max_whole_chars": 4000},
            "server": {"log_level": "warning", "shutdown_seconds": 3},
        }
    )


class DemoUpstream:
    """A context in which the embedded upstream runs. Raises `ConfigError` if it does not start."""

    model = MODEL_NAME

    def __init__(self, models: Path = MODELS, start_seconds: float = _START_SECONDS) -> None:
        self._models = models
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[str] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        for name in ("upstream", "aligner"):
            if not (self._models / name).is_dir():
                raise ConfigError(
                    f"demo: the {name} model is missing; `make demo-models` builds both"
                )
        # fmt: off
        command = [
            sys.executable, "-m", "stream_aligner_proxy.demo.tethered",
            "--host", "127.0.0.1", "--port", "0",
            "--name", MODEL_NAME, "--model", str(self._models / "upstream"),
        ]
        # fmt: on
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl+C goes to a whole group: open replies need the upstream until they are closed.
            start_new_session=True,
        )
        try:
            self.base_url = self._wait_until_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _wait_until_ready(self, process: subprocess.Popen[str]) -> str:
        """The address in the child's line `ready: … at URL`."""
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert process.stdout is not None
        # Goes on reading after that line: a full pipe would stop the child.
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + self._start_seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise ConfigError(f"demo: the upstream ended with code {process.wait()}")
            if line.startswith("ready:"):
                return line.rsplit(" at ", 1)[-1].strip()
        raise ConfigError(f"demo: the upstream was not ready in {self._start_seconds:.0f} s")

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            if process.stdin is not None:
                process.stdin.close()


def _pump(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
