"""The samples that a run could not use: each on record with its reason, and too many of them end the run."""

from __future__ import annotations

import json
from pathlib import Path

from pathor1 import files
from pathor1.data.stream import Cursor, StreamRow
from pathor1.errors import DataError

# So many reasons stand in the line that ends a run; the file has all.
TOLD = 3


class LeftOut:
    """Appends one JSON object for each sample to `path`: epoch, position, id, source, why.

    A resumed run goes on at `cursor`: what stands behind it in the file comes again, and is dropped.
    """

    def __init__(self, path: Path, *, rows: int, max_fraction: float, cursor: Cursor) -> None:
        self.path = path
        self.rows = rows
        self.max_fraction = max_fraction
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        told = [json.loads(line) for line in text.split("\n")[:-1]]  # behind the last line's end stands half a line
        place = cursor.epoch, cursor.position
        self.entries = [entry for entry in told if (entry["epoch"], entry["position"]) < place]
        files.write(path, "".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, row: StreamRow, why: str) -> None:
        """Writes down a sample. Raises DataError where more of an epoch is left out than may be."""
        entry = {"epoch": row.epoch, "position": row.position, "id": row.sample.id, "source": row.sample.source}
        self.entries.append({**entry, "why": why})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.entries[-1]) + "\n")
        in_epoch = [entry for entry in self.entries if entry["epoch"] == row.epoch]
        if len(in_epoch) > self.max_fraction * self.rows:
            told = "; ".join(f"{entry['id']}: {entry['why']}" for entry in in_epoch[:TOLD])
            raise DataError(
                f"{len(in_epoch)} of {self.rows} training samples cannot be used, more than data.max_bad_fraction = "
                f"{self.max_fraction:g} allows; {self.path} lists them, such as {told}"
            )
