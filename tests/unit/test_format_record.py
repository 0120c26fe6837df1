"""What importers read and check with: files of several kinds, letters, and names of pictures."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from formats import png

from pathor1.data.formats import record
from pathor1.data.formats.record import Record, Region
from pathor1.errors import DataError
from pathor1.samples import Sample

BINARY = b"\x89PNG\r\n\x1a\n\xff\xfe"


def holding(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


def test_fields() -> None:
    item = {"a": None, "b": 0, "c": " x ", "d": " "}
    assert (record.field(item, "a", "b"), record.field(item, "c", "b")) == (0, " x ")
    assert record.text(item, "a", "c") == "x"
    for names, why in (
        (("a",), "a is null"),
        (("x", "a"), "a is null"),
        (("x", "y"), "no field x or y; it has a, b, c, d"),
        (("b",), "b is 0, where a text is needed"),
        (("d",), "d is ' ', where a text is needed"),
    ):
        with pytest.raises(DataError) as error:
            record.text(item, *names)
        assert str(error.value) == why
    with pytest.raises(DataError, match="^no field x; it has none$"):
        record.field({}, "x")


def test_only_a_table_of_fields_has_entries() -> None:
    assert record.entries({"a": 1}) == {"a": 1}
    for item, type_ in (("x", "str"), (None, "NoneType"), ([{"a": 1}], "list"), (7, "int")):
        with pytest.raises(DataError, match=f"^of type {type_}, where a table of fields is needed$"):
            record.entries(item)


def test_only_a_data_error_becomes_the_item_s_problem() -> None:
    sample = Sample(id="a", source="s", task="open", question="q?", answer="x")

    def bad() -> record.Built:
        raise DataError("no good")

    def broken() -> record.Built:
        raise KeyError("ours")

    assert record.record("7", lambda: (sample, (b"1",))) == Record(where="7", sample=sample, pictures=(b"1",))
    assert record.record("7", bad) == Record(where="7", problem="no good")
    with pytest.raises(KeyError):
        record.record("7", broken)


@pytest.mark.parametrize(
    ("option", "text", "letter"),
    [
        ("A) Lymphoma (B-cell)", "Lymphoma (B-cell)", "A"),
        ("  (b)  y ", "y", "B"),
        ("C. x", "x", "C"),
        ("d: x", "x", "D"),
        ("A) B) x", "B) x", "A"),
        ("Ab) x", "Ab) x", None),
        ("a naevus", "a naevus", None),
        ("no letter (A) in front", "no letter (A) in front", None),
        ("", "", None),
    ],
)
def test_a_letter_in_front(option: str, text: str, letter: str | None) -> None:
    assert record.without_letter(option) == text
    assert record.letter_in_front(option) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("D", "D"), (" d ", "D"), ("(f)", "F"), ("(E", "E"), ("D.", "D"), ("G", None), ("AB", None), ("()", None)],
)
def test_a_letter_alone(answer: str, letter: str | None) -> None:
    assert record.letter_in_front(answer) == letter


def test_the_letter_of_an_answer_s_text() -> None:
    assert record.letter_of(" STRASSE", ("x", " Straße ", "B")) == "B"
    assert record.letter_of("B", ("x", "y", "B")) == "C"
    for answer, options, count in (("z", ("x", "y"), 0), ("x", ("x", "y", "X "), 2), ("7", tuple("1234567"), 1)):
        with pytest.raises(DataError) as error:
            record.letter_of(answer, options)
        assert str(error.value) == f"the answer {answer!r} is the text of {count} of the options {list(options)}"


def test_files_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for path in (tmp_path / "out.png", folder / "a.png", folder / "inner/b..png"):
        path.write_bytes(png(1))
    assert record.file_in(folder, "a.png") == folder / "a.png"
    assert record.file_in(folder, "inner/b..png") == folder / "inner/b..png"
    assert record.is_in(folder, "a.png")
    assert not record.is_in(folder, "c.png")
    for name in ("c.png", "inner", "a.png/x", f"{'x' * 255}"):
        with pytest.raises(DataError) as error:
            record.file_in(folder, name)
        assert str(error.value) == f"picture {name[:80]}: not in {folder}"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../out.png", "its name leads out of FOLDER"),
        ("inner/../../out.png", "its name leads out of FOLDER"),
        ("FOLDER/a.png", "its name leads out of FOLDER"),
        ("x" * 256, "longer than the name of a file"),
        (f"inner/{'x' * 256}", "longer than the name of a file"),
        ("病" * 100, "File name too long"),
        ("inner/" * 1000, "File name too long"),
    ],
)
def test_names_that_no_file_of_a_folder_has(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "out.png").write_bytes(png(1))
    (tmp_path / "folder/inner").mkdir(parents=True)
    folder = tmp_path / "folder"
    (folder / "a.png").write_bytes(png(1))
    name, why = (text.replace("FOLDER", str(folder)) for text in (name, why))
    for look in (record.file_in, record.is_in):
        with pytest.raises(DataError) as error:
            look(folder, name)
        assert str(error.value) == f"picture {name[:80]}: {why}"


def test_a_source_s_own_file(tmp_path: Path) -> None:
    path = holding(tmp_path, b"")
    assert record.need_file(path, "give it") == path
    for other in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError) as error:
            record.need_file(other, "give it")
        assert str(error.value) == f"{other}: no such file; give it"


def test_json_items(tmp_path: Path) -> None:
    path = holding(tmp_path, b'{"x": {"y": [1.5, {"a": "\xc3\xa9"}, null]}, "z": [1]}')
    found = list(record.json_items(path, "x.y.item"))
    assert found == [1.5, {"a": "é"}, None]
    assert isinstance(found[0], float)  # ijson's own default is a Decimal, which a sample's meta cannot hold
    assert list(record.json_items(path)) == []
    assert list(record.json_items(holding(tmp_path, b"[1, 2]"))) == [1, 2]


def test_json_items_come_before_a_file_s_end_is_read(tmp_path: Path) -> None:
    rows = [{"number": number, "text": "x" * 1000} for number in range(1000)]
    whole = json.dumps(rows).encode()
    found: list[Any] = []
    with pytest.raises(DataError) as error:
        found.extend(record.json_items(holding(tmp_path, whole[: len(whole) // 2])))
    assert str(error.value).startswith(f"{tmp_path}/file: not JSON: ")
    assert "\n" not in str(error.value)
    assert 400 < len(found) <= 500
    assert found == rows[: len(found)]


@pytest.mark.parametrize("data", [BINARY, b"", b"id,question\n", b'["\xff"]'])
def test_json_items_of_something_else(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="/file: not JSON: "):
        list(record.json_items(holding(tmp_path, data)))


def test_json_lines(tmp_path: Path) -> None:
    path = holding(tmp_path, b'\xef\xbb\xbf{"a": "\xc3\xa9"}\r\n\n  \n[2]\n7')
    assert list(record.json_lines(path)) == [{"a": "é"}, [2], 7]


@pytest.mark.parametrize("bad", [b'{"a"', b"x", b'{"a": "\xff"}', BINARY.splitlines()[0]])
def test_a_bad_json_line_is_named_after_those_before_it(tmp_path: Path, bad: bytes) -> None:
    found: list[Any] = []
    with pytest.raises(DataError) as error:
        found.extend(record.json_lines(holding(tmp_path, b"[1]\n\n[2]\n" + bad + b"\n[3]\n")))
    assert str(error.value).startswith(f"{tmp_path}/file, line 4: not JSON: ")
    assert found == [[1], [2]]


def test_json_lines_of_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/file, line 1: not JSON: "):
        list(record.json_lines(holding(tmp_path, BINARY)))


def test_table_rows(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # as Python begins; an earlier test may have changed it
    long = "x" * 200_000
    path = holding(tmp_path, f'\ufeffa,b\r\n"é\n\nof ""many"", lines",2\r\n{long},\r\n3\r\n4,5,6\r\n'.encode())
    assert list(record.table_rows(path)) == [
        {"a": 'é\n\nof "many", lines', "b": "2"},
        {"a": long, "b": ""},
        {"a": "3"},
        {"a": "4", "b": "5"},
    ]
    path = holding(tmp_path, b'a\tb\n1,2\t"3\r\n4"\n')
    assert list(record.table_rows(path, delimiter="\t")) == [{"a": "1,2", "b": "3\r\n4"}]


def test_table_rows_of_a_binary_file(tmp_path: Path) -> None:
    for data in (BINARY, b"a,b\n1,\xff\n"):
        with pytest.raises(DataError, match="/file: not a table of texts: "):
            list(record.table_rows(holding(tmp_path, data)))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """250 rows of three columns, in row groups of a hundred; pages as they are, so that each has its place."""
    rows = [{"number": number, "text": f"text {number:03d}", "image": b"x" * 50} for number in range(250)]
    pq.write_table(
        pa.Table.from_pylist(rows),
        tmp_path / "file",
        row_group_size=100,
        compression="none",
        use_dictionary=False,
    )
    return tmp_path / "file"


def test_parquet_rows(table: Path) -> None:
    assert list(record.parquet_rows(table)) == pq.read_table(table).to_pylist()
    assert list(record.parquet_rows(table, ["text"])) == [{"text": f"text {number:03d}"} for number in range(250)]


def test_parquet_rows_without_columns(table: Path) -> None:
    with pytest.raises(DataError) as error:
        list(record.parquet_rows(table, ["answer", "text", "question"]))
    assert str(error.value) == f"{table}: no column answer, question; it has number, text, image"


def test_parquet_rows_of_something_else(table: Path) -> None:
    whole = table.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-4], b"", BINARY):
        table.write_bytes(data)
        with pytest.raises(DataError) as error:
            list(record.parquet_rows(table))
        assert str(error.value).startswith(f"{table}: not a Parquet file (")
        assert "\n" not in str(error.value)


def test_parquet_rows_come_before_a_broken_page(table: Path) -> None:
    start = pq.ParquetFile(table).metadata.row_group(2).column(1).data_page_offset
    whole = table.read_bytes()
    table.write_bytes(whole[:start] + b"\xff" * 40 + whole[start + 40 :])
    found: list[dict[str, Any]] = []
    with pytest.raises(DataError) as error:
        found.extend(record.parquet_rows(table))
    assert str(error.value).startswith(f"{table}: a broken Parquet file (")
    assert [row["number"] for row in found] == list(range(200))


def slide(path: Path) -> Region:
    """A region of a slide of noise, tiled and lossless."""
    pixels = np.random.default_rng(3).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    return Region(slide=path, x=16, y=32, side=300)


def test_a_region_of_a_slide_that_is_cut_or_gone(tmp_path: Path) -> None:
    region = slide(tmp_path / "a.tif")
    assert str(region) == f"{tmp_path}/a.tif at 16, 32"
    assert region.png().startswith(b"\x89PNG")
    region.slide.write_bytes(region.slide.read_bytes()[:100_000])  # the tables are in front, the tiles behind them
    with pytest.raises(DataError, match="^a slide that cannot be read: "):
        region.png()
    region.slide.unlink()
    with pytest.raises(DataError, match="^a slide that cannot be read: "):
        region.png()


def test_a_region_without_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    region = slide(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(DataError) as error:
        region.png()
    assert str(error.value) == "reading whole slides needs OpenSlide: pip install 'pathor1[slides]'"
