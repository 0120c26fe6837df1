"""Answers of a model to the questions that it has not answered yet: by engines, here or on Ray, or by a server.

One engine works in this process; several, and any on a cluster that is joined, are actors of Ray Data, one an
accelerator, which are handed questions as they finish others.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from pathor1.benchmark import BenchmarkRecipe, is_endpoint
from pathor1.errors import DataError, Fault, UserError
from pathor1.evaluation import endpoint
from pathor1.evaluation.answers import ANSWERS, Answer, Answers, Found
from pathor1.evaluation.engine import Engine, environment, set_environment
from pathor1.evaluation.progress import EVERY, Progress
from pathor1.evaluation.questions import Asked, Job
from pathor1.ray_cluster import check_resources, installed_accelerator, joins_a_cluster, ray_cluster
from pathor1.samples import SCHEMA, from_row, to_row

# An engine is given this many times the answers that it generates at a time: at the end of a batch it runs empty, and
# at its beginning all pictures of it are in memory, some 10 MB each.
BATCH = 2
# A served model's answers are written when there are so many, or some seconds have passed.
PART = 64

ASKED = pa.schema([pa.field("kind", pa.string()), *SCHEMA])
# One answer a row, or, in a row of its own, what in the input stops the evaluation.
ANSWERED = pa.schema(
    [pa.field("kind", pa.string()), *(field.with_nullable(True) for field in ANSWERS), pa.field("problem", pa.string())]
)


def generate(
    recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job], stores: Mapping[str, Answers], progress: Progress
) -> int:
    """Answers what the jobs leave to be answered, and writes it to the stores, by how it was asked, as it comes.

    model: a folder, a hub's name or a server's URL. Returns how many questions a server has not answered. Raises
    UserError for pictures, models and servers that cannot be used.
    """
    unanswered = 0
    by = _by_server if is_endpoint(model) else _by_engines
    with closing(by(recipe, model, jobs)) as batches:
        for batch in batches:
            by_kind: dict[str, list[Answer]] = defaultdict(list)
            for found in batch:
                if found is None:
                    unanswered += 1
                else:
                    by_kind[found.kind].append(found.answer)
            for kind, answers in by_kind.items():
                stores[kind].write(answers)
            progress.add(sum(len({answer.id for answer in answers}) for answers in by_kind.values()))
    return unanswered


def _by_engines(recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job]) -> Generator[Sequence[Found | None]]:
    set_environment(recipe)
    accelerator = installed_accelerator()
    engines = recipe.rollout.engines
    if not joins_a_cluster() and (engines or _engines_here(recipe, accelerator)) == 1:
        yield from _in_this_process(recipe, model, jobs, accelerator)
        return
    with ray_cluster(environment(recipe), log_to_driver=False):
        yield from _on_ray(recipe, model, jobs, accelerator)


def _engines_here(recipe: BenchmarkRecipe, accelerator: str) -> int:
    import torch

    return max(1, torch.cuda.device_count() // recipe.rollout.tensor_parallel) if accelerator == "gpu" else 1


def _in_this_process(
    recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job], accelerator: str
) -> Generator[list[Found]]:
    size = BATCH * recipe.rollout.max_sequences
    with Engine(model, recipe, accelerator) as engine:
        for batch in _batched(chain.from_iterable(job.read() for job in jobs), size):
            yield engine.answers(batch)


def _batched(windows: Iterable[list[Asked]], size: int) -> Iterator[list[Asked]]:
    """The questions of all windows, `size` at a time."""
    waiting: list[Asked] = []
    for window in windows:
        waiting += window
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting:
        yield waiting


def _on_ray(recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job], accelerator: str) -> Generator[list[Found]]:
    import ray

    from pathor1.data.block_source import handed_out

    try:
        with closing(handed_out(_pipeline(recipe, model, jobs, accelerator))) as tables:
            for table in tables:
                yield [found_in(row) for row in table.to_pylist()]
    except ray.exceptions.RayActorError as error:
        raise Fault(
            "an engine has died, as a rule for want of memory; what was answered is kept: give the same command again"
        ) from error


def _pipeline(recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job], accelerator: str) -> Any:
    """From jobs to rows of `ANSWERED` (a ray.data.Dataset, lazy). Raises RunError for more engines than fit."""
    import ray
    import ray.data

    from pathor1.data.block_source import dataset

    kind, each = accelerator.upper(), recipe.rollout.tensor_parallel if accelerator == "gpu" else 1
    there = int(ray.cluster_resources().get("GPU", 0)) // each if accelerator == "gpu" else 1
    engines = recipe.rollout.engines or max(1, there)
    check_resources(kind, engines * each, f"{engines} engines (rollout.engines x rollout.tensor_parallel)")
    questions = dataset([ReadJob(job) for job in jobs], name=f"questions_of_{recipe.name}", workers=max(2, engines))
    with warnings.catch_warnings():
        # Ray 2.64 will have another way to say max_restarts.
        warnings.simplefilter("ignore", DeprecationWarning)
        return questions.map_batches(
            AnswerBatch,
            fn_constructor_kwargs={"model": model, "recipe": recipe, "accelerator": accelerator},
            batch_size=BATCH * recipe.rollout.max_sequences,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=engines),
            num_cpus=1,
            num_gpus=each if accelerator == "gpu" else None,
            max_restarts=0,  # by itself Ray Data starts an engine that dies again, and asks it the same, without end
        )


def found_in(row: dict[str, Any]) -> Found:
    """A row of `ANSWERED`. Raises DataError where it is a problem."""
    kind, problem = row.pop("kind"), row.pop("problem")
    if problem is not None:
        raise DataError(problem)
    return Found(kind, Answer(**row))


@dataclass(frozen=True, slots=True)
class ReadJob:
    """The questions of a job as tables of `ASKED`: one of Ray Data's tasks."""

    job: Job

    def __call__(self) -> Iterator[pa.Table]:
        yield ASKED.empty_table()  # a task has to give a table, and a job may leave nothing to ask
        for window in self.job.read():
            rows = [{"kind": asked.kind, **to_row(asked.sample)} for asked in window]
            yield pa.Table.from_pylist(rows, schema=ASKED)


