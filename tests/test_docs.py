"""The documents keep up with the code: keys, links, figures' sources."""

import re
from pathlib import Path

import pytest

from bench.upstreams_page import PAGE, page
from stream_aligner_proxy.core.prompts import PROFILES
from stream_aligner_proxy.settings import (
    AccessSettings,
    AlignerSettings,
    AlignmentSettings,
    AuditSettings,
    CandidateSettings,
    FallbackSettings,
    RouteSettings,
    ServerSettings,
    TargetSettings,
    Timeouts,
    TracingSettings,
    UpstreamSettings,
)
from stream_aligner_proxy.settings.access import KeySettings, RedisSettings
from stream_aligner_proxy.settings.breakers import UpstreamBreakerSettings
from stream_aligner_proxy.upstream.dialects import DIALECTS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_configuration_key_and_dialect_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text()
    keys = {f"timeouts.{key}" for key in Timeouts.model_fields}
    keys |= {f"redis.{key}" for key in RedisSettings.model_fields}
    keys |= {f"breaker.{key}" for key in UpstreamBreakerSettings.model_fields}
    keys |= {field.alias or name for name, field in CandidateSettings.model_fields.items()}
    for section in (
        UpstreamSettings,
        RouteSettings,
        TargetSettings,
        FallbackSettings,
        AlignerSettings,
        AlignmentSettings,
        AuditSettings,
        TracingSettings,
        ServerSettings,
        AccessSettings,
        KeySettings,
    ):
        keys |= set(section.model_fields) - {"timeouts", "breaker"}
    for name in (*keys, *DIALECTS, *PROFILES):
        assert f"`{name}`" in text, f"{name} is not in docs/configuration.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_page_of_upstreams_is_what_its_program_writes():
    assert PAGE.read_text() == page()
