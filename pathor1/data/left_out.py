"""The samples that a run could not use: each on record with its reason, and too many of them end the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pathor1 import files
from pathor1.data.stream import StreamRow, StreamState
from pathor1.errors import DataError

# So many reasons stand in the line that ends a run; the file has all.
TOLD = 3


class LeftOut:
    """Appends one JSON object for each sample to `path`: data, epoch, position, id, source, why.

    `data` names the part of the training data that the sample is in. A resumed run goes on at `start`: what stands
    behind it in the file comes again, and is dropped.
    """

    def __init__(self, path: Path, *, start: StreamState, max_fraction: float) -> None:
        self.path = path
        self.rows = {source.name: source.data.rows for source in start.sources}
        self.max_fraction = max_fraction
        places = {source.name: (source.cursor.epoch, source.cursor.position) for source in start.sources}
        kept = [entry for entry in self._entries() if (entry["epoch"], entry["position"]) < places[entry["data"]]]
        files.write(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.by_epoch = Counter((str(entry["data"]), int(entry["epoch"])) for entry in kept)

    @property
    def count(self) -> int:
        """Samples left out so far, in all epochs."""
        return self.by_epoch.total()

    @property
    def share(self) -> float:
        """The largest share of one source's samples that an epoch has left out so far; `max_fraction` limits it."""
        return max((count / self.rows[source] for (source, _), count in self.by_epoch.items()), default=0.0)

    def add(self, row: StreamRow[Any], why: str) -> None:
        """Writes down a sample. Raises DataError where more of an epoch of its data is left out than may be."""
        place = {"data": row.source, "epoch": row.epoch, "position": row.position}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**place, "id": row.sample.id, "source": row.sample.source, "why": why}) + "\n")
        epoch = row.source, row.epoch
        self.by_epoch[epoch] += 1
        if self.by_epoch[epoch] > self.max_fraction * self.rows[row.source]:
            in_epoch = (entry for entry in self._entries() if (entry["data"], entry["epoch"]) == epoch)
            told = "; ".join(f"{entry['id']}: {entry['why']}" for entry in islice(in_epoch, TOLD))
            raise DataError(
                f"{self.by_epoch[epoch]} of {self.rows[row.source]} training samples cannot be used, more than "
                f"data.max_bad_fraction = {self.max_fraction:g} allows; {self.path} lists them, such as {told}"
            )

    def _entries(self) -> Iterator[dict[str, Any]]:
        """What the file has, without half a line of a run that was killed."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return map(json.loads, text.split("\n")[:-1])
