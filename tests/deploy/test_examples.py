"""Every example of the chart, as a cluster gets it from Helm."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import Rendered
from tests.deploy.helm import CHART, EXAMPLES, Helm, overlaid, values_of
from tests.deploy.manifests import accepted_from, name_of, pod_specs, problems, unmounted, unsafe

NAMES = [example.stem for example in EXAMPLES]
pytestmark = pytest.mark.parametrize("example", NAMES)
Object = dict[str, Any]


def of(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def carries(labels: Object, selector: Object) -> bool:
    return selector.items() <= labels.items()


def test_helm_lints_it_without_a_word(helm: Helm, example: str, tmp_path: Path) -> None:
    chart = tmp_path / "stream-aligner-proxy"
    shutil.copytree(CHART, chart)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    (chart / "values.yaml").write_text(yaml.safe_dump(overlaid(defaults, values_of(example))))
    linted = helm("lint", str(chart))
    assert not linted["Errors"]
    # 1 is information: that a chart could have an icon.
    assert [found for found in linted["Messages"] if found["Severity"] > 1] == []


def test_the_api_takes_every_object(rendered: Rendered, example: str) -> None:
    assert [problem for one in rendered[example] for problem in problems(one)] == []


def test_pods_are_confined_and_mount_what_they_have(rendered: Rendered, example: str) -> None:
    for one in rendered[example]:
        for spec in pod_specs(one):
            assert unsafe(spec) == [], name_of(one)
            assert unmounted(spec) == [], name_of(one)


def test_selectors_match_their_pods_and_no_others(rendered: Rendered, example: str) -> None:
    objects = rendered[example]
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in of(objects, "Deployment")
    }
    for one in objects:
        spec = one.get("spec", {})
        selector = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }.get(one["kind"])
        if selector is not None:
            matched = [name for name, labels in pods.items() if carries(labels, selector(spec))]
            assert matched == [one["metadata"]["name"]]
    for deployment in of(objects, "Deployment"):
        for constraint in deployment["spec"]["template"]["spec"].get(
            "topologySpreadConstraints", []
        ):
            wanted = constraint["labelSelector"]["matchLabels"]
            assert carries(pods[deployment["metadata"]["name"]], wanted)


def test_what_is_referred_to_is_there(rendered: Rendered, example: str) -> None:
    objects = rendered[example]
    names = {name_of(one) for one in objects}
    services = {one["metadata"]["name"]: one for one in of(objects, "Service")}
    ports = {
        port["name"]
        for one in of(objects, "Deployment")
        for spec in pod_specs(one)
        for container in [*spec.get("initContainers", []), *spec["containers"]]
        for port in container.get("ports", [])
    }
    for service in services.values():
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for scaler in (*of(objects, "HorizontalPodAutoscaler"), *of(objects, "ScaledObject")):
        target = scaler["spec"]["scaleTargetRef"]
        assert f"{target['kind']}/{target['name']}" in names
        (scaled,) = [o for o in objects if name_of(o) == f"{target['kind']}/{target['name']}"]
        assert "replicas" not in scaled["spec"]
    for monitor in of(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        (service,) = [o for o in services.values() if carries(o["metadata"]["labels"], wanted)]
        named = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= named
    for ingress in of(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                assert path["backend"]["service"]["name"] in services
    for one in of(objects, "Deployment"):
        spec = one["spec"]["template"]["spec"]
        assert f"ServiceAccount/{spec['serviceAccountName']}" in names


def test_the_proxy_takes_the_configuration(
    rendered: Rendered, example: str, tmp_path: Path
) -> None:
    (configmap,) = [
        one for one in of(rendered[example], "ConfigMap") if "config.yaml" in one["data"]
    ]
    settings = accepted_from(configmap, tmp_path)
    assert settings.server.host == "0.0.0.0"
    (gateway,) = [
        one
        for one in of(rendered[example], "Deployment")
        if one["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway"
    ]
    spec = gateway["spec"]["template"]["spec"]
    stops = settings.server.drain_seconds + settings.server.shutdown_seconds
    assert spec["terminationGracePeriodSeconds"] > stops
    (container,) = spec["containers"]
    assert container["ports"][0]["containerPort"] == settings.server.port
    for name, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        assert container[name]["httpGet"] == {"path": path, "port": "http"}
