"""Which samples a step has, and which of them a rank: without Ray, whose part is to read."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from pathor1.data.dealer import Deal, Dealer, Share
from pathor1.data.read_block import ReadBlock
from pathor1.data.row_groups import RowGroup
from pathor1.data.stream import Reading, ReadRow, Source, StreamState
from pathor1.errors import DataError
from pathor1.supervised.packing import Layout
from pathor1.supervised.passes import Passes, SampleRow, Split

ROWS, BATCH, BAD = 40, 6, (7, 21)
READING = Reading(tasks=("open",), min_pixels=1, max_pixels=9, shuffle=True, workers=1)


def read(reads: Sequence[ReadBlock], name: str, workers: int) -> Generator[ReadRow[SampleRow]]:
    """Rows of made-up lengths, in the order of the plan."""
    assert name.startswith("samples_train_from_epoch_")
    assert workers == 1
    for each in reads:
        for place, row in list(enumerate(each.block.order().tolist()))[each.skip :]:
            tokens = 10 + row
            sample = SampleRow(
                id=str(row), source="ab"[row % 2], tokens=tokens, learned=tokens // 3, block=None, index=row
            )
            problem = "torn" if row in BAD else None
            yield ReadRow(epoch=each.block.epoch, position=each.block.first + place, sample=sample, problem=problem)


def deal(path: Path, *, bad: float = 0.1) -> Deal[SampleRow, Passes]:
    groups = [RowGroup(file="f", index=0, rows=ROWS, size=1)]
    return Deal(
        sources=[Source(name="train", groups=groups)],
        reading=READING,
        read=read,
        split=Split(layout=Layout(places=120, columns=60, masked=False)),
        seed=4,
        batch_size=BATCH,
        steps=20,
        left_out=path / "left_out.jsonl",
        max_bad_fraction=bad,
    )


def shares(dealer: Dealer[SampleRow, Passes], steps: range) -> list[list[Share[Passes]]]:
    return [[dealer.share(step, rank) for rank in range(dealer.ranks)] for step in steps]


def ids(of_ranks: list[Share[Passes]]) -> list[str]:
    return sorted(row.id for share in of_ranks for row in share.part.rows())


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    alone = shares(Dealer(deal(tmp_path), ranks=1, start=None), range(1, 14))
    spread = shares(Dealer(deal(tmp_path), ranks=ranks, start=None), range(1, 14))
    assert [ids(step) for step in spread] == [ids(step) for step in alone]
    for step in spread:
        assert len({len(share.part.passes) for share in step}) == 1
        parts = [share.part for share in step]
        (whole,) = {(part.samples, part.tokens, part.learned, part.sources, part.learned_by) for part in parts}
        rows = [row for part in parts for row in part.rows()]
        assert whole[:3] == (BATCH, sum(row.tokens for row in rows), sum(row.learned for row in rows))
        assert sum(whole[4]) == whole[2]
        for part in parts:
            for row, source in (pair for rows in part.passes for one in rows for pair in one):
                assert part.sources[source] == row.source


def test_an_epoch_has_every_usable_sample_once(tmp_path: Path) -> None:
    usable = ROWS - len(BAD)
    steps = shares(Dealer(deal(tmp_path), ranks=2, start=None), range(1, 2 * usable // BATCH + 1))
    found = [one for step in steps for one in ids(step)]
    assert sorted(found[: usable // BATCH * BATCH], key=int) == sorted(set(found[: usable // BATCH * BATCH]), key=int)
    assert sorted(found, key=int).count("0") in (1, 2)
    assert not {str(row) for row in BAD} & set(found)


def test_places_are_counted_with_their_padding(tmp_path: Path) -> None:
    for step in shares(Dealer(deal(tmp_path), ranks=2, start=None), range(1, 6)):
        passes = [rows for share in step for rows in share.part.passes]
        longest = [max((sum(row.tokens for row, _ in one) for one in rows), default=0) for rows in passes]
        assert step[0].part.places == sum(len(rows) * most for rows, most in zip(passes, longest, strict=True))
        assert step[0].part.places >= step[0].part.tokens


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_place_behind_a_step_is_where_another_dealer_goes_on(tmp_path: Path, ranks: int) -> None:
    whole = shares(Dealer(deal(tmp_path), ranks=2, start=None), range(1, 14))
    start: StreamState = whole[8][0].stream
    rest = shares(Dealer(deal(tmp_path), ranks=ranks, start=start, done=9), range(10, 14))
    assert [ids(step) for step in rest] == [ids(step) for step in whole[9:]]
    assert [step[0].stream for step in rest] == [step[0].stream for step in whole[9:]]


def test_samples_that_cannot_be_used_are_listed_and_too_many_end_the_stage(tmp_path: Path) -> None:
    steps = shares(Dealer(deal(tmp_path), ranks=1, start=None), range(1, 7))
    listed = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert {(row["id"], row["why"]) for row in listed} == {(str(row), "torn") for row in BAD}
    assert steps[-1][0].left_out == 2
    assert steps[-1][0].left_out_share == pytest.approx(2 / ROWS)
    dealer = Dealer(deal(tmp_path, bad=0.03), ranks=2, start=None)
    with pytest.raises(DataError, match=r"^2 of 40 training samples cannot be used, more than data\.max_bad_fraction"):
        shares(dealer, range(1, 7))
