"""verl's resource pools, each on nodes of its own, and placed within a time or not at all.

verl's own may put what is asked of two nodes on one, and wait without end (`ray.get(pg.ready())`) for room that
somebody else has taken.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from verl.single_controller.ray.base import (
    RayResourcePool,
    RayWorkerGroup,
    ResourcePoolManager,
    sort_placement_group_by_node_ip,
)
from verl.utils.device import get_device_name
from verl.workers.rollout.replica import RolloutMode

from pathor1.errors import RunError
from pathor1.ray_cluster import nodes
from pathor1.rl.placement import CPUS_PER_ENGINE, choose
from pathor1.rl.vllm_server import Replica

# Seconds within which all placement groups of a pool have to be there.
PLACED = 60.0
# Ray's own label of each node.
NODE_LABEL = "ray.io/node-id"


@dataclass
class NodePools(ResourcePoolManager):
    """verl's pools. With `on_cpu` a rank takes one CPU and no accelerator."""

    on_cpu: bool = False

    def create_resource_pool(self) -> None:
        for name, ranks in self.resource_pool_spec.items():
            self.resource_pool_dict[name] = NodePool(
                process_on_nodes=ranks,
                use_gpu=not self.on_cpu,
                name_prefix=name,
                max_colocate_count=1 if self.on_cpu else self.max_colocate_count,
            )


class NodePool(RayResourcePool):
    """One of verl's pools: as many ranks on each of its nodes as it says."""

    pgs: list[Any] | None

    def get_placement_groups(
        self, strategy: str = "STRICT_PACK", name: str | None = None, device_name: str = "cuda"
    ) -> list[Any]:
        """A placement group for each node. Raises RunError where they cannot be placed in time."""
        del strategy, device_name  # a group is on one node always, and which resource a rank takes is known
        if self.pgs is None:
            bundle = {"CPU": self.max_colocate_count, **({"GPU": 1} if self.use_gpu else {})}
            groups = place(self.store, bundle, name=name or self.name_prefix, seconds=PLACED)
            self.pgs = sort_placement_group_by_node_ip(groups)
        return self.pgs


def place(ranks: Sequence[int], bundle: Mapping[str, int], *, name: str, seconds: float) -> list[PlacementGroup]:
    """A placement group on a node of its own for each entry of `ranks`, with a bundle for each of its ranks.

    Raises RunError, and leaves nothing behind, where they are not placed within so many seconds.
    """
    until = time.monotonic() + seconds
    each = {kind: count * max(ranks) for kind, count in bundle.items()}
    while (chosen := choose(nodes(), len(ranks), each)) is None and time.monotonic() < until:
        time.sleep(0.5)
    groups: list[PlacementGroup] = []
    for index, (count, node) in enumerate(zip(ranks, chosen or (), strict=False)):
        here = [{NODE_LABEL: node.id}] * count
        groups.append(
            placement_group(
                [dict(bundle)] * count, strategy="STRICT_PACK", name=f"{name}:{index}", bundle_label_selector=here
            )
        )
    if chosen is None or not all(group.wait(max(until - time.monotonic(), 0.0)) for group in groups):
        for group in groups:
            remove_placement_group(group)
        raise RunError(
            f"the run's ranks could not be placed within {seconds:.0f} s: others have taken what the cluster had free "
            "when the run was started; `ray status` says what is left, start it again when there is room"
        )
    return groups


class OwnReplica(Replica):
    """verl's vLLM engine, on accelerators of its own that are placed within a time or not at all."""

    async def init_standalone(self) -> None:
        """Takes the accelerators, and starts vLLM on them. Raises RunError where they cannot be placed in time."""
        self.rollout_mode = RolloutMode.STANDALONE
        name, device = f"engine-{self.replica_rank}", get_device_name()
        self.resource_pool = NodePool(
            process_on_nodes=[self.gpus_per_replica_node] * self.nnodes,
            use_gpu=device != "cpu",
            name_prefix=name,
            max_colocate_count=1 if device == "cpu" else CPUS_PER_ENGINE,
        )
        group = RayWorkerGroup(
            resource_pool=self.resource_pool,
            ray_cls_with_init=self.get_ray_class_with_init_args(),
            bin_pack=False,
            name_prefix=name,
            device_name=device,
        )
        self.workers = group.workers
        await self.launch_servers()
