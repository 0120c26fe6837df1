"""Results as the paper's tables 1 and 2 have them, with its own numbers beneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from pathor1.clip import published
from pathor1.clip.retrieval import KS


def text(what: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of `zero_shot`, `retrieval` or `probe`. results: model -> set -> what was measured."""
    sets = list(next(iter(results.values())))
    if what == "zero_shot":
        return layout(zero_shot(results, sets))
    makes = retrieval if what == "retrieval" else probe
    return "\n\n".join(f"{name}\n{layout(makes(results, name))}" for name in sets)


def zero_shot(results: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> list[list[str]]:
    """Accuracy in percent with its 95 % interval by set, and the mean of the sets, as table 2; published rows below."""
    rows = [["model", *sets, "Average", "Balanced"]]
    for model, found in results.items():
        shares = [found[name]["accuracy"] for name in sets]
        cells = [f"{100 * s['value']:.2f} ({100 * s['low']:.2f} to {100 * s['high']:.2f})" for s in shares]
        mean = fmean(share["value"] for share in shares)
        balanced = fmean(found[name]["balanced"]["value"] for name in sets)
        rows.append([model, *cells, f"{100 * mean:.2f}", f"{100 * balanced:.2f}"])
    if any(name in row.accuracy for row in published.zero_shot().values() for name in sets):
        for model, row in published.zero_shot().items():
            cells = [f"{row.accuracy[name]:.2f}" if name in row.accuracy else "-" for name in sets]
            mean_cell = f"{row.mean:.2f}" if set(sets) == set(row.accuracy) else "-"
            if row.wrong_mean is not None and mean_cell != "-":
                mean_cell = f"{row.wrong_mean:.2f} (printed {row.mean:.2f})"
            rows.append([f"paper: {model}", *cells, mean_cell, "-"])
    return rows


def retrieval(results: Mapping[str, Mapping[str, Any]], name: str) -> list[list[str]]:
    """Recall in percent, pictures to texts / texts to pictures, as table 1 has it; published rows below."""
    rows = [["model", *(f"@{k}" for k in KS), "Aver(i2t)", "Aver(t2i)", "N"]]
    for model, found in results.items():
        directions = [found[name][each] for each in ("image_to_text", "text_to_image")]
        cells = ["/".join(f"{100 * _at(each, k)['value']:.2f}" for each in directions) for k in KS]
        means = [f"{100 * each['mean']:.2f}" for each in directions]
        rows.append([model, *cells, *means, str(directions[0]["n"])])
    pairs = published.pairs(name)
    for model, row in published.retrieval(name).items():
        cells = [f"{row.image_to_text[k]:.2f}/{row.text_to_image[k]:.2f}" for k in KS]
        told = [f"{mean:.2f}" for mean in row.mean]
        if row.wrong_mean is not None:
            told = [f"{real:.2f} (printed {mean:.2f})" for real, mean in zip(row.wrong_mean, row.mean, strict=True)]
        rows.append([f"paper: {model}", *cells, *told, str(pairs) if pairs else "-"])
    return rows


def probe(results: Mapping[str, Mapping[str, Any]], name: str) -> list[list[str]]:
    """Accuracy in percent over the seeds: the median, and from the lowest to the highest."""
    shots = list(dict.fromkeys(fit["shots"] for found in results.values() for fit in found[name]["fits"]))
    rows = [["model", *(f"{count} shots" for count in shots), "not converged"]]
    for model, found in results.items():
        fits = found[name]["fits"]
        cells = []
        for count in shots:
            values = [100 * fit["accuracy"] for fit in fits if fit["shots"] == count]
            cells.append(f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        rows.append([model, *cells, str(sum(not fit["converged"] for fit in fits))])
    return rows


def _at(recall: Mapping[str, Any], k: int) -> Mapping[str, float]:
    """Of a result as it was made, or as JSON has it, whose keys are texts."""
    found = recall["at"]
    return found[k] if k in found else found[str(k)]


def layout(rows: Sequence[Sequence[str]]) -> str:
    """Columns beneath each other."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
