"""What a stage is: what it reads, the rows that it makes, and what they depend on.

`running.run` does everything that is the same in all of them: chunks that are done are passed over, files appear whole
or not at all, rows are counted, and what a stage has dropped keeps its reason.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from pathor1.curation.made import Made

if TYPE_CHECKING:
    from pathor1.curation.recipe import CurationRecipe

Row = dict[str, Any]
Inputs = Mapping[str, Made]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An item that was left out. `reason`: one of few words, which are counted; `detail`: the whole story."""

    where: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some items that are worked on, and written, together: what is done again after an interrupt.

    key: names its file. made_of: digest of all that its rows are made of, settings and tools aside. payload: what the
    worker needs, such as paths and places of rows; it is pickled, so no pictures.
    """

    key: str
    made_of: str
    items: int
    payload: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box drawn on a picture of the review page, in pixels of the picture: left, top, right, bottom."""

    at: tuple[float, float, float, float]
    label: str = ""
    kind: str = ""  # boxes of one kind have one colour


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """An item on the review page. flagged: a person should look at it, so that it comes first."""

    title: str
    picture: bytes | None = None
    boxes: Sequence[Box] = ()
    facts: Sequence[tuple[str, str]] = ()
    flagged: bool = False


# What a worker gives for the items of a chunk, one after the other.
Work = Callable[[Chunk], Iterable[Row | Dropped]]


class Stage(ABC):
    """A stage whose chunks are worked on side by side, by Ray Data.

    name: as on the command line. version: raised when the same input gives other rows. inputs: names of the stages that
    it reads. schema: of its rows, from `schemas`. num_cpus, num_gpus: what Ray keeps for one worker.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    inputs: ClassVar[tuple[str, ...]]
    schema: ClassVar[pa.Schema]
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __init__(self, recipe: CurationRecipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What of the recipe the rows depend on; plain values."""

    def tools(self) -> Mapping[str, str]:
        """The programs and models that make the rows -> their versions."""
        return {}

    @abstractmethod
    def chunks(self, inputs: Inputs) -> Iterator[Chunk | Dropped]:
        """What there is to do, in the driver; Dropped for what cannot be opened at all."""

    @abstractmethod
    def open(self) -> Work:
        """In each worker, once: loads what is needed and returns what works on a chunk.

        An item that cannot be used is a Dropped; an exception ends the stage.
        """

    def singly(self, chunk: Chunk) -> Sequence[Chunk]:
        """The items of a chunk as chunks, named as a Dropped is; the chunk itself where it cannot be divided."""
        return [chunk]

    @abstractmethod
    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """Items for the review page; only so many are taken as it shows."""


class WholeStage(ABC):
    """A stage that needs all rows at once, such as one that trains a model: `make` runs in the driver.

    `make` may use Ray by itself. Its rows should hold ids, and no pictures: they become one file.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    inputs: ClassVar[tuple[str, ...]]
    schema: ClassVar[pa.Schema]

    def __init__(self, recipe: CurationRecipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What of the recipe, and of files it names (their digests), the rows depend on; plain values."""

    def tools(self) -> Mapping[str, str]:
        """The programs and models that make the rows -> their versions."""
        return {}

    @abstractmethod
    def make(self, inputs: Inputs, work: Path) -> Iterator[Row | Dropped]:
        """The rows. `work`: a folder that outlives an interrupt, for what the stage itself goes on from."""

    @abstractmethod
    def cards(self, made: Made, inputs: Inputs) -> Iterator[Card]:
        """Items for the review page; only so many are taken as it shows."""


@dataclass
class Tally:
    """Counts of what came in, went out, and was dropped by reason."""

    items: int = 0
    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])

    def drop(self, reason: str, count: int = 1) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count


def digest(*values: Any) -> str:
    """A digest of plain values, the same in every process."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
