"""Collect a served upstream's own answers, corrected by a teacher: data for a further round.

    python -m training.onpolicy --questions questions.jsonl \\
        --upstream http://localhost:8001/v1 --model small \\
        --teacher https://teacher.example/v1 --teacher-model large --out corrections.jsonl
    python -m training.data build --source corrections:corrections.jsonl --out runs/rows

Both are OpenAI-compatible servers; keys come from UPSTREAM_API_KEY and TEACHER_API_KEY. A line of
the questions has `question` or `messages`: a text, or a conversation. Lines are written as they
are done, and the same command goes on where it stopped. Exit code 2: files or options are wrong;
3: a server failed too often.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tqdm import tqdm

_TASK = (
    "You correct answers. Write the answer again as it should have been. Copy every sentence that "
    "needs no correction word for word and in its place; rewrite, remove or add sentences only "
    "where the rules ask for it. Reply with the corrected answer alone: no heading, no comment. "
    "If nothing is wrong, reply with the answer unchanged. The rules:\n\n"
)
_RULES = (
    "Statements are true, sums are right, steps follow from those before, and the answer answers "
    "the question. It is helpful, honest and harmless, and no more careful than it must be."
)
_FAILURES = 20  # in a row


class Failed(Exception):
    """One answer could not be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """One chat server. The key is never shown."""

    name: str
    base_url: str
    model: str
    key: str | None
    client: httpx2.Client

    def ask(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The whole reply. Raises `Failed`, also for one that was cut off or is empty."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        body = {"model": self.model, "messages": messages, **options}
        url = f"{self.base_url.rstrip('/')}/chat/completions"
        try:
            answer = self.client.post(url, json=body, headers=headers)
        except httpx2.HTTPError as error:
            raise Failed(f"{self.name}: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise Failed(f"{self.name}: status {answer.status_code}")
        try:
            choice = answer.json()["choices"][0]
            text, ended = choice["message"]["content"], choice["finish_reason"]
        except (ValueError, LookupError, TypeError) as error:
            raise Failed(f"{self.name}: no chat completion") from error
        if ended != "stop":
            raise Failed(f"{self.name}: ended with {ended!r}")
        if not isinstance(text, str) or not text.strip():
            raise Failed(f"{self.name}: an empty reply")
        return text.strip()


def questions(file: Path) -> Iterator[list[dict[str, Any]]]:
    """The conversations of a file of JSON lines. Raises `ValueError` that names the line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                asked = data.get("messages") or data["question"]
            except (ValueError, LookupError, AttributeError) as error:
                raise ValueError(f"{file.name}:{number}: needs `question` or `messages`") from error
            if isinstance(asked, str):
                asked = [{"role": "user", "content": asked}]
            if not isinstance(asked, list) or not all(isinstance(t, dict) for t in asked):
                raise ValueError(f"{file.name}:{number}: is neither a text nor a list of messages")
            yield asked


def correct(
    asked: list[dict[str, Any]], upstream: Server, teacher: Server, rules: str, **options: Any
) -> dict[str, Any]:
    """One line: what the upstream said, and what the teacher made of it. Raises `Failed`."""
    said = upstream.ask(asked, **options)
    talk = "\n\n".join(f"[{turn.get('role')}]\n{turn.get('content')}" for turn in asked)
    better = teacher.ask(
        [
            {"role": "system", "content": _TASK + rules},
            {"role": "user", "content": f"The conversation:\n\n{talk}\n\nThe answer:\n\n{said}"},
        ],
        temperature=0,
    )
    return {"question": asked, "answer": said, "correction": better, "source": "own"}


def collect(
    asked: list[list[dict[str, Any]]],
    upstream: Server,
    teacher: Server,
    out: Path,
    *,
    rules: str,
    concurrency: int,
    **options: Any,
) -> tuple[int, dict[str, int]]:
    """Append a line for each question that has none yet; how many, and what failed how often.

    Raises `Failed` where nothing but failures came for long.
    """
    done = {json.dumps(line["question"]) for line in _lines(out)}
    left = [talk for talk in asked if json.dumps(talk) not in done]
    failures: dict[str, int] = {}
    written = in_a_row = 0

    def one(talk: list[dict[str, Any]]) -> dict[str, Any] | Failed:
        try:
            return correct(talk, upstream, teacher, rules, **options)
        except Failed as failure:
            return failure

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("a", encoding="utf-8") as file,
        ThreadPoolExecutor(concurrency) as pool,
        tqdm(total=len(left), unit="answer", disable=not sys.stderr.isatty()) as bar,
    ):
        # A few at a time, so that a server that is down is not asked for all of them.
        for at in range(0, len(left), 4 * concurrency):
            for found in pool.map(one, left[at : at + 4 * concurrency]):
                bar.update()
                if isinstance(found, Failed):
                    failures[str(found)] = failures.get(str(found), 0) + 1
                    in_a_row += 1
                    if in_a_row >= _FAILURES:
                        raise Failed(f"{in_a_row} failures in a row, the last: {found}")
                    continue
                in_a_row = 0
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
                file.flush()
                written += 1
    return written, failures


def _lines(out: Path) -> Iterator[dict[str, Any]]:
    """What an earlier call wrote; a line that it did not finish is cut off."""
    if not out.exists():
        return
    whole = out.read_bytes()
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with out.open("rb+") as file:
            file.truncate(end)
    for line in whole[:end].decode().splitlines():
        yield json.loads(line)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.onpolicy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines")
    parser.add_argument("--upstream", required=True, help="base URL of the upstream to learn from")
    parser.add_argument("--model", required=True, help="its model")
    parser.add_argument("--teacher", required=True, help="base URL of who corrects")
    parser.add_argument("--teacher-model", required=True)
    parser.add_argument("--rules", type=Path, help="a text: what a good answer is (default: ours)")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the upstream")
    parser.add_argument("--max-tokens", type=int, default=1024, help="of an answer")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at once")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for an answer")
    options = parser.parse_args(arguments)
    try:
        asked = list(questions(options.questions))
        rules = options.rules.read_text(encoding="utf-8") if options.rules else _RULES
        with httpx2.Client(timeout=options.timeout) as client:
            pairs = (("upstream", options.model), ("teacher", options.teacher_model))
            upstream, teacher = (
                Server(
                    name,
                    getattr(options, name),
                    model,
                    os.environ.get(f"{name.upper()}_API_KEY"),
                    client,
                )
                for name, model in pairs
            )
            written, failures = collect(
                asked,
                upstream,
                teacher,
                options.out,
                rules=rules,
                concurrency=options.concurrency,
                temperature=options.temperature,
                max_tokens=options.max_tokens,
            )
    except (OSError, ValueError) as error:
        print(f"training.onpolicy: {error}", file=sys.stderr)
        return 2
    except Failed as error:
        print(f"training.onpolicy: {error}", file=sys.stderr)
        return 3
    print(f"{written} of {len(asked)} questions corrected into {options.out}")
    for why, count in failures.items():
        print(f"left out: {count} x {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
