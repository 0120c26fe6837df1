"""What KubeRay's operator does with a RayJob or RayCluster: rules that no CRD states, and the commands it makes.

After its 1.7.0: `utils/validation.go`, `common/pod.go`, `common/job.go`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml
from kubernetes import quantity

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
AUTOSCALER_V2 = "RAY_enable_autoscaler_v2"


def problems(document: dict[str, Any]) -> list[str]:
    """Why the operator would refuse a document that the CRD lets pass; empty for a good one."""
    name, kind = document["metadata"]["name"], document["kind"]
    found: list[str] = []
    if len(name) > LONGEST_NAME[kind] or not DNS_1035.fullmatch(name):
        found.append(f"name {name!r}: a DNS-1035 label of at most {LONGEST_NAME[kind]} characters")
    if kind == "RayJob":
        found += _of_job(document["spec"])
    cluster = cluster_spec(document)
    return found + (_of_cluster(cluster) if cluster else [])


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's spec of either kind."""
    return document["spec"].get("rayClusterSpec", {}) if document["kind"] == "RayJob" else document["spec"]


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod templates of a document: head, workers by group, and the submitter where it is given."""
    cluster = cluster_spec(document)
    found = {"head": cluster["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    if "submitterPodTemplate" in document["spec"]:
        found["submitter"] = document["spec"]["submitterPodTemplate"]
    return found


def _of_job(spec: dict[str, Any]) -> list[str]:
    shutdown, selector = spec.get("shutdownAfterJobFinishes", False), spec.get("clusterSelector", {})
    mode, retries, ttl = (
        spec.get("submissionMode", "K8sJobMode"),
        spec.get("backoffLimit", 0),
        "ttlSecondsAfterFinished",
    )
    strategy = spec.get("deletionStrategy", {})
    rules = strategy.get("deletionRules", [])
    restart = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
    wrong = {
        f"submissionMode {mode} is none": mode not in MODES,
        f"{ttl} is negative": spec.get(ttl, 0) < 0,
        f"{ttl} needs shutdownAfterJobFinishes": spec.get(ttl, 0) > 0 and not shutdown,
        "suspend needs shutdownAfterJobFinishes": spec.get("suspend", False) and not shutdown,
        "suspend and clusterSelector": spec.get("suspend", False) and bool(selector),
        "deletionRules and shutdownAfterJobFinishes": bool(rules) and shutdown,
        "deletionRules and onSuccess, onFailure": bool(rules) and bool({"onSuccess", "onFailure"} & set(strategy)),
        "two deletionRules of the same condition": len(rules) > len({json.dumps(rule["condition"]) for rule in rules}),
        "neither rayClusterSpec nor clusterSelector": "rayClusterSpec" not in spec and not selector,
        "clusterSelector and backoffLimit": bool(selector) and retries > 0,
        "clusterSelector and SidecarMode": bool(selector) and mode == "SidecarMode",
        "SidecarMode and submitterPodTemplate": mode == "SidecarMode" and "submitterPodTemplate" in spec,
        "SidecarMode and submitterConfig": mode == "SidecarMode" and "submitterConfig" in spec,
        "SidecarMode and a head that restarts": mode == "SidecarMode"
        and restart.get("restartPolicy", "Never") != "Never",
        "InteractiveMode and backoffLimit": mode == "InteractiveMode" and retries > 0,
        "activeDeadlineSeconds is not positive": spec.get("activeDeadlineSeconds", 1) <= 0,
        "preRunningDeadlineSeconds is not positive": spec.get("preRunningDeadlineSeconds", 1) <= 0,
        "backoffLimit is negative": retries < 0,
        "runtimeEnvYAML is no mapping": not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict),
    }
    return [text for text, holds in wrong.items() if holds]


def _of_cluster(spec: dict[str, Any]) -> list[str]:
    scaling, version = spec.get("enableInTreeAutoscaling", False), _version(spec.get("rayVersion", "0"))
    v2 = scaling and spec.get("autoscalerOptions", {}).get("version", "v2" if version >= (2, 47) else "v1") == "v2"
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    variables = {one["name"] for one in head["template"]["spec"]["containers"][0].get("env", [])}
    wrong = {
        "token authentication needs rayVersion 2.52 or later": (
            spec.get("authOptions", {}).get("mode") == "token" and version < (2, 52)
        ),
        f"{AUTOSCALER_V2} and autoscalerOptions.version": scaling and AUTOSCALER_V2 in variables,
        f"{AUTOSCALER_V2} without the autoscaler": not scaling and AUTOSCALER_V2 in variables,
        "networkPolicy needs a feature gate": "networkPolicy" in spec,
        "tlsOptions needs a feature gate": "tlsOptions" in spec,
    }
    found = [text for text, holds in wrong.items() if holds]
    for name, group in (("head", head), *((one["groupName"], one) for one in workers)):
        found += [f"{name}: {line}" for line in _of_group(group, scaling=scaling, v2=v2, version=version)]
        if name != "head":
            found += [f"{name}: {line}" for line in _replicas(group, scaling=scaling)]
    return found


def _of_group(group: dict[str, Any], *, scaling: bool, v2: bool, version: tuple[int, ...]) -> list[str]:
    start, pod = group.get("rayStartParams", {}), group["template"]["spec"]
    sized = {"num-cpus", "num-gpus", "memory", "resources"} & set(start)
    wrong = {
        "resources in rayStartParams and beside them": bool(sized) and bool(group.get("resources")),
        "labels in rayStartParams": "labels" in start,
        "a pod that restarts, with autoscaler v2": v2 and pod.get("restartPolicy", "Never") != "Never",
        "suspended with an autoscaler": scaling and group.get("suspend", False),
        "idleTimeoutSeconds without autoscaler v2": "idleTimeoutSeconds" in group and not v2,
        "priority needs rayVersion 2.56 and autoscaler v2": "priority" in group and not (v2 and version >= (2, 56)),
    }
    return [text for text, holds in wrong.items() if holds]


def _replicas(group: dict[str, Any], *, scaling: bool) -> list[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if least is None or most is None:
        return [] if scaling else ["minReplicas and maxReplicas have to be set"]
    return [] if 0 <= least <= most else [f"minReplicas {least}, maxReplicas {most}"]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def start_command(spec: dict[str, Any], group: dict[str, Any] | None = None, *, address: str = "") -> str:
    """The `ray start` of the head's container, or of a worker group's, which joins `address`."""
    one = group or spec["headGroupSpec"]
    limits = one["template"]["spec"]["containers"][0]["resources"]["limits"]
    parameters = {
        **({} if group else {"dashboard-host": "0.0.0.0"}),
        **({"address": address} if group else {}),
        "num-cpus": str(limits["cpu"]),
        "memory": f"{quantity(limits['memory']):.0f}",
        **({"num-gpus": str(limits["nvidia.com/gpu"])} if "nvidia.com/gpu" in limits else {}),
        "metrics-export-port": "8080",
        "dashboard-agent-listen-port": "52365",
        **one["rayStartParams"],
    }
    options = [f"--{name}={value}" for name, value in sorted(parameters.items())]
    return " ".join(["ray", "start", *([] if group else ["--head"]), "--block", *options])


def submit_command(job: dict[str, Any], address: str) -> str:
    """The shell command of the submitter's container in K8sJobMode."""
    spec = job["spec"]
    health = f"python -c \"import urllib.request as r; r.urlopen('{address}/api/gcs_healthz', timeout=5)\""
    environment = json.dumps(yaml.safe_load(spec.get("runtimeEnvYAML", "")), separators=(",", ":"))
    named = ["--runtime-env-json", json.dumps(environment)] if "runtimeEnvYAML" in spec else []
    words = [
        *("until", health, ">/dev/null", "2>&1", ";", "do", "sleep", "2", ";", "done", ";"),
        *("if", "!", "ray", "job", "status", "--address", address, spec["jobId"], ">/dev/null", "2>&1", ";", "then"),
        *("ray", "job", "submit", "--address", address, "--no-wait"),
        *(*named, "--submission-id", spec["jobId"]),
        *("--", spec["entrypoint"].strip(), ";", "fi", ";"),
        *("ray", "job", "logs", "--address", address, "--follow", spec["jobId"]),
    ]
    return " ".join(words)
