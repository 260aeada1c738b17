"""Helm's engine in a process of its own, asked by lines of JSON: a runtime of another language,
with its threads and signal handlers, has no business among the other tests.

A request is `[action, argument, …]`, an answer `{"result": …}` or `{"error": "what Helm says"}`.
"""

import asyncio
import json
import os
import sys
from typing import Any

NAMESPACE = "aligning"


class _Helm:
    def __init__(self, kubeconfig: str) -> None:
        import helm_sdkpy

        self._helm = helm_sdkpy
        self._where = helm_sdkpy.Configuration(namespace=NAMESPACE, kubeconfig=kubeconfig)

    async def lint(self, chart: str) -> Any:
        return await self._helm.Lint(self._where).run(chart)

    async def package(self, chart: str, into: str) -> Any:
        return await self._helm.Package(self._where).run(chart, into)

    async def install(self, name: str, chart: str, values: dict[str, Any]) -> Any:
        return await self._helm.Install(self._where).run(
            name, chart, values, wait=False, server_side_apply=True, timeout=20
        )

    async def upgrade(self, name: str, chart: str, values: dict[str, Any]) -> Any:
        return await self._helm.Upgrade(self._where).run(
            name, chart, values, wait=False, server_side_apply=True, timeout=20
        )

    async def uninstall(self, name: str) -> Any:
        return await self._helm.Uninstall(self._where).run(name, wait=False, timeout=20)

    async def test(self, name: str) -> Any:
        return await self._helm.ReleaseTest(self._where).run(name)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Helm's own lines go to stderr
    folder, kubeconfig = json.loads(sys.stdin.readline())
    sys.path.insert(0, folder)
    helm = _Helm(kubeconfig)
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        try:
            answer = {"result": asyncio.run(getattr(helm, action)(*arguments))}
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
