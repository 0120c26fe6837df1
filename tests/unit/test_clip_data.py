"""Pairs on their way into training and into shards: cut, tokenized, written, read back, left out, and found again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from clip_models import write_config
from formats import png
from PIL import Image

from pathor1.clip import embed, leaks, models
from pathor1.clip.encode import SCHEMA, EncodePairs, PairRow
from pathor1.clip.leaks import Index
from pathor1.clip.shards import WriteShard, _go_on, _made_of, _plan, encoded
from pathor1.clip.worker import batch
from pathor1.contrastive import ANY_SIZE, ClipModel
from pathor1.data import formats
from pathor1.data.formats import webdataset
from pathor1.data.near_pictures import picture_hash, turned_hashes
from pathor1.data.plan import Block
from pathor1.data.read_block import ReadBlock
from pathor1.data.row_groups import row_groups
from pathor1.errors import DataError, RunError
from pathor1.samples import Sample, read, write


def pair(number, image, caption="melanoma", **more):
    return Sample(
        id=f"pair-{number}", source="test", task="caption", question="", answer=caption, images=(image,), **more
    )


def as_format(name, size=(80, 60), **options):
    pixels = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, name, **options)
    return buffer.getvalue()


@pytest.fixture
def found(tmp_path):
    return models.find(ClipModel(architecture=str(write_config(tmp_path, "tiny"))))


def tables(path, encode):
    groups = row_groups([path])
    read_block = ReadBlock(
        block=Block(epoch=2, first=0, groups=tuple(groups), seed=None),
        tasks=("caption",),
        min_pixels=1,
        max_pixels=ANY_SIZE,
        encoded=True,
    )
    return [encode(table) for table in read_block()]


def test_a_pair_becomes_a_cut_picture_and_tokens(found, tmp_path):
    long = "words " * 40
    path = tmp_path / "pairs.parquet"
    write([pair(0, png(0, (90, 70))), pair(1, png(1, (50, 50)), long), pair(2, b"broken")], path)
    encode = EncodePairs(model=found, crop=0.9, seed=0)
    (table,) = tables(path, encode)
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert [row["position"] for row in rows] == [0, 1, 2]
    assert rows[2]["problem"] is not None
    assert rows[2]["pixels"] is None
    assert all(len(row["pixels"]) == 56 * 56 * 3 for row in rows[:2])
    tokenizer = models.tokenizer(found)
    for row, text in zip(rows[:2], ["melanoma", long], strict=True):
        expected = tokenizer([text])[0].tolist()
        assert row["tokens"] + [0] * (24 - len(row["tokens"])) == expected
    assert len(rows[1]["tokens"]) == 24  # cut, and it ends as every text does
    assert rows[1]["tokens"][-1] == rows[0]["tokens"][-1] == 49407

    asked = [PairRow(id=rows[n]["id"], source="test", full=rows[n]["full"], block="b", index=n) for n in (1, 0)]
    assert [row.full for row in asked] == [True, False]
    made = batch(asked, {"b": table}, found)
    assert made.pixels.shape == (2, 56, 56, 3)
    assert made.pixels[1].numpy().tobytes() == rows[0]["pixels"]
    assert made.tokens.tolist() == tokenizer([long, "melanoma"]).tolist()


def test_how_a_picture_is_cut_hangs_on_seed_epoch_and_sample_alone(found, tmp_path):
    path = tmp_path / "pairs.parquet"
    write([pair(number, png(7, (90, 70))) for number in range(3)], path)

    def cuts(seed, *, epoch=2, skip=()):
        encode = EncodePairs(model=found, crop=0.5, seed=seed, left_out=frozenset(skip))
        rows = [row for table in tables(path, encode) for row in table.to_pylist()]
        assert all(row["epoch"] == epoch for row in rows)
        return {row["id"]: row["pixels"] for row in rows}

    first = cuts(0)
    assert len(set(first.values())) == 3, "each is cut in its own way"
    assert cuts(0) == first
    assert cuts(1)["pair-0"] != first["pair-0"]
    # What is left out is passed over, and changes nothing of the others.
    assert cuts(0, skip=["pair-1"]) == {name: value for name, value in first.items() if name != "pair-1"}


def test_without_cutting_a_square_picture_is_all_there(found, tmp_path):
    path = tmp_path / "pairs.parquet"
    image = png(5, (56, 56))
    write([pair(0, image)], path)
    (row,) = tables(path, EncodePairs(model=found, crop=1.0, seed=0))[0].to_pylist()
    with Image.open(io.BytesIO(image)) as picture:
        assert row["pixels"] == np.asarray(picture.convert("RGB")).tobytes()


def test_a_large_jpeg_becomes_what_all_of_its_pixels_would(found, tmp_path):
    path = tmp_path / "pairs.parquet"
    large = texture(3, 448)
    write([pair(0, jpeg(large, 95)), pair(1, lossless(large))], path)
    rows = tables(path, EncodePairs(model=found, crop=1.0, seed=0))[0].to_pylist()
    of_jpeg, whole = (np.frombuffer(row["pixels"], dtype=np.uint8).reshape(56, 56, 3).astype(int) for row in rows)
    assert np.abs(of_jpeg - whole).mean() < 4
    assert np.abs(of_jpeg[:, 1:] - whole[:, :-1]).mean() > 2 * np.abs(of_jpeg - whole).mean()


def test_no_cut_of_a_jpeg_is_enlarged_that_has_the_pixels(found, tmp_path):
    """With a `crop` of 0.9 a cut of 128 pixels can be 106 wide, and half of that would be less than the model's 56."""
    path = tmp_path / "pairs.parquet"
    data = jpeg(texture(3, 128), 95)
    with Image.open(io.BytesIO(data)) as picture:
        pixels = lossless(picture.convert("RGB"))
    write([pair(0, data)], path)
    encode = EncodePairs(model=found, crop=0.9, seed=0)
    (of_jpeg,) = tables(path, encode)[0].to_pylist()
    write([pair(0, pixels)], path)
    (of_all,) = tables(path, encode)[0].to_pylist()
    assert of_jpeg["pixels"] == of_all["pixels"]


