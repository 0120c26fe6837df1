"""Evaluates models on a benchmark's questions: greedily, sampled, and under the checks that a model looks.

What a model answered is on disk as it comes, so that an evaluation that was stopped goes on where it was, and one that
is asked for again with more models, or other tables, asks nothing twice.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1 import files
from pathor1.benchmark import BenchmarkRecipe, is_endpoint
from pathor1.data.row_groups import expand, fingerprint, row_groups
from pathor1.errors import RecipeError, RunError
from pathor1.evaluation import measures
from pathor1.evaluation.answers import Answer, Answers, slug, weights
from pathor1.evaluation.generate import generate
from pathor1.evaluation.judge import Verdict, judge, judged
from pathor1.evaluation.judge_prompts import PROMPT_VERSION
from pathor1.evaluation.progress import Progress
from pathor1.evaluation.questions import Job, Listing, listing, value
from pathor1.model.check import check as check_model
from pathor1.prompts import SYSTEM_PROMPTS
from pathor1.runs import RunFolder
from pathor1.samples import Sample

Results = dict[str, Any]
# Tasks whose answers can be compared; those to open questions are judged, in these ways of asking.
CLOSED = ("mcq", "yes_no")
JUDGED_KINDS = ("greedy", "removed_pictures", "shuffled_pictures")
QUESTIONS = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False, metadata={"doc": "the right answer"}),
        pa.field("right", pa.float64(), nullable=False, metadata={"doc": "1 or 0: greedily, by the reward's rule"}),
    ]
)


def evaluate(recipe: BenchmarkRecipe, *, file: str = "held_out.json") -> Results:
    """Evaluates the recipe's models, which are folders, hub's names or servers, and writes `eval/FILE` in its folder.

    Beside it lies a Parquet file of the same name, which has each question.

    Returns what is written: {measure: {model: {column: {"value", "low", "high", "n"}}}} with 95 % intervals, the
    measures being those of `measures.worth` and `judge.judged`; "overall", the same without columns; "by", the same by
    each of `evaluation.by`; "pairs", each two models on the same questions; "chance" and "columns", the share that
    guessing gets right and the number of questions. Raises UserError for data, models or servers that cannot be used.
    """
    if not recipe.models:
        raise RecipeError("no model to evaluate; add a table [models], or --model NAME=PATH")
    paths = expand(recipe.data.test)
    groups = row_groups(paths)
    questions = listing(paths, tasks=recipe.data.tasks, where=recipe.benchmark.where, first=recipe.evaluation.samples)
    for where in recipe.models.values():
        if not is_endpoint(where):
            check_model(where)
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    data = fingerprint(groups).digest
    answers = {name: _answers(recipe, name, questions, folder.evaluation, data) for name in recipe.models}
    verdicts = {name: _verdicts(recipe, name, questions, answers[name], folder.evaluation) for name in recipe.models}
    results = summarize(recipe, questions.samples, answers, verdicts)
    files.write(folder.evaluation / file, json.dumps(results, indent=2) + "\n")
    _write_questions(folder.evaluation / file, recipe, questions.samples, answers, verdicts)
    return results


def _write_questions(
    file: Path,
    recipe: BenchmarkRecipe,
    samples: Sequence[Sample],
    answers: Mapping[str, Mapping[str, Mapping[str, list[Answer]]]],
    verdicts: Mapping[str, Mapping[str, Mapping[str, Verdict]]],
) -> None:
    """Which model was right on which question, beside the results, for whoever compares with another evaluation."""
    rows: list[dict[str, Any]] = []
    for name in recipe.models:
        worth = measures.worth(samples, {"greedy": answers[name]["greedy"]}, seed=recipe.seed)
        right = _right(worth, verdicts[name])
        rows += [
            {"model": name, "source": one.source, "id": one.id, "answer": one.answer, "right": right[one.id]}
            for one in samples
            if one.id in right
        ]
    with files.replacing(file.with_suffix(".parquet")) as part:
        pq.write_table(pa.Table.from_pylist(rows, schema=QUESTIONS), part, compression="zstd")


def kinds(recipe: BenchmarkRecipe) -> list[str]:
    """The ways in which the recipe asks each question."""
    sampled = ["sampled"] if recipe.evaluation.sampled_answers and set(recipe.data.tasks) & set(CLOSED) else []
    return ["greedy", *sampled, *dict.fromkeys(recipe.evaluation.checks)]


def _tasks(recipe: BenchmarkRecipe, kind: str) -> tuple[str, ...]:
    """Which tasks are asked so: open questions greedily, and under the checks where somebody judges the answers."""
    if kind == "greedy" or (kind in JUDGED_KINDS and recipe.judge is not None):
        return tuple(recipe.data.tasks)
    return tuple(task for task in recipe.data.tasks if task in CLOSED)


def _answers(
    recipe: BenchmarkRecipe, name: str, questions: Listing, folder: Path, data: str
) -> dict[str, dict[str, list[Answer]]]:
    """A model's answers by how they were asked and by question: those on disk, and the rest, which it is asked for."""
    model, started = recipe.models[name], time.monotonic()
    stores = {
        kind: Answers(
            folder / "answers" / slug(name) / kind,
            _settings(recipe, model, kind, questions, data),
            each=recipe.evaluation.sampled_answers if kind == "sampled" else 1,
        )
        for kind in kinds(recipe)
    }
    waiting = {kind: store for kind, store in stores.items() if not store.is_complete(questions.digest)}
    jobs: list[Job] = []
    total = 0
    for kind, store in waiting.items():
        answered, tasks = store.read().keys(), _tasks(recipe, kind)
        for unit in questions.units:
            ids = {one.id for one in unit.questions if one.task in tasks}
            job = Job(kind=kind, unit=unit, tasks=tasks, answered=frozenset(ids & answered), seed=recipe.seed)
            if len(job.answered) < len(ids):
                total += len(ids) - len(job.answered)
                jobs.append(job)
    if jobs:
        unanswered = generate(recipe, model, jobs, waiting, Progress(name, total=total, what="questions"))
        if unanswered:
            raise RunError(
                f"{model} has not answered {unanswered} of {total} questions; the same command asks for those alone"
            )
        print(f"{name}: {model} answered in {time.monotonic() - started:.0f} s", flush=True)
    for store in waiting.values():
        store.complete(questions.digest)
    return {kind: store.read() for kind, store in stores.items()}


