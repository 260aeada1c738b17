"""The sections `audit` and `tracing`: what is written down and sent beside metrics and logs."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from stream_aligner_proxy.observers.redacting import NAMED, check_rule
from stream_aligner_proxy.settings.base import Section, base_url, relative_to_file

_MIB = 1024 * 1024
_Share = Annotated[float, Field(ge=0, le=1)]


class RedactRule(Section):
    """`find` is a regular expression, as the package `regex` understands them; `replace` what is
    written instead (`\\1` for a group)."""

    find: str
    replace: str = "[redacted]"


def _rules(value: object) -> object:
    """Names stand for themselves; a string, as from the environment, may list several."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return value


def _checked(rules: "tuple[str | RedactRule, ...]") -> "tuple[str | RedactRule, ...]":
    for rule in rules:
        if isinstance(rule, str):
            if rule not in NAMED:
                raise ValueError(
                    f"must be a list of names ({', '.join(NAMED)}) and of find: …, replace: …"
                )
            continue
        check_rule(rule.find, rule.replace)
    return rules


class AuditSettings(Section):
    """The log of verdicts, in files of a folder; off without a `path`.

    `sample`: the share of replies that is written; `corrected`: those with a correction in any
    case. `redact`: what is taken out first. A file grows to `max_bytes`, and the folder has `keep`
    of them at most, those of all workers together. `max_reply_chars`: text of one reply.
    `queue_bytes`: what may wait for the disk. `sync`: after each write wait for the disk itself.
    """

    path: Annotated[Path, AfterValidator(relative_to_file)]
    sample: _Share = 1.0
    corrected: bool = False
    redact: Annotated[
        tuple[str | RedactRule, ...], BeforeValidator(_rules), AfterValidator(_checked)
    ] = ("keys", "emails", "ips", "cards", "phones")
    max_bytes: Annotated[int, Field(ge=4096)] = 64 * _MIB
    keep: Annotated[int, Field(ge=1)] = 10
    max_reply_chars: Annotated[int, Field(ge=1000)] = 1_000_000
    queue_bytes: Annotated[int, Field(ge=65536)] = 16 * _MIB
    sync: bool = False


class TracingSettings(Section):
    """OpenTelemetry traces, sent by OTLP over HTTP to `endpoint` (`…/v1/traces` is added).

    `sample`: the share of traces that begin here; what a client began is followed as it decided.
    `headers`: for the collector, `name=value,…`; `headers_env`: the environment variable that holds
    them.
    `content`: also put questions and replies into spans, up to `max_chars` each.
    """

    endpoint: Annotated[str, AfterValidator(base_url)]
    sample: _Share = 1.0
    service_name: Annotated[str, Field(min_length=1)] = "stream-aligner-proxy"
    headers: SecretStr | None = None
    headers_env: str | None = None
    content: bool = False
    max_chars: Annotated[int, Field(ge=1)] = 4000
