"""Build llama.cpp's `llama-server` into a folder, with the `gguf` modules of the same source.

The source is the one inside the `llama-cpp-python` sdist, so a package index is all that is needed,
beside a C++ compiler, cmake and ninja. Built for a tiny model: little optimisation, nothing but the
server. Standard library only; takes about five minutes on two cores.

Run as `python tests/continuation/install_llamacpp.py FOLDER` (`make llamacpp` does). Exit status 0:
`FOLDER/llama-server` is there. 3: this machine cannot build it, and the reason is printed.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SDIST = "llama-cpp-python==0.3.36"
CANNOT_BUILD = 3
_OFF = (
    "BUILD_SHARED_LIBS",
    "GGML_CPU_REPACK",
    "GGML_LLAMAFILE",
    "GGML_NATIVE",
    "GGML_OPENMP",
    "LLAMA_BUILD_APP",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_UI",
    "LLAMA_OPENSSL",
    # Would be fetched from a model hub.
    "LLAMA_USE_PREBUILT_UI",
)
_ON = ("LLAMA_BUILD_SERVER", "LLAMA_BUILD_TOOLS")


def why_not_here() -> str | None:
    """Why this machine cannot build it, or None if it can."""
    missing = [tool for tool in ("cmake", "ninja", "cc", "c++") if shutil.which(tool) is None]
    return f"there is no {', no '.join(missing)}" if missing else None


def unpacked(into: Path) -> Path | None:
    """The source of llama.cpp, or None where pip finds no sdist."""
    pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-binary", "llama-cpp-python", "-d", str(into), SDIST]
    if subprocess.run(pip, check=False).returncode:
        return None
    with tarfile.open(next(into.glob("*.tar.gz"))) as archive:
        archive.extractall(into, filter="data")
    return next(into.glob("*/vendor/llama.cpp"))


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    if reason := why_not_here():
        print(f"no llama-server on this machine: {reason}")
        return CANNOT_BUILD
    with tempfile.TemporaryDirectory() as made:
        source = unpacked(Path(made))
        if source is None:
            print(f"no llama-server on this machine: pip finds no source of {SDIST}")
            return CANNOT_BUILD
        build = Path(made) / "build"
        flags = [f"-D{name}=OFF" for name in _OFF] + [f"-D{name}=ON" for name in _ON]
        flags += ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O1 -w", "-DCMAKE_CXX_FLAGS=-O1 -w"]
        plan = ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *flags]
        make = ["cmake", "--build", str(build), "--target", "llama-server"]
        for command in (plan, make):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        folder.mkdir(exist_ok=True)
        shutil.copytree(source / "gguf-py" / "gguf", folder / "gguf", dirs_exist_ok=True)
        shutil.copy2(build / "bin" / "llama-server", folder / "llama-server")
    return 0


if __name__ == "__main__":
    sys.exit(main())
