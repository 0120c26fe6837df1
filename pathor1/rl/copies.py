"""Copies of a run's checkpoints in an object store: `rl.checkpoint_store`/NAME/step-000010/, as on the disk.

A copy is complete when, and only when, its manifest is there, which is written last. What is kept is kept by the same
rule as on the disk. A run that starts where its folder is not, or is older, goes on from the store.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from pathor1 import checkpoints, files, places
from pathor1.checkpoints import MANIFEST, Score
from pathor1.errors import RunError
from pathor1.recipe import Recipe

MAY = "list, read, write and delete in"  # what a store has to allow
AT_ONCE = 4  # files that are copied at a time; a large one goes in parts, several at a time
PAUSES = (10.0,)  # seconds before a copy is tried again; the client of the store has tried each request four times


class CheckpointStore:
    """The checkpoints of a run in a store. Raises RunError, which names it, for whatever the store refuses."""

    def __init__(self, folder: str, run: str) -> None:
        self.uri = f"{folder.rstrip('/')}/{run}"

    @classmethod
    def of(cls, recipe: Recipe) -> CheckpointStore | None:
        """The recipe's store, where it names one."""
        folder = recipe.rl.checkpoint_store
        return None if folder is None else cls(folder, recipe.name)

    def probe(self) -> None:
        """Writes a small object and deletes it: what a checkpoint would fail at fails now."""
        with self._told() as (store, base):
            path = f"{base}/.probe-{uuid.uuid4().hex}"
            with store.open_output_stream(path) as stream:
                stream.write(b"pathor1 looks whether it may write here\n")
            store.delete_file(path)

    def scores(self) -> dict[int, Score | None]:
        """The score of each complete checkpoint by its step."""
        with self._told() as (store, base):
            return {step: self._manifest(step).score for step in self._steps(store, base, complete=True)}

    def upload(self, path: Path) -> None:
        """Copies a checkpoint of the disk: its files first, its manifest last."""
        manifest, step = checkpoints.read(path), path.name
        with self._told() as (store, base):
            there = {name: f"{base}/{step}/{name}" for name in manifest.files}

            def copy(name: str) -> None:
                fs.copy_files(
                    str(path / name),
                    there[name],
                    source_filesystem=fs.LocalFileSystem(),
                    destination_filesystem=store,
                )

            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(copy, manifest.files))
            for name, found in zip(there, store.get_file_info(list(there.values())), strict=True):
                if found.size != manifest.files[name].size:
                    raise RunError(f"{self.uri}/{step}/{name}: has {found.size} bytes after it was copied there")
            with store.open_output_stream(f"{base}/{step}/{MANIFEST}") as stream:
                stream.write((path / MANIFEST).read_bytes())

    def renew(self, path: Path) -> None:
        """Writes the manifest of a checkpoint again, which has learned something since, where there is a copy."""
        with self._told() as (store, base):
            place = f"{base}/{path.name}/{MANIFEST}"
            if store.get_file_info(place).type != fs.FileType.NotFound:
                with store.open_output_stream(place) as stream:
                    stream.write((path / MANIFEST).read_bytes())

    def fetch(self, step: int, name: str, to: Path) -> None:
        """Brings one file of a checkpoint to the disk, its contents unchecked."""
        with self._told() as (store, base):
            content = store.open_input_file(f"{base}/{checkpoints.folder(Path(), step)}/{name}").readall()
        files.write(to, content)

    def download(self, step: int, root: Path) -> Path:
        """Brings a checkpoint to the disk, whole or not at all. Raises RunError where it is damaged."""
        path = checkpoints.folder(root, step)
        manifest = self._manifest(step)
        with files.replacing(path) as part, self._told() as (store, base):

            def copy(name: str) -> None:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                fs.copy_files(
                    f"{base}/{path.name}/{name}",
                    str(part / name),
                    source_filesystem=store,
                    destination_filesystem=fs.LocalFileSystem(),
                )

            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(copy, manifest.files))
            for name, found in checkpoints.describe(part, list(manifest.files)).items():
                if found != manifest.files[name]:
                    raise RunError(
                        f"{self.uri}/{path.name}/{name}: does not have the content that it was written with; remove "
                        f"{self.uri}/{path.name} to resume from the checkpoint before it"
                    )
            checkpoints.seal(part, manifest)
        return path

    def prune(self, keep: int) -> None:
        """Removes what is not kept, and what was never whole."""
        scored = self.scores()
        self.remove(scored.keys() - checkpoints.kept(scored, keep))
        with self._told() as (store, base):
            for step in self._steps(store, base, complete=False):
                _delete(store, f"{base}/{checkpoints.folder(Path(), step)}")

    def remove(self, steps: Collection[int]) -> None:
        """Removes complete checkpoints. The manifest goes first: a half-removed one is not one."""
        with self._told() as (store, base):
            for step in steps:
                store.delete_file(f"{base}/{checkpoints.folder(Path(), step)}/{MANIFEST}")
                _delete(store, f"{base}/{checkpoints.folder(Path(), step)}")

    def _manifest(self, step: int) -> checkpoints.Manifest:
        name = f"{checkpoints.folder(Path(), step)}/{MANIFEST}"
        with self._told() as (store, base):
            try:
                return checkpoints.parse(store.open_input_file(f"{base}/{name}").readall().decode())
            except ValueError as error:
                raise RunError(
                    f"{self.uri}/{name}: cannot be read ({error}); remove its folder to resume before it"
                ) from error

    def _steps(self, store: fs.FileSystem, base: str, *, complete: bool) -> set[int]:
        """The steps whose folders hold files, with a manifest among them, or without."""
        found = store.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        names = [Path(entry.path).relative_to(base) for entry in found if entry.type == fs.FileType.File]
        steps = {name: checkpoints.step_of(Path(name.parts[0])) for name in names}
        whole = {step for name, step in steps.items() if name.name == MANIFEST and len(name.parts) == 2}
        found_steps = whole if complete else set(steps.values()) - whole
        return {step for step in found_steps if step is not None}

    @contextmanager
    def _told(self) -> Iterator[tuple[fs.FileSystem, str]]:
        try:
            yield places.located(self.uri)
        except (OSError, pa.ArrowException) as error:
            problem = places.store_problem(self.uri, error, what="used in", may=MAY)
            if problem is None:  # the disk's
                raise
            raise RunError(f"{self.uri}: {problem}") from error


