"""What is written through `replacing` appears whole or not at all, and nothing is left beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pathor1.files import replacing, write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, **content: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("content", "data"), [("größer\n", b"gr\xc3\xb6\xc3\x9fer\n"), (b"\x00\xff", b"\x00\xff")])
def test_text_is_utf8_and_bytes_are_bytes(tmp_path: Path, content: str | bytes, data: bytes) -> None:
    write(tmp_path / "new" / "deep" / "a.txt", content)
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == data
    assert names(tmp_path / "new" / "deep") == ["a.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        assert part.parent == path.parent  # on the same disk, or it could not take the place at once
        part.write_text("half of the n")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(target: Path) -> None:
        with replacing(target) as part:
            part.write_text("half")
            raise error

    with pytest.raises(error):
        fail(path)
    with pytest.raises(error):
        fail(tmp_path / "never")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_a_folder_whole(tmp_path: Path) -> None:
    fill(tmp_path / "model", config="old", extra="old")
    with replacing(tmp_path / "model") as part:
        fill(part, config="new")
        fill(part / "deep", weights="new")
        assert names(tmp_path / "model") == ["config", "extra"]
    assert names(tmp_path / "model") == ["config", "deep"]
    assert (tmp_path / "model" / "config").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_folder_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path / "model", config="old")

    def fail() -> None:
        with replacing(tmp_path / "model") as part:
            fill(part / "deep", weights="half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config").read_text() == "old"


def test_the_old_folder_is_removed_only_when_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a model takes seconds: a run killed meanwhile must not leave half of the old one in its place."""
    fill(tmp_path / "model", config="old")
    seen: list[str] = []
    remove = shutil.rmtree

    def look(path: Path) -> None:
        seen.append((tmp_path / "model" / "config").read_text())
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", look)
    with replacing(tmp_path / "model") as part:
        fill(part, config="new")
    assert seen == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_new_folder_that_cannot_take_the_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "model", config="old")

    def refuse(source: Path, target: Path) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "model") as part:
        fill(part, config="new")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "config").read_text() == "old"


def test_a_link_to_a_folder_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    fill(tmp_path / "disk", config="old")
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with replacing(tmp_path / "model") as part:
        fill(part, config="new")
    assert (tmp_path / "model" / "config").read_text() == "new"
    assert (tmp_path / "disk" / "config").read_text() == "old"
    assert names(tmp_path) == ["disk", "model"]


def test_a_file_does_not_take_the_place_of_a_folder_nor_the_other_way_round(tmp_path: Path) -> None:
    fill(tmp_path / "folder", config="old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "folder", "new")
    with pytest.raises(NotADirectoryError), replacing(tmp_path / "file") as part:
        fill(part, config="new")
    assert (tmp_path / "folder" / "config").read_text() == "old"
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]
