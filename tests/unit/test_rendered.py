"""The rendered set: reproducible, answerable from the picture, and not from the text."""

from __future__ import annotations

import io
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pathor1.data.drawing import CLASSES, picture
from pathor1.data.rendered import (
    DISPUTED,
    SIBLING,
    WORDINGS,
    Question,
    Settings,
    question,
    render,
    sample,
    samples,
)
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, read

SETTINGS = Settings(seed=3, size=28, options=(2, 6), difficulty=0.3, disagreement=0.0)


def draw_questions(count: int, options: tuple[int, int]) -> list[Question]:
    return [question(np.random.default_rng([7, index]), options) for index in range(count)]


def assert_uniform(found: Iterable[Any], among: Sequence[Any]) -> None:
    """Pearson's chi-square, five standard deviations wide: what is drawn evenly fails once in a million seeds."""
    counts = Counter(found)
    assert set(counts) <= set(among)
    expected = sum(counts.values()) / len(among)
    assert expected >= 20
    freedom = len(among) - 1
    chi_square = sum((counts[each] - expected) ** 2 / expected for each in among)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom), counts


# ---------------------------------------------------------------------- the same again


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    counts = {"warm_start": 4, "train": 5}
    options: dict[str, Any] = {"counts": counts, "options": (2, 6), "difficulty": 0.5, "disagreement": 0.5}
    first, second = (render(tmp_path / name, seed=1, **options) for name in ("a", "b"))
    assert {split: path.name for split, path in first.items()} == {s: f"{s}.parquet" for s in counts}
    for split, count in counts.items():
        assert first[split].read_bytes() == second[split].read_bytes()
        assert len(list(read(first[split]))) == count
    assert render(tmp_path / "c", seed=2, **options)["train"].read_bytes() != first["train"].read_bytes()


def test_a_sample_does_not_depend_on_how_many_others_there_are(tmp_path: Path) -> None:
    few = list(samples("train", 3, SETTINGS))
    assert list(samples("train", 7, SETTINGS))[:3] == few
    alone = render(tmp_path / "alone", seed=0, counts={"train": 3})["train"].read_bytes()
    beside = render(tmp_path / "beside", seed=0, counts={"test": 9, "train": 3})["train"].read_bytes()
    assert alone == beside


def test_another_seed_split_or_index_is_another_picture() -> None:
    places = itertools.product((0, 1, 256), ("warm_start", "train", "test"), range(12))
    drawn = [sample(split, index, replace(SETTINGS, seed=seed)) for seed, split, index in places]
    assert len({each.images for each in drawn}) == len(drawn)
    assert len({each.id for each in drawn}) == len(drawn)
    assert drawn[0].id == "rendered/0/warm_start/0"


def test_an_id_stands_for_the_same_question_wherever_it_is_made() -> None:
    found = [(each.id, each.question, each.options, each.answer) for each in samples("train", 3, SETTINGS)]
    assert found == [
        (
            "rendered/3/train/0",
            "What is seen here?",
            ("adenoma", "negative", "positive", "malignant", "lymphoma", "benign"),
            "C",
        ),
        ("rendered/3/train/1", "Which fits best?", ("lipoma", "melanoma"), "B"),
        ("rendered/3/train/2", "What is shown?", ("melanoma", "lipoma", "amplified", "diploid"), "A"),
    ]


def test_samples_are_sound_and_say_what_they_are() -> None:
    for each in samples("val", 60, SETTINGS):
        assert each.problem() is None
        assert each.meta is not None
        assert each.subfield == CLASSES[each.meta["class"]][0]
        assert (each.split, each.source, each.task, len(each.images)) == ("val", "rendered", "mcq", 1)


# ---------------------------------------------------------------------- questions


@pytest.mark.parametrize("count", range(2, 7))
def test_options_come_as_pairs_of_siblings_and_the_truth_is_among_them(count: int) -> None:
    every = draw_questions(500, (count, count))
    assert_uniform((asked.text for asked in every), WORDINGS)
    for asked in every:
        assert len(set(asked.options)) == len(asked.options) == count
        assert asked.truth in asked.options
        alone = [name for name in asked.options if SIBLING[name] not in asked.options]
        assert len(alone) == count % 2


def test_siblings_share_a_subfield_and_are_each_others() -> None:
    assert len(CLASSES) == 12
    for name in CLASSES:
        assert SIBLING[SIBLING[name]] == name != SIBLING[name]
        assert CLASSES[SIBLING[name]][0] == CLASSES[name][0]
    assert len(DISPUTED) == 6
    assert not {SIBLING[name] for name in DISPUTED} & set(DISPUTED)


def test_as_many_options_as_asked_for_evenly() -> None:
    assert_uniform((len(asked.options) for asked in draw_questions(3000, (2, 6))), range(2, 7))
    assert_uniform((len(asked.options) for asked in draw_questions(1000, (3, 4))), (3, 4))


