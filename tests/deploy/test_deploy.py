"""What is in deploy/: manifests that the API takes, configurations that the proxy takes."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from stream_aligner_proxy.aligners.registry import BACKENDS
from tests.deploy.helm import ROOT, Helm
from tests.deploy.manifests import accepted, accepted_from, pod_specs, problems, unmounted, unsafe
from tests.operating.processes import aligned, ask, serving, text, upstream

DEPLOY = ROOT / "deploy"
MANIFESTS = [
    DEPLOY / "kubernetes" / "gateway.yaml",
    DEPLOY / "kubernetes" / "namespace.yaml",
    DEPLOY / "kubernetes" / "networkpolicy.yaml",
    DEPLOY / "training" / "job.yaml",
    DEPLOY / "ray-serve" / "rayservice.yaml",
]
CONFIGS = [
    DEPLOY / "compose" / "config" / "rules.yaml",
    DEPLOY / "compose" / "config" / "aligner.yaml",
    DEPLOY / "compose" / "config" / "limits.yaml",
    DEPLOY / "ray-serve" / "proxy.yaml",
]


COMPOSED = CONFIGS[:3]


def named(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def objects(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@pytest.mark.parametrize("path", MANIFESTS, ids=named)
def test_the_api_takes_the_manifests(path: Path) -> None:
    assert [problem for one in objects(path) for problem in problems(one)] == []


def test_every_manifest_is_looked_at() -> None:
    texts = {path: path.read_text() for path in DEPLOY.rglob("*.yaml")}
    found = {path for path, text in texts.items() if "\nkind: " in f"\n{text}"}
    assert found - {DEPLOY / "kubernetes" / "kustomization.yaml"} == set(MANIFESTS)
    assert {path for path, text in texts.items() if "\naligner:" in text} == set(CONFIGS)


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


def test_the_kustomization_has_all_of_it_and_its_policy_the_pods() -> None:
    folder = DEPLOY / "kubernetes"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    beside = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == beside
    (namespace,) = objects(folder / "namespace.yaml")
    assert namespace["metadata"]["name"] == kustomization["namespace"]
    found = {one["kind"]: one for one in objects(folder / "gateway.yaml")}
    template = found["Deployment"]["spec"]["template"]
    (policy,) = objects(folder / "networkpolicy.yaml")
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen.items() <= template["metadata"]["labels"].items()
    (gateway,) = template["spec"]["containers"]
    (image,) = kustomization["images"]
    assert gateway["image"] == f"{image['name']}:{image['newTag']}"
    assert {port["name"] for port in gateway["ports"]} == {
        port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]
    }
    config = yaml.safe_load(found["ConfigMap"]["data"]["config.yaml"])
    goes_to = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    for one in config["upstreams"]:
        assert urlsplit(one["base_url"]).port in goes_to


def test_the_training_job_agrees_with_itself() -> None:
    service, job = objects(DEPLOY / "training" / "job.yaml")
    spec = job["spec"]
    (train,) = spec["template"]["spec"]["containers"]
    options = dict(
        word.removeprefix("--").split("=", 1) for word in train["command"] if "=" in word
    )
    assert spec["completionMode"] == "Indexed"
    assert int(options["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["nproc-per-node"]) == train["resources"]["limits"]["nvidia.com/gpu"]
    # The first pod, by the headless Service.
    name, port = job["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert options["rdzv-endpoint"] == f"{name}-0.{service['metadata']['name']}:{port}"
    pod = spec["template"]
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert unmounted(pod["spec"]) == []
    hosts = (DEPLOY / "training" / "hostfile").read_text().splitlines()
    slots = [line.split("slots=")[1] for line in hosts if not line.startswith("#")]
    assert slots == [options["nproc-per-node"]] * spec["completions"]


@pytest.mark.parametrize("path", CONFIGS, ids=named)
def test_the_proxy_takes_the_configuration(path: Path, tmp_path: Path) -> None:
    beside = {one.name: one.read_text() for one in path.parent.glob("*.yaml") if one != path}
    settings = accepted(yaml.safe_load(path.read_text()), tmp_path, beside)
    assert settings.aligner.backend in BACKENDS
    assert settings.server.host == "0.0.0.0"


def test_the_gateway_and_the_production_stack_agree(helm: Helm, tmp_path: Path) -> None:
    folder = DEPLOY / "production-stack"
    stack = yaml.safe_load((folder / "stack-values.yaml").read_text())
    helm.install(yaml.safe_load((folder / "gateway-values.yaml").read_text()))
    assert [problem for one in helm.cluster.objects for problem in problems(one)] == []
    settings = accepted_from(helm.cluster.one("ConfigMap"), tmp_path)
    (upstream,) = settings.upstreams
    assert stack["routerSpec"]["routingLogic"] == "session"
    assert upstream.session_header == stack["routerSpec"]["sessionKey"]
    served = {
        one["vllmConfig"]["extraArgs"][1]: one for one in stack["servingEngineSpec"]["modelSpec"]
    }
    aligner = settings.aligner
    assert aligner.urls == (upstream.base_url,)
    assert set(served) == {"main", aligner.model}
    assert upstream.models == ("main",)  # clients are not offered the aligner
    # The tokenizer is read from where the model is served.
    assert aligner.model is not None
    assert str(aligner.path).endswith(served[aligner.model]["modelURL"])
    assert all(one["vllmConfig"]["enablePrefixCaching"] for one in served.values())


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


def test_ray_on_kubernetes_serves_the_same_and_has_the_gpus_for_it() -> None:
    served = yaml.safe_load((DEPLOY / "ray-serve" / "serve.yaml").read_text())
    (service,) = objects(DEPLOY / "ray-serve" / "rayservice.yaml")
    assert yaml.safe_load(service["spec"]["serveConfigV2"]) == served
    cluster = service["spec"]["rayClusterConfig"]
    groups = {}
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        assert unmounted(spec) == []
        (worker,) = spec["containers"]
        gpus = worker["resources"]["limits"]["nvidia.com/gpu"]
        groups[group["groupName"]] = (group["minReplicas"] * gpus, group["maxReplicas"] * gpus)
    for app in served["applications"]:
        (model,) = app["args"]["llm_configs"]
        engine = model["engine_kwargs"]
        each = engine.get("tensor_parallel_size", 1) * engine.get("pipeline_parallel_size", 1)
        scaled = model["deployment_config"]["autoscaling_config"]
        there = (each * scaled["min_replicas"], each * scaled["max_replicas"])
        assert groups[app["name"]] == there


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    return loaded


def test_compose_mounts_files_that_are_there() -> None:
    for service in compose()["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith("."):  # the operator's folder, or a named volume
                continue
            path = (DEPLOY / "compose" / source).resolve()
            assert path.exists(), volume


def test_compose_waits_for_what_can_tell_that_it_is_well() -> None:
    described = compose()
    services = described["services"]
    for name, service in services.items():
        # Each has a check, by a program that its image has; all but the gateway are optional.
        assert service["healthcheck"]["test"][0] == "CMD"
        assert ("profiles" in service) == (name != "gateway")
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_healthy"
            # One without the other's profile must not be an error.
            same = set(service.get("profiles", [])) & set(services[other]["profiles"])
            assert same or wait["required"] is False
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith((".", "$")):
                assert source in described["volumes"]
        # Only what asks for a key may be reached from elsewhere.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_compose_gives_the_gateway_the_address_of_redis() -> None:
    config = yaml.safe_load((DEPLOY / "compose" / "config" / "limits.yaml").read_text())
    described = compose()["services"]
    address = urlsplit(described["gateway"]["environment"][config["access"]["redis"]["url_env"]])
    assert address.scheme == "redis"
    assert address.hostname in described
    assert described["redis"]["profiles"] == ["limits"]
    assert (DEPLOY / "compose" / "config" / config["access"]["keys_file"]).exists()


def test_compose_stops_the_gateway_later_than_it_stops_itself(tmp_path: Path) -> None:
    gateway = compose()["services"]["gateway"]
    assert gateway["read_only"] is True
    assert gateway["cap_drop"] == ["ALL"]
    grace = float(gateway["stop_grace_period"].removesuffix("s"))
    for path in COMPOSED:
        beside = {"replacements.yaml": "[]\n", "keys.yaml": "[]\n"}
        server = accepted(yaml.safe_load(path.read_text()), tmp_path, beside).server
        assert grace > server.drain_seconds + server.shutdown_seconds


def test_compose_s_names_are_those_that_the_configurations_use(tmp_path: Path) -> None:
    services = set(compose()["services"])
    for path in COMPOSED:
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
