"""Start and stop vLLM's engine: settings to engine arguments, failures to `ConfigError`.

vLLM is imported here and only while an engine starts: it takes seconds, reads the environment as it
is then, and configures logging of its own.
"""

import gc
import logging
import multiprocessing
import os
import sys
from concurrent.futures import Future
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stream_aligner_proxy.aligners.vllm_plan import Plan, arguments
from stream_aligner_proxy.aligners.vllm_tether import Tether
from stream_aligner_proxy.core.errors import ConfigError

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    # Nothing is fetched: models are local folders.
    "HF_HUB_OFFLINE": "1",
    # A proxy's operator did not agree to tell vLLM's authors about it.
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class Launch:
    """Starts an engine in a thread; `engine` is it, or what went wrong.

    `close` ends the engine's processes whatever state the start is in, and blocks until they are
    gone.
    """

    def __init__(self, plan: Plan) -> None:
        self.engine: Future[Any] = Future()
        self._plan = plan
        self._closed = Event()
        self._tether = Tether()
        self._thread = Thread(target=self._run, name="vllm-launch")
        self._thread.start()

    def watch(self) -> None:
        """Tie the processes that were started by now to this one."""
        for child in multiprocessing.active_children():
            if child.pid is not None and child.name.startswith("EngineCore"):
                self._tether.hold(child.pid)

    def close(self) -> None:
        self._closed.set()
        self.watch()
        if not self.engine.done():
            # It would answer no signal before it has loaded the model.
            self._tether.cut()
        self._thread.join()
        if self.engine.exception() is None:
            self.engine.result().shutdown()
        self.engine = Future()
        # Left to the interpreter's end, the engine object would complain that half of it is gone.
        gc.collect()
        multiprocessing.active_children()  # a process that had to be killed is waited for, too
        self._tether.release()

    def _run(self) -> None:
        try:
            self.engine.set_result(self._start())
        except BaseException as error:  # noqa: BLE001  (it is raised where it is waited for)
            self.engine.set_exception(error)

    def _start(self) -> Any:
        set_up_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
        from vllm.platforms import current_platform  # noqa: PLC0415
        from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

        plan, cpu = self._plan, bool(current_platform.is_cpu())
        if cpu:
            set_up_cpu(plan.threads)
        if self._closed.is_set():
            raise ConfigError("aligner: closed before it had started")
        where = f"aligner.path: {plan.path}"
        try:
            config = AsyncEngineArgs(**arguments(plan, cpu=cpu)).create_engine_config()
        except Exception as error:
            raise ConfigError(f"{where}: vLLM cannot run it: {error}") from error
        try:
            return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except Exception as error:
            raise ConfigError(
                f"{where}: vLLM's engine did not start; its log above tells why. Memory is given by"
                " aligner.gpu_memory and aligner.kv_cache_gib"
            ) from error


def set_up_environment() -> None:
    """Before vLLM is imported. What the operator has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def set_up_cpu(threads: int | None) -> None:
    """For an engine on a CPU; `threads` bound to no core, None for vLLM's own choice."""
    # The engine's first requests would wait for a compiler.
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    if threads is not None:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Intel's OpenMP, which vLLM's CPU build brings and recommends, is found by name only.
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if openmp.is_file() and "LD_PRELOAD" not in os.environ:
        log.debug("OpenMP of vLLM's engine: %s", openmp)
        os.environ["LD_PRELOAD"] = str(openmp)
