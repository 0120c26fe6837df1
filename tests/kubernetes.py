"""What Kubernetes' API server refuses, as far as it can be known without one.

Objects of KubeRay are held against its CRDs, all others against Kubernetes' own schemas: defaults applied, unknown
fields refused, keys of lists unique. The CRDs are KubeRay's release; `make crds` fetches them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[1]
SCHEMAS = Path(__file__).parent / "schemas"
# KubeRay's release, whose files these are.
SUMS = SCHEMAS / "kuberay-1.7.0.sha256"
CRDS = {"RayJob": "rayjobs.yaml", "RayCluster": "rayclusters.yaml"}
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
INT32 = {"minimum": -(2**31), "maximum": 2**31 - 1}
QUANTITY = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$"
# These say the same in both dialects.
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")


def crds() -> Path | None:
    """The folder of KubeRay's CRDs: that of `PATHOR1_CRDS`, or what `make crds` has fetched; None without either."""
    named = os.environ.get("PATHOR1_CRDS")
    folder = Path(named) if named else ROOT / ".crds"
    return folder if named or folder.is_dir() else None


def problems(document: dict[str, Any]) -> list[str]:
    """Where a document differs from its schema, a line each; empty for a good one."""
    schema = _crd(document["kind"]) if document["apiVersion"].startswith("ray.io/") else _core(document["kind"])
    whole = _with_defaults(schema, document)
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in jsonschema.Draft202012Validator(schema).iter_errors(whole)
    ]
    return found + list(_doubled(schema, whole, ""))


@cache
def _core(kind: str) -> dict[str, Any]:
    """The schema of a kind of Kubernetes itself. Its own do not say what a quantity looks like."""
    file = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text(encoding="utf-8"))
    file["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"], "pattern": QUANTITY}
    (name,) = (name for name in file["$defs"] if name.startswith("io.k8s.api.") and name.endswith(f".{kind}"))
    policy = file["$defs"]["io.k8s.api.networking.v1.NetworkPolicySpec"]["properties"]["policyTypes"]
    policy["items"] = {"enum": ["Ingress", "Egress"]}
    return {**file["$defs"][name], "$defs": file["$defs"], "required": ["apiVersion", "kind", "metadata"]}


@cache
def _crd(kind: str) -> dict[str, Any]:
    """The schema of a kind of KubeRay's, as JSON Schema."""
    folder = crds()
    assert folder is not None
    content = (folder / CRDS[kind]).read_bytes()
    sums = dict(reversed(line.split()) for line in SUMS.read_text(encoding="utf-8").splitlines())
    assert hashlib.sha256(content).hexdigest() == sums[CRDS[kind]], f"{folder} holds the CRDs of another KubeRay"
    definition = yaml.load(content, Loader=yaml.CSafeLoader)["spec"]
    (v1,) = (one for one in definition["versions"] if one["name"] == "v1")
    schema = _strict(v1["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"$ref": f"#/$defs/{OBJECT_META}"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {**schema, "$defs": _core("ConfigMap")["$defs"]}


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    """A schema of a CRD as JSON Schema that refuses what the API server would prune."""
    schema: dict[str, Any] = {key: node[key] for key in KEPT if key in node}
    for key in ("default", "x-kubernetes-list-type", "x-kubernetes-list-map-keys"):
        if key in node:
            schema[key] = node[key]
    if node.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if node.get("format") == "int32":
        schema |= {key: schema.get(key, limit) for key, limit in INT32.items()}
    if "properties" in node:
        schema["properties"] = {name: _strict(child) for name, child in node["properties"].items()}
    if "items" in node:
        schema["items"] = _strict(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _strict(node["additionalProperties"])
    elif node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        schema["additionalProperties"] = False
    return schema


def _with_defaults(schema: dict[str, Any], value: Any) -> Any:
    """A copy of the value with the schema's defaults."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        missing = {name: copy.deepcopy(child["default"]) for name, child in properties.items() if "default" in child}
        return {name: _with_defaults(_child(schema, name), inner) for name, inner in {**missing, **value}.items()}
    if isinstance(value, list):
        return [_with_defaults(schema.get("items", {}), inner) for inner in value]
    return value


def _doubled(schema: dict[str, Any], value: Any, where: str) -> Any:
    """Elements of a list that have the same keys, where they have to differ."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _doubled(_child(schema, name), inner, f"{where}.{name}")
    elif isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        named = [tuple(inner.get(key) for key in keys) for inner in value if keys and isinstance(inner, dict)]
        named = value if schema.get("x-kubernetes-list-type") == "set" else named
        yield from (f"{where}: {one} twice" for number, one in enumerate(named) if one in named[:number])
        for inner in value:
            yield from _doubled(schema.get("items", {}), inner, where)


def _child(schema: dict[str, Any], name: str) -> dict[str, Any]:
    other = schema.get("additionalProperties")
    found = schema.get("properties", {}).get(name, other if isinstance(other, dict) else {})
    return found if "$ref" not in found else {}


# What no schema says of a pod, and Kubernetes refuses.

LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "M": 1e6, "G": 1e9, "T": 1e12}
# Of the Pod Security Standard "restricted": kinds of volumes, and capabilities that may be added.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
CAPABILITIES = {"NET_BIND_SERVICE"}


def pod_problems(template: dict[str, Any]) -> list[str]:
    """What Kubernetes itself would refuse of a pod template that fits its schema."""
    spec = template["spec"]
    found = label_problems(template["metadata"].get("labels", {}))
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        name = container["name"]
        mounts = container.get("volumeMounts", [])
        found += [f"{name}: no volume {one['name']}" for one in mounts if one["name"] not in volumes]
        paths = [one["mountPath"] for one in mounts]
        found += [f"{name}: {path} mounted twice" for path in set(paths) if paths.count(path) > 1]
        ports = [port["name"] for port in container.get("ports", [])]
        found += [f"{name}: port {port}" for port in ports if len(port) > 15 or ports.count(port) > 1]
        requests, limits = (container["resources"].get(kind, {}) for kind in ("requests", "limits"))
        for kind, wanted in requests.items():
            if quantity(wanted) > quantity(limits.get(kind, wanted)):
                found.append(f"{name}: requests more {kind} than its limit")
            if "/" in kind and wanted != limits.get(kind):
                found.append(f"{name}: {kind} has to be the same in requests and limits")
    return found


def label_problems(labels: dict[str, str]) -> list[str]:
    """Labels that are none."""
    bad = [key for key, value in labels.items() if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value))]
    return [f"label {key}={labels[key]}" for key in bad]


def quantity(value: str | float) -> float:
    """What a quantity such as 512Gi is, in bytes or CPUs."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()
    return float(number) * UNITS[unit]


def not_restricted(template: dict[str, Any]) -> list[str]:
    """Where a pod template is against the Pod Security Standard "restricted"."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    kinds = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
    found = [f"volume {kind}" for kind in kinds - VOLUMES]
    found += [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    if pod.get("runAsNonRoot") is not True or pod.get("runAsUser") == 0:
        found.append("may run as root")
    if pod.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("no seccomp profile")
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        found += [f"{container['name']}: {line}" for line in unsafe_container(container.get("securityContext", {}))]
    return found


def unsafe_container(context: dict[str, Any]) -> list[str]:
    """The same of a container's securityContext."""
    capabilities = context.get("capabilities", {})
    found = [f"adds {one}" for one in set(capabilities.get("add", [])) - CAPABILITIES]
    if capabilities.get("drop") != ["ALL"]:
        found.append("keeps capabilities")
    if context.get("allowPrivilegeEscalation") is not False:
        found.append("may escalate privileges")
    return found
