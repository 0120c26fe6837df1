"""A run's checkpoints: `checkpoints/step-000010/`, complete when, and only when, its manifest is there.

A checkpoint holds what training goes on from (weights, optimizer, random state, files of each rank), the weights again
in Hugging Face safetensors form under `huggingface/`, and the place in the stream of samples. The manifest is written
last, and has the size and the checksum of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pathor1 import files
from pathor1.data.row_groups import Fingerprint
from pathor1.data.stream import Cursor, SourceState, StreamState
from pathor1.errors import RunError
from pathor1.runs import RunFolder

MANIFEST = "manifest.json"
MODEL = "huggingface"  # the folder of its model
RECIPE = "recipe.toml"  # that of the run, so that a checkpoint is not taken for another run's
AT_ONCE = 4  # files that one process reads at a time for their checksums

_RANK = re.compile(r"_rank_(\d+)\.pt$")  # verl's files of one rank
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """What a file of a checkpoint has to be: its bytes, and their SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good a checkpoint is, more being better: the mean of a metric over the steps since the one before."""

    metric: str
    mean: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """An evaluation within the run: how many of the questions the weights behind `step` had right, 0 to 1.

    questions: a digest of which these were; two that differ in it cannot be compared.
    """

    step: int
    accuracy: float
    questions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    ranks: how many training processes wrote it. files: by their paths within it. score: None where no step since the
    checkpoint before had the metric. evaluations: all that the run has made until then, in order.
    """

    step: int
    stream: StreamState
    ranks: int
    files: Mapping[str, File]
    score: Score | None = None
    evaluations: tuple[Evaluated, ...] = ()


def folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:06d}"


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's folder, by its name; None for a folder of another name."""
    found = _STEP.fullmatch(path.name)
    return int(found.group(1)) if found else None


# ---------------------------------------------------------------------- files and their checksums


