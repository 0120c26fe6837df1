"""verl's platform for a machine without an accelerator (entry point `verl.plugins`, loaded by `import verl`).

With a CPU build of torch this becomes verl's platform by itself; with any other build the module changes nothing.
Ranks are "slots": a rank takes CPUs from Ray, not a GPU, so a head started by a plain `ray start --head` will do.
"""

from __future__ import annotations

import contextlib
import os
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
import torch.distributed.fsdp
from ray.runtime_context import RuntimeContext
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry, set_platform

from pathor1.backends import cpu_build, cpu_threads, network, token_log_probs

# Sizes that verl prints and compares; nothing is allocated by them.
_FREE_BYTES, _TOTAL_BYTES = 8 << 30, 16 << 30


class _CpuModule(types.ModuleType):
    """`torch.cpu` with the functions that verl calls on `torch.cuda`: one device, no memory of its own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: object) -> None: ...

    def synchronize(self, device: object = None) -> None: ...

    def empty_cache(self) -> None: ...

    def ipc_collect(self) -> None: ...

    def reset_peak_memory_stats(self, device: object = None) -> None: ...

    def memory_allocated(self, device: object = None) -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return _FREE_BYTES, _TOTAL_BYTES

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def get_device_name(self, device: object = None) -> str:
        return "cpu"


_cpu_module = _CpuModule("pathor1_torch_cpu")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """Gloo for collectives, no IPC (so weights go to vLLM through shared memory), ranks that take no GPU."""

    device_name = "cpu"  # pyright: ignore[reportAssignmentType]  (a constant where the base has a property)
    vendor_name = "cpu"  # pyright: ignore[reportAssignmentType]

    @property
    def device_module(self) -> types.ModuleType:
        return _cpu_module

    def is_available(self) -> bool:
        return cpu_build()

    def current_device(self) -> Any:
        return "cpu"  # verl passes it to `Tensor.to()`, where 0 would mean the first accelerator

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "PATHOR1_CPU_SLOTS"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"  # the key under which verl looks up a rank's device ids; see `_slot_ids`

    def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
        return {}  # a rank takes the CPU of its placement group bundle and nothing else

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def _one_gloo(init_process_group: Any) -> Any:
    """verl asks for `cpu:gloo,cpu:gloo` (one backend for the CPU, one for its device); torch refuses the repetition."""

    def wrapped(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        network.choose()  # verl may have been imported before this process had joined Ray's cluster
        cpu_threads.take()  # it is a rank
        _keep_copies()
        return init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    return wrapped


def _keep_copies() -> None:
    """verl keeps a rank's weights of before beside it by `.cpu()`, which copies nothing that is on the CPU already."""
    from verl.utils import fsdp_utils

    save = fsdp_utils.fsdp2_sharded_save_to_cpu
    if save.__name__ == "kept":
        return

    def kept(model: Any) -> Any:
        weights, spec = save(model)
        return {name: (weight.clone(), own) for name, (weight, own) in weights.items()}, spec

    fsdp_utils.fsdp2_sharded_save_to_cpu = kept


class _UnpinnedOffloadPolicy(torch.distributed.fsdp.CPUOffloadPolicy):
    """verl offloads the reference model with pinned memory, which needs an accelerator to pin for."""

    def __init__(self, pin_memory: bool = False) -> None:
        super().__init__(pin_memory=False)


def _slot_ids(get_accelerator_ids: Any) -> Any:
    """verl reads the first device id of a rank, and a rank on the CPU has none: it is given slot 0."""

    def wrapped(self: RuntimeContext) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = get_accelerator_ids(self)
        return {**ids, "GPU": ids.get("GPU") or ["0"]}

    return wrapped


def activate() -> None:
    """Makes the CPU verl's platform in this process."""
    set_platform(CpuPlatform())
    # verl registers its FSDP engine for "cuda" and "npu" only; the code is the same for every device.
    os.environ.setdefault("VERL_ENGINE_DEVICE", "cuda")
    token_log_probs.install()
    torch.distributed.init_process_group = _one_gloo(torch.distributed.init_process_group)
    torch.distributed.fsdp.CPUOffloadPolicy = _UnpinnedOffloadPolicy
    RuntimeContext.get_accelerator_ids = _slot_ids(RuntimeContext.get_accelerator_ids)


if cpu_build():
    activate()
