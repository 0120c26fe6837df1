"""The page of public sets is what the importers say of themselves."""

from __future__ import annotations

from pathlib import Path

from pathor1.data import formats
from pathor1.format_docs import render

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "run: python -m pathor1.format_docs docs/formats.md"


def test_every_importer_is_on_it() -> None:
    files = {path.stem for path in Path(formats.__file__).parent.glob("*.py") if "\nFORMAT = " in path.read_text()}
    assert files == set(formats.NAMES.values())
    assert all(f"## `{name}`" in render() for name in formats.NAMES)