def contents(path: Path) -> list[str]:
    """The files of a folder, its manifest left out, by their sorted paths within it."""
    names = (file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return sorted(name for name in names if name != MANIFEST)


def shares(names: Sequence[str], ranks: int) -> list[list[str]]:
    """Which of the files each of `ranks` processes reads: its own, and of more ranks' than there are, every so many.

    What belongs to no rank is the first one's, which writes it.
    """
    parts: list[list[str]] = [[] for _ in range(ranks)]
    for name in names:
        found = _RANK.search(name)
        parts[int(found.group(1)) % ranks if found else 0].append(name)
    return parts


def describe(path: Path, names: Sequence[str], *, sync: bool = False) -> dict[str, File]:
    """Size and checksum of files in a folder. sync: after which they are on the disk, whatever becomes of the power.

    Raises OSError for a file that cannot be read.
    """

    def one(name: str) -> File:
        with (path / name).open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256")
            if sync:
                os.fsync(file.fileno())
            return File(size=file.tell(), sha256=checksum.hexdigest())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def verify(path: Path, wanted: Mapping[str, File]) -> None:
    """Raises RunError where a file is missing or is not what the manifest says, by its checksum."""
    _check_sizes(path, wanted)
    found = describe(path, list(wanted))
    for name, file in wanted.items():
        if found[name] != file:
            raise _damaged(path, name, "does not have the content that it was written with")


def _check_sizes(path: Path, wanted: Mapping[str, File]) -> None:
    for name, file in wanted.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            raise _damaged(path, name, "is missing") from None
        if size != file.size:
            raise _damaged(path, name, f"has {size} bytes and was written with {file.size}")


def _damaged(path: Path, name: str, problem: str) -> RunError:
    return RunError(f"{path / name}: {problem}; remove the folder {path} to resume from the checkpoint before it")


# ---------------------------------------------------------------------- manifests


def seal(path: Path, manifest: Manifest) -> None:
    """Makes a folder that holds everything a checkpoint: writes its manifest."""
    files.write(path / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")


def read(path: Path) -> Manifest:
    """The manifest of a checkpoint whose files are all there, with the sizes that they were written with.

    Raises RunError where there is no manifest, where it cannot be read, and for a file that is missing or of another
    size. Contents are not read: `verify` does that.
    """
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
        manifest = parse(text)
    except FileNotFoundError:
        raise RunError(f"{path}: not a complete checkpoint, it has no {MANIFEST}") from None
    except ValueError as error:
        raise RunError(f"{path / MANIFEST}: cannot be read ({error}); remove the folder to resume before it") from error
    _check_sizes(path, manifest.files)
    return manifest


def parse(text: str) -> Manifest:
    """A manifest's text. Raises ValueError where it is none."""
    try:
        values = json.loads(text)
        return Manifest(
            step=values["step"],
            stream=_stream(values["stream"]),
            ranks=values["ranks"],
            files={_within(name): File(**file) for name, file in values["files"].items()},
            score=None if values["score"] is None else Score(**values["score"]),
            evaluations=tuple(Evaluated(**each) for each in values["evaluations"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _within(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return name


def _stream(values: dict[str, Any]) -> StreamState:
    sources = tuple(
        SourceState(**{**source, "cursor": Cursor(**source["cursor"]), "data": Fingerprint(**source["data"])})
        for source in values["sources"]
    )
    return StreamState(seed=values["seed"], sources=sources)


# ---------------------------------------------------------------------- all checkpoints of a run


def complete(root: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    found = [path.parent for path in root.glob(f"step-*/{MANIFEST}")]
    return sorted(found, key=lambda path: (len(path.name), path.name))  # names grow longer from step 1,000,000 on


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    found = complete(root)
    return found[-1] if found else None


def model_of(where: str) -> str:
    """The model folder of a run, its last checkpoint, or of a checkpoint; what is neither is kept.

    Raises RunError for a run that has no checkpoint yet.
    """
    path = Path(where)
    if RunFolder(path).checkpoints.is_dir():
        last = latest(RunFolder(path).checkpoints)
        if last is None:
            raise RunError(f"{where}: a run without a checkpoint; wait for its first one")
        return str(last / MODEL)
    if (path / MODEL).is_dir():
        return str(path / MODEL)
    return where


def scores(root: Path) -> dict[int, Score | None]:
    """The score of each complete checkpoint by its step. One whose manifest cannot be read has none."""
    found: dict[int, Score | None] = {}
    for path in complete(root):
        step = step_of(path)
        if step is not None:
            try:
                found[step] = parse((path / MANIFEST).read_text(encoding="utf-8")).score
            except ValueError:
                found[step] = None
    return found


def score(metric: str, values: Sequence[float]) -> Score | None:
    """The score of a checkpoint: the mean of a metric's values, one a step; None without any."""
    return Score(metric=metric, mean=sum(values) / len(values), steps=len(values)) if values else None


def best(scored: Mapping[int, Score | None]) -> int | None:
    """The step with the highest score, the newest of equals; None where none has a score.

    Where `rl.best_by` has changed on the way, the metric of the newest counts.
    """
    known = {step: score for step, score in scored.items() if score is not None}
    if not known:
        return None
    metric = known[max(known)].metric
    return max((score.mean, step) for step, score in known.items() if score.metric == metric)[1]


def kept(scored: Mapping[int, Score | None], keep: int) -> set[int]:
    """The steps whose checkpoints stay: the newest `keep`, and the best."""
    top = best(scored)
    return {*sorted(scored)[-keep:], *(() if top is None else (top,))}


def prune(root: Path, keep: int, *, spare: Collection[int] = ()) -> None:
    """Removes all but the newest `keep` checkpoints, the best, and those of the steps in `spare`.

    The manifest goes first: a half-removed one is not one.
    """
    scored = scores(root)
    for step in scored.keys() - kept(scored, keep) - set(spare):
        path = folder(root, step)
        (path / MANIFEST).unlink()
        shutil.rmtree(path)


def remove_incomplete(root: Path) -> None:
    """Removes what a run that was stopped while saving or downloading has left behind."""
    for path in root.glob("step-*"):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path)
    for path in root.glob(".step-*"):  # as `files.replacing` names what is not whole yet
        shutil.rmtree(path)
