"""Evaluates models on a recipe's held-out questions: greedily, sampled, and with the pictures exchanged.

The last is the check that a model looks: what is still right with another question's pictures was not seen.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pathor1 import files
from pathor1.data.row_groups import expand, row_groups
from pathor1.errors import DataError, RecipeError
from pathor1.evaluation.engine import Engine, set_environment
from pathor1.evaluation.intervals import wilson
from pathor1.evaluation.questions import chance, shuffled_pictures, windows
from pathor1.model.check import check as check_model
from pathor1.ray_cluster import choose_accelerator
from pathor1.recipe import Recipe
from pathor1.runs import RunFolder
from pathor1.samples import Sample
from rewards import accuracy_reward, format_reward, yes_no_reward

# What is measured of every model. Greedy accuracy alone would also rise where a model only becomes surer of itself.
MEASURES = ("accuracy", "format", "accuracy_sampled", "accuracy_shuffled_pictures")
SAMPLED_TEMPERATURE = 1.0

Results = dict[str, Any]
# (measure, source) -> right answers and questions
Counts = dict[tuple[str, str], list[float]]


def evaluate(recipe: Recipe, models: Mapping[str, str], *, file: str = "held_out.json") -> Results:
    """Evaluates `models`, name -> folder or hub's name, on `data.test`, and writes `eval/FILE` in the run's folder.

    Returns what is written: {measure: {model: {source: {"value", "low", "high", "n"}}}} for each of `MEASURES`, with
    Wilson's 95 % intervals, and "chance": {source: share}. Raises UserError for data or models that cannot be used.
    """
    if not recipe.data.test:
        raise RecipeError("data.test names no file; there is nothing to evaluate on")
    paths = expand(recipe.data.test)
    row_groups(paths)
    for model in models.values():
        check_model(model)
    set_environment(recipe)
    accelerator = choose_accelerator(recipe)
    results: Results = {measure: {} for measure in MEASURES}
    guesses: Counts = {}
    for name, model in models.items():
        started = time.monotonic()
        counts, guesses = _measure(recipe, model, paths, accelerator)
        for (measure, source), (right, count) in counts.items():
            results[measure].setdefault(name, {})[source] = asdict(wilson(right, int(count)))
        print(f"{name}: {model} evaluated in {time.monotonic() - started:.0f} s", flush=True)
    results["chance"] = {source: right / count for (_, source), (right, count) in guesses.items()}
    folder = RunFolder.create(recipe.runs_dir, recipe.name)
    files.write(folder.evaluation / file, json.dumps(results, indent=2) + "\n")
    return results


def _measure(recipe: Recipe, model: str, paths: Sequence[str], accelerator: str) -> tuple[Counts, Counts]:
    counts: Counts = defaultdict(lambda: [0.0, 0.0])
    guesses: Counts = defaultdict(lambda: [0.0, 0.0])
    rng = np.random.default_rng(recipe.seed)

    def add(measure: str, samples: Sequence[Sample], worth: Sequence[float]) -> None:
        into = guesses if measure == "chance" else counts
        for sample, value in zip(samples, worth, strict=True):
            into[measure, sample.source][0] += value
            into[measure, sample.source][1] += 1

    with Engine(model, recipe, accelerator) as engine:
        for window in windows(paths, tasks=recipe.data.tasks, first=recipe.evaluation.samples):
            add("chance", window, [chance(sample) for sample in window])
            greedy = engine.answers(window, temperature=0.0)
            add("accuracy", window, _each(accuracy, greedy, window))
            add("format", window, [format_reward(text) for text in greedy])
            sampled = engine.answers(window, temperature=SAMPLED_TEMPERATURE)
            add("accuracy_sampled", window, _each(accuracy, sampled, window))
            exchanged = shuffled_pictures(window, rng)
            answers = engine.answers(exchanged, temperature=0.0)
            add("accuracy_shuffled_pictures", exchanged, _each(accuracy, answers, exchanged))
    if not counts:
        tasks = ", ".join(recipe.data.tasks)
        raise DataError(f"{', '.join(paths)}: no sample has a task among data.tasks ({tasks})")
    return counts, guesses


def _each(measure: Callable[[str, Sample], float], texts: Sequence[str], samples: Sequence[Sample]) -> list[float]:
    return [measure(text, sample) for text, sample in zip(texts, samples, strict=True)]


def accuracy(text: str, sample: Sample) -> float:
    """The reward that RL is trained on: the answer block holds exactly the right letter, or yes or no."""
    return (yes_no_reward if sample.task == "yes_no" else accuracy_reward)(text, sample.answer)


def table(results: Results) -> str:
    """The results in words and numbers, one line a model and set."""
    lines = [
        f"{'':<14} {'set':<12} {'accuracy':>24}  {'format':>6}  {'at temperature 1':>16}  {'pictures shuffled':>17}"
    ]
    for name, sources in results["accuracy"].items():
        for source, share in sources.items():
            greedy = f"{share['value']:6.1%} ({share['low']:.1%} to {share['high']:.1%})"
            others = [results[measure][name].get(source) for measure in MEASURES[1:]]
            form, sampled, shuffled = ("-" if one is None else f"{one['value']:.1%}" for one in others)
            lines.append(f"{name:<14} {source:<12} {greedy:>24}  {form:>6}  {sampled:>16}  {shuffled:>17}")
    guesses = ", ".join(f"{source} {value:.1%}" for source, value in results["chance"].items())
    sizes = ", ".join(f"{share['n']} {source}" for source, share in next(iter(results["accuracy"].values())).items())
    return "\n".join([*lines, f"on {sizes} held-out questions; 95 % intervals; guessing is right by chance: {guesses}"])
