"""A small recording API server: as much of Kubernetes' API as Helm needs to install into.

It keeps what is applied, by kind and name, and starts nothing. Pods are said to have succeeded, so
that a hook ends; nothing else has a status.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.deploy.protobuf import MAGIC, secret

# What the API has: group and version, then kind and its plural.
KINDS = {
    "v1": {
        "Namespace": "namespaces",
        "ConfigMap": "configmaps",
        "Pod": "pods",
        "Secret": "secrets",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
        "PersistentVolumeClaim": "persistentvolumeclaims",
    },
    "apps/v1": {"Deployment": "deployments"},
    "batch/v1": {"Job": "jobs"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "networking.k8s.io/v1": {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "monitoring.coreos.com/v1": {
        "ServiceMonitor": "servicemonitors",
        "PrometheusRule": "prometheusrules",
    },
    "keda.sh/v1alpha1": {
        "ScaledObject": "scaledobjects",
        "TriggerAuthentication": "triggerauthentications",
    },
    "external-secrets.io/v1": {"ExternalSecret": "externalsecrets"},
}
Object = dict[str, Any]


def _resources(version: str) -> Object:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": [
            {
                "name": plural,
                "singularName": kind.lower(),
                "namespaced": kind != "Namespace",
                "kind": kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            }
            for kind, plural in KINDS[version].items()
        ],
    }


def _groups() -> Object:
    groups = []
    for version in KINDS:
        if "/" in version:
            one = {"groupVersion": version, "version": version.split("/")[1]}
            name = version.split("/")[0]
            groups.append({"name": name, "versions": [one], "preferredVersion": one})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _checks_fields(kind: str, plural: str) -> Object:
    """The OpenAPI document of a server that looks at unknown fields itself, so that Helm need not;
    only hooks are asked about."""
    applied = {
        "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
        "responses": {},
        "x-kubernetes-group-version-kind": {"group": "", "version": "v1", "kind": kind},
    }
    path = f"/api/v1/namespaces/{{namespace}}/{plural}/{{name}}"
    return {
        "openapi": "3.0.0",
        "info": {"title": "", "version": ""},
        "paths": {path: {"patch": applied}},
    }


def _status(code: int, reason: str, message: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": code,
    }


class Cluster:
    """What has been applied and not deleted: `(plural, name) -> object`. `deleted` are the keys of
    what was taken away."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], Object] = {}
        self.deleted: list[tuple[str, str]] = []
        self.address = ""
        self._lock = threading.Lock()
        self._version = 0
        self.closing = threading.Event()  # ends every watch

    @property
    def objects(self) -> list[Object]:
        """Of the chart; without Helm's own record of the release."""
        return [one for one in self.kept.values() if not one.get("type", "").startswith("helm.sh/")]

    def empty(self) -> None:
        with self._lock:
            self.kept.clear()
            self.deleted.clear()

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, ending: str = "") -> Object:
        """The only object of a kind whose name ends so."""
        (found,) = [one for one in self.of(kind) if one["metadata"]["name"].endswith(ending)]
        return found

    def kubeconfig(self) -> str:
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": {"server": self.address}}],
                "users": [{"name": "test", "user": {}}],
            }
        )

    def keep(self, key: tuple[str, str], body: Object, *, new: bool) -> tuple[int, Object]:
        with self._lock:
            if new and key in self.kept:
                return 409, _status(409, "AlreadyExists", f"{key} is there already")
            created = key not in self.kept
            self._version += 1
            metadata = body.setdefault("metadata", {})
            metadata.setdefault("namespace", "aligning")
            metadata["resourceVersion"] = str(self._version)
            metadata["uid"] = f"uid-{self._version}"
            if key[0] == "pods":
                body["status"] = {"phase": "Succeeded"}
            self.kept[key] = body
            return (201 if created else 200), body

    def found(self, plural: str, selector: str) -> list[Object]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if "=" in part)
        with self._lock:
            return [
                one
                for (kind, _), one in self.kept.items()
                if kind == plural and wanted.items() <= one["metadata"].get("labels", {}).items()
            ]

    def get(self, key: tuple[str, str]) -> Object | None:
        with self._lock:
            return self.kept.get(key)

    def drop(self, key: tuple[str, str]) -> Object | None:
        with self._lock:
            if found := self.kept.pop(key, None):
                self.deleted.append(key)
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> Object:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if text.startswith(MAGIC):
            return secret(text)
        loaded: Object = yaml.safe_load(text) or {}
        return loaded

    def _key(self) -> tuple[str, str]:
        """Plural and name; the name is empty for a whole list."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] == "namespaces" and len(parts) > 2:
            parts = parts[2:]
        return parts[0], (parts[1] if len(parts) > 1 else "")

    def _missing(self) -> None:
        self._answer(404, _status(404, "NotFound", f"{self.path} is not there"))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.rstrip("/")
        match path.strip("/").split("/"):
            case ["version"]:
                self._answer(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
            case ["api"]:
                self._answer(200, {"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                self._answer(200, _groups())
            case ["openapi", "v3"]:
                self._answer(
                    200, {"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}}
                )
            case ["openapi", "v3", "api", "v1"]:
                self._answer(200, _checks_fields("Pod", "pods"))
            case ["api", version] if version in KINDS:
                self._answer(200, _resources(version))
            case ["apis", group, version] if f"{group}/{version}" in KINDS:
                self._answer(200, _resources(f"{group}/{version}"))
            case ["api" | "apis", *_]:
                self._objects()
            case _:
                self._missing()

    def _objects(self) -> None:
        plural, name = self._key()
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if name:
            found = self.cluster.get((plural, name))
            self._answer(200, found) if found else self._missing()
            return
        items = self.cluster.found(plural, query.get("labelSelector", ""))
        if query.get("watch"):
            self._watch(items)
            return
        kinds = {plural: kind for of in KINDS.values() for kind, plural in of.items()}
        self._answer(
            200,
            {
                "kind": f"{kinds[plural]}List",
                "apiVersion": items[0]["apiVersion"] if items else "v1",
                "metadata": {"resourceVersion": "1"},
                "items": items,
            },
        )

    def _watch(self, items: list[Object]) -> None:
        """What is there already, then that this was all; nothing changes later."""
        marked = {
            "apiVersion": items[0]["apiVersion"] if items else "v1",
            "kind": items[0]["kind"] if items else "Pod",
            "metadata": {
                "resourceVersion": "1",
                "annotations": {"k8s.io/initial-events-end": "true"},
            },
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        for kind, one in (*(("ADDED", one) for one in items), ("BOOKMARK", marked)):
            self.wfile.write(json.dumps({"type": kind, "object": one}).encode() + b"\n")
        self.wfile.flush()
        self.cluster.closing.wait(timeout=60)

    def do_POST(self) -> None:
        body = self._body()
        plural, _ = self._key()
        self._answer(*self.cluster.keep((plural, body["metadata"]["name"]), body, new=True))

    def do_PATCH(self) -> None:
        """Server-side apply, as far as a single owner needs it: the new replaces the old."""
        key = self._key()
        if "apply-patch" not in self.headers.get("Content-Type", ""):
            self._answer(415, _status(415, "UnsupportedMediaType", "only server-side apply"))
            return
        self._answer(*self.cluster.keep(key, self._body(), new=False))

    def do_PUT(self) -> None:
        self._answer(*self.cluster.keep(self._key(), self._body(), new=False))

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.cluster.drop(self._key()) is None:
            self._missing()
            return
        self._answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})


@contextmanager
def cluster() -> Iterator[Cluster]:
    """An empty one, on a loopback port of its own choosing."""
    kept = Cluster()
    handler = type("Handler", (_Handler,), {"cluster": kept})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        kept.address = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            yield kept
        finally:
            kept.closing.set()
            server.shutdown()
            serving.join()
