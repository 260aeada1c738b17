"""Make a virtual environment quickly: `uv` installs into it what pip would, from the same places.

pip takes two to three minutes of a core for each of this project's three environments, uv some
twenty seconds, and what two of them share lies on the disk once. uv does not read pip's settings,
so that a machine with an index of its own would have to be told twice: they are handed over. Where
uv fails, pip is asked, which knows settings that uv has no name for.

Run as `python -m tests.install FOLDER [ARGUMENT OF PIP INSTALL ...]` (the Makefile does).
"""

import ast
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

UV = "uv==0.13.9"
# Of `pip config list`, and uv's word for it. Both take several values, parted by the second.
_NAMES = {
    "cert": ("SSL_CERT_FILE", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "no-index": ("UV_NO_INDEX", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
}


def settings(listed: str) -> dict[str, str]:
    """uv's environment for what `pip config list` prints: `global.index-url='https://…'`, and
    `:env:.index-url='…'` for a variable, which comes before a file's."""
    lines = sorted(listed.splitlines(), key=lambda line: line.startswith(":env:"))
    # All places are alike to pip, and the best version of all is taken.
    made = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for line in lines:
        key, _, value = line.partition("=")
        name = _NAMES.get(key.rpartition(".")[2])
        if name is not None:
            made[name[0]] = name[1].join(ast.literal_eval(value).split())
    return made


class Environment:
    """A virtual environment in a folder, made where there is none."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "bin" / "python"
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self._pip = [str(self.python), "-m", "pip", "--disable-pip-version-check"]
        self._uv: Mapping[str, str] | None = None
        if subprocess.run([*self._pip, "install", "-qq", UV], check=False).returncode == 0:
            listed = subprocess.run(
                [*self._pip, "config", "list"], check=True, capture_output=True, text=True
            )
            # What is set for uv itself on this machine goes before what is set for pip.
            self._uv = settings(listed.stdout) | os.environ

    def has(self, requirement: str) -> bool:
        """Whether it can be installed here."""
        return self._install(["--dry-run", "--no-deps", requirement], quiet=True)

    def install(self, *arguments: str, wheels: Path | None = None) -> None:
        """As `pip install` would, also from the folder `wheels`. Raises `SystemExit` where neither
        uv nor pip can."""
        if not self._install(arguments, wheels):
            raise SystemExit(f"{self.python.parent.parent}: not installed, for the reason above")

    def _install(
        self, arguments: Sequence[str], wheels: Path | None = None, quiet: bool = False
    ) -> bool:
        out = subprocess.DEVNULL if quiet else None
        more = () if wheels is None else ("--find-links", str(wheels))
        if self._uv is not None:
            uv = [str(self.python), "-m", "uv", "pip", "install", "--quiet"]
            uv += ["--python", str(self.python), *arguments, *more]
            # An argument stands in place of the setting for uv, and beside it for pip.
            places = self._uv.get("UV_FIND_LINKS", "").split(",") if more else ()
            uv += [f"--find-links={place}" for place in places if place]
            if subprocess.run(uv, check=False, env=self._uv, stderr=out).returncode == 0:
                return True
            if not quiet:
                print("uv could not install it; now pip tries", flush=True)
        pip = [*self._pip, "install", "-qq", *arguments, *more]
        return subprocess.run(pip, check=False, stderr=out).returncode == 0


if __name__ == "__main__":
    Environment(Path(sys.argv[1])).install(*sys.argv[2:])
