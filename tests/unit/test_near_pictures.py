"""Pictures that are nearly the same, by their perceptual hashes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pathor1.data.near_pictures import HashGroup, is_plain, near_pairs, nearest, picture_hash, turned_hashes
from pathor1.data.row_groups import row_groups
from pathor1.samples import Sample, write


def drawn(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (256, 192), tuple(rng.integers(150, 255, 3).tolist()))
    draw = ImageDraw.Draw(picture)
    for x, y, r in zip(rng.integers(0, 256, 30), rng.integers(0, 192, 30), rng.integers(8, 40, 30), strict=True):
        draw.ellipse([int(x - r), int(y - r), int(x + r), int(y + r)], fill=tuple(rng.integers(0, 200, 3).tolist()))
    return picture


def bits(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def test_the_same_picture_in_another_form_is_near_and_another_picture_is_not() -> None:
    for seed in range(8):
        picture = drawn(seed)
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=60)
        forms = [
            picture.resize((512, 384)),
            picture.resize((100, 80)),
            Image.open(packed),
            picture.point(lambda value: min(255, int(value * 1.1))),
            picture.crop((1, 1, 255, 191)),
        ]
        for form in forms:
            assert bits(picture_hash(picture), picture_hash(form)) <= 6
    hashes = [picture_hash(drawn(seed)) for seed in range(40)]
    apart = [bits(hashes[a], hashes[b]) for a in range(40) for b in range(a)]
    assert min(apart) > 6
    assert bits(picture_hash(drawn(0)), picture_hash(drawn(0).rotate(180))) > 6


def test_turned_and_mirrored_forms_are_near_one_of_the_eight() -> None:
    picture = drawn(3)
    known = turned_hashes(picture)
    assert known[0] == picture_hash(picture)
    assert len(set(known)) == 8
    for turn in (*Image.Transpose,):
        assert min(bits(picture_hash(picture.transpose(turn)), one) for one in known) <= 6


@pytest.mark.parametrize("distance", [0, 3, 6])
def test_near_pairs_are_all_that_there_are(distance: int) -> None:
    rng = np.random.default_rng(distance)
    one = rng.integers(0, 2**63, 400, dtype=np.uint64)
    other = rng.integers(0, 2**63, 300, dtype=np.uint64)
    for place in range(100):  # some that differ in few bits, wherever these are
        flipped = rng.choice(64, int(rng.integers(0, 9)), replace=False)
        other[place] = one[place] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64), initial=0)
    exact = np.bitwise_count(one[:, None] ^ other[None, :]) <= distance
    found: set[tuple[int, int]] = set()
    for rows, columns, differ in near_pairs(one, other, distance):
        assert differ.tolist() == np.bitwise_count(one[rows] ^ other[columns]).tolist()
        found.update(zip(rows.tolist(), columns.tolist(), strict=True))
    assert found == set(zip(*(places.tolist() for places in np.nonzero(exact)), strict=True))
    assert len(found) > 5
    apart = np.where(exact, np.bitwise_count(one[:, None] ^ other[None, :]).astype(int), 99)
    places, differ = nearest(one, other, distance)
    assert places.tolist() == np.where(exact.any(axis=1), apart.argmin(axis=1), -1).tolist()
    assert differ.tolist() == np.where(exact.any(axis=1), apart.min(axis=1), -1).tolist()
    assert nearest(one, other[:0], distance)[0].tolist() == [-1] * 400


def test_a_plain_picture_has_no_hash_and_one_that_cannot_be_read_no_pixels(tmp_path: Path) -> None:
    pictures: list[bytes] = []
    for picture, form in ((drawn(0), "PNG"), (drawn(0), "BMP"), (Image.new("RGB", (50, 50), "pink"), "PNG")):
        buffer = io.BytesIO()
        picture.save(buffer, form)
        pictures.append(buffer.getvalue())
    assert is_plain(Image.new("RGB", (50, 50), "pink"))
    sample = Sample(id="a", source="b", task="open", question="q", answer="x", images=(*pictures, b"broken"))
    write([sample], tmp_path / "some.parquet")
    (group,) = row_groups([str(tmp_path / "some.parquet")])
    (table,) = HashGroup(group=group, all_forms=True)()
    rows = table.to_pylist()
    assert [len(row["hashes"]) for row in rows] == [8, 8, 0, 0]
    assert rows[0]["pixels"] == rows[1]["pixels"], "whatever the file format"
    assert rows[2]["pixels"] not in (rows[0]["pixels"], None)
    assert rows[3]["pixels"] is None
    (table,) = HashGroup(group=group, all_forms=False)()
    assert [row["hashes"] for row in table.to_pylist()] == [[picture_hash(drawn(0))]] * 2 + [[], []]
