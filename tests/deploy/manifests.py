"""What is wrong with Kubernetes objects, and whether the proxy takes a configuration in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from stream_aligner_proxy.settings import Settings, build

Object = dict[str, Any]
# The least that the chart asks for, and the newest whose schemas there are.
VERSIONS = ("1.29", "1.37")
# Objects of operators have no schema here: paths that must be there, [] for each of a list.
CUSTOM = {
    "ServiceMonitor": ("spec.selector.matchLabels", "spec.endpoints[].port"),
    "PrometheusRule": ("spec.groups[].name", "spec.groups[].rules[].expr"),
    "ScaledObject": (
        "spec.scaleTargetRef.name",
        "spec.triggers[].type",
        "spec.triggers[].metadata.serverAddress",
        "spec.triggers[].metadata.query",
        "spec.triggers[].metadata.threshold",
    ),
    "ExternalSecret": (
        "spec.secretStoreRef.name",
        "spec.target.name",
        "spec.data[].secretKey",
        "spec.data[].remoteRef.key",
    ),
    "RayService": ("spec.serveConfigV2", "spec.rayClusterConfig.headGroupSpec.template.spec"),
}


def name_of(one: Object) -> str:
    return f"{one['kind']}/{one['metadata']['name']}"


def problems(one: Object) -> list[str]:
    """What the API would not take."""
    if paths := CUSTOM.get(one["kind"]):
        return [f"{name_of(one)}: no {path}" for path in paths if not _all_there(one, path)]
    found = []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(map(str, error.path))
            found.append(f"{name_of(one)}: {where}: {error.message} ({version})")
    return found


def _all_there(value: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    inside = value.get(first.removesuffix("[]")) if isinstance(value, dict) else None
    if inside in (None, "", [], {}):
        return False
    if not rest:
        return True
    each = inside if first.endswith("[]") else [inside]
    return all(_all_there(one, rest) for one in each)


def pod_specs(one: Object) -> Iterator[Object]:
    if one["kind"] in ("Deployment", "Job", "StatefulSet"):
        yield one["spec"]["template"]["spec"]
    if one["kind"] == "Pod":
        yield one["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def unsafe(spec: Object) -> list[str]:
    """What Kubernetes' restricted standard, or we beyond it, do not allow."""
    found = []
    pod = spec.get("securityContext", {})
    if not (pod.get("runAsNonRoot") and pod.get("runAsUser", 0) > 0):
        found.append("may run as root")
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("has no seccomp profile")
    if spec.get("automountServiceAccountToken") is not False:
        found.append("has a token for the API")
    for one in containers(spec):
        own = one.get("securityContext", {})
        expected = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        found += [f"{one['name']}: {key}" for key in expected if own.get(key) != expected[key]]
        if own.get("runAsUser", 1) == 0:
            found.append(f"{one['name']}: root")
    return found


def unmounted(spec: Object) -> list[str]:
    """Mounts of what is no volume, and volumes that nobody mounts."""
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    mounts = {mount["name"] for one in containers(spec) for mount in one.get("volumeMounts", [])}
    return sorted(volumes ^ mounts)


def accepted(config: Object, folder: Path, files: dict[str, str] | None = None) -> Settings:
    """As the proxy reads it, in a folder where everything that it names is there. Raises
    `ConfigError`."""
    for name, content in (files or {}).items():
        (folder / name).write_text(content)
    environ: dict[str, str] = {}
    moved = _moved(config, folder, environ)
    return build(moved, base=folder, environ=environ)


def _moved(value: Any, folder: Path, environ: dict[str, str], key: str = "") -> Any:
    """With absolute paths put into `folder`, and a value for every variable that is named."""
    if isinstance(value, dict):
        return {name: _moved(one, folder, environ, name) for name, one in value.items()}
    if isinstance(value, list):
        return [_moved(one, folder, environ, key) for one in value]
    if key.endswith("_env"):
        environ[value] = "sk-test"
    if not isinstance(value, str) or not value.startswith("/"):
        return value
    if key == "open_paths":
        return value
    path = folder / value.strip("/")
    if path.suffix in (".yaml", ".pem"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]\n")
    else:
        path.mkdir(parents=True, exist_ok=True)
    return str(path)


def accepted_from(configmap: Object, folder: Path) -> Settings:
    data = dict(configmap["data"])
    return accepted(yaml.safe_load(data.pop("config.yaml")), folder, data)
