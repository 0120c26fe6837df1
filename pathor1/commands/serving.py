"""Commands for clusters: manifests for Kubernetes."""

from __future__ import annotations

import argparse
import re
from dataclasses import fields
from typing import Any

from pathor1.commands import Arguments, Command, add_overrides
from pathor1.service.options import Options

# Kubernetes' names of objects (a DNS label), and its quantities of bytes.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9][0-9]*(Mi|Gi|Ti|M|G|T)")
# A key or value of a label: "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3".
_LABEL = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY$|_KEY_ID$", re.IGNORECASE)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a Kubernetes name: a-z, 0-9 and hyphens, at most 63")
    return text


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a Kubernetes quantity of memory, such as 512Gi")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to 65535")
    return int(text)


def _folder(text: str) -> str:
    if not text.startswith("/") or text.rstrip("/") == "":
        raise argparse.ArgumentTypeError(f"{text!r} is not the whole path of a folder, such as /storage")
    return text.rstrip("/")


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not _LABEL.fullmatch(key) or not _LABEL.fullmatch(value) or "/" in value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a label KEY=VALUE, such as nvidia.com/gpu.count=8")
    return key, value


def _resource(text: str) -> str:
    if not _LABEL.fullmatch(text) or "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a resource of a device plugin, such as rdma/hca")
    return text


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not _VARIABLE.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    if _SECRET.search(name):  # without its value, which would stand in a terminal's log
        raise argparse.ArgumentTypeError(
            f"{name} looks like a secret, which would stand in the manifest; put it into a Secret of Kubernetes and "
            "name that by --secret"
        )
    return name, value


def _add_render(parser: argparse.ArgumentParser) -> None:
    default = Options()
    parser.add_argument("recipe", metavar="RECIPE", help="its [cluster] says how many nodes and GPUs")
    add_overrides(parser)
    parser.add_argument(
        "--shared",
        action="store_true",
        help="a RayCluster that stays, for runs that are submitted to it one after the other, in place of a RayJob",
    )
    _add_pods(parser.add_argument_group("pods"), default)
    _add_network(parser.add_argument_group("network"), default)
    _add_job(parser.add_argument_group("the job; a shared cluster has none"), default)


def _add_pods(group: argparse._ArgumentGroup, default: Options) -> None:
    group.add_argument("--namespace", type=_name, help=f"namespace ({default.namespace})")
    group.add_argument("--image", help="image of all pods (pathor1:VERSION-gpu, or -cpu where the recipe says so)")
    group.add_argument("--volume", type=_name, metavar="CLAIM", help=f"claim of the shared volume ({default.volume})")
    group.add_argument("--mount", type=_folder, metavar="PATH", help=f"relative paths start there ({default.mount})")
    group.add_argument("--cpus", type=_count, help="CPUs of a node with ranks (what a run asks Ray for)")
    group.add_argument(
        "--memory", type=_quantity, help="memory of a node with ranks (64Gi a GPU; on CPUs 4Gi, and 4Gi a rank)"
    )
    group.add_argument(
        "--secret",
        dest="secrets",
        type=_name,
        action="append",
        metavar="NAME",
        help="a Secret whose keys become variables of the pods, such as HF_TOKEN; may come several times",
    )
    group.add_argument(
        "--env",
        dest="variables",
        type=_variable,
        action="append",
        metavar="NAME=VALUE",
        help="a variable of the pods, such as NCCL_IB_HCA=mlx5; may come several times",
    )
    group.add_argument(
        "--node-label",
        dest="node_labels",
        type=_label,
        action="append",
        metavar="KEY=VALUE",
        help="a label of the nodes that may have ranks; may come several times",
    )
    group.add_argument("--priority-class", type=_name, metavar="NAME", help="a PriorityClass (the cluster's default)")
    group.add_argument("--queue", type=_name, help="a LocalQueue of Kueue, which then says when the run starts (none)")
    group.add_argument(
        "--autoscale", type=_count, metavar="NODES", help="Ray's autoscaler v2 adds nodes up to so many (no autoscaler)"
    )


def _add_network(group: argparse._ArgumentGroup, default: Options) -> None:
    group.add_argument("--interface", help=f"network interface of NCCL and gloo ({default.interface})")
    group.add_argument("--rdma", type=_resource, metavar="RESOURCE", help="an RDMA device for NCCL, one a node (none)")
    group.add_argument(
        "--egress",
        type=_port,
        nargs="*",
        metavar="PORT",
        help="TCP ports that pods may reach outside: hubs, object stores, trackers; none = no port (443)",
    )
    group.add_argument(
        "--monitoring-namespace",
        type=_name,
        metavar="NAME",
        help=f"from where metrics may be read ({default.monitoring_namespace})",
    )


def _add_job(group: argparse._ArgumentGroup, default: Options) -> None:
    group.add_argument(
        "--submission-mode",
        choices=("K8sJobMode", "SidecarMode", "HTTPMode"),
        help=f"how KubeRay submits the job ({default.submission_mode})",
    )
    group.add_argument("--retries", type=_count_or_none, help=f"new starts of a failed run ({default.retries})")
    group.add_argument(
        "--deadline", type=_count, metavar="SECONDS", help=f"longest time of each attempt ({default.deadline})"
    )
    group.add_argument(
        "--start-deadline",
        type=_count,
        metavar="SECONDS",
        help=f"longest time until all pods are there ({default.start_deadline})",
    )
    group.add_argument(
        "--ttl", type=_count_or_none, metavar="SECONDS", help=f"pods stay so long after the end ({default.ttl})"
    )


def _run_render(arguments: Arguments) -> int:
    from pathor1.service import manifests
    from pathor1.stage import load_run

    given = {field.name: getattr(arguments, field.name) for field in fields(Options)}
    changed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    options = Options(**changed)
    recipe = load_run(arguments.recipe, arguments.overrides)
    render = manifests.of_shared_cluster if arguments.shared else manifests.of_run
    print(manifests.text(render(recipe, options)), end="")
    return 0


COMMANDS = (
    Command(
        name="cluster render",
        help="Write the Kubernetes manifests of a run, for KubeRay, to stdout",
        example="pathor1 cluster render ray_jobs/recipes/patho_r1_7b_grpo.toml --queue gpus --secret hub-token\n"
        "  pathor1 cluster render ray_jobs/recipes/patho_r1_7b_grpo.toml --shared --set cluster.nodes=2",
        add=_add_render,
        run=_run_render,
    ),
)
