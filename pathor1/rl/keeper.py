"""A run's checkpoints as they come about: written behind a step, and sealed when the step's record is on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathor1 import checkpoints
from pathor1.data.stream import StreamState
from pathor1.recipe import Recipe
from pathor1.rl import carried, on_ranks
from pathor1.rl.copies import CheckpointStore, Copies
from pathor1.rl.evaluations import Evaluations
from pathor1.rl.groups import Pool
from pathor1.rl.questions import Questions
from pathor1.runs import RunFolder
from pathor1.samples import Sample

# A disk with fewer bytes free is full: torch writes in pieces, and gives up at the first that does not fit.
FULL = 16 << 20


class Keeper:
    """Those of one run. evaluations: what it has made so far, which a manifest has."""

    def __init__(self, recipe: Recipe, folder: RunFolder, evaluations: Evaluations) -> None:
        self.recipe = recipe
        self.folder = folder
        self.evaluations = evaluations
        self.copies = Copies(folder.checkpoints, recipe.rl.keep_checkpoints, CheckpointStore.of(recipe))
        self.unsealed: tuple[Path, checkpoints.Manifest] | None = None
        self.scores: list[float] = []  # of the steps since the last checkpoint, by rl.best_by

    def write(
        self,
        actor: Any,
        step: int,
        *,
        stream: StreamState,
        pool: Pool,
        asked: Mapping[int, Sample],
        questions: Questions,
    ) -> None:
        """Writes everything but the manifest, or nothing.

        actor: verl's worker group; stream: the place to go on from; asked: what is to be asked again. Raises OSError
        with ENOSPC where the disk is full, which torch has many words for, and none that says so.
        """
        path = checkpoints.folder(self.folder.checkpoints, step)
        try:
            written = on_ranks.save(actor, path, step)
            carried.save(path, pool, asked)
            questions.save(path)
            shutil.copyfile(self.folder.recipe, path / checkpoints.RECIPE)
            ours = [name for name in checkpoints.contents(path) if name not in written]
            written |= checkpoints.describe(path, ours, sync=True)
        except Exception as error:
            free = shutil.disk_usage(self.folder.path).free
            shutil.rmtree(path, ignore_errors=True)  # what is half written would keep it full
            if free < FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise
        manifest = checkpoints.Manifest(step=step, stream=stream, ranks=actor.world_size, files=written)
        self.unsealed = path, manifest  # sealed when the step's metrics are written too: neither is without the other

    def seal(self) -> None:
        """Makes what was written a checkpoint, copies it to the store, and removes older ones."""
        if self.unsealed is None:
            return
        self._seal_with_score(*self.unsealed)
        self.unsealed = None
        self.copies.prune_and_copy()

    def score(self, values: Mapping[str, float]) -> None:
        """Takes down a step's value of rl.best_by; an evaluation is of the weights of its own step alone."""
        metric = self.recipe.rl.best_by
        if metric == "evaluation/accuracy":
            self.scores = []
        if metric in values:
            self.scores.append(values[metric])

    def add_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """The checkpoint of a step learns of an evaluation that was made behind it."""
        self.score(values)
        path = checkpoints.folder(self.folder.checkpoints, step)
        self._seal_with_score(path, checkpoints.read(path))
        self.copies.renew(path)

    def _seal_with_score(self, path: Path, manifest: checkpoints.Manifest) -> None:
        score = checkpoints.score(self.recipe.rl.best_by, self.scores) or manifest.score
        checkpoints.seal(path, replace(manifest, score=score, evaluations=tuple(self.evaluations.done)))
        self.scores = []
