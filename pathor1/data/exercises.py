"""Exercises in reading options: questions without a picture that name an option's text and ask for its letter.

A small model that is taught on pictures alone learns to name what it sees long before it finds the name among the
options; until then its letters are guesses, and reinforcement learning has nothing to build on. Half a warm start of
such exercises teaches it early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pathor1.samples import COLUMNS, LETTERS, Sample, read, write

SPLIT = "exercises"


def brief(option: str, letter: str) -> str:
    """The reasoning that the small model is taught: what it sees, in the words of an option, and that option's letter.

    A word stands before the option as a space does in the question, so that both are the same tokens.
    """
    return f"fits {option} {letter}"


def make(files: Sequence[Path], out: Path, *, seed: int) -> int:
    """Writes one exercise for each multiple-choice sample of `files` to the file `out`, and returns how many.

    Raises DataError where there is no such sample, or a file that is no file of samples.
    """
    return write(exercises(files, seed=seed), out)


def exercises(files: Sequence[Path], *, seed: int) -> Iterator[Sample]:
    """The exercises in the order of the samples. The pictures are not read."""
    rng = np.random.default_rng(seed)
    for path in files:
        for sample in read(path, columns=[name for name in COLUMNS if name != "images"]):
            if sample.options:
                yield exercise(sample, int(rng.integers(len(sample.options))))


def exercise(sample: Sample, place: int) -> Sample:
    """Asks for the letter of the option at `place`; nothing else of the sample but its options is in it."""
    assert sample.options is not None
    option, letter = sample.options[place], LETTERS[place]
    return replace(
        sample,
        id=f"{sample.id}/exercise",
        question=f"Which is {option}?",
        answer=letter,
        explanation=brief(option, letter),
        split=SPLIT,
        images=(),
        meta=None,
    )
