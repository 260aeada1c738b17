"""What is in deploy/: manifests that the API takes, configurations that the proxy takes."""

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stream_aligner_proxy.aligners.registry import BACKENDS
from tests.deploy.helm import ROOT, Helm
from tests.deploy.manifests import accepted, accepted_from, pod_specs, problems, unmounted, unsafe
from tests.operating.processes import aligned, ask, serving, text, upstream

DEPLOY = ROOT / "deploy"
MANIFESTS = [DEPLOY / "kubernetes" / "gateway.yaml", DEPLOY / "training" / "job.yaml"]
CONFIGS = [
    DEPLOY / "compose" / "config" / "rules.yaml",
    DEPLOY / "compose" / "config" / "aligner.yaml",
    DEPLOY / "ray-serve" / "proxy.yaml",
]


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_the_api_takes_the_manifests(path: Path) -> None:
    assert [problem for one in objects(path) for problem in problems(one)] == []


def test_every_manifest_is_looked_at() -> None:
    found = {path for path in DEPLOY.rglob("*.yaml") if "\nkind: Deployment" in path.read_text()}
    assert found <= set(MANIFESTS)
    proxies = {path for path in DEPLOY.rglob("*.yaml") if "\naligner:" in path.read_text()}
    assert proxies - {DEPLOY / "production-stack" / "values.yaml"} == set(CONFIGS)


def test_the_bare_gateway_is_confined_and_takes_its_configuration(tmp_path: Path) -> None:
    found = {one["kind"]: one for one in objects(MANIFESTS[0])}
    (spec,) = pod_specs(found["Deployment"])
    assert unsafe(spec) == []
    assert unmounted(spec) == []
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"].items() <= labels.items()
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    server = accepted_from(found["ConfigMap"], tmp_path).server
    assert spec["terminationGracePeriodSeconds"] > server.drain_seconds + server.shutdown_seconds


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_the_proxy_takes_the_configuration(path: Path, tmp_path: Path) -> None:
    beside = {one.name: one.read_text() for one in path.parent.glob("*.yaml") if one != path}
    settings = accepted(yaml.safe_load(path.read_text()), tmp_path, beside)
    assert settings.aligner.backend in BACKENDS
    assert settings.server.host == "0.0.0.0"


def test_the_chart_takes_the_values_for_the_production_stack(helm: Helm, tmp_path: Path) -> None:
    values = yaml.safe_load((DEPLOY / "production-stack" / "values.yaml").read_text())
    helm.install(values)
    assert [problem for one in helm.cluster.objects for problem in problems(one)] == []
    settings = accepted_from(helm.cluster.one("ConfigMap"), tmp_path)
    assert settings.upstreams[0].session_header == "x-user-id"


def test_ray_serves_the_models_where_the_proxy_looks_for_them(tmp_path: Path) -> None:
    served = yaml.safe_load((DEPLOY / "ray-serve" / "serve.yaml").read_text())
    port = served["http_options"]["port"]
    there = {
        f"http://ray-head:{port}{app['route_prefix']}/v1": [
            one["model_loading_config"]["model_id"] for one in app["args"]["llm_configs"]
        ]
        for app in served["applications"]
    }
    proxy = accepted(yaml.safe_load((DEPLOY / "ray-serve" / "proxy.yaml").read_text()), tmp_path)
    assert "upstream" in there[proxy.upstreams[0].base_url]
    assert proxy.aligner.urls is not None
    assert proxy.aligner.model in there[proxy.aligner.urls[0]]


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return loaded


def test_compose_mounts_files_that_are_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("${"):
                continue
            path = (DEPLOY / "compose" / source).resolve()
            # These two come with the metrics.
            if path in (DEPLOY / "grafana", DEPLOY / "prometheus" / "alerts.yaml"):
                assert path.exists() or not (DEPLOY / "prometheus").exists()
                continue
            assert path.exists(), volume


def test_compose_stops_the_gateway_later_than_it_stops_itself(tmp_path: Path) -> None:
    gateway = compose()["services"]["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    grace = float(gateway["stop_grace_period"].removesuffix("s"))
    for path in CONFIGS[:2]:
        beside = {"replacements.yaml": "[]\n"}
        server = accepted(yaml.safe_load(path.read_text()), tmp_path, beside).server
        assert grace > server.drain_seconds + server.shutdown_seconds


def test_compose_s_names_are_those_that_the_configurations_use(tmp_path: Path) -> None:
    services = set(compose()["services"])
    for path in CONFIGS[:2]:
        config = yaml.safe_load(path.read_text())
        urls = [one["base_url"] for one in config["upstreams"]]
        urls += config["aligner"].get("urls", [])
        assert {url.split("//")[1].split(":")[0] for url in urls} <= services
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yaml").read_text())
    for job in scraped["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            assert target.split(":")[0] in services


class Mounted:
    """A ConfigMap as a kubelet mounts it: links through `..data`, which is exchanged at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    def write(self, data: dict[str, str]) -> None:
        self._number += 1
        new = self._folder / f"..{self._number}"
        new.mkdir()
        for name, content in data.items():
            (new / name).write_text(content)
            link = self._folder / name
            if not link.is_symlink():
                link.symlink_to(Path("..data") / name)
        following = self._folder / "..data_tmp"
        following.symlink_to(new.name)
        os.replace(following, self._folder / "..data")
        before = self._folder / f"..{self._number - 1}"
        if before.exists():
            for file in before.iterdir():
                file.unlink()
            before.rmdir()


@pytest.mark.anyio
async def test_a_mounted_configmap_is_taken_over_by_the_running_proxy(tmp_path: Path) -> None:
    async with upstream() as (_, behind):
        found = {one["kind"]: one for one in objects(MANIFESTS[0])}
        config = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])
        config["upstreams"][0] |= {"base_url": f"{behind}/v1", "probe": False}
        config["server"] |= {"port": 0, "host": "127.0.0.1", "watch_seconds": 0.2}
        data = {"config.yaml": yaml.safe_dump(config)}
        mounted = Mounted(tmp_path)
        mounted.write({**data, "rules.yaml": "- {find: bad, replace: good}\n"})
        async with (
            serving(tmp_path / "config.yaml") as proxy,
            httpx.AsyncClient(base_url=proxy.address) as client,
        ):
            assert text(await ask(client)) == aligned("good")
            mounted.write({**data, "rules.yaml": "- {find: bad, replace: better}\n"})
            await proxy.logged("reloaded the configuration")
            assert text(await ask(client)) == aligned("better")
