"""The chart's choices: what values change, and what it refuses."""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_aligner_proxy import __version__
from stream_aligner_proxy.settings import Settings
from stream_aligner_proxy.settings.server import FIXED
from tests.deploy.conftest import Rendered
from tests.deploy.helm import CHART, RELEASE, ROOT, Helm, overlaid, values_of
from tests.deploy.manifests import accepted_from, problems, unmounted, unsafe

NAME = "shop-stream-aligner-proxy"
RULES = values_of("rules")


def pod(helm: Helm, ending: str = "proxy") -> dict[str, Any]:
    template: dict[str, Any] = helm.cluster.one("Deployment", ending)["spec"]["template"]
    return template


def checksums(helm: Helm) -> dict[str, str]:
    annotations = pod(helm)["metadata"]["annotations"]
    return {key: value for key, value in annotations.items() if key.startswith("checksum/")}


def test_a_changed_configuration_makes_new_pods(helm: Helm) -> None:
    helm.install(RULES)
    before = checksums(helm)
    helm.upgrade(RULES)
    assert checksums(helm) == before
    helm.upgrade(overlaid(RULES, {"config": {"alignment": {"mode": "shadow"}}}))
    changed = checksums(helm)
    assert changed.pop("checksum/config") != before.pop("checksum/config")
    assert changed == before
    assert "shadow" in helm.cluster.one("ConfigMap")["data"]["config.yaml"]


def test_a_changed_rules_file_makes_new_pods(helm: Helm) -> None:
    helm.install(RULES)
    before = checksums(helm)
    helm.upgrade(overlaid(RULES, {"files": {"rules.yaml": "- {find: a, replace: b}\n"}}))
    assert checksums(helm)["checksum/config"] != before["checksum/config"]


def test_pods_can_be_left_to_reload_by_themselves(helm: Helm, tmp_path: Path) -> None:
    values = overlaid(RULES, {"rollOnConfigChange": False})
    helm.install(values)
    before = pod(helm)
    settings = accepted_from(helm.cluster.one("ConfigMap"), tmp_path)
    assert settings.server.watch_seconds == 10
    helm.upgrade(overlaid(values, {"config": {"alignment": {"mode": "shadow"}}}))
    assert pod(helm) == before
    # A reload leaves these as they are.
    helm.upgrade(overlaid(values, {"config": {"server": {"workers": 2}}}))
    assert pod(helm) != before


def test_changed_keys_make_new_pods_and_are_in_no_configmap(helm: Helm) -> None:
    values = overlaid(RULES, {"secrets": {"values": {"CLOUD_KEY": "sk-one"}}})
    helm.install(values)
    before = checksums(helm)
    assert helm.cluster.one("Secret")["stringData"] == {"CLOUD_KEY": "sk-one"}
    (gateway,) = pod(helm)["spec"]["containers"]
    assert gateway["envFrom"] == [{"secretRef": {"name": NAME}}]
    assert "sk-one" not in yaml.safe_dump(helm.cluster.of("Deployment"))
    assert "sk-one" not in yaml.safe_dump(helm.cluster.of("ConfigMap"))
    helm.upgrade(overlaid(values, {"secrets": {"values": {"CLOUD_KEY": "sk-two"}}}))
    assert checksums(helm) != before


def test_the_file_of_clients_keys_is_mounted_whole_and_named(helm: Helm) -> None:
    helm.install(overlaid(RULES, {"keysFile": {"content": "[]\n"}}))
    assert helm.cluster.one("Secret", "-keys")["stringData"] == {"keys.yaml": "[]\n"}
    config = yaml.safe_load(helm.cluster.one("ConfigMap")["data"]["config.yaml"])
    assert config["access"] == {"keys_file": "/etc/stream-aligner-keys/keys.yaml"}
    spec = pod(helm)["spec"]
    (gateway,) = spec["containers"]
    (mount,) = [one for one in gateway["volumeMounts"] if one["name"] == "keys"]
    # By subPath a changed Secret would never arrive.
    assert mount == {"name": "keys", "mountPath": "/etc/stream-aligner-keys", "readOnly": True}
    assert {"name": "keys", "secret": {"secretName": f"{NAME}-keys"}} in spec["volumes"]


