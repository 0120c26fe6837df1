"""Questions on a real section: what is asked can be measured on the tile itself, and splits share no pixel."""

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
from skimage.color import separate_stains
from skimage.color.colorconv import hed_from_rgb

from pathor1.data.ihc import (
    AMOUNT_QUESTION,
    BAND_TEXTS,
    BANDS,
    BORDER,
    COMPARE_OPTIONS,
    COMPARE_QUESTION,
    LEAST_DIFFERENCE,
    POSITIVE_DENSITY,
    REGIONS,
    SPLITS,
    positive_pixels,
    samples,
    section,
    tiles,
)
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, read

SIZE = 56


@pytest.fixture(scope="module")
def stained() -> NDArray[np.uint8]:
    return section()


@pytest.fixture(scope="module")
def drawn(stained: NDArray[np.uint8]) -> dict[str, list[Sample]]:
    """600 questions of every split."""
    positive = positive_pixels(stained)
    return {split: list(samples(stained, positive, seed=1, split=split, count=600, size=SIZE)) for split in REGIONS}


def tile(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def positive_share(data: bytes) -> float:
    """DAB by the matrix of Ruifrok and Johnston, from the picture alone."""
    return float((separate_stains(tile(data), hed_from_rgb)[..., 2] > POSITIVE_DENSITY).mean())


def right_option(sample: Sample) -> str:
    assert sample.options is not None
    return sample.options[LETTERS.index(sample.answer)]


def of_kind(drawn: dict[str, list[Sample]], kind: str) -> list[Sample]:
    return [sample for each in drawn.values() for sample in each if sample.meta and sample.meta["kind"] == kind]


def assert_even(found: Iterable[Any], among: Sequence[Any]) -> None:
    """Chi-square, five standard deviations wide."""
    counts = Counter(found)
    assert set(counts) == set(among)
    expected = sum(counts.values()) / len(among)
    freedom = len(among) - 1
    assert sum((counts[each] - expected) ** 2 / expected for each in among) < freedom + 5 * math.sqrt(2 * freedom)


def test_the_section_is_there_and_holds_brown_and_blue(stained: NDArray[np.uint8]) -> None:
    assert (stained.shape, stained.dtype) == ((512, 512, 3), np.uint8)
    share = positive_pixels(stained).mean()
    assert 0.15 < share < 0.6
    redness = stained[..., 0].astype(int) - stained[..., 2]
    assert redness[positive_pixels(stained)].mean() > redness[~positive_pixels(stained)].mean() + 20


def test_regions_of_splits_are_apart() -> None:
    for (_, right), (left, _) in itertools.pairwise(REGIONS.values()):
        assert left - right >= 8
    edges = [edge for region in REGIONS.values() for edge in region]
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (0, 512)


def test_no_pixel_is_in_two_splits(drawn: dict[str, list[Sample]]) -> None:
    seen = {split: np.zeros((512, 512), dtype=bool) for split in drawn}
    for split, each in drawn.items():
        for sample in each:
            assert sample.meta is not None
            for left, top, right, bottom in sample.meta["boxes"]:
                assert REGIONS[split][0] <= left < right <= REGIONS[split][1]
                assert 0 <= top < bottom <= 512
                assert (right - left, bottom - top) == (SIZE, SIZE)
                seen[split][top:bottom, left:right] = True
    assert sum(mask.sum() for mask in seen.values()) == np.logical_or.reduce(list(seen.values())).sum()
    assert all(mask.sum() > 0.9 * 512 * (REGIONS[split][1] - REGIONS[split][0]) for split, mask in seen.items())


def test_a_picture_is_its_box_turned_and_mirrored(drawn: dict[str, list[Sample]], stained: NDArray[np.uint8]) -> None:
    ways: Counter[int] = Counter()
    for sample in drawn["train"][:200]:
        assert sample.meta is not None
        for data, (left, top, right, bottom) in zip(sample.images, sample.meta["boxes"], strict=True):
            cut = stained[top:bottom, left:right]
            turned = [np.rot90(each, turns) for each in (cut, cut[:, ::-1]) for turns in range(4)]
            same = [way for way, each in enumerate(turned) if np.array_equal(each, tile(data))]
            assert len(same) == 1
            ways[same[0]] += 1
    assert_even(ways.elements(), range(8))


def test_the_amount_can_be_measured_on_the_picture(drawn: dict[str, list[Sample]]) -> None:
    for sample in of_kind(drawn, "amount"):
        low, high = BANDS[BAND_TEXTS.index(right_option(sample))]
        share = positive_share(sample.images[0])
        assert sample.meta is not None
        assert sample.meta["positive_share"] == [round(share, 4)]
        assert low + BORDER * (low > 0) <= share <= high - BORDER * (high < 1)
        assert sample.question == AMOUNT_QUESTION
        assert sorted(sample.options or ()) == sorted(BAND_TEXTS)


def test_the_tile_that_is_stained_more_can_be_measured_on_the_pictures(drawn: dict[str, list[Sample]]) -> None:
    for sample in of_kind(drawn, "comparison"):
        first, second = (positive_share(data) for data in sample.images)
        assert right_option(sample) == COMPARE_OPTIONS[0 if first > second else 1]
        assert abs(first - second) >= LEAST_DIFFERENCE
        assert sample.meta is not None
        assert sample.meta["positive_share"] == [round(first, 4), round(second, 4)]
        assert sample.question == COMPARE_QUESTION
        assert sorted(sample.options or ()) == sorted(COMPARE_OPTIONS)


def test_bands_cover_all_shares_and_are_told_in_words() -> None:
    assert [band[0] for band in BANDS[1:]] == [band[1] for band in BANDS[:-1]]
    assert (BANDS[0][0], BANDS[-1][1]) == (0.0, 1.0)
    numbers = [[int(word) for word in text.split() if word.isdigit()] for text in BAND_TEXTS]
    assert numbers == [[5], [5, 30], [30, 60], [60]]
    assert [[round(100 * limit) for limit in band if limit not in (0.0, 1.0)] for band in BANDS] == numbers


def test_nothing_but_the_pictures_tells_the_answer(drawn: dict[str, list[Sample]]) -> None:
    for split in REGIONS:
        amounts, comparisons = (of_kind({split: drawn[split]}, kind) for kind in ("amount", "comparison"))
        assert (len(amounts), len(comparisons)) == (300, 300)
        assert_even((sample.answer for sample in amounts), "ABCD")
        assert len({sample.options for sample in amounts}) == 24  # all orders
        assert_even((right_option(sample) for sample in amounts), BAND_TEXTS)
        assert_even((sample.answer for sample in comparisons), "AB")
        assert_even((right_option(sample) for sample in comparisons), COMPARE_OPTIONS)
        assert_even(((sample.answer, right_option(sample)) for sample in comparisons), [
            (letter, option) for letter in "AB" for option in COMPARE_OPTIONS
        ])  # fmt: skip


def test_samples_are_sound_and_explained_in_few_words(drawn: dict[str, list[Sample]]) -> None:
    every = [sample for each in drawn.values() for sample in each]
    assert len({sample.id for sample in every}) == len(every)
    for sample in every:
        assert sample.problem() is None
        assert sample.explanation == f"fits {right_option(sample)} {sample.answer}"
        assert len(sample.images) == (1 if sample.meta and sample.meta["kind"] == "amount" else 2)
        assert (sample.subfield, sample.source, sample.task) == ("ihc", "ihc", "mcq")


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    counts = {"test": 3, "train": 4}
    first, second = (tiles(tmp_path / name, seed=1, counts=counts) for name in ("a", "b"))
    for split, count in counts.items():
        assert first[split] == tmp_path / "a" / f"{split}.parquet"
        assert first[split].read_bytes() == second[split].read_bytes()
        assert len(list(read(first[split]))) == count
    other = tiles(tmp_path / "c", seed=2, counts=counts)
    for one, two in zip(read(first["train"]), read(other["train"]), strict=True):
        assert one.images != two.images


def test_a_question_does_not_depend_on_the_others(drawn: dict[str, list[Sample]], tmp_path: Path) -> None:
    path = tiles(tmp_path, seed=1, counts={"train": 5})["train"]

    def comparable(sample: Sample) -> Sample:
        boxes = [list(box) for box in sample.meta["boxes"]] if sample.meta else []
        return replace(sample, meta={**(sample.meta or {}), "boxes": boxes})

    assert list(read(path)) == [comparable(sample) for sample in drawn["train"][:5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": {"train": 2, "val": 2}}, f"split 'val' is none of {', '.join(SPLITS)}"),
        ({"counts": {"train": 0}}, "split train: 0 questions; at least 1 is needed"),
        ({"counts": {}}, "no split to make; give at least one, such as test=200"),
        ({"seed": -1}, "seed: -1 is negative; take 0 or more"),
        ({"size": 27}, "size is 27 pixels, it has to be from 28 to 152"),
        ({"size": 153}, "size is 153 pixels, it has to be from 28 to 152"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        tiles(tmp_path / "out", **{"seed": 0, "counts": {"train": 2}, **arguments})
    assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_a_tile_too_large_for_every_band_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^no tile of 152 pixels of split 'train' has a positive share from ") as caught:
        tiles(tmp_path, seed=0, counts={"train": 40}, size=152)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
