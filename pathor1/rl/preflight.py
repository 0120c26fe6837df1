"""Would this run fit? Asked before any accelerator is taken: of files' footers, a sample of rows, and this machine.

Lengths are measured on rows from all over the data; memory and disk are estimates (see `memory`). What this machine
cannot know, such as the GPUs of a cluster it only submits to, is printed as what the run needs, without a verdict.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pathor1 import checkpoints, places
from pathor1.data import prompt_length
from pathor1.data.images import decode
from pathor1.data.row_groups import RowGroup
from pathor1.data.stream import Source
from pathor1.errors import DataError, RunError
from pathor1.model import check
from pathor1.recipe import Recipe
from pathor1.rl import memory
from pathor1.rl.algorithms import resolve
from pathor1.runs import RunFolder
from pathor1.samples import COLUMNS, Sample, from_row

# Rows whose prompts are measured, from this many row groups at most.
ROWS = 512
GROUPS = 32
# Ids that are named of those that overflow.
NAMED = 5

Verdict = Literal["ok", "warning", "fails", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing that was looked at: what the run needs, what there is, and what to do where that is too little."""

    what: str
    needs: str
    has: str
    verdict: Verdict
    advice: str = ""


def look(recipe: Recipe, sources: Sequence[Source], *, accelerator: str) -> list[Line]:
    """Everything that can be known beforehand.

    `recipe` has absolute paths and a model that was checked; sources: of data.train; accelerator: "cpu" or "gpu".
    Raises UserError for data or weights that cannot be read.
    """
    size = check.size(recipe.model.path)
    lines = list(_lengths(recipe, [group for source in sources for group in source.groups]))
    lines.append(_epochs(recipe, sources))
    if size is None:
        unknown = "not here; its size is not known before it is downloaded"
        return [*lines, Line(what="model", needs=recipe.model.path, has=unknown, verdict="unknown")]
    lines += [_accelerator(recipe, size), _key_value(recipe, size)] if accelerator == "gpu" else [_host(recipe, size)]
    return [*lines, _disk(recipe, size)]


def table(lines: Sequence[Line]) -> str:
    """The lines as text: what, needs, has, verdict, and below what to do."""
    rows = [("", "the run needs", "there is", ""), *((line.what, line.needs, line.has, line.verdict) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*text, *(f"{line.what}: {line.advice}" for line in lines if line.advice)])


def refuse_what_cannot_fit(recipe: Recipe, sources: Sequence[Source], *, accelerator: str) -> None:
    """Prints what is amiss. Raises RunError where the run cannot fit, UserError as `look` does."""
    lines = look(recipe, sources, accelerator=accelerator)
    amiss = [line for line in lines if line.advice]
    if amiss:
        print(table(lines), flush=True)
    failing = [line for line in lines if line.verdict == "fails"]
    if failing:
        first = failing[0]
        raise RunError(f"the run cannot fit: {first.what}: needs {first.needs}, has {first.has}; {first.advice}")


def _lengths(recipe: Recipe, groups: Sequence[RowGroup]) -> Iterator[Line]:
    data = recipe.data
    try:
        processor = _processor(recipe.model.path)
    except OSError:
        yield Line(what="prompt tokens", needs="the model's processor", has="not here", verdict="unknown")
        return
    tokens: list[int] = []
    pictures: list[int] = []
    over: list[str] = []
    for sample in sampled(groups, data.tasks):
        try:
            problem = sample.problem()
            if problem:
                raise DataError(problem)
            sizes = [decode(one, min_pixels=data.min_pixels, max_pixels=data.max_pixels).size for one in sample.images]
        except DataError:
            continue  # `pathor1 data check` tells of these; the run leaves them out
        tokens.append(prompt_length.prompt_tokens(sample, sizes, processor, data.system_prompt))
        pictures.append(prompt_length.image_tokens(sizes, processor))
        if tokens[-1] > data.max_prompt_tokens:
            over.append(sample.id)
    if not tokens:
        raise DataError("none of the training samples that were looked at can be used; see `pathor1 data check`")
    share = len(over) / len(tokens)
    named = ", ".join(over[:NAMED])
    advice = (
        f"{share:.1%} of {len(tokens)} samples overflow, such as {named}; raise data.max_prompt_tokens or lower "
        "data.max_pixels"
    )
    verdict: Verdict = "fails" if share > data.max_bad_fraction else "warning" if over else "ok"
    yield Line(
        what="prompt tokens",
        needs=f"at most {max(tokens):,}, 99 % below {int(np.percentile(tokens, 99)):,}",
        has=f"data.max_prompt_tokens = {data.max_prompt_tokens:,}",
        verdict=verdict,
        advice=advice if over else "",
    )
    yield Line(
        what="image tokens",
        needs=f"at most {max(pictures):,}, 99 % below {int(np.percentile(pictures, 99)):,}",
        has=f"data.max_pixels = {data.max_pixels:,}",
        verdict="ok",
    )


