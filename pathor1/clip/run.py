"""Starts and ends contrastive training: the recipe in, checkpoints out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.alive import alone
from pathor1.clip import leaks, models, starts, worker
from pathor1.clip.encode import EncodePairs, PairRow, Pairs, split
from pathor1.clip.models import Found
from pathor1.contrastive import ANY_SIZE, ClipRecipe
from pathor1.data.dealer import Deal, ReadEncoded
from pathor1.data.stream import Reading, Source
from pathor1.fork_server import RAYS_ACTORS
from pathor1.ray_cluster import choose_accelerator
from pathor1.ray_train import Training, run
from pathor1.recipe import to_toml
from pathor1.runs import RunFolder

# What the processes of a run on the CPU import: none of the first imports Ray, see `pathor1.fork_server`.
EARLY = ("torch", "open_clip")
LATE = (RAYS_ACTORS, "ray.data", "ray.train.torch", "pathor1.clip.worker")


def train(recipe: ClipRecipe) -> RunFolder:
    """Runs the stages of a recipe, and returns the run's folder.

    `recipe` has absolute paths (`pathor1.storage.absolute_clip`). A run whose folder holds a checkpoint goes on behind
    it, with any number of workers. Joins the Ray cluster of `RAY_ADDRESS` (in a Ray job: its own) or starts one for
    itself. Raises UserError for whatever in the input makes it impossible, and SystemExit after SIGTERM, when there is
    a checkpoint.
    """
    folder = RunFolder(Path(recipe.runs_dir) / recipe.name)
    with alone(folder.path):
        begun, sources = starts.check(recipe)
        if begun >= recipe.steps:
            print(f"{recipe.name}: has done its {recipe.steps} steps already, in {folder.path}", flush=True)
            return folder
        left_out = leaks.listed(recipe.data.left_out)
        gpu = choose_accelerator(recipe) == "gpu"
        found = models.find(recipe.model)
        RunFolder.create(recipe.runs_dir, recipe.name)
        text = to_toml(recipe)
        files.write(folder.recipe, text)
        job = worker.ClipJob(
            name=recipe.name,
            text=text,
            gpu=gpu,
            steps=recipe.steps,
            seed=recipe.seed,
            max_bad_fraction=recipe.data.max_bad_fraction,
            metrics=folder.metrics,
            tensorboard=folder.tensorboard,
            trackers=recipe.trackers,
            checkpoints=folder.checkpoints,
            stop=folder.path / ".stop",
            refused=folder.path / ".refused",
            recipe=recipe,
            model=found,
            deals=_deals(recipe, folder, found, sources, left_out),
        )
        training = Training(
            kind="clip",
            what=found.name,
            function=worker.run,
            early=EARLY,
            late=LATE,
            state=folder.path / ".ray_train",
            out=folder.checkpoints,
            says=_says,
        )
        run(job, training, recipe.cluster, workers=recipe.workers, begun=begun)
    return folder


def _deals(
    recipe: ClipRecipe, folder: RunFolder, model: Found, sources: Sequence[Sequence[Source]], left_out: frozenset[str]
) -> list[Deal[PairRow, Pairs]]:
    """What each stage's steps are dealt from. sources: of each; left_out: ids of samples that are not trained on."""
    encode = EncodePairs(model=model, crop=recipe.data.crop, seed=recipe.seed, left_out=left_out)
    read = ReadEncoded(encode=encode, row=PairRow, told=("full",))
    reading = Reading(
        tasks=("caption",),
        min_pixels=1,
        max_pixels=ANY_SIZE,
        shuffle=recipe.data.shuffle,
        workers=recipe.data.workers,
        encoded=True,
    )
    return [
        Deal(
            sources=of_stage,
            reading=reading,
            read=read,
            split=split,
            seed=recipe.seed,
            batch_size=stage.batch_size,
            steps=stage.steps,
            left_out=folder.path / f"left_out_stage_{number}.jsonl",
            max_bad_fraction=recipe.data.max_bad_fraction,
        )
        for number, (stage, of_stage) in enumerate(zip(recipe.stages, sources, strict=True), start=1)
    ]


def _says(row: dict[str, Any]) -> str:
    return (
        f"stage {row['stage']:.0f}  loss {row['loss']:.4f}  learning rate {row['learning_rate']:.1e}  "
        f"{row['pairs_per_second']:.0f} pairs/s"
    )