@pytest.mark.parametrize("count", range(2, 7))
def test_every_letter_is_right_equally_often(count: int) -> None:
    asked = draw_questions(4000, (count, count))
    assert_uniform((each.options.index(each.truth) for each in asked), range(count))
    assert_uniform((each.truth for each in asked), tuple(CLASSES))


def test_options_stand_in_any_order() -> None:
    ranks = [tuple(sorted(each.options).index(name) for name in each.options) for each in draw_questions(5000, (4, 4))]
    assert_uniform(ranks, list(itertools.permutations(range(4))))


@pytest.mark.parametrize("count", range(2, 7))
def test_the_text_does_not_tell_the_answer(count: int) -> None:
    """Whatever in the text one goes by, the right option is any of the options equally often."""
    asked = draw_questions(9000, (count, count))
    places = range(count)
    clues = {
        "wording": lambda each: each.text,
        "first option": lambda each: each.options[0],
        "last option": lambda each: each.options[-1],
        "option without a sibling": lambda each: next(
            (i for i, name in enumerate(each.options) if SIBLING[name] not in each.options), None
        ),
    }
    for clue in clues.values():
        by_value: dict[Any, list[Question]] = {}
        for each in asked:
            by_value.setdefault(clue(each), []).append(each)
        for group in by_value.values():
            assert_uniform((each.options.index(each.truth) for each in group), places)
    in_alphabet = (sorted(each.options).index(each.truth) for each in asked)
    assert_uniform(in_alphabet, places)


# ---------------------------------------------------------------------- explanations and what they disagree on


def named(each: Sample) -> str:
    assert each.options is not None
    return each.options[LETTERS.index(each.answer)]


def truth(each: Sample) -> str:
    assert each.meta is not None
    return each.meta["class"]


@pytest.mark.parametrize("split", ["warm_start", "train", "test"])
def test_the_explanation_names_what_the_letter_stands_for(split: str) -> None:
    for each in samples(split, 150, replace(SETTINGS, disagreement=0.5)):
        assert each.explanation == f"fits {named(each)} {each.answer}"
        assert each.meta is not None
        assert each.meta["named"] == named(each)


@pytest.mark.parametrize("split", ["train", "test", "val", "warm_start2"])
def test_only_the_warm_start_hears_of_a_disagreement(split: str) -> None:
    agreed, disputed = (list(samples(split, 100, replace(SETTINGS, disagreement=share))) for share in (0.0, 1.0))
    assert agreed == disputed
    assert all(named(each) == truth(each) for each in agreed)


def test_a_disagreement_calls_a_disputed_class_by_its_siblings_name() -> None:
    agreed, disputed = (list(samples("warm_start", 300, replace(SETTINGS, disagreement=d))) for d in (0.0, 1.0))
    changed = 0
    for right, wrong in zip(agreed, disputed, strict=True):
        assert named(right) == truth(right) == truth(wrong)
        assert (right.images, right.options, right.question) == (wrong.images, wrong.options, wrong.question)
        can_be = truth(right) in DISPUTED and SIBLING[truth(right)] in (right.options or ())
        assert named(wrong) == (SIBLING[truth(right)] if can_be else truth(right))
        changed += can_be
    assert 100 < changed < 180


def test_a_disagreement_is_as_frequent_as_asked_for() -> None:
    drawn = list(samples("warm_start", 800, replace(SETTINGS, options=(4, 4), disagreement=0.6)))
    disputed = [each for each in drawn if truth(each) in DISPUTED]
    share = sum(named(each) != truth(each) for each in disputed) / len(disputed)
    assert share == pytest.approx(0.6, abs=4 * math.sqrt(0.24 / len(disputed)))


# ---------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [28, 57, 112])
@pytest.mark.parametrize("name", CLASSES)
def test_a_picture_has_the_size_asked_for(name: str, size: int) -> None:
    data = picture(name, np.random.default_rng(0), size=size, difficulty=1.0)
    drawn = Image.open(io.BytesIO(data))
    assert (drawn.format, drawn.mode, drawn.size) == ("PNG", "RGB", (size, size))
    assert np.asarray(drawn).std() > 10


def pixels(data: bytes) -> NDArray[np.float64]:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.float64)


def looks(name: str, count: int, *, difficulty: float, start: int = 0) -> NDArray[np.float64]:
    """[count, 56, 56, 3] pictures of a class."""
    rngs = (np.random.default_rng([start + i, list(CLASSES).index(name)]) for i in range(count))
    return np.stack([pixels(picture(name, rng, size=56, difficulty=difficulty)) for rng in rngs])


