"""Recipe -> the Kubernetes objects of its run: a RayJob of KubeRay with its recipe and its network policy.

Pure functions of a recipe and `Options`; `text` writes what they return as YAML. For KubeRay 1.7.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pathor1.errors import RecipeError
from pathor1.recipe import to_toml
from pathor1.service.options import Options
from pathor1.service.pods import (
    CONTAINER_SECURITY,
    DASHBOARD,
    METRICS,
    RECIPE,
    RUN,
    Manifest,
    accelerator,
    config_map,
    head,
    submitter,
    worker,
)
from pathor1.stage import RunRecipe, job_of

# The label of the KubeRay operator's own pod, however it was installed.
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
NAMESPACE_NAME = "kubernetes.io/metadata.name"
DNS = 53
# The API server's port behind its Service, which the autoscaler speaks to.
API_SERVER = 6443
IDLE = 300  # seconds after which a node beyond those of the run is given back


def of_run(recipe: RunRecipe, options: Options) -> list[Manifest]:
    """The ConfigMap with the recipe, the NetworkPolicy and the RayJob of one run, in the order to apply them.

    Raises RecipeError where the recipe's name or the options do not fit.
    """
    _check(recipe, options)
    return [_recipe(recipe, options), network_policy(recipe, options), ray_job(recipe, options)]


def of_shared_cluster(recipe: RunRecipe, options: Options) -> list[Manifest]:
    """The NetworkPolicy and a RayCluster of the nodes that the recipe asks for, for runs that are submitted to it.

    Raises RecipeError as `of_run` does.
    """
    _check(recipe, options)
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(recipe.name, recipe, options, queue=options.queue),
        "spec": _cluster(recipe, options, with_recipe=False),
    }
    return [network_policy(recipe, options), cluster]


def ray_job(recipe: RunRecipe, options: Options) -> Manifest:
    """The RayJob: its cluster is made for it, and goes when it is done. A retry has a new one, and resumes the run.

    The job's id is the run's name. It has no runtime environment: code is in the image, variables are the pods'.
    """
    spec: Manifest = {
        "entrypoint": f"python -m ray_jobs.{job_of(recipe)} {RECIPE}",
        "jobId": recipe.name,
        "submissionMode": options.submission_mode,
        "backoffLimit": options.retries,
        "activeDeadlineSeconds": options.deadline,
        "preRunningDeadlineSeconds": options.start_deadline,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": options.ttl,
    }
    if options.submission_mode == "K8sJobMode":
        spec["submitterPodTemplate"] = submitter(recipe, options)
    spec["rayClusterSpec"] = _cluster(recipe, options, with_recipe=True)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(recipe.name, recipe, options, queue=options.queue),
        "spec": spec,
    }


def network_policy(recipe: RunRecipe, options: Options) -> Manifest:
    """Who may speak with the run's pods, and with whom they may.

    Whoever reaches the dashboard's port and has Ray's token can run anything; metrics are served without a token.
    """
    own = {"podSelector": {"matchLabels": {RUN: recipe.name}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}}
    prometheus = {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: options.monitoring_namespace}}}
    reached = [*options.egress, *([API_SERVER] if options.autoscale is not None else [])]
    egress: list[Manifest] = [{"to": [own]}, {"ports": [_port(DNS, "UDP"), _port(DNS)]}]
    if reached:  # a rule without ports would allow all of them
        egress.append({"ports": [_port(port) for port in reached]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(recipe.name, recipe, options),
        "spec": {
            **own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"from": [operator], "ports": [_port(DASHBOARD)]},
                {"from": [prometheus], "ports": [_port(METRICS)]},
            ],
            "egress": egress,
        },
    }


def text(documents: Sequence[Manifest]) -> str:
    """The documents as YAML; texts of several lines, as the recipe, stay readable."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def string(dumper: yaml.SafeDumper, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, string)
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def _check(recipe: RunRecipe, options: Options) -> None:
    if recipe.name[0].isdigit():
        raise RecipeError(
            f'name = "{recipe.name}": on Kubernetes a name begins with a letter; give another one by --set name=NAME'
        )
    if options.autoscale is not None and options.autoscale < recipe.cluster.all_nodes:
        raise RecipeError(
            f"--autoscale {options.autoscale} is below cluster.nodes = {recipe.cluster.all_nodes}, the nodes that the "
            "run starts with"
        )


def _cluster(recipe: RunRecipe, options: Options, *, with_recipe: bool) -> Manifest:
    """A RayCluster's spec: a head without ranks, and one group of nodes with them."""
    nodes = recipe.cluster.all_nodes
    store = recipe.cluster.object_store_gb
    start = {} if store is None else {"object-store-memory": str(int(store * 1e9))}
    autoscaler: Manifest = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE, "securityContext": CONTAINER_SECURITY},
    }
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        **({} if options.autoscale is None else autoscaler),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", **start},
            "template": head(recipe, options, with_recipe=with_recipe),
        },
        "workerGroupSpecs": [
            {
                "groupName": accelerator(recipe),
                "replicas": nodes,
                "minReplicas": nodes,
                "maxReplicas": options.autoscale or nodes,
                "rayStartParams": start,
                "template": worker(recipe, options),
            }
        ],
    }


def _recipe(recipe: RunRecipe, options: Options) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config_map(recipe), recipe, options),
        "data": {RECIPE.rpartition("/")[2]: to_toml(recipe)},
    }


def _metadata(name: str, recipe: RunRecipe, options: Options, *, queue: str | None = None) -> Manifest:
    """queue: Kueue's, which then says when the object may have its pods."""
    labels = {"app.kubernetes.io/part-of": "pathor1", RUN: recipe.name}
    if queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = queue
    return {"name": name, "namespace": options.namespace, "labels": labels}


def _port(number: int, protocol: str = "TCP") -> Manifest:
    return {"port": number, "protocol": protocol}
