"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

The public index holds only CUDA builds of torchvision. Beside a CPU torch their compiled operators do not load, and
`import torchvision` fails where it registers fake kernels for operators that are not there ("operator
torchvision::nms does not exist"). Qwen2.5-VL's processor needs torchvision, but only its resizing and
normalising, which are plain torch: declaring the two schemas is enough.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pathor1.backends import cpu_build

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch.library.Library withdraws its schemas when it is collected: it has to live as long as the process.
_library: object | None = None


def needed() -> bool:
    """True where torch is a CPU build and the torchvision beside it was built for CUDA."""
    if not cpu_build():
        return False
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    return _built_for_cuda(Path(spec.origin).parent)


def _built_for_cuda(folder: Path) -> bool:
    """Reads torchvision/version.py without importing torchvision, which is what would fail."""
    return "+cu" in (folder / "version.py").read_text(encoding="utf-8").split("\n", 1)[0]


def register() -> None:
    """Declares the schemas where they are needed, once."""
    global _library  # noqa: PLW0603 (as long as the process: see above)
    if _library is not None or not needed():
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _library = library