class AnswerBatch:
    """Rows of `ASKED` -> rows of `ANSWERED`: one of Ray Data's actors, with an engine of its own."""

    def __init__(self, model: str, recipe: BenchmarkRecipe, accelerator: str) -> None:
        set_environment(recipe)
        self.engine = Engine(model, recipe, accelerator)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = [Asked(kind=row.pop("kind"), sample=from_row(row)) for row in table.to_pylist()]
        try:
            rows = [{"kind": kind, **asdict(answer)} for kind, answer in self.engine.answers(batch)] if batch else []
        except DataError as error:  # Ray Data would hand it on as text, with advice on its own settings
            rows = [{"problem": str(error)}]
        return pa.Table.from_pylist(rows, schema=ANSWERED)


def _by_server(recipe: BenchmarkRecipe, model: str, jobs: Sequence[Job]) -> Generator[Sequence[Found | None]]:
    """None stands for a question that the server has not answered."""
    url, _, name = model.partition("#")
    client = endpoint.Client(url, name or None, recipe.endpoint)
    questions = (asked for job in jobs for window in job.read() for asked in window)
    found: list[Found | None] = []
    written = time.monotonic()
    with closing(
        endpoint.each(
            questions, lambda asked: endpoint.answers(client, asked, recipe), at_once=recipe.endpoint.concurrency
        )
    ) as done:
        try:
            for asked, answers in done:
                if isinstance(answers, endpoint.UnansweredError):
                    found.append(None)
                else:
                    found += [Found(asked.kind, answer) for answer in answers]
                if len(found) >= PART or time.monotonic() - written > EVERY:
                    yield found
                    found, written = [], time.monotonic()
        except UserError:
            yield found  # what was answered is not asked again
            raise
        yield found