def _delete(store: fs.FileSystem, folder: str) -> None:
    """Deletes a folder. What is not there is deleted: a request that is sent again may have done its work before."""
    for _ in range(2):  # the first such file ends the first attempt
        if store.get_file_info(folder).type != fs.FileType.NotFound:
            with suppress(FileNotFoundError):
                store.delete_dir(folder)


class Copies:
    """Prunes a run's checkpoints and copies them to its store, if it has one, while the run goes on."""

    def __init__(self, root: Path, keep: int, store: CheckpointStore | None) -> None:
        self.root = root
        self.keep = keep
        self.store = store
        self.failed = 0
        self._lock = threading.Lock()
        self._busy: set[int] = set()  # the step that is being copied: it stays on the disk so long
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-copies")
        self._jobs: list[Future[None]] = []

    def prune_and_copy(self) -> None:
        """There is a new checkpoint. Returns when what is not kept has gone from the disk; copies are made behind."""
        with self._lock:
            checkpoints.prune(self.root, self.keep, spare=self._busy)
        if self.store is not None:
            self._jobs.append(self._pool.submit(self._try, partial(self._copy, self.store)))

    def renew(self, path: Path) -> None:
        """The manifest of a checkpoint has been written again."""
        if self.store is not None:
            self._jobs.append(self._pool.submit(self._try, partial(self.store.renew, path)))

    def wait(self) -> None:
        """Waits until all is copied, or has failed and was reported."""
        if self.store is not None and not all(job.done() for job in self._jobs):
            print(f"waiting for the checkpoints on their way to {self.store.uri}", flush=True)
        self._pool.shutdown()
        for job in self._jobs:
            job.result()  # raises our own mistakes

    def metrics(self) -> dict[str, float]:
        """How many times copying has been given up so far; {} without a store."""
        return {} if self.store is None else {"checkpoints/copies_failed": float(self.failed)}

    def _try(self, copy: Callable[[], None]) -> None:
        for pause in (*PAUSES, None):
            try:
                return copy()
            except (RunError, OSError) as error:
                if pause is None:
                    self.failed += 1
                    print(
                        f"checkpoints are not copied: {error}; the run goes on, and tries again behind the next one",
                        flush=True,
                    )
                    return None
                time.sleep(pause)
        return None

    def _copy(self, store: CheckpointStore) -> None:
        """Copies all that is kept and not there yet, the newest first."""
        there = store.scores()
        while (step := self._next(there)) is not None:
            try:
                store.upload(checkpoints.folder(self.root, step))
            finally:
                self._busy = set()
            there = store.scores()
        with self._lock:  # what was spared until now
            checkpoints.prune(self.root, self.keep)
        store.prune(self.keep)

    def _next(self, there: dict[int, Score | None]) -> int | None:
        with self._lock:
            here = checkpoints.scores(self.root)
            step = max((checkpoints.kept(there | here, self.keep) & here.keys()) - there.keys(), default=None)
            self._busy = set() if step is None else {step}
        return step
