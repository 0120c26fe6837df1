"""The pods of a Ray cluster on Kubernetes: what they run, need, see, and may do.

Every pod fits the Pod Security Standard "restricted", but for RDMA. What KubeRay adds is left to it: `ray start`, the
token of Ray's authentication, liveness and readiness probes (Ray's health checks over HTTP), an init container of
workers that waits for the head.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any, Literal

from pathor1.attempts import MARGIN, TIDY
from pathor1.rl.placement import CPUS_PER_RANK
from pathor1.service.options import Options
from pathor1.stage import RunRecipe
from pathor1.storage import VARIABLE

# A manifest, or a part of one: what YAML and JSON have.
Manifest = dict[str, Any]

# The label of all pods of a run, by which its network policy knows them.
RUN = "pathor1/run"
# Where the run's recipe lies in the head's pod.
RECIPE = "/etc/pathor1/recipe.toml"
GCS, DASHBOARD, METRICS = 6379, 8265, 8080
# Seconds that Ray has to end behind the run.
RAY_ENDS = 30

POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,  # the volume is the group's
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Manifest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

# An evicted head ends without a word to the driver, which has a checkpoint to save. The driver then ends as failed,
# where `ray job stop` would have it stopped, so that KubeRay starts the run again.
DRIVER = "'^[^ ]*python[^ ]* -m ray_jobs[.]'"
SAVE = f"pkill -TERM -f {DRIVER} && while pgrep -f {DRIVER} > /dev/null; do sleep 1; done; true"
# Saving needs the ranks: a worker that is evicted along with the head stays until Ray has ended them with the driver.
RANKS = "'^ray::WorkerDict'"
STAY = f'timeout {{seconds}} bash -c "while pgrep -f {RANKS} > /dev/null; do sleep 1; done"; true'


def accelerator(recipe: RunRecipe) -> Literal["cpu", "gpu"]:
    """What the ranks run on. "auto" is a GPU here: nothing is known of the image's torch."""
    return "cpu" if recipe.cluster.accelerator == "cpu" else "gpu"


def image(recipe: RunRecipe, options: Options) -> str:
    """The image of all pods."""
    return options.image or f"pathor1:{version('pathor1')}-{accelerator(recipe)}"


