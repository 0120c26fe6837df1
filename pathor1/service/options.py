"""What Kubernetes has to know of a run and a recipe does not say: the options of `pathor1 cluster render`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Times are in seconds, sizes are Kubernetes quantities of bytes, names are those of objects of Kubernetes."""

    namespace: str = "pathor1"
    image: str | None = None  # None: pathor1:VERSION-gpu, or -cpu, as cluster/README.md builds it
    volume: str = "pathor1"  # a PersistentVolumeClaim
    mount: str = "/storage"
    cpus: int | None = None  # of a node with ranks; None: what a run asks Ray for
    memory: str | None = None  # None: 64Gi a GPU; on CPUs 4Gi, and 4Gi for each rank
    secrets: tuple[str, ...] = ()  # Secrets, all of whose keys become variables of the pods
    variables: tuple[tuple[str, str], ...] = ()
    node_labels: tuple[tuple[str, str], ...] = ()  # of the nodes with ranks
    priority_class: str | None = None
    queue: str | None = None  # Kueue's LocalQueue
    autoscale: int | None = None  # most nodes with ranks; None: no autoscaler
    interface: str = "eth0"
    rdma: str | None = None  # the resource that an RDMA device is to Kubernetes, such as rdma/hca_shared_devices_a
    egress: tuple[int, ...] = (443,)  # TCP ports that pods may reach anywhere
    monitoring_namespace: str = "monitoring"  # Prometheus'
    submission_mode: Literal["K8sJobMode", "SidecarMode", "HTTPMode"] = "K8sJobMode"
    retries: int = 2
    deadline: int = 7 * 24 * 3600  # of each attempt
    start_deadline: int = 3600
    ttl: int = 300
