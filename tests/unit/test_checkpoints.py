"""A checkpoint is one when, and only when, its manifest is there."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from pathor1 import checkpoints
from pathor1.checkpoints import MANIFEST, File, Manifest, Score
from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamState
from pathor1.errors import RunError


def manifest(step: int, path: Path | None = None, score: Score | None = None) -> Manifest:
    data = Fingerprint(files=2, rows=600, digest="0123456789abcdef")
    sources = tuple(
        SourceState(name=name, weight=1.5, cursor=Cursor(epoch=epoch, position=8 * step), given=700, data=data)
        for epoch, name in enumerate(("pathmmu", "quilt"))
    )
    written = {} if path is None else checkpoints.describe(path, checkpoints.contents(path), sync=True)
    return Manifest(step=step, stream=StreamState(seed=7, sources=sources), ranks=2, files=written, score=score)


def save(root: Path, step: int, *, sealed: bool = True, score: float | None = None, by: str = "reward/mean") -> Path:
    path = checkpoints.folder(root, step)
    (path / "actor").mkdir(parents=True)
    (path / "actor" / "rank_0.pt").write_bytes(b"weights")
    (path / "questions.parquet").write_bytes(b"")
    if sealed:
        scored = None if score is None else Score(metric=by, mean=score, steps=2)
        checkpoints.seal(path, manifest(step, path, scored))
    return path


def steps(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert path.name == "step-000012"
    assert checkpoints.read(path) == manifest(12, path)
    assert checkpoints.read(path).score is None
    assert checkpoints.read(path).stream.sources[1].cursor == Cursor(epoch=1, position=96)
    assert sorted(each.name for each in path.iterdir()) == ["actor", MANIFEST, "questions.parquet"]


def test_what_is_not_sealed_is_not_there(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    save(tmp_path, 5, sealed=False)
    assert checkpoints.latest(tmp_path) is None
    first, second = save(tmp_path, 2), save(tmp_path, 3)
    assert checkpoints.complete(tmp_path) == [first, second]
    assert checkpoints.latest(tmp_path) == second
    checkpoints.seal(checkpoints.folder(tmp_path, 5), manifest(5, checkpoints.folder(tmp_path, 5)))
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
        # Of before there were checksums, and one that would have files read from elsewhere.
        '{"step": 2, "stream": {"seed": 0, "sources": []}, "ranks": 1}',
        '{"step": 2, "stream": {"seed": 0, "sources": []}, "ranks": 1, "files": [], "score": null}',
        *(
            '{"step": 2, "stream": {"seed": 0, "sources": []}, "ranks": 1, "score": null, "evaluations": [], '
            f'"files": {{"{name}": {{"size": 1, "sha256": ""}}}}}}'
            for name in ("../x", "actor/../../x", "/etc/x")
        ),
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


# ---------------------------------------------------------------------- files and their checksums


def test_a_manifest_has_every_file_with_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    (path / "huggingface").mkdir()
    (path / "huggingface" / "config.json").write_text("{}")
    checkpoints.seal(path, manifest(2, path))
    expected = {  # as `sha256sum` says
        "actor/rank_0.pt": File(size=7, sha256=hashlib.sha256(b"weights").hexdigest()),
        "huggingface/config.json": File(size=2, sha256=hashlib.sha256(b"{}").hexdigest()),
        "questions.parquet": File(size=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    }
    assert checkpoints.read(path).files == expected
    checkpoints.verify(path, expected)


def test_a_file_that_is_missing_or_cut_is_named_when_the_manifest_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    file = path / "actor" / "rank_0.pt"
    what_to_do = f"; remove the folder {path} to resume from the checkpoint before it"
    file.write_bytes(b"weight")
    with pytest.raises(RunError) as caught:
        checkpoints.read(path)
    assert str(caught.value) == f"{file}: has 6 bytes and was written with 7{what_to_do}"
    file.unlink()
    with pytest.raises(RunError) as caught:
        checkpoints.read(path)
    assert str(caught.value) == f"{file}: is missing{what_to_do}"


def test_a_bit_that_has_flipped_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = save(tmp_path, 4)
    file = path / "actor" / "rank_0.pt"
    file.write_bytes(b"weighus")
    written = checkpoints.read(path).files
    checkpoints.verify(path, {"questions.parquet": written["questions.parquet"]})
    with pytest.raises(RunError) as caught:
        checkpoints.verify(path, written)
    assert str(caught.value).startswith(f"{file}: does not have the content that it was written with; remove ")
    assert "\n" not in str(caught.value)


def test_each_rank_reads_its_own_files_and_the_first_what_is_of_none() -> None:
    ranks = [f"actor/{kind}_world_size_3_rank_{rank}.pt" for rank in range(3) for kind in ("model", "optim")]
    others = ["actor/fsdp_config.json", "huggingface/model.safetensors"]
    assert checkpoints.shares([*ranks, *others], 3) == [[*ranks[:2], *others], ranks[2:4], ranks[4:6]]
    assert checkpoints.shares([*ranks, *others], 2) == [[*ranks[:2], *ranks[4:6], *others], ranks[2:4]]
    assert checkpoints.shares(ranks, 5) == [ranks[:2], ranks[2:4], ranks[4:6], [], []]


# ---------------------------------------------------------------------- the best


def test_the_best_stays_however_old_it_is(tmp_path: Path) -> None:
    for step, score in ((2, 0.3), (4, 0.6), (6, 0.5), (8, None), (10, 0.1)):
        save(tmp_path, step, score=score)
        checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000004", "step-000010"]
    save(tmp_path, 12, score=0.6)
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000012"], "of equals, the newest"


def test_scores_by_another_metric_are_not_compared(tmp_path: Path) -> None:
    save(tmp_path, 2, score=1.8, by="reward/mean")
    for step, score in ((4, 0.4), (6, 0.5), (8, 0.3)):
        save(tmp_path, step, score=score, by="reward/accuracy")
    assert checkpoints.best(checkpoints.scores(tmp_path)) == 6
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000006", "step-000008"]


def test_a_score_is_the_mean_of_the_steps_since_the_one_before() -> None:
    assert checkpoints.score("reward/mean", [0.5, 1.0, 0.0]) == Score(metric="reward/mean", mean=0.5, steps=3)
    assert checkpoints.score("reward/mean", []) is None
    assert checkpoints.best({2: None, 4: None}) is None


def test_a_manifest_that_cannot_be_read_stops_no_run_that_prunes(tmp_path: Path) -> None:
    save(tmp_path, 2, score=0.9)
    (save(tmp_path, 4, score=1.0) / MANIFEST).write_text("{")
    save(tmp_path, 6, score=0.1)
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000002", "step-000006"]


def test_what_is_spared_stays_until_it_is_not(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path, step)
    checkpoints.prune(tmp_path, 1, spare={2})
    assert steps(tmp_path) == ["step-000002", "step-000006"]
    checkpoints.prune(tmp_path, 1)
    assert steps(tmp_path) == ["step-000006"]


def test_half_a_download_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / ".step-000004.0a1b.part/actor").mkdir(parents=True)
    checkpoints.remove_incomplete(tmp_path)
    assert steps(tmp_path) == ["step-000002"]