def _settings(recipe: BenchmarkRecipe, model: str, kind: str, questions: Listing, data: str) -> dict[str, Any]:
    """All that an answer hangs on: answers that were given under other settings are other answers."""
    asked = recipe.data
    found: dict[str, Any] = {
        "model": model,
        "weights": [] if is_endpoint(model) else weights(model),
        "kind": kind,
        "data": data,
        "system_prompt": SYSTEM_PROMPTS[asked.system_prompt],
        "pixels": [asked.min_pixels, asked.max_pixels],
        "max_new_tokens": recipe.max_new_tokens,
        "dtype": recipe.rollout.dtype,
    }
    if kind == "sampled":
        evaluation = recipe.evaluation
        found |= {"answers": evaluation.sampled_answers, "temperature": evaluation.temperature, "seed": recipe.seed}
    if kind in ("shuffled_pictures", "shuffled_options"):
        found |= {"seed": recipe.seed}
    if kind == "shuffled_pictures":
        found |= {"questions": questions.digest}  # among which pictures are exchanged
    return found


def _verdicts(
    recipe: BenchmarkRecipe,
    name: str,
    questions: Listing,
    answers: Mapping[str, Mapping[str, list[Answer]]],
    folder: Path,
) -> dict[str, dict[str, Verdict]]:
    """The judge's verdicts by how the questions were asked and by question; none where the recipe has no judge."""
    if recipe.judge is None:
        return {}
    found: dict[str, dict[str, Verdict]] = {}
    for kind in [kind for kind in JUDGED_KINDS if kind in answers]:
        asked = [
            (sample, answers[kind][sample.id][0])
            for sample in questions.samples
            if sample.task == "open" and sample.id in answers[kind]
        ]
        place = folder / "verdicts" / slug(name) / kind
        found[kind] = judge(recipe.judge, asked, place, name=f"{name}, {kind.replace('_', ' ')}")
    return found


def summarize(
    recipe: BenchmarkRecipe,
    samples: Sequence[Sample],
    answers: Mapping[str, Mapping[str, Mapping[str, list[Answer]]]],
    verdicts: Mapping[str, Mapping[str, Mapping[str, Verdict]]],
) -> Results:
    """The numbers of all models, as `evaluate` returns them. answers, verdicts: model -> kind -> question's id."""
    column = recipe.benchmark.columns
    worth = {name: measures.worth(samples, answers[name], seed=recipe.seed) for name in recipe.models}

    def by(column: str | None) -> dict[str, dict[str, dict[str, Any]]]:
        found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for name in recipe.models:
            shares = measures.shares(worth[name], samples, column)
            for measure, of_groups in [*shares.items(), *_judged(samples, answers[name], verdicts[name], column)]:
                found[measure][name] = of_groups
        return dict(found)

    right = {name: _right(worth[name], verdicts[name]) for name in recipe.models}
    results: Results = {
        **by(column),
        "chance": measures.chances(samples, column),
        "columns": _counts(samples, column),
        "overall": {
            **{measure: {name: of[measures.ALL] for name, of in found.items()} for measure, found in by(None).items()},
            "chance": measures.chances(samples, None).get(measures.ALL),
            "questions": len(samples),
        },
        "by": {name: by(name) for name in recipe.evaluation.by},
        "pairs": measures.pairs(right, samples, column),
    }
    if recipe.judge is not None:
        results["judge"] = {"model": recipe.judge.model, "prompt_version": PROMPT_VERSION}
    return results


def _right(worth: measures.Worth, verdicts: Mapping[str, Mapping[str, Verdict]]) -> dict[str, float]:
    """0 or 1 of each question that is decided: by the reward's rule, or by the judge."""
    judged_right = {
        id_: float(verdict.correct)
        for id_, verdict in verdicts.get("greedy", {}).items()
        if verdict.correct is not None
    }
    return {**worth.get("accuracy", {}), **judged_right}


def _judged(
    samples: Sequence[Sample],
    answers: Mapping[str, Mapping[str, list[Answer]]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    column: str | None,
) -> list[tuple[str, dict[str, Any]]]:
    """(measure, {value of the column: number}) of all that was judged."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for kind, by_id in verdicts.items():
        groups: dict[str, list[str]] = defaultdict(list)
        for sample in samples:
            if sample.task == "open" and sample.id in answers[kind]:
                groups[measures.ALL if column is None else value(sample, column)].append(sample.id)
        for name, ids in groups.items():
            for measure, number in judged([by_id[id_] for id_ in ids if id_ in by_id], len(ids)).items():
                found[measure if kind == "greedy" else f"{measure}_{kind}"][name] = number
    return list(found.items())


def _counts(samples: Sequence[Sample], column: str) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for sample in samples:
        found[value(sample, column)] += 1
    return dict(found)
