"""Makes `.venv` exactly what a lock says, and remakes the locks: `make env` and `make lock` call it.

    python3 requirements/environment.py install cpu|gpu
    python3 requirements/environment.py lock

It runs before anything is installed, so it needs only Python's standard library.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"
VENV = ROOT / ".venv"
OWN_UV = ROOT / ".uv"
# Written last: an environment without it was interrupted, or is not ours, and is made anew.
STAMP = VENV / "installed.json"
# It has all that is asked of it here, --torch-backend being the newest.
OLDEST_UV = (0, 9)

# What pip's settings are called in uv, which reads none of pip's; uv wants find-links separated by commas.
UV_NAMES = {
    "find-links": ("UV_FIND_LINKS", ","),
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
# An index that lacks a version does not hide the others: a mirror near may hold a part of PyPI only.
ALL_INDEXES = ("--index-strategy", "unsafe-best-match")


def install(backend: str) -> None:
    """Brings `.venv` to the state of `requirements/{backend}.txt`; does nothing where it is already there."""
    lock = LOCKS / f"{backend}.txt"
    if backend not in ("cpu", "gpu"):
        sys.exit(f"BACKEND is cpu or gpu, not {backend!r}.")
    _refuse_other_machines()
    # Two makes at a time, one .venv: the second waits and finds it done.
    guard = os.open(LOCKS, os.O_RDONLY)
    fcntl.flock(guard, fcntl.LOCK_EX)
    wanted, present = _stamp(backend, lock), _present_stamp()
    if wanted == present and (VENV / "bin" / "python").exists():
        return
    started = time.monotonic()
    print(f"Installing requirements/{backend}.txt into .venv ...", flush=True)
    uv = _uv()
    environment = _uv_environment()
    if present is not None and all(wanted[key] == present[key] for key in ("root", "python")):
        STAMP.unlink()
    else:
        _run([uv, "venv", "--quiet", "--clear", "--no-project", "--python", sys.executable, str(VENV)], environment)
    _install_torch(uv, lock, environment)
    # Compiled here, once: a run starts ten processes that each import all of it, and where Python may not write its
    # bytecode (a read-only image, PYTHONDONTWRITEBYTECODE), each of them would compile all of it, every time.
    _run([uv, "pip", "sync", *_target(), *ALL_INDEXES, "--compile-bytecode", *_loudness(), str(lock)], environment)
    _run([uv, "pip", "install", *_target(), "--quiet", "--no-deps", "--editable", str(ROOT)], environment)
    unfinished = STAMP.with_suffix(".part")
    unfinished.write_text(json.dumps(wanted, indent=1))
    unfinished.replace(STAMP)
    print(f"The environment is ready: .venv, {backend}, {time.monotonic() - started:.0f} s.", flush=True)


def make_locks() -> None:
    """Remakes both locks from pyproject.toml; a pin that still fits stays (to renew one, delete its line before).

    The locks carry no hashes: torch's CPU build is one file on PyTorch's index and another on a mirror.
    """
    uv, environment = _uv(), _uv_environment()
    environment.pop("UV_INDEX", None)  # a mirror nearby may lack versions or builds that PyPI has
    for backend in ("cpu", "gpu"):
        path = LOCKS / f"{backend}.txt"
        unfinished = LOCKS / f".{backend}.txt"  # beside the lock, so that the last step is a rename
        shutil.copyfile(path, unfinished)
        command = [uv, "pip", "compile", "--quiet", "pyproject.toml", "--extra", backend, "--extra", "dev"]
        command += ["--python", sys.executable, "--python-version", "3.11"]
        command += ["--python-platform", "x86_64-manylinux_2_28", *ALL_INDEXES]
        command += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        command += ["--custom-compile-command", "make lock", "--output-file", str(unfinished)]
        torch = _torch_pin(path)
        if not _resolves(uv, torch, environment):
            command += ["--torch-backend", "cpu"]
        _run(command, environment)
        # Only torch itself comes from PyTorch's index (see _install_torch): the others are named as PyPI names them.
        pins = re.sub(r"(?m)^(?!torch==)(\S+==\S+)\+cpu$", r"\1", unfinished.read_text())
        unfinished.write_text(pins)
        unfinished.replace(path)


def _install_torch(uv: str, lock: Path, environment: dict[str, str]) -> None:
    """Installs torch's CPU build from PyTorch's own index, where this machine's indexes and find-links lack it.

    The rest of the lock then finds it installed. uv knows the index's address; it is asked for torch alone, so that
    every other package is the same file wherever the environment is made.
    """
    torch = _torch_pin(lock)
    if "+cpu" in torch and not _resolves(uv, torch, environment):
        from_pytorch = ["--torch-backend", "cpu", "--no-deps", torch]
        _run([uv, "pip", "install", *_target(), *_loudness(), *from_pytorch], environment)


def _torch_pin(lock: Path) -> str:
    found = re.search(r"(?m)^torch==\S+", lock.read_text())
    if found is None:
        sys.exit(f"{lock} pins no torch: restore it (git checkout {lock.relative_to(ROOT)}).")
    return found.group()


def _resolves(uv: str, requirement: str, environment: dict[str, str]) -> bool:
    """Whether this machine's own indexes and find-links have `requirement` for this Python."""
    command = [uv, "pip", "compile", "--no-deps", "--python", sys.executable, *ALL_INDEXES, "-"]
    asked = subprocess.run(command, env=environment, input=requirement, capture_output=True, text=True, check=False)
    return asked.returncode == 0