@pytest.mark.parametrize(("name", "suffix"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_what_open_clip_reads_is_kept_as_it_is(name, suffix):
    data = as_format(name)
    assert encoded(data) == (suffix, data)


@pytest.mark.parametrize("name", ["TIFF", "BMP"])
def test_other_formats_become_png_of_the_same_pixels(name):
    data = as_format(name)
    suffix, made = encoded(data)
    assert suffix == "png"
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(made)) as after:
        assert after.format == "PNG"
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_a_turned_picture_is_turned_in_the_shard():
    exif = Image.Exif()
    exif[0x0112] = 6
    suffix, made = encoded(as_format("JPEG", exif=exif))
    assert suffix == "png"
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (60, 80)


def test_shards_and_back(tmp_path):
    path = tmp_path / "pairs.parquet"
    caption = 'Glands, "back to back",\n\nwith necrosis. Ä'
    kept = [pair(0, as_format("JPEG"), caption, subfield="ihc", license="CC0-1.0", meta={"class": "x"})]
    kept += [pair(number, as_format("TIFF")) for number in (1, 2)]
    question = replace(kept[0], id="q", task="open", question="What?", answer="x")
    write([*kept[:2], pair(9, b"broken"), question, replace(kept[0], id="two", images=(png(0), png(1))), kept[2]], path)
    plan = list(_plan(row_groups([str(path)]), 4))
    assert [[(part[1], part[2]) for part in parts] for parts in plan] == [[(0, 4)], [(4, 6)]]
    out = tmp_path / "shards"
    rows = [
        row
        for place, parts in enumerate(plan)
        for table in WriteShard(path=out / f"{place:05d}.tar", parts=parts)()
        for row in table.to_pylist()
    ]
    assert [(row["shard"], row["pairs"]) for row in rows] == [("00000.tar", 2), ("00001.tar", 1)]
    left_out = [json.loads(line) for row in rows for line in json.loads(row["left_out"])]
    assert [(each["id"], each["why"][:12]) for each in left_out] == [
        ("pair-9", "6 bytes that"),
        ("two", "2 pictures, "),
    ]
    skip = WriteShard(path=tmp_path / "less.tar", parts=plan[0], passed_over=frozenset(["pair-0"]))
    assert [row["pairs"] for table in skip() for row in table.to_pylist()] == [1]
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames() == [f"0000000000.{end}" for end in ("jpg", "txt", "json")] + [
            f"0000000001.{end}" for end in ("png", "txt", "json")
        ]
    back = [(record.sample, record.pictures) for record in webdataset.records(out)]
    assert [sample.id for sample, _ in back] == ["pair-0", "pair-1", "pair-2"]
    first, pictures = back[0]
    assert (first.answer, first.subfield, first.license, first.source) == (caption, "ihc", "CC0-1.0", "test")
    assert first.meta == {"key": "0000000000", "class": "x"}
    assert pictures == (kept[0].images[0],)


def test_shards_that_are_whole_are_not_written_again(tmp_path):
    path, out = tmp_path / "pairs.parquet", tmp_path / "shards"
    write([pair(0, png(0)), pair(1, b"broken"), pair(2, png(2))], path)
    groups = row_groups([str(path)])
    plan = list(_plan(groups, 2))
    made_of = _made_of(groups, 2, 0, frozenset())
    _go_on(out, made_of)

    def rows():
        shards = [WriteShard(path=out / f"{place:05d}.tar", parts=parts) for place, parts in enumerate(plan)]
        return [row for shard in shards for table in shard() for row in table.to_pylist()]

    first = rows()
    assert [(row["shard"], row["pairs"], "pair-1" in row["left_out"]) for row in first] == [
        ("00000.tar", 1, True),
        ("00001.tar", 1, False),
    ]
    # As if the process had been killed while it wrote the second.
    (out / ".unfinished/00001.json").unlink()
    (out / ".00001.tar.0123.part").write_bytes(b"half of it")
    (out / "00001.tar").write_bytes(b"another's")
    before = (out / "00000.tar").stat().st_mtime_ns
    _go_on(out, made_of)
    assert rows() == first
    assert (out / "00000.tar").stat().st_mtime_ns == before
    with tarfile.open(out / "00001.tar") as tar:
        assert len(tar.getnames()) == 3
    assert sorted(each.name for each in out.iterdir()) == [".unfinished", "00000.tar", "00001.tar"]
    for other in (_made_of(groups, 3, 0, frozenset()), _made_of(groups, 2, 0, frozenset(["pair-0"]))):
        with pytest.raises(RunError, match="unfinished shards of other files, or with another --pairs"):
            _go_on(out, other)
    shutil.rmtree(out / ".unfinished")
    with pytest.raises(RunError, match="is not empty"):
        _go_on(out, made_of)


def test_shards_of_others(tmp_path):
    with tarfile.open(tmp_path / "00003.tar", "w") as tar:
        contents = {
            "000.jpg": as_format("JPEG"),
            "000.txt": b"a caption\nof two lines",
            "001.json": b'{"caption": "from JSON", "width": 3}',
            "001.PNG": png(1),
            "002.txt": b"no picture",
            "003.png": png(1),
            "003.txt": b"\xff\xfe",
        }
        for name, data in contents.items():
            member = tarfile.TarInfo(f"some.dir/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = list(formats.load("webdataset").records(tmp_path))
    assert [record.where for record in found] == [f"00003.tar, some.dir/00{n}" for n in range(4)]
    assert [record.sample and record.sample.answer for record in found] == [
        "a caption\nof two lines",
        "from JSON",
        None,
        None,
    ]
    assert found[1].sample.meta == {"key": "some.dir/001", "width": 3}
    assert [record.problem for record in found[2:]] == [
        "0 pictures, where one is needed; it has txt",
        "its .txt is not UTF-8 (byte 0)",
    ]
    (tmp_path / "00004.tar").write_bytes(b"no tar file")
    with pytest.raises(DataError, match=r"00004.tar: not a whole tar file"):
        list(webdataset.records(tmp_path))


def test_a_table_of_captions(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.tif").write_bytes(as_format("TIFF"))
    text = 'image_path,caption,organ\na.tif,"Two\nlines, ""quoted""",skin\n../b.png,out,\nc.png,gone,\n'
    (tmp_path / "mine.csv").write_text(text)
    found = list(formats.load("caption-table").records(tmp_path))
    assert found[0].sample.answer == 'Two\nlines, "quoted"'
    assert found[0].sample.id == "mine/0"
    assert found[0].sample.meta == {"image_path": "a.tif", "organ": "skin"}
    assert found[0].pictures == (tmp_path / "images/a.tif",)
    assert "leads out of" in found[1].problem
    assert "c.png" in found[2].problem
    (tmp_path / "mine.csv").write_text("path,caption\n")
    with pytest.raises(DataError, match="no column image_path; it has path, caption"):
        list(formats.load("caption-table").records(tmp_path))


def texture(seed, size=96):
    """A picture with some structure, as tissue has."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(picture, quality=60):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def lossless(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_evaluation_picture_is_found_by_its_pixels_and_in_another_size_or_form():
    pictures = [
        {"file": "test.parquet", "id": f"e{seed}", "pixels": b"%d" % seed, "hashes": turned_hashes(texture(seed))}
        for seed in range(300)
    ]
    unreadable = {"file": "test.parquet", "id": "broken", "pixels": None, "hashes": []}
    index = Index.of([unreadable, *pictures], 4)
    for seed in (0, 77, 299):
        changed = [
            texture(seed).resize((60, 60), Image.Resampling.BICUBIC),
            Image.open(io.BytesIO(jpeg(texture(seed)))),
            texture(seed).transpose(Image.Transpose.ROTATE_90).resize((70, 70)),
            texture(seed).transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        ]
        found = index.find([(b"others", picture_hash(each)) for each in changed])
        assert [each and each[0] for each in found] == [("test.parquet", f"e{seed}")] * 4
        assert all(each is not None and each[1] is not None and each[1] <= 4 for each in found)
    others = [(b"others", picture_hash(texture(seed))) for seed in range(1000, 1300)]
    assert index.find(others) == [None] * 300
    # Pixels come before hashes, and need none.
    both = [(b"77", None), (b"others", None), (b"77", picture_hash(texture(3)))]
    assert index.find(both) == [(("test.parquet", "e77"), None), None, (("test.parquet", "e77"), None)]
    of_pixels = Index.of(pictures, -1)
    assert of_pixels.find([(b"x", picture_hash(texture(3))), (b"3", None)]) == [None, (("test.parquet", "e3"), None)]


def test_leaks_are_listed_and_left_out(tmp_path):
    found = [leaks.Leak(id="a", file="t", evaluation="e", evaluation_id="x", bits=None)]
    found += [replace(found[0], id="b", bits=3)]
    leaks.write(found, tmp_path / "leaks.jsonl")
    assert leaks.listed([str(tmp_path / "leaks.jsonl")]) == {"a", "b"}
    assert "1 by the same pixels, 1 by nearly the same picture" in leaks.told(found)
    assert leaks.told([]) == "no training sample has a picture of the evaluation sets"
    (tmp_path / "bad").write_text("[]\n")
    with pytest.raises(DataError, match="no file of JSON lines with an id each"):
        leaks.listed([str(tmp_path / "bad")])
    with pytest.raises(DataError, match="cannot be read"):
        leaks.listed([str(tmp_path / "none")])


def test_features_are_kept_by_model_and_data(found, tmp_path):
    import torch

    torch.manual_seed(0)
    encoder = models.Encoder(found)
    path = tmp_path / "pairs.parquet"
    write([pair(0, png(0, (60, 60)), meta={"class": "x"}), pair(1, b"broken"), pair(2, png(2, (60, 60)))], path)
    first = embed.features(encoder, [str(path)], tmp_path / "cache", batch_size=2)
    assert first.images.shape == (2, 64)
    assert [row.id for row in first.rows] == ["pair-0", "pair-2"]
    assert (first.rows[0].meta, first.rows[0].caption) == ({"class": "x"}, "melanoma")
    assert list(first.left_out) == ["pair-1"]
    assert np.abs(first.images).sum(axis=1).min() > 0, "nothing stands for a picture that cannot be read"

    encoder.images = None  # what is kept is not made again
    again = embed.features(encoder, [str(path)], tmp_path / "cache")
    assert np.array_equal(again.images, first.images)
    assert again.rows == first.rows
    torch.manual_seed(1)
    other = models.Encoder(found)
    assert other.digest != encoder.digest
    assert not np.allclose(embed.features(other, [str(path)], tmp_path / "cache").images, first.images)
    write([pair(0, png(9, (64, 64)))], path)
    assert len(embed.features(other, [str(path)], tmp_path / "cache").rows) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_without_a_picture_there_are_no_features(found, tmp_path):
    write([pair(0, b"broken")], tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match="no picture can be used; the first: 6 bytes that are no picture"):
        embed.features(models.Encoder(found), [str(tmp_path / "pairs.parquet")], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    assert list(read(tmp_path / "pairs.parquet"))
