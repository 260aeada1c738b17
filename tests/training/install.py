"""Build `.venv-train`: TRL, PEFT, DeepSpeed, a CPU build of torch, and what the tests need.

It is apart from `.venv`, whose tests then need none of these half a hundred packages. DeepSpeed
compiles a helper when it first starts processes on a CPU, so that a compiler and Python's headers
have to be there.

Run as `python -m tests.training.install FOLDER` (`make training-tests` and `make train` do). Exit
status 0: the environment is there. 3: this machine cannot have it, and the reason is printed.
"""

import argparse
import shutil
import sys
import sysconfig
from pathlib import Path

from tests.install import Environment

ROOT = Path(__file__).resolve().parents[2]
TORCH = "2.13.0"
NOT_HERE = 3
# What the tests of the recipe import, beside the package itself.
TESTS = ("hypothesis", "pytest", "pytest-rerunfailures", "pytest-timeout")


def why_not_here() -> str | None:
    """Why DeepSpeed cannot start processes on this machine, or None if it can."""
    if sys.platform != "linux":
        return f"DeepSpeed trains on Linux, not {sys.platform}"
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        return "DeepSpeed compiles a helper with a C++ compiler, and there is none (g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "DeepSpeed compiles a helper with Python's headers, and they are not here"
    return None


def torch_here(environment: Environment) -> str | None:
    """The build of torch that can be had: the CPU's where there is one, several GB smaller."""
    builds = (f"{TORCH}+cpu", TORCH)
    return next((build for build in builds if environment.has(f"torch=={build}")), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where to make the environment")
    parser.add_argument(
        "--unpinned", action="store_true", help="without constraints-training.txt, to refresh it"
    )
    args = parser.parse_args()
    if reason := why_not_here():
        print(f"no training environment on this machine: {reason}")
        return NOT_HERE
    environment = Environment(args.folder)
    build = torch_here(environment)
    if build is None:
        print(f"no training environment on this machine: there is no torch=={TORCH} for it")
        return NOT_HERE
    pins = [] if args.unpinned else ["-c", str(ROOT / "constraints-training.txt")]
    wanted = [f"torch=={build}", *TESTS, "-e", f"{ROOT}[recipe]"]
    environment.install(*pins, *wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