def _target() -> list[str]:
    return ["--python", str(VENV / "bin" / "python")]


def _loudness() -> list[str]:
    return [] if sys.stderr.isatty() else ["--quiet"]


def _stamp(backend: str, lock: Path) -> dict[str, str]:
    """What an installed environment depends on; the tools' settings in pyproject.toml are not among it."""
    import tomllib  # Python 3.11 has it; _refuse_other_machines has just made sure

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = json.dumps([pyproject["project"], pyproject["build-system"], pyproject["tool"]["hatch"]])
    return {
        "root": str(ROOT),
        "python": platform.python_version(),
        "backend": backend,
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        "project": hashlib.sha256(project.encode()).hexdigest(),
    }


def _present_stamp() -> dict[str, str] | None:
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except FileNotFoundError:
        return None
    return stamp


def _refuse_other_machines() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        sys.exit(
            f"pathor1 needs Python 3.11 or 3.12; {sys.executable} is {platform.python_version()}. "
            "Install Python 3.11, or name one: make env PYTHON=/path/to/python3.11"
        )
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit(
            f"The locked environments are for Linux on x86_64; this is {platform.system()} on {platform.machine()}. "
            "Use such a machine, a container or WSL."
        )


def _uv() -> str:
    """The uv on the PATH where it is new enough; else one of our own in `.uv`."""
    present = shutil.which("uv")
    if present and _uv_version(present) >= OLDEST_UV:
        return present
    own = OWN_UV / "bin" / "uv"
    if _uv_version(str(own)) < OLDEST_UV:
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(OWN_UV)], check=False)
        if made.returncode != 0:
            version = f"{sys.version_info[0]}.{sys.version_info[1]}"
            sys.exit(f"`python3 -m venv` does not work here: install python{version}-venv, or put uv on the PATH.")
        _run([str(OWN_UV / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(LOCKS / "uv.txt")], None)
    return str(own)


def _uv_version(uv: str) -> tuple[int, ...]:
    """(major, minor) of a uv that runs, (0, 0) where there is none."""
    try:
        answer = subprocess.run([uv, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    return tuple(int(number) for number in answer.split()[1].split(".")[:2])


def _uv_environment() -> dict[str, str]:
    """This process's environment, with pip's settings under uv's names; what is set for uv itself wins."""
    own_python = OWN_UV / "bin" / "python"
    python = str(own_python) if own_python.exists() else sys.executable
    # A Python without pip has no settings of pip: nothing is listed.
    command = [python, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections and option in UV_NAMES:
            name, separator = UV_NAMES[option]
            sections[section][name] = separator.join(ast.literal_eval(value).split())
    found = {**sections["global"], **sections["install"], **sections[":env:"]}
    return {"UV_PYTHON_DOWNLOADS": "never", **found, **os.environ}


def _run(command: list[str], environment: dict[str, str] | None) -> None:
    if subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"This failed, for the reason above: {' '.join(command)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["lock"]:
        _refuse_other_machines()
        make_locks()
    elif len(sys.argv) == 3 and sys.argv[1] == "install":
        install(sys.argv[2])
    else:
        sys.exit("Usage: environment.py install cpu|gpu, or environment.py lock")
