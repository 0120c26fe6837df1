"""A rendered set: multiple-choice questions on drawn pictures, for trying things on, for tests and for the demo.

The options and their order are drawn first and the answer uniformly among them, so the text alone tells nothing: who
does not see the picture is right once in as many times as there are options. Options come as pairs of siblings, two
classes of one subfield, so that telling a smear from a section is not enough either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pathor1.data.drawing import CLASSES, picture
from pathor1.data.exercises import brief
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, write

# None says the subfield, which would rule out options.
WORDINGS = ("Which fits best?", "What is shown?", "What is seen here?")
# Of what was drawn, with its subfield.
CAPTIONS = ("{name}.", "A picture of {name}.", "{subfield}: {name} is seen.", "This {subfield} picture shows {name}.")
SMALLEST_SIZE = 28  # one image token of Qwen2.5-VL; below that nuclei are less than a pixel

_NAMES = tuple(CLASSES)
SIBLING = {name: _NAMES[index ^ 1] for index, name in enumerate(_NAMES)}
# One of each pair of siblings: the classes that "textbooks disagree" on, see `Settings.disagreement`.
DISPUTED = _NAMES[1::2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How questions are made. Example: Settings(seed=0, size=56, options=(4, 4), difficulty=0.3, disagreement=0.0)."""

    seed: int
    size: int  # pixels a side
    options: tuple[int, int]  # fewest and most options a question
    difficulty: float  # 0-1: how far looks vary and classes overlap
    disagreement: float  # warm_start only: how often explanation and answer name a disputed class's sibling
    captions: bool = False  # captions in place of questions, of the same pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question before its picture is drawn. Example: Question(text="What is shown?", options=("lipoma", "melanoma"),
    truth="melanoma")."""

    text: str
    options: tuple[str, ...]
    truth: str


def render(
    out: Path,
    *,
    seed: int,
    counts: Mapping[str, int],
    size: int = 56,
    options: int | tuple[int, int] = 4,
    difficulty: float = 0.3,
    disagreement: float = 0.0,
    captions: bool = False,
) -> dict[str, Path]:
    """Writes `counts[split]` questions, or captions, to `out/<split>.parquet`, each with a picture of its own.

    Returns the files.

    Raises DataError for a number that is out of range. The same arguments give the same bytes.
    """
    fewest, most = (options, options) if isinstance(options, int) else options
    settings = Settings(
        seed=seed,
        size=size,
        options=(fewest, most),
        difficulty=difficulty,
        disagreement=disagreement,
        captions=captions,
    )
    _check(settings, counts)
    files: dict[str, Path] = {}
    for split, count in counts.items():
        files[split] = Path(out) / f"{split}.parquet"
        write(samples(split, count, settings), files[split])
    return files


def samples(split: str, count: int, settings: Settings) -> Iterator[Sample]:
    """The first `count` samples of a split, drawn one at a time."""
    for index in range(count):
        yield sample(split, index, settings)


def sample(split: str, index: int, settings: Settings) -> Sample:
    """One sample, drawn from random numbers of its own: it does not depend on how many others there are."""
    rng = np.random.default_rng([settings.seed, zlib.crc32(split.encode()), index])
    asked = question(rng, settings.options)
    png = picture(asked.truth, rng, size=settings.size, difficulty=settings.difficulty)
    if settings.captions:
        return _captioned(split, index, asked.truth, png, settings, rng)
    named = asked.truth
    disputed = split == "warm_start" and named in DISPUTED and SIBLING[named] in asked.options
    if disputed and rng.random() < settings.disagreement:
        named = SIBLING[named]
    letter = LETTERS[asked.options.index(named)]
    return Sample(
        id=f"rendered/{settings.seed}/{split}/{index}",
        source="rendered",
        task="mcq",
        question=asked.text,
        options=asked.options,
        answer=letter,
        images=(png,),
        subfield=CLASSES[asked.truth][0],
        split=split,
        explanation=brief(named, letter),
        meta={"class": asked.truth, "named": named},
        license="CC0-1.0",
    )


def _captioned(split: str, index: int, truth: str, png: bytes, settings: Settings, rng: np.random.Generator) -> Sample:
    wording = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
    return Sample(
        id=f"rendered-captions/{settings.seed}/{split}/{index}",
        source="rendered-captions",
        task="caption",
        question="",
        answer=wording.format(name=truth, subfield=CLASSES[truth][0]),
        images=(png,),
        subfield=CLASSES[truth][0],
        split=split,
        meta={"class": truth},
        license="CC0-1.0",
    )


def question(rng: np.random.Generator, options: tuple[int, int]) -> Question:
    """Options first, as pairs of siblings (of an odd number, one comes alone), then the answer uniformly among them."""
    count = int(rng.integers(options[0], options[1] + 1))
    pairs = rng.permutation(len(_NAMES) // 2)[: (count + 1) // 2]
    names = [_NAMES[2 * pair + side] for pair in pairs.tolist() for side in (0, 1)]
    if count % 2:
        del names[-1 - int(rng.integers(2))]
    order = rng.permutation(count).tolist()
    shown = tuple(names[place] for place in order)
    text = WORDINGS[int(rng.integers(len(WORDINGS)))]
    return Question(text=text, options=shown, truth=shown[int(rng.integers(count))])


def _check(settings: Settings, counts: Mapping[str, int]) -> None:
    fewest, most = settings.options
    if not 2 <= fewest <= most <= len(LETTERS):
        raise DataError(f"options: {fewest} to {most}; a question has 2 to {len(LETTERS)} options, the fewest first")
    for name, value in (("difficulty", settings.difficulty), ("disagreement", settings.disagreement)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"{name}: {value} is not between 0 and 1")
    if settings.size < SMALLEST_SIZE:
        raise DataError(f"size: {settings.size} pixels; pictures have at least {SMALLEST_SIZE} a side")
    check_counts(settings.seed, counts)


def check_counts(seed: int, counts: Mapping[str, int]) -> None:
    """Raises DataError for a negative seed, for no splits, and for a split with less than one question."""
    if seed < 0:
        raise DataError(f"seed: {seed} is negative; take 0 or more")
    if not counts:
        raise DataError("no split to make; give at least one, such as test=200")
    for split, count in counts.items():
        if not split or "/" in split:
            raise DataError(f"split {split!r}: a split's name becomes a file's; take one such as train")
        if count < 1:
            raise DataError(f"split {split}: {count} questions; at least 1 is needed")