def test_a_sidecar_starts_before_the_gateway_and_ends_after_it(rendered: Rendered) -> None:
    (deployment,) = [one for one in rendered["sidecar"] if one["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    download, sidecar = spec["initContainers"]
    assert download["name"] == "download-models"
    assert "restartPolicy" not in download
    # A native sidecar; an ordinary one would be told to stop with the gateway.
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/health"
    assert sidecar["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    (configmap,) = [one for one in rendered["sidecar"] if one["kind"] == "ConfigMap"]
    config = yaml.safe_load(configmap["data"]["config.yaml"])
    assert config["aligner"] == {
        "backend": "remote",
        "path": "/models/aligner",
        "urls": ["http://127.0.0.1:8001/v1"],
        "model": "aligner",
    }


def test_an_aligner_of_its_own_has_the_gpu_and_the_gateway_its_address(rendered: Rendered) -> None:
    objects = {f"{o['kind']}/{o['metadata']['name']}": o for o in rendered["aligner"]}
    spec = objects[f"Deployment/{NAME}-aligner"]["spec"]["template"]["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L4"}
    (vllm,) = spec["containers"]
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "--enable-prefix-caching" in vllm["args"]
    gateway = objects[f"Deployment/{NAME}"]["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in gateway["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in gateway
    config = yaml.safe_load(objects[f"ConfigMap/{NAME}"]["data"]["config.yaml"])
    service = objects[f"Service/{NAME}-aligner"]
    port = service["spec"]["ports"][0]["port"]
    assert config["aligner"]["urls"] == [f"http://{NAME}-aligner:{port}/v1"]
    assert f"--port={port}" in vllm["args"]
    assert f"--served-model-name={config['aligner']['model']}" in vllm["args"]
    claim = {"name": "models", "persistentVolumeClaim": {"claimName": "aligner-models"}}
    assert claim in spec["volumes"]
    assert claim in gateway["volumes"]


def test_the_user_s_own_aligner_keys_win(helm: Helm) -> None:
    helm.install(overlaid(values_of("aligner"), {"config": {"aligner": {"urls": ["http://x/v1"]}}}))
    config = yaml.safe_load(helm.cluster.one("ConfigMap")["data"]["config.yaml"])
    assert config["aligner"]["urls"] == ["http://x/v1"]
    assert config["aligner"]["backend"] == "remote"


def test_both_autoscalers_look_at_open_replies(rendered: Rendered) -> None:
    (hpa,) = [one for one in rendered["hpa"] if one["kind"] == "HorizontalPodAutoscaler"]
    assert hpa["spec"]["metrics"][0]["pods"] == {
        "metric": {"name": "stream_aligner_open_replies"},
        "target": {"type": "AverageValue", "averageValue": "200"},
    }
    (keda,) = [one for one in rendered["keda"] if one["kind"] == "ScaledObject"]
    (trigger,) = keda["spec"]["triggers"]
    assert trigger["metadata"]["query"] == (
        f'sum(stream_aligner_open_replies{{namespace="aligning", job="{NAME}"}})'
    )


def test_the_network_policy_names_who_may_call(rendered: Rendered) -> None:
    policies = {
        one["metadata"]["name"]: one["spec"]
        for one in rendered["production"]
        if one["kind"] == "NetworkPolicy"
    }
    gateway, aligner = policies["aligning"], policies["aligning-aligner"]
    (calls,) = gateway["ingress"]
    assert len(calls["from"]) == 3  # two namespaces, and the chart's own test
    assert calls["ports"] == [{"port": "http", "protocol": "TCP"}]
    asked = [to for rule in gateway["egress"] for to in rule.get("to", [])]
    assert any(
        "aligner" in to.get("podSelector", {}).get("matchLabels", {}).values() for to in asked
    )
    assert aligner["policyTypes"] == ["Ingress", "Egress"]
    (only,) = aligner["ingress"]
    assert only["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"


def test_alerts_and_dashboards_are_those_of_deploy(rendered: Rendered) -> None:
    alerts = CHART / "files" / "alerts.yaml"
    (rule,) = [one for one in rendered["production"] if one["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load(alerts.read_text())
    (boards,) = [
        one for one in rendered["production"] if one["metadata"]["name"].endswith("-dashboards")
    ]
    copies = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert boards["data"] == {copy.name: copy.read_text() for copy in copies}
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    how = "copy deploy/prometheus/alerts.yaml and deploy/grafana/*.json to the chart's files/"
    source = ROOT / "deploy" / "prometheus" / "alerts.yaml"
    if source.exists():
        assert alerts.read_text() == source.read_text(), how
    sources = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
    if sources:
        assert [one.name for one in copies] == [one.name for one in sources], how
        for copy, board in zip(copies, sources, strict=True):
            assert copy.read_text() == board.read_text(), how


def test_helm_s_own_test_asks_through_the_service(helm: Helm) -> None:
    helm.install(RULES)
    ran = helm("test", RELEASE)
    (hook,) = ran["hooks"]
    assert hook["last_run"]["phase"] == "Succeeded"
    assert "hook-succeeded" in hook["delete_policies"]
    assert helm.cluster.one("Pod")["metadata"]["name"] == f"{NAME}-ready"
    manifest = yaml.safe_load(hook["manifest"])
    assert problems(manifest) == []
    assert unsafe(manifest["spec"]) == []
    port = helm.cluster.one("Service")["spec"]["ports"][0]["port"]
    assert manifest["spec"]["containers"][0]["args"] == [
        "health",
        "--url",
        f"http://{NAME}:{port}/readyz",
    ]


def test_helm_s_own_test_can_ask_for_the_models_with_a_client_s_key(helm: Helm) -> None:
    asked = {"models": True, "keySecret": {"name": "a-client", "key": "token"}}
    helm.install(overlaid(RULES, {"test": asked}))
    (hook,) = helm("test", RELEASE)["hooks"]
    manifest = yaml.safe_load(hook["manifest"])
    assert problems(manifest) == []
    spec = manifest["spec"]
    assert unsafe(spec) == []
    assert unmounted(spec) == []
    _, models = spec["containers"]
    assert models["args"][2].endswith("/v1/models")
    # In a file: arguments and environment are seen by more.
    assert "--key-file=/key/token" in models["args"]
    assert spec["volumes"] == [{"name": "key", "secret": {"secretName": "a-client"}}]


def test_pods_that_have_tls_themselves_are_probed_and_scraped_so(helm: Helm) -> None:
    tls = {"certificate": "/tls/tls.crt", "key": "/tls/tls.key"}
    monitor = {"enabled": True, "tlsConfig": {"insecureSkipVerify": True}}
    values = {"config": {"server": {"tls": tls}}, "serviceMonitor": monitor}
    helm.install(overlaid(RULES, values))
    (gateway,) = pod(helm)["spec"]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert gateway[probe]["httpGet"]["scheme"] == "HTTPS"
    (endpoint,) = helm.cluster.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == monitor["tlsConfig"]


@pytest.mark.parametrize("key", FIXED)
def test_what_a_reload_leaves_as_it_is_makes_new_pods(key: str) -> None:
    """Every such key is in the checksum that is there without rollOnConfigChange, too."""
    template = (CHART / "templates" / "_config.tpl").read_text()
    (named,) = re.findall(r"pick \.Values\.config\.server ([^|]+)", template)
    assert f'"{key}"' in named


def test_the_notes_have_a_line_to_try(helm: Helm) -> None:
    notes = helm("install", RELEASE, str(CHART), RULES)["info"]["notes"]
    assert "reviews with rules" in notes
    assert "curl -N http://127.0.0.1:8000/v1/chat/completions" in notes
    helm("uninstall", RELEASE)
    notes = helm("install", RELEASE, str(CHART), values_of("production"))["info"]["notes"]
    assert "curl -N https://llm.example.com/v1/chat/completions" in notes
    assert "authorization: Bearer $KEY" in notes


def test_nothing_is_left_when_it_is_uninstalled(helm: Helm) -> None:
    helm.install(values_of("production"))
    helm("uninstall", RELEASE)
    assert helm.cluster.kept == {}


def test_an_upgrade_takes_away_what_is_not_wanted_any_more(helm: Helm) -> None:
    helm.install(values_of("aligner"))
    helm.upgrade(RULES)
    assert [one["metadata"]["name"] for one in helm.cluster.of("Deployment")] == [NAME]


def test_the_packaged_chart_installs_like_the_folder(helm: Helm, tmp_path: Path) -> None:
    packaged = Path(helm("package", str(CHART), str(tmp_path)))
    with tarfile.open(packaged) as archive:
        names = archive.getnames()
    assert "stream-aligner-proxy/files/alerts.yaml" in names
    assert "stream-aligner-proxy/values.schema.json" in names
    helm.install(values_of("production"), packaged)
    assert helm.cluster.one("PrometheusRule")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 3}, ("replica",)),
        ({"config": {"upstream": []}}, ("config", "upstream")),
        ({"image": {"tags": "1"}}, ("image", "tags")),
        ({"aligner": {"mode": "pod"}}, ("aligner/mode", "sidecar")),
        ({"service": {"port": "http"}}, ("service/port",)),
        ({"autoscaling": {"hpa": {"min": 1}}}, ("hpa", "min")),
        ({"secrets": {"values": {"KEY": 1}}}, ("secrets/values/KEY",)),
        ({"config": {"server": {"port": 70000}}}, ("config/server/port",)),
        # What Helm makes of a bare off.
        ({"config": {"alignment": {"mode": False}}}, ("config/alignment/mode", "off")),
        (
            {"config": {"routes": [{"model": "a", "alignment": {"allow_override": [False]}}]}},
            ("config/routes/0/alignment/allow_override/0",),
        ),
    ],
)
def test_the_schema_names_what_is_wrong(
    helm: Helm, values: dict[str, Any], words: tuple[str, ...]
) -> None:
    said = helm.refusal(overlaid(RULES, values))
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"config": {"upstreams": []}}, "config.upstreams"),
        ({"config": {"aligner": None}}, "config.aligner: say who reviews"),
        ({"terminationGracePeriodSeconds": 65}, "terminationGracePeriodSeconds: 65 is not more"),
        ({"config": {"server": {"host": "127.0.0.1"}}}, "config.server.host"),
        (
            {"autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": True}}},
            "hpa.enabled and keda.enabled exclude each other",
        ),
        ({"autoscaling": {"keda": {"enabled": True}}}, "autoscaling.keda.prometheusAddress"),
        (
            {"secrets": {"existingSecret": "a", "values": {"KEY": "b"}}},
            "secrets: existingSecret, values and externalSecret exclude each other",
        ),
        ({"keysFile": {"existingSecret": "a", "content": "[]"}}, "keysFile: existingSecret"),
        ({"keysFile": {"remoteRef": {"key": "a"}}}, "secretStoreRef.name"),
        (
            {"secrets": {"externalSecret": {"enabled": True, "secretStoreRef": {"name": "vault"}}}},
            "secrets.externalSecret.data",
        ),
        ({"files": {"config.yaml": "a"}}, "files.config"),
        ({"aligner": {"mode": "sidecar"}}, "aligner.model: /models/aligner"),
        ({"models": {"download": {"image": "a"}}}, "models.download.command"),
        (
            {"config": {"server": {"tls": {"certificate": "a", "key": "b", "client_ca": "c"}}}},
            "config.server.tls.client_ca: the kubelet's probes show no certificate",
        ),
        ({"ingress": {"enabled": True}}, "ingress.hosts: say at least one"),
        (
            {"autoscaling": {"hpa": {"enabled": True, "minReplicas": 3, "maxReplicas": 2}}},
            "autoscaling.hpa.minReplicas: 3 is more than maxReplicas (2)",
        ),
        (
            {"autoscaling": {"keda": {"enabled": True, "minReplicas": 0}}},
            "autoscaling.keda.minReplicas: without a pod there is no open reply",
        ),
        (
            {
                "models": {"existingClaim": "a"},
                "aligner": {"mode": "deployment", "preStopSeconds": 120},
            },
            "aligner.preStopSeconds: 120 is not less than",
        ),
    ],
)
def test_what_excludes_each_other_or_cannot_work_is_refused(
    helm: Helm, values: dict[str, Any], words: str
) -> None:
    assert words in helm.refusal(overlaid(RULES, values))


def flow(value: object) -> str:
    """As the table shows a value."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )


def at(values: dict[str, Any], key: str) -> object:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def leaves(values: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        key = f"{before}{name}"
        found += leaves(value, f"{key}.") if isinstance(value, dict) and value else [key]
    return found


def test_the_readme_has_every_value_with_its_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    readme = (CHART / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)` \|", readme, flags=re.MULTILINE))
    for key, shown in rows.items():
        assert shown == flow(at(values, key)), key
    for leaf in leaves(values):
        assert any(leaf == key or leaf.startswith(f"{key}.") for key in rows), leaf


def test_the_schema_knows_every_section_of_the_configuration() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema["properties"]["config"]["properties"])
    assert known == set(Settings.model_fields)


def test_the_chart_and_the_package_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
