"""The packages that only some stages need, by their versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pathor1.errors import RunError


def versions(*names: str) -> dict[str, str]:
    """Package -> its version. Raises RunError where one is not installed, before anything of it is imported."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise RunError(f"{name} is not installed; install pathor1[curation]") from None
    return found
