"""Results as text: for a run, a line for each stage and set; for a benchmark, the paper's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pathor1.evaluation.judge_prompts import CRITERIA
from pathor1.evaluation.measures import ALL
from pathor1.evaluation.published import Published

# What a run's table shows of every model, beside the accuracy.
STAGES = ("format", "accuracy_sampled", "accuracy_shuffled_pictures")
# measure -> what its row is called; in this order, and after them majority@n and pass@k of sampled answers.
ROWS = {
    "accuracy_lenient": "read leniently",
    "unparsed": "not readable",
    "unparsed_lenient": "not readable leniently",
    "truncated": "cut at the longest answer",
    "refused": "refused by the server",
    "format": "right format",
    "accuracy_removed_pictures": "pictures removed",
    "accuracy_shuffled_pictures": "pictures exchanged",
    "accuracy_shuffled_options": "options re-ordered",
    "same_answer": "same answer re-ordered",
    "accuracy_sampled": "sampled",
}
JUDGED_ROWS = {
    "judged_accuracy": "right, says the judge",
    "judged_accuracy_removed_pictures": "pictures removed",
    "judged_accuracy_shuffled_pictures": "pictures exchanged",
    "unscored": "unscored",
}
Results = Mapping[str, Any]


def stages(results: Results) -> str:
    """One line a model and set."""
    lines = [
        f"{'':<14} {'set':<12} {'accuracy':>24}  {'format':>6}  {'at temperature 1':>16}  {'pictures shuffled':>17}"
    ]
    for name, sources in results["accuracy"].items():
        for source, share in sources.items():
            greedy = f"{share['value']:6.1%} ({share['low']:.1%} to {share['high']:.1%})"
            others = [results.get(measure, {}).get(name, {}).get(source) for measure in STAGES]
            form, sampled, shuffled = ("-" if one is None else f"{one['value']:.1%}" for one in others)
            lines.append(f"{name:<14} {source:<12} {greedy:>24}  {form:>6}  {sampled:>16}  {shuffled:>17}")
    guesses = ", ".join(f"{source} {value:.1%}" for source, value in results["chance"].items())
    sizes = ", ".join(f"{count} {source}" for source, count in results["columns"].items())
    lines.append(f"on {sizes} held-out questions; 95 % intervals; guessing is right by chance: {guesses}")
    return "\n".join([*lines, *_pairs(results, every=False)])


def paper(results: Results, *, title: str, published: Published | None = None) -> str:
    """The paper's layout: a column for each subset and the overall of all questions, in percent.

    Published rows first, then ours: each model's accuracy, its 95 % interval, and a row for each other measure.
    """
    columns = _columns(results, published)
    models, judged = results["overall"].get("accuracy", {}), results["overall"].get("unscored", {})
    rows: list[tuple[str, list[str]]] = []
    if published is not None:
        rows += _published(published, columns)
    for name in models:
        rows += _of_model(results, name, columns)
    for name in judged:
        rows += _of_judged(results, name, columns)
    if results["chance"]:
        cells = [_percent(results["chance"].get(column)) for column in columns]
        rows.append(("guessing", [*cells, _percent(results["overall"]["chance"])]))
    counts = [*(str(results["columns"].get(column, 0)) for column in columns), str(results["overall"]["questions"])]
    head = [("", [*columns, "Overall"]), ("questions", counts)]
    notes = [f"{title}: percent of all questions; 95 % intervals."]
    if published is not None:
        notes += _notes(results, published)
    if judge := results.get("judge"):
        notes.append(f"Open answers judged by {judge['model']}, prompts {judge['prompt_version']}; scores are 1 to 10.")
    by = [line for column, found in results["by"].items() for line in _breakdown(column, found)]
    return "\n".join(
        [notes[0], "", *_aligned([*head, *rows]), "", *notes[1:], *by, *_pairs(results, every=True)]
    ).rstrip()


def _columns(results: Results, published: Published | None) -> list[str]:
    """Those of the published table in its order, then others that the questions have."""
    first = list(published.counts) if published else []
    return list(dict.fromkeys([*first, *sorted(results["columns"])]))


def _published(published: Published, columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    rows = []
    for model, (cells, overall) in published.rows.items():
        real = published.wrong_overall.get(model, overall)
        mark = "*" if model in published.wrong_overall else ""
        shown = [f"{cells[column]:.2f}" if column in cells else "-" for column in columns]
        rows.append((f"{model} (published)", [*shown, "-" if real is None else f"{real:.2f}{mark}"]))
    return rows


def _notes(results: Results, published: Published) -> list[str]:
    notes = [f"Published: {published.source}, on {published.questions:,} questions."]
    for model, real in published.wrong_overall.items():
        printed = published.rows[model][1]
        notes.append(f"* {model}: printed as {printed:.2f}; its cells give {real:.2f}.")
    if other := [
        f"{column} {count} (here {results['columns'].get(column, 0)})"
        for column, count in published.counts.items()
        if results["columns"].get(column, 0) != count
    ]:
        notes.append(f"Not the same questions: published on {', '.join(other)}.")
    return notes


def _of_model(results: Results, name: str, columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    rows = [(name, _cells(results, "accuracy", name, columns)), _interval(results, "accuracy", name, columns)]
    overall = results["overall"]
    of_several = {measure: measure for measure in overall if measure.startswith(("majority@", "pass@"))}
    for measure, label in {**ROWS, **of_several}.items():
        share = overall.get(measure, {}).get(name)
        if share is not None and (measure != "refused" or share["value"]):
            rows.append((f"  {label}", _cells(results, measure, name, columns)))
    return rows


def _of_judged(results: Results, name: str, columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []
    for measure, label in JUDGED_ROWS.items():
        if name in results["overall"].get(measure, {}):
            rows.append((f"{name}, {label}", _cells(results, measure, name, columns)))
            if measure == "judged_accuracy":
                rows.append(_interval(results, measure, name, columns))
    for measure in ("overall_score", *CRITERIA):
        if name in results["overall"].get(measure, {}):
            label = "overall score" if measure == "overall_score" else measure
            rows.append((f"  {label}", _cells(results, measure, name, columns, scale=1)))
    return rows


def _cells(results: Results, measure: str, name: str, columns: Sequence[str], *, scale: int = 100) -> list[str]:
    of_columns = results[measure].get(name, {})
    found = [of_columns.get(column) for column in columns] + [results["overall"][measure].get(name)]
    return ["-" if one is None else f"{scale * one['value']:.2f}" for one in found]


def _interval(results: Results, measure: str, name: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    of_columns = results[measure].get(name, {})
    found = [of_columns.get(column) for column in columns] + [results["overall"][measure].get(name)]
    return "  95 % interval", [
        "-" if one is None else f"{100 * one['low']:.1f}-{100 * one['high']:.1f}" for one in found
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(label) for label, _ in rows)
    widths = [max(len(cells[place]) for _, cells in rows) for place in range(len(rows[0][1]))]
    return [
        "  ".join(
            [label.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))]
        ).rstrip()
        for label, cells in rows
    ]


def _breakdown(column: str, found: Results) -> list[str]:
    """Accuracy by one more column, a line for each of its values."""
    measure = "accuracy" if "accuracy" in found else "judged_accuracy"
    lines = [f"by {column}:"]
    for name, shares in found.get(measure, {}).items():
        for group, share in sorted(shares.items()):
            interval = f"{100 * share['low']:.1f}-{100 * share['high']:.1f}"
            lines.append(f"  {name}  {group}  {100 * share['value']:.2f} ({interval}) of {share['n']}")
    return lines


def _pairs(results: Results, *, every: bool) -> list[str]:
    """Each two models on the same questions; of each column too, or of all questions alone."""
    lines = []
    for pair in results["pairs"]:
        if not every and pair["on"] != ALL:
            continue
        on = "" if pair["on"] == ALL else f" on {pair['on']}"
        p = "p < 0.001" if pair["p"] < 0.001 else f"p = {pair['p']:.3f}"
        verdict = "" if pair["significant"] else ": not significant"
        lines.append(
            f"{pair['model']} against {pair['against']}{on}: {100 * pair['value']:+.2f} points "
            f"({100 * pair['low']:+.2f} to {100 * pair['high']:+.2f}), {p}{verdict}"
        )
    return lines