def _processor(model: str) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model)


def sampled(groups: Sequence[RowGroup], tasks: Sequence[str]) -> Iterator[Sample]:
    """The first rows of row groups from all over the files."""
    chosen = np.unique(np.linspace(0, len(groups) - 1, min(GROUPS, len(groups))).astype(int))
    each = -(-ROWS // len(chosen))
    for index in chosen.tolist():
        group = groups[index]
        batches = places.batches(group.file, group=group.index, size=each, columns=COLUMNS)
        for row in next(batches).to_pylist() if group.rows else ():
            if row["task"] in tasks:
                try:
                    yield from_row(row)
                except DataError:
                    continue


def _epochs(recipe: Recipe, sources: Sequence[Source]) -> Line:
    asked = recipe.rl.steps * recipe.rl.prompts_per_step
    weights = sum(source.weight for source in sources)
    epochs = {each.name: asked * each.weight / weights / each.rows for each in sources}
    told = ", ".join(f"{name} {count:.2f}" for name, count in epochs.items()) if len(epochs) > 1 else None
    return Line(
        what="questions",
        needs=f"{asked:,} ({recipe.rl.steps:,} steps of {recipe.rl.prompts_per_step:,})",
        has=f"{sum(each.rows for each in sources):,} rows: {told or f'{sum(epochs.values()):.2f}'} epochs",
        verdict="ok",
    )


def _host(recipe: Recipe, size: check.Size) -> Line:
    rank = memory.of_rank(size, recipe, with_reference=resolve(recipe.rl).kl_coefficient > 0)
    ranks = recipe.cluster.accelerators_per_node
    engines = recipe.cluster.rollout_accelerators or ranks
    processes = memory.OTHER_PROCESSES + ranks + engines + recipe.data.workers
    engine = rank.engine + (recipe.rollout.cpu_kv_cache_gb << 30)
    needed = ranks * rank.training + engines * engine + processes * memory.PROCESS
    available = free_memory()
    return Line(
        what="memory of a node",
        needs=_gb(needed),
        has=f"{_gb(available)} free on this machine",
        verdict="ok" if needed <= available else "fails",
        advice="" if needed <= available else "fewer cluster.accelerators_per_node, or lower rl.max_tokens_per_update",
    )


def free_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine, or the container that this process is in, can still give."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return free
    if limit == "max":
        return free
    # Files that were read count as used, and are given back when memory is asked for.
    return min(free, max(int(limit) - int(used) + int(stat.get("inactive_file", 0)), 0))


def _accelerator(recipe: Recipe, size: check.Size) -> Line:
    rank = memory.of_rank(size, recipe, with_reference=resolve(recipe.rl).kl_coefficient > 0)
    needed, total = max(rank.training, rank.generating), _gpu_memory()
    parts = f"{_gb(needed)} (training {_gb(rank.training)}, generating {_gb(rank.generating)})"
    if total is None:
        return Line(what="memory of a GPU", needs=parts, has="no GPU on this machine", verdict="unknown")
    advice = "more GPUs share the weights; rl.max_tokens_per_update sets the activations' part"
    fits = needed <= total
    return Line(
        what="memory of a GPU",
        needs=parts,
        has=_gb(total),
        verdict="ok" if fits else "fails",
        advice="" if fits else advice,
    )


def _key_value(recipe: Recipe, size: check.Size) -> Line:
    rank = memory.of_rank(size, recipe, with_reference=False)
    total = _gpu_memory()
    needs = f"{_gb(rank.key_value)} for one answer of full length"
    if total is None:
        return Line(what="vLLM's KV cache", needs=needs, has="no GPU on this machine", verdict="unknown")
    room = int(total * recipe.rollout.memory_fraction) - rank.engine
    fits = room >= rank.key_value
    return Line(
        what="vLLM's KV cache",
        needs=needs,
        has=f"{_gb(max(room, 0))}: {max(room, 0) // rank.key_value} such answers at a time",
        verdict="ok" if fits else "fails",
        advice="" if fits else "raise rollout.memory_fraction or rollout.tensor_parallel",
    )


def _gpu_memory() -> int | None:
    """Bytes of this machine's first GPU; None without one."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _disk(recipe: Recipe, size: check.Size) -> Line:
    one = memory.of_checkpoint(size)
    folder = Path(recipe.runs_dir)
    # The newest, the best, and one more: an old one goes only when the new one is whole. Some may be there already.
    there = len(checkpoints.complete(RunFolder(folder / recipe.name).checkpoints))
    more = max(recipe.rl.keep_checkpoints + 2 - there, 1)
    needed = one * more
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    fits = needed <= free
    return Line(
        what="disk",
        needs=f"{_gb(needed)} ({more} checkpoints of {_gb(one)})",
        has=f"{_gb(free)} free under {folder}",
        verdict="ok" if fits else "fails",
        advice="" if fits else "free some space, set runs_dir to another disk, or lower rl.keep_checkpoints",
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
