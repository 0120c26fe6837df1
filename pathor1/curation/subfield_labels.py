"""Labels that people give to pictures, the queue of those to look at next, and how right the classifier is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pathor1 import files
from pathor1.curation.reserve import share
from pathor1.errors import DataError

QUEUE_COLUMNS = ("id", "label", "predicted", "confidence", "second", "margin", "caption")


def read_labels(paths: Sequence[Path], classes: Sequence[str]) -> dict[str, str]:
    """id -> label. A later file's label takes the place of an earlier one's; rows without a label are passed over.

    Raises DataError for a file that has no columns id and label, and for a label that is none of `classes`.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise DataError(f"{path}: not in UTF-8; save it as `CSV UTF-8`") from None
        semicolons = ";" in text.partition("\n")[0]  # as some spreadsheets write them
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ",")
        if not {"id", "label"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: needs the columns id and label, and has {', '.join(rows.fieldnames or ())}")
        for number, row in enumerate(rows, start=2):
            label = (row["label"] or "").strip().lower()
            if not label:
                continue
            if label not in classes:
                raise DataError(f"{path}, line {number}: {label!r} is none of {', '.join(classes)}")
            found[(row["id"] or "").strip()] = label
    return found


def is_held_out(image_sha256: str, *, held_out: float, seed: int) -> bool:
    """Whether a labelled picture is for measuring alone: the same in every round, and for all items that show it."""
    return share(seed, "held_out", image_sha256) < held_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How right the classifier is on held-out labels. confusion: [labelled][predicted], in the order of `classes`."""

    classes: tuple[str, ...]
    trained_on: dict[str, int]
    confusion: list[list[int]]

    @property
    def held_out(self) -> int:
        """On how many items."""
        return sum(map(sum, self.confusion))

    @property
    def accuracy(self) -> float | None:
        """The share that is right; None where nothing is held out."""
        right = sum(self.confusion[place][place] for place in range(len(self.classes)))
        return right / self.held_out if self.held_out else None

    def table(self) -> str:
        """The confusion matrix as text: labels down, predictions across."""
        width = max(map(len, self.classes)) + 2
        lines = [" " * width + "".join(f"{name:>{width}}" for name in self.classes)]
        for name, counts in zip(self.classes, self.confusion, strict=True):
            lines.append(f"{name:<{width}}" + "".join(f"{count:>{width}}" for count in counts))
        return "\n".join(lines)


def measure(
    labels: Mapping[str, str], predicted: Mapping[str, str], held_out: Iterable[str], classes: Sequence[str]
) -> Round:
    """The round's figures: labels against predictions on the held-out ids."""
    apart = set(held_out)
    places = {name: place for place, name in enumerate(classes)}
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for id_ in apart:
        confusion[places[labels[id_]], places[predicted[id_]]] += 1
    trained = [label for id_, label in labels.items() if id_ not in apart]
    return Round(
        classes=tuple(classes),
        trained_on={name: trained.count(name) for name in classes},
        confusion=confusion.tolist(),
    )


def queue(predictions: Iterable[Mapping[str, Any]], labels: Mapping[str, str], count: int) -> list[dict[str, Any]]:
    """The `count` items without a label between whose two likeliest classes the classifier is least decided.

    predictions: rows with id, predicted, confidence, second, margin and caption.
    """
    open_ = (row for row in predictions if row["id"] not in labels)
    chosen = sorted(open_, key=lambda row: (row["margin"], row["id"]))[:count]
    return [{**{name: row.get(name, "") for name in QUEUE_COLUMNS}, "label": ""} for row in chosen]


def write_queue(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The queue as CSV, for any spreadsheet; the reviewer fills in `label`."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, QUEUE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        rounded = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}
        writer.writerow({**rounded, "caption": " ".join(str(row["caption"]).split())[:300]})
    files.write(path, out.getvalue())
