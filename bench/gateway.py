"""What a chunk costs in a gateway: ours, and others in its place, before one cheap mock upstream.

    c1        one stream at a time: what is added to the time to first text
    c50-slow  50 streams of 20 tokens a second, as people read
    c50       50 streams of 180 a second, 9,000 together: CPU per 1,000 chunks
    rush      50 streams of 400 a second, 20,000 together: does it keep up?
    max       8 streams as fast as they are taken: chunks a second on one core

Every gateway has one core to itself; upstream and load generator share another. Rounds are
interleaved, a gateway that is not being measured is stopped (SIGSTOP), figures are medians over the
rounds. Every reply is checked byte for byte. CPU is that of the whole process tree. A chunk is one
SSE event of the upstream, whatever a gateway makes of it. `direct` asks the upstream itself.

    python -m bench.gateway [--rounds 3] [--litellm VENV] [--only ours-off,nginx]

LiteLLM is taken from VENV or $STREAM_ALIGNER_LITELLM, or installed once into runs/litellm.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.processes import Generator, Tree, launch, unwind_on_sigterm
from bench.report import Row, publish, table
from bench.stack import free_port
from bench.targets import Running, Target, Unavailable, targets, versions

# Each takes a few seconds. The tokens of a reply are few enough for many replies in a round.
SCENARIOS: Mapping[str, Mapping[str, Any]] = {
    "c1": {"tokens": 100, "rate": 200, "streams": 1, "requests": 12},
    "c50-slow": {"tokens": 100, "rate": 20, "streams": 50, "requests": 1, "stagger": 0.2},
    "c50": {"tokens": 360, "rate": 180, "streams": 50, "requests": 1, "stagger": 0.2},
    "rush": {"tokens": 400, "rate": 400, "streams": 50, "requests": 1, "stagger": 0.2},
    "max": {"tokens": 1000, "rate": 0, "streams": 8, "requests": 0, "seconds": 3},
}
WARM_UP = {"tokens": 20, "rate": 0, "streams": 4, "requests": 2}
# LiteLLM takes a dozen seconds for what `rush` writes in one.
PATIENCE_SECONDS = 90
AIM_FIRST_TEXT_MS = 1.5
AIM_CHUNKS_PER_S = 20_000


@contextmanager
def started(target: Target, folder: Path, upstream: int, core: int | None) -> Iterator[Running]:
    """Run a target until the block ends; it is stopped whenever nobody measures it."""
    running = Running(target, free_port())
    with ExitStack() as stack:
        try:
            command, more = target.command(folder, running.port, upstream)
            log = stack.enter_context((folder / f"{target.name}.log").open("wb"))
            running.process = launch(command, more, log, core)
            stack.callback(Tree(running.process.pid).end)
            _wait(running, folder / f"{target.name}.log")
            Tree(running.process.pid).stop()
        except Unavailable as error:
            running.skipped = str(error)
        yield running


def _wait(running: Running, log: Path) -> None:
    assert running.process is not None
    deadline = time.monotonic() + running.target.start_seconds
    url = f"http://127.0.0.1:{running.port}{running.target.ready}"
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise Unavailable(f"did not start: {log.read_text(errors='replace')[-300:]}")


def measure(running: Running, generator: Generator, scenario: str, seed: int) -> dict[str, Any]:
    """One round of one scenario."""
    job = {
        **SCENARIOS[scenario],
        "port": running.port,
        "exact": running.target.exact,
        "seed": seed,
        "patience": PATIENCE_SECONDS,
    }
    if running.process is None:  # the upstream itself
        return generator.run(**job)
    tree = Tree(running.process.pid)
    with tree.awake():
        generator.run(**{**job, **WARM_UP})
        before = tree.cpu_seconds()
        outcome = generator.run(**job)
        cpu = tree.cpu_seconds() - before
        outcome["cpu_s_per_1000"] = 1000 * cpu / outcome["chunks"]
        outcome["core_busy"] = cpu / outcome["seconds"]
        outcome["rss_mb"] = tree.rss_mb()
    return outcome


def row(
    name: str, scenario: str, rounds: list[dict[str, Any]], direct: list[dict[str, Any]]
) -> Row:
    def median(key: str) -> float | None:
        values = [outcome[key] for outcome in rounds if key in outcome]
        return statistics.median(values) if values else None

    added = [
        1000 * (statistics.median(ours["first_text"]) - statistics.median(alone["first_text"]))
        for ours, alone in zip(rounds, direct, strict=True)
        if ours["first_text"] and alone["first_text"]
    ]
    return {
        "target": name,
        "scenario": scenario,
        "cpu_s_per_1000": median("cpu_s_per_1000"),
        "added_first_text_ms": statistics.median(added) if added and scenario == "c1" else None,
        "chunks_per_s": statistics.median(o["chunks"] / o["seconds"] for o in rounds),
        "core_busy": median("core_busy"),
        "rss_mb": median("rss_mb"),
        "failures": sum(len(outcome["failures"]) for outcome in rounds),
        "skipped": None,
    }


def verdicts(rows: list[Row]) -> list[str]:
    """One line per aim: what was aimed at, what was measured."""
    found = {(str(r["target"]), str(r["scenario"])): r for r in rows}

    def value(target: str, scenario: str, key: str) -> float | None:
        measured = found.get((target, scenario), {}).get(key)
        return measured if isinstance(measured, float) else None

    lines = []

    def line(
        what: str, measured: float | None, bound: float | None, *, least: bool = False
    ) -> None:
        if measured is None or bound is None:
            lines.append(f"not measured: {what}")
            return
        met = measured >= bound if least else measured <= bound
        sign = ">=" if least else "<="
        lines.append(f"{'met' if met else 'MISSED'}: {what}: {measured:.4g} {sign} {bound:.4g}")

    for name in ("ours-off", "ours-stream"):
        cpu = value(name, "c50", "cpu_s_per_1000")
        their = value("litellm", "c50", "cpu_s_per_1000")
        bare = value("fastapi-httpx-parse", "c50", "cpu_s_per_1000")
        line(f"{name}: CPU a tenth of LiteLLM's", cpu, None if their is None else their / 10)
        line(f"{name}: CPU not above a bare FastAPI + httpx relay", cpu, bare)
        speed = value(name, "max", "chunks_per_s")
        line(f"{name}: chunks/s on one core", speed, AIM_CHUNKS_PER_S, least=True)
    added = value("ours-off", "c1", "added_first_text_ms")
    line("ours-off: ms added to first text", added, AIM_FIRST_TEXT_MS)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    venv = os.environ.get("STREAM_ALIGNER_LITELLM")
    parser.add_argument("--litellm", type=Path, default=Path(venv) if venv else None)
    parser.add_argument("--only", help="names of targets, with commas between them")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    options = parser.parse_args()
    unwind_on_sigterm()
    chosen = [
        target
        for target in targets(options.litellm)
        if not options.only or target.name in options.only.split(",")
    ]
    scenarios = options.scenarios.split(",")
    cores = sorted(os.sched_getaffinity(0))
    rest, own = (cores[0], cores[1]) if len(cores) > 1 else (None, None)
    if own is None:
        print("only one core: gateway, upstream and generator share it", file=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        direct = Running(Target("direct", lambda *_: ([], {}), exact=True), free_port())
        command = [sys.executable, "-m", "bench.mock", "--port", str(direct.port)]
        upstream = launch(command, {}, stack.enter_context((folder / "mock").open("wb")), rest)
        stack.callback(Tree(upstream.pid).end)
        direct.process, mock = None, Running(direct.target, direct.port, upstream)
        _wait(mock, folder / "mock")
        generator = Generator(rest)
        stack.callback(generator.close)
        running = [direct]
        for target in chosen:
            print(f"starting {target.name}", file=sys.stderr, flush=True)
            running.append(stack.enter_context(started(target, folder, direct.port, own)))
        results: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for number in range(options.rounds):
            for scenario in scenarios:
                for one in running:
                    if one.skipped:
                        continue
                    outcome = measure(one, generator, scenario, 1 + 100 * number)
                    results.setdefault((one.target.name, scenario), []).append(outcome)
                    for failure in outcome["failures"][:3]:
                        print(f"{one.target.name}, {scenario}: {failure}", file=sys.stderr)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    rows = [
        row(name, scenario, rounds, results["direct", scenario])
        for (name, scenario), rounds in results.items()
    ]
    for one in running:
        if one.skipped:
            print(f"{one.target.name} skipped: {one.skipped}", file=sys.stderr)
            # One line, and no paths of this machine.
            skipped = re.sub(r"\S*/", "", " ".join(one.skipped.split()))
            empty: Row = dict.fromkeys(rows[0])
            rows.append({**empty, "target": one.target.name, "skipped": skipped})
    if options.only or options.scenarios != ",".join(SCENARIOS):
        print(table(rows))  # a part of the table is for working on, not for keeping
    else:
        publish("gateway", rows, "bench.gateway", versions(options.litellm))
    print("\n".join(verdicts(rows)))
    sys.exit(any(str(r["target"]).startswith("ours") and r["failures"] for r in rows))


if __name__ == "__main__":
    main()
