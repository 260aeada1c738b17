"""How the chart's pods are exchanged and drained, and what it is installed as."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import Rendered
from tests.deploy.helm import CHART, EXAMPLES, RELEASE, Helm, overlaid, values_of
from tests.deploy.manifests import problems

RULES = values_of("rules")
Object = dict[str, Any]


def spec(helm: Helm, kind: str, ending: str = "proxy") -> Object:
    found: Object = helm.cluster.one(kind, ending)["spec"]
    return found


def let_go(budget: Object, pods: int) -> int:
    """How many of so many pods may be evicted at once; percentages are rounded up."""

    def count(value: int | str) -> int:
        if isinstance(value, int):
            return value
        return math.ceil(pods * int(value.removesuffix("%")) / 100)

    if "minAvailable" in budget:
        return pods - count(budget["minAvailable"])
    return min(pods, count(budget["maxUnavailable"]))


@pytest.mark.parametrize("example", [one.stem for one in EXAMPLES])
def test_a_node_can_be_drained_where_there_are_the_fewest_pods(
    rendered: Rendered, example: str
) -> None:
    fewest: dict[str, int] = {}
    for one in rendered[example]:
        if one["kind"] == "Deployment":
            fewest.setdefault(one["metadata"]["name"], one["spec"].get("replicas", 0))
    for one in rendered[example]:
        if one["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"):
            least = one["spec"].get("minReplicaCount") or one["spec"]["minReplicas"]
            fewest[one["spec"]["scaleTargetRef"]["name"]] = least
    budgets = {
        one["metadata"]["name"]: one["spec"]
        for one in rendered[example]
        if one["kind"] == "PodDisruptionBudget"
    }
    assert set(budgets) == set(fewest)
    for name, budget in budgets.items():
        assert let_go(budget, fewest[name]) >= 1, name
        # And not all of them at once, where there are several.
        assert let_go(budget, fewest[name]) < max(2, fewest[name]), name


@pytest.mark.parametrize("example", ["sidecar", "aligner"])
def test_a_rollout_may_take_as_long_as_the_model_takes_to_load(helm: Helm, example: str) -> None:
    helm.install(overlaid(values_of(example), {"aligner": {"startupSeconds": 1800}}))
    # By default a rollout has failed after ten minutes. Gateways wait for the aligner, too.
    for deployment in helm.cluster.of("Deployment"):
        assert deployment["spec"]["progressDeadlineSeconds"] > 1800


def test_all_pods_can_be_exchanged_at_once(helm: Helm) -> None:
    recreate = {"strategy": {"type": "Recreate"}}
    helm.install(overlaid(values_of("aligner"), {**recreate, "aligner": recreate}))
    for deployment in helm.cluster.of("Deployment"):
        # The API refuses the default's rollingUpdate beside it.
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_a_sidecar_s_pod_goes_where_its_gpu_is(helm: Helm) -> None:
    terms = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}]
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}
        }
    }
    wanted = {"affinity": affinity, "priorityClassName": "gpu"}
    helm.install(overlaid(values_of("sidecar"), {"aligner": wanted}))
    pod = spec(helm, "Deployment")["template"]["spec"]
    assert pod["affinity"] == affinity
    assert pod["priorityClassName"] == "gpu"


def test_models_beside_the_volume_of_models_need_no_claim(helm: Helm) -> None:
    own = {"aligner": {"model": "/models-local/a"}, "models": {"existingClaim": ""}}
    helm.install(overlaid(values_of("aligner"), own))
    (vllm,) = spec(helm, "Deployment", "-aligner")["template"]["spec"]["containers"]
    assert vllm["args"][0] == "/models-local/a"


def test_text_that_looks_like_a_number_stays_text(helm: Helm) -> None:
    external = {"secrets": {"externalSecret": {"refreshInterval": "0"}}}
    named = {"nameOverride": "1", "keysFile": {"key": "2"}, "files": {"3": "c", "yes": "d"}}
    values = overlaid(overlaid(values_of("external-secrets"), external), named)
    helm("install", "1e3", str(CHART), overlaid(values, {"fullnameOverride": "aligning"}))
    assert [problem for one in helm.cluster.objects for problem in problems(one)] == []
    assert {"3", "yes"} < set(helm.cluster.one("ConfigMap")["data"])
    for one in helm.cluster.of("ExternalSecret"):
        assert one["spec"]["refreshInterval"] == "0"
    assert spec(helm, "ExternalSecret", "-keys")["data"][0]["secretKey"] == "2"
    labels = helm.cluster.one("Service", "aligning")["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "1e3"


def test_a_chart_above_can_switch_it_on(helm: Helm, tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "charts" / CHART.name)
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    above = {"apiVersion": "v2", "name": "above", "version": "0.1.0"}
    wanted = {"name": CHART.name, "version": version, "condition": f"{CHART.name}.enabled"}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump({**above, "dependencies": [wanted]}))
    helm.install({CHART.name: overlaid(RULES, {"enabled": True})}, tmp_path)
    assert helm.cluster.of("Deployment")


def test_the_notes_ask_as_the_pods_answer(helm: Helm) -> None:
    keys = [{"name": "a", "hash": f"sha256:{'0' * 64}"}]
    server = {"tls": {"certificate": "/tls/tls.crt", "key": "/tls/tls.key"}}
    given = overlaid(RULES, {"config": {"server": server, "access": {"keys": keys}}})
    notes = helm("install", RELEASE, str(CHART), given)["info"]["notes"]
    assert "curl -Nk https://127.0.0.1:8000/v1/chat/completions" in notes
    assert "authorization: Bearer $KEY" in notes
    assert "helm test" not in notes  # there is none with TLS
    # No TLS, said in words.
    helm.upgrade(overlaid(RULES, {"config": {"server": {"tls": None}}}))
    (gateway,) = spec(helm, "Deployment")["template"]["spec"]["containers"]
    assert "scheme" not in gateway["livenessProbe"]["httpGet"]


def test_an_ingress_lets_in_what_clients_need(helm: Helm) -> None:
    helm.install(overlaid(RULES, {"ingress": {"enabled": True, "hosts": [{"host": "a.example"}]}}))
    (rule,) = spec(helm, "Ingress")["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1"]