def brown_share(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brown is redder than blue; the counterstain and the tissue are not."""
    return (pictures[..., 0] > pictures[..., 2] + 20).mean(axis=(1, 2))


def red_share(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((pictures[..., 0] > 120) & (pictures[..., 0] > pictures[..., 1:].max(axis=-1) + 60)).mean(axis=(1, 2))


def features(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 56, 56, 3] -> [n, 13]: each colour's mean, spread and mean in the middle, edges along either axis, stains."""
    middle = pictures[:, 16:40, 16:40].mean(axis=(1, 2))
    edges = [np.abs(np.diff(pictures, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2)]
    numbers = np.stack([*edges, brown_share(pictures), red_share(pictures)], axis=1)
    return np.concatenate([pictures.mean(axis=(1, 2)), pictures.std(axis=(1, 2)), middle, numbers], axis=1)


def distances(difficulty: float) -> NDArray[np.float64]:
    """[12, 12, 12]: of each class 12 new pictures, and how far each of them is from the mean of every class."""
    known = np.stack([features(looks(name, 20, difficulty=difficulty)) for name in CLASSES])
    fresh = np.stack([features(looks(name, 12, difficulty=difficulty, start=20)) for name in CLASSES])
    scale = known.std(axis=1).mean(axis=0) + 1e-9
    return (((fresh[:, :, None] - known.mean(axis=1)) / scale) ** 2).sum(axis=-1)


def test_classes_look_different_and_less_so_the_harder_they_are() -> None:
    """The crudest of eyes is right far more often than once in twelve times, and tells siblings apart."""
    own = np.arange(len(CLASSES))
    found = {difficulty: distances(difficulty) for difficulty in (0.0, 0.3, 1.0)}
    right = {difficulty: (far.argmin(axis=-1) == own[:, None]).mean() for difficulty, far in found.items()}
    assert right[0.0] > 0.95
    assert right[0.3] > 0.85
    assert 0.3 < right[1.0] < right[0.3]
    siblings = found[0.3][own, :, own] < found[0.3][own, :, own ^ 1]
    assert siblings.reshape(6, -1).mean(axis=1).min() > 0.75


@pytest.mark.parametrize(
    ("measure", "less", "more"), [(brown_share, "negative", "positive"), (red_share, "diploid", "amplified")]
)
def test_siblings_are_told_apart_by_what_a_pathologist_goes_by(measure: Any, less: str, more: str) -> None:
    low, high = (measure(looks(name, 60, difficulty=0.3)) for name in (less, more))
    border = (np.median(low) + np.median(high)) / 2
    assert (low < border).mean() > 0.9
    assert (high > border).mean() > 0.9


def test_a_samples_picture_is_of_the_class_that_is_its_truth() -> None:
    drawn = list(samples("train", 200, Settings(seed=0, size=56, options=(4, 4), difficulty=0.0, disagreement=0.0)))
    for measure, less, more in ((brown_share, "negative", "positive"), (red_share, "diploid", "amplified")):
        low, high = (
            measure(np.stack([pixels(each.images[0]) for each in drawn if truth(each) == name]))
            for name in (less, more)
        )
        assert min(len(low), len(high)) > 8
        assert np.median(low) < np.quantile(high, 0.1)
        assert np.median(high) > np.quantile(low, 0.9)


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": 1}, "options: 1 to 1; a question has 2 to 6 options, the fewest first"),
        ({"options": (2, 7)}, "options: 2 to 7; a question has 2 to 6 options, the fewest first"),
        ({"options": (4, 3)}, "options: 4 to 3; a question has 2 to 6 options, the fewest first"),
        ({"difficulty": -0.1}, "difficulty: -0.1 is not between 0 and 1"),
        ({"difficulty": 1.01}, "difficulty: 1.01 is not between 0 and 1"),
        ({"difficulty": math.nan}, "difficulty: nan is not between 0 and 1"),
        ({"disagreement": 2}, "disagreement: 2 is not between 0 and 1"),
        ({"size": 27}, "size: 27 pixels; pictures have at least 28 a side"),
        ({"seed": -1}, "seed: -1 is negative; take 0 or more"),
        ({"counts": {}}, "no split to make; give at least one, such as test=200"),
        ({"counts": {"train": 2, "test": 0}}, "split test: 0 questions; at least 1 is needed"),
        ({"counts": {"a/b": 2}}, "split 'a/b': a split's name becomes a file's; take one such as train"),
        ({"counts": {"": 2}}, "split '': a split's name becomes a file's; take one such as train"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        render(tmp_path / "out", **{"seed": 0, "counts": {"train": 2}, **arguments})
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [{"options": 2}, {"options": 6}, {"options": (2, 6)}, {"size": 28}])
def test_numbers_just_within_range(tmp_path: Path, arguments: dict[str, Any]) -> None:
    values: dict[str, Any] = {"difficulty": 1.0, "disagreement": 1.0, **arguments}
    path = render(tmp_path, seed=0, counts={"train": 1}, **values)["train"]
    assert len(list(read(path))) == 1
