"""A checkpoint is one when, and only when, its manifest is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamState
from pathor1.errors import RunError
from pathor1.rl import checkpoints
from pathor1.rl.checkpoints import MANIFEST, Manifest


def manifest(step: int, *, ranks: int = 2) -> Manifest:
    data = Fingerprint(files=2, rows=600, digest="0123456789abcdef")
    sources = tuple(
        SourceState(name=name, weight=1.5, cursor=Cursor(epoch=epoch, position=8 * step), given=700, data=data)
        for epoch, name in enumerate(("pathmmu", "quilt"))
    )
    return Manifest(step=step, stream=StreamState(seed=7, sources=sources), ranks=ranks)


def save(root: Path, step: int, *, sealed: bool = True) -> Path:
    path = checkpoints.folder(root, step)
    (path / "actor").mkdir(parents=True)
    (path / "actor" / "rank_0.pt").write_bytes(b"weights")
    if sealed:
        checkpoints.seal(path, manifest(step))
    return path


def steps(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-000012"
    assert checkpoints.read(path) == manifest(12)
    assert checkpoints.read(path).stream.sources[1].cursor == Cursor(epoch=1, position=96)
    assert sorted(each.name for each in path.iterdir()) == ["actor", MANIFEST]


def test_what_is_not_sealed_is_not_there(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    save(tmp_path, 5, sealed=False)
    assert checkpoints.latest(tmp_path) is None
    first, second = save(tmp_path, 2), save(tmp_path, 3)
    assert checkpoints.complete(tmp_path) == [first, second]
    assert checkpoints.latest(tmp_path) == second
    checkpoints.seal(checkpoints.folder(tmp_path, 5), manifest(5))
    assert checkpoints.latest(tmp_path) == checkpoints.folder(tmp_path, 5)


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoints.complete(tmp_path / "none") == []
    assert checkpoints.latest(tmp_path / "none") is None
    checkpoints.remove_incomplete(tmp_path / "none")


def test_the_newest_has_the_largest_step_and_not_the_last_name_in_the_alphabet(tmp_path: Path) -> None:
    for step in (9, 100, 999_999, 1_000_000, 20):
        save(tmp_path, step)
    assert [checkpoints.read(path).step for path in checkpoints.complete(tmp_path)] == [9, 20, 100, 999_999, 1_000_000]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, 5)
    assert len(steps(tmp_path)) == 4
    checkpoints.prune(tmp_path, 2)
    assert steps(tmp_path) == ["step-000006", "step-000008"]
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000008"]


def test_prune_leaves_alone_what_is_being_saved(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)
    save(tmp_path, 6, sealed=False)
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000004", "step-000006"]


def test_a_checkpoint_that_is_half_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4)

    def killed(path: Path) -> None:
        (path / "actor" / "rank_0.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.prune(tmp_path, 1)
    assert checkpoints.complete(tmp_path) == [checkpoints.folder(tmp_path, 4)]
    checkpoints.remove_incomplete(tmp_path)
    assert steps(tmp_path) == ["step-000004"]


def test_what_is_incomplete_is_removed_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save(tmp_path, 4, sealed=False)
    (tmp_path / "notes").mkdir()
    checkpoints.remove_incomplete(tmp_path)
    assert steps(tmp_path) == ["notes", "step-000002"]
    assert (checkpoints.folder(tmp_path, 2) / "actor" / "rank_0.pt").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"step": 2, "cur',
        "[1]",
        "null",
        "{}",
        '{"step": 2, "cursor": {"epoch": 0, "position": 1}}',
        '{"step": 2, "cursor": {"epoch": 0, "place": 1}, "ranks": 1}',
        '{"step": 2, "cursor": [0, 1], "ranks": 1}',
        "\udcff",
    ],
)
def test_a_broken_manifest_is_one_line_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 2)
    (path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError) as caught:
        checkpoints.read(path)
    line = str(caught.value)
    assert line.startswith(f"{path / MANIFEST}: cannot be read (")
    assert line.endswith("; remove the folder to resume before it")
    assert "\n" not in line


def test_no_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 2, sealed=False)
    with pytest.raises(RunError, match=f"^{path}: not a complete checkpoint, it has no manifest.json$"):
        checkpoints.read(path)