def head(recipe: RunRecipe, options: Options, *, with_recipe: bool) -> Manifest:
    """The pod of Ray's head: the dashboard, the Jobs API, the run's driver, and no rank.

    with_recipe: whether the run's recipe lies in it, as `RECIPE`.
    """
    size: Manifest = {"cpu": 4, "memory": "32Gi"} if accelerator(recipe) == "gpu" else {"cpu": 1, "memory": "6Gi"}
    container = _container("ray-head", recipe, options, resources=size, before_stop=SAVE)
    ports = {"gcs-server": GCS, "dashboard": DASHBOARD, "metrics": METRICS}
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    # Ray reads it in the process that starts the driver: how long `ray job stop` waits before it kills.
    container["env"].append({"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(stop_seconds(recipe))})
    template = _template(recipe, options, container, memory=size["memory"])
    if with_recipe:
        container["volumeMounts"].append({"name": "recipe", "mountPath": RECIPE.rpartition("/")[0], "readOnly": True})
        template["spec"]["volumes"].append({"name": "recipe", "configMap": {"name": config_map(recipe)}})
    if options.autoscale is not None:
        del template["spec"]["automountServiceAccountToken"]  # the autoscaler beside it changes the number of workers
    return template


def worker(recipe: RunRecipe, options: Options) -> Manifest:
    """The pod of a node with ranks."""
    ranks = recipe.cluster.accelerators_per_node
    size: Manifest = {"cpu": options.cpus or cpus_of_node(recipe), "memory": options.memory or _memory(recipe)}
    if accelerator(recipe) == "gpu":
        size["nvidia.com/gpu"] = ranks
    if options.rdma is not None:
        size[options.rdma] = 1
    stay = STAY.format(seconds=stop_seconds(recipe))
    container = _container("ray-worker", recipe, options, resources=size, before_stop=stay)
    container["ports"] = [{"name": "metrics", "containerPort": METRICS}]
    if options.rdma is not None:  # memory that the network card reads has to stay where it is
        container["securityContext"] = {
            **CONTAINER_SECURITY,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        }
    template = _template(recipe, options, container, memory=size["memory"])
    if options.node_labels:
        template["spec"]["nodeSelector"] = dict(options.node_labels)
    if accelerator(recipe) == "gpu":
        template["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return template


def submitter(recipe: RunRecipe, options: Options) -> Manifest:
    """The pod that KubeRay submits the job from. It waits for its end, and its log is the job's."""
    container: Manifest = {
        "name": "ray-job-submitter",
        "image": image(recipe, options),
        "resources": {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
        "securityContext": CONTAINER_SECURITY,
    }
    spec = {**_pod(options), "restartPolicy": "Never", "containers": [container]}
    return {"metadata": {"labels": {RUN: recipe.name}}, "spec": spec}


def cpus_of_node(recipe: RunRecipe) -> int:
    """The CPUs of a node with ranks: what a run asks Ray for, with those of the stream."""
    ranks = recipe.cluster.accelerators_per_node
    if accelerator(recipe) == "cpu":
        return ranks + 1
    return (CPUS_PER_RANK + 1) * ranks + 2 + recipe.data.workers


def stop_seconds(recipe: RunRecipe) -> int:
    """Seconds that a run may take from SIGTERM to its end: its own grace, and what is allowed beyond."""
    return math.ceil(recipe.cluster.stop_grace + MARGIN + TIDY)


def config_map(recipe: RunRecipe) -> str:
    """The name of the ConfigMap that holds the recipe."""
    return f"{recipe.name}-recipe"


def _memory(recipe: RunRecipe) -> str:
    ranks = recipe.cluster.accelerators_per_node
    return f"{64 * ranks}Gi" if accelerator(recipe) == "gpu" else f"{4 + 4 * ranks}Gi"


def _container(name: str, recipe: RunRecipe, options: Options, *, resources: Manifest, before_stop: str) -> Manifest:
    """Requests are the limits, of which Ray makes what it hands out."""
    variables = {
        VARIABLE: options.mount,
        "HF_HOME": f"{options.mount}/huggingface",
        "NCCL_SOCKET_IFNAME": options.interface,
        "GLOO_SOCKET_IFNAME": options.interface,
        **dict(options.variables),
    }
    container: Manifest = {
        "name": name,
        "image": image(recipe, options),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": CONTAINER_SECURITY,
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/bash", "-c", before_stop]}}},
        "volumeMounts": [
            {"name": "storage", "mountPath": options.mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if options.secrets:
        container["envFrom"] = [{"secretRef": {"name": secret}} for secret in options.secrets]
    return container


def _template(recipe: RunRecipe, options: Options, container: Manifest, *, memory: str) -> Manifest:
    """A pod of Ray's. What is in shared memory (Ray's objects, NCCL's buffers) counts as the container's memory."""
    volumes = [
        {"name": "storage", "persistentVolumeClaim": {"claimName": options.volume}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": memory}},
    ]
    grace = {"terminationGracePeriodSeconds": stop_seconds(recipe) + RAY_ENDS}
    spec = {**_pod(options), **grace, "containers": [container], "volumes": volumes}
    return {"metadata": {"labels": {RUN: recipe.name}}, "spec": spec}


def _pod(options: Options) -> Manifest:
    """What all pods have. They get no token of Kubernetes, and no variables named after the namespace's services.

    A service `vllm` would set VLLM_PORT, which vLLM reads as its own.
    """
    spec: Manifest = {
        "securityContext": POD_SECURITY,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    if options.priority_class is not None:
        spec["priorityClassName"] = options.priority_class
    return spec
