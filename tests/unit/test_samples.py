import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathor1.errors import DataError
from pathor1.samples import (
    COLUMNS,
    LETTERS,
    ROW_GROUP_ROWS,
    SCHEMA,
    SUBFIELDS,
    Sample,
    Turn,
    from_row,
    open_parquet,
    read,
    to_row,
    write,
)

MCQ = Sample(
    id="book/1",
    source="book",
    task="mcq",
    question="Which diagnosis fits?",
    options=("melanoma", "lymphoma", "größer \U0001f52c"),
    answer="B",
    images=(b"\x89PNG\x00\xff", b"\xff\xd8"),
    subfield="ihc",
    split="val",
    level="hard",
    explanation="Large cells.\nNo pigment.",
    meta={"page": 12, "box": [1, 2], "share": 0.25, "nested": {"none": None, "text": "ß"}},
    license="CC-BY-4.0",
)
EACH_TASK = (
    MCQ,
    Sample(id="yes", source="s", task="yes_no", question="Is it malignant?", answer="no", images=(b"1",)),
    Sample(id="open", source="s", task="open", question="What is it?", answer="A lipoma."),
    Sample(id="caption", source="s", task="caption", question="", answer="A gland.", images=(b"",)),
    Sample(
        id="talk",
        source="s",
        task="conversation",
        question="",
        answer="",
        turns=(Turn(role="user", text="What?"), Turn(role="assistant", text="A naevus.")),
    ),
)


def changed(**values):
    return dataclasses.replace(MCQ, **values)


def test_every_task_with_every_column_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "set.parquet"
    assert write(EACH_TASK, path) == 5
    assert tuple(read(path)) == EACH_TASK
    assert pq.read_schema(path).names == list(COLUMNS) == [field.name for field in dataclasses.fields(Sample)]


TEXT = st.text(min_size=1, max_size=20).filter(str.strip)
# Parquet's strings are UTF-8, which has no lone surrogates.
UTF8 = st.text(st.characters(codec="utf-8"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | UTF8,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UTF8, inner, max_size=3),
    max_leaves=6,
)


@given(
    question=UTF8,
    answer=UTF8,
    options=st.none() | st.lists(UTF8, max_size=6).map(tuple),
    turns=st.none() | st.lists(st.builds(Turn, role=UTF8, text=UTF8), max_size=3).map(tuple),
    images=st.lists(st.binary(max_size=20), max_size=3).map(tuple),
    explanation=st.none() | UTF8,
    meta=st.none() | st.dictionaries(UTF8, JSON, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_a_row_of_arrow_gives_the_same_sample(**values):
    sample = changed(**values)
    table = pa.Table.from_pylist([to_row(sample)], schema=SCHEMA)
    assert from_row(table.to_pylist()[0]) == sample


def test_meta_is_json_text_in_the_file(tmp_path):
    write([MCQ], tmp_path / "set.parquet")
    text = pq.read_table(tmp_path / "set.parquet").column("meta")[0].as_py()
    assert json.loads(text) == MCQ.meta


@pytest.mark.parametrize("sample", EACH_TASK, ids=lambda sample: sample.task)
def test_a_sound_sample_has_no_problem(sample):
    assert sample.problem() is None


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (changed(id=""), "the id is empty"),
        (changed(task="quiz"), "task 'quiz' is none of mcq, yes_no, open, caption, conversation"),
        (changed(subfield="skin"), "subfield 'skin' is none of histopathology, gross, ihc, cytology, fish"),
        (changed(question=" \n"), "the question is empty"),
        (changed(options=None), "a multiple-choice question without options"),
        (changed(options=()), "a multiple-choice question without options"),
        (changed(options=("a",), answer="A"), "1 options, where 2 to 6 can be lettered"),
        (changed(options=tuple("abcdefg")), "7 options, where 2 to 6 can be lettered"),
        (changed(options=("a", " ", "c")), "an option is empty"),
        (changed(options=("Lipoma", "lipoma ")), "two options have the same text"),
        (changed(answer="D"), "the answer 'D' is none of the 3 options (A-C)"),
        (changed(answer="b"), "the answer 'b' is none of the 3 options (A-C)"),
        (changed(answer="AB"), "the answer 'AB' is none of the 3 options (A-C)"),
        (changed(answer=""), "the answer '' is none of the 3 options (A-C)"),
        (changed(task="yes_no", answer="Yes"), "the answer 'Yes' is neither 'yes' nor 'no'"),
        (changed(task="yes_no", question=""), "the question is empty"),
        (changed(task="open", answer=" "), "the answer is empty"),
        (changed(task="open", question=""), "the question is empty"),
        (changed(task="caption", answer=""), "the answer is empty"),
        (changed(task="conversation"), "a conversation without turns"),
        (changed(task="conversation", turns=()), "a conversation without turns"),
        (
            changed(task="conversation", turns=(Turn(role="doctor", text="?"),)),
            "a turn's role 'doctor' is none of system, user, assistant",
        ),
        (
            changed(task="conversation", turns=(Turn(role="user", text="?"), Turn(role="assistant", text=" "))),
            "a conversation in which the assistant says nothing",
        ),
    ],
)
def test_each_rule_names_its_problem(sample, problem):
    assert sample.problem() == problem


@pytest.mark.parametrize("count", range(2, 7))
def test_exactly_the_letters_of_the_options_are_answers(count):
    options = tuple(f"option {i}" for i in range(count))
    accepted = [letter for letter in "ABCDEFG" if changed(options=options, answer=letter).problem() is None]
    assert accepted == list(LETTERS[:count])


@pytest.mark.parametrize("subfield", [*SUBFIELDS, None])
def test_each_subfield_is_known(subfield):
    assert changed(subfield=subfield).problem() is None


def test_texts_can_be_read_without_the_pictures(tmp_path):
    write(EACH_TASK, tmp_path / "set.parquet")
    columns = [name for name in COLUMNS if name != "images"]
    assert list(read(tmp_path / "set.parquet", columns=columns)) == [
        dataclasses.replace(sample, images=()) for sample in EACH_TASK
    ]


def test_row_groups_hold_what_a_reader_may_hold_at_once(tmp_path):
    path = tmp_path / "set.parquet"
    samples = [changed(id=f"{i}", images=()) for i in range(2 * ROW_GROUP_ROWS + 1)]
    assert write(iter(samples), path) == len(samples)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 256, 1]
    assert [sample.id for sample in read(path)] == [sample.id for sample in samples]


def breaks_after(count):
    yield from (changed(id=f"{i}") for i in range(count))
    raise OSError("the disk of the source went away")


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        ([], DataError, "no samples to write"),
        ([MCQ, changed(id="2"), MCQ], DataError, "sample id 'book/1' comes twice; ids must be unique"),
        ([changed(id=f"{i}") for i in range(300)] + [changed(answer="F")], DataError, "none of the 3 options"),
        (breaks_after(300), OSError, "went away"),
    ],
    ids=["empty", "twice", "unusable", "source"],
)
def test_a_write_that_fails_leaves_nothing_and_harms_nothing(tmp_path, samples, error, message):
    with pytest.raises(error, match=message):
        write(samples, tmp_path / "new" / "set.parquet")
    assert list((tmp_path / "new").iterdir()) == []

    write([MCQ], tmp_path / "old.parquet")
    before = (tmp_path / "old.parquet").read_bytes()
    with pytest.raises((error, DataError)):  # the generator among the cases is used up: no samples
        write(samples, tmp_path / "old.parquet")
    assert (tmp_path / "old.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old.parquet"]


def test_a_missing_file_is_named_with_what_makes_one(tmp_path):
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(DataError, match=f"{path}: no such file; `pathor1 data render --out DIR` makes a set"):
            open_parquet(path)


@pytest.mark.parametrize("content", [b"", b"id,question\n1,2\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "set.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a Parquet file") as caught:
        open_parquet(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path):
    write([MCQ], tmp_path / "set.parquet")
    whole = (tmp_path / "set.parquet").read_bytes()
    (tmp_path / "set.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a Parquet file"):
        open_parquet(tmp_path / "set.parquet")


@pytest.mark.parametrize("column", COLUMNS)
def test_each_missing_column_is_named(tmp_path, column):
    table = pa.Table.from_pylist([to_row(MCQ)], schema=SCHEMA).drop_columns(column)
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(DataError, match=f"no column {column}; a file of samples has the columns id, source, "):
        open_parquet(tmp_path / "set.parquet")


@pytest.mark.parametrize(
    ("column", "type_", "message"),
    [
        ("answer", pa.int64(), "column answer is int64, expected string"),
        ("images", pa.binary(), "column images is binary, expected list<"),
        ("images", pa.list_(pa.string()), "column images is list<.*string>, expected list<.*binary>"),
        ("turns", pa.list_(pa.struct([("from", pa.string()), ("text", pa.string())])), "column turns is list<"),
    ],
)
def test_a_column_of_another_type_is_refused(tmp_path, column, type_, message):
    place = SCHEMA.get_field_index(column)
    schema = SCHEMA.set(place, pa.field(column, type_))
    pq.write_table(schema.empty_table(), tmp_path / "set.parquet")
    with pytest.raises(DataError, match=message):
        open_parquet(tmp_path / "set.parquet")


def test_files_of_other_writers_are_read(tmp_path):
    # pandas and Hugging Face write large strings, null columns where all is null, and columns of their own.
    table = pa.Table.from_pylist([to_row(sample) for sample in EACH_TASK[1:4]], schema=SCHEMA)
    null = ("options", "turns", "subfield", "level", "explanation", "meta", "license")
    types = {"id": pa.large_string(), "answer": pa.large_string(), "images": pa.large_list(pa.large_binary())}
    columns = {name: table[name].cast(types.get(name, table[name].type)) for name in COLUMNS if name not in null}
    columns |= {name: pa.nulls(3) for name in null} | {"__index_level_0__": pa.array([0, 1, 2])}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    assert tuple(read(tmp_path / "set.parquet")) == EACH_TASK[1:4]


@pytest.mark.parametrize(
    ("meta", "message"), [("{", "meta is not JSON"), ("[1]", "meta is JSON but not an object"), ("", "is not JSON")]
)
def test_meta_that_is_no_json_object_is_refused(meta, message):
    with pytest.raises(DataError, match=f"sample 'book/1': .*{message}"):
        from_row({**to_row(MCQ), "meta": meta})


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"question": None}, "question"),
        ({"answer": None}, "answer"),
        ({"images": None}, "images"),
        ({"images": [b"1", None]}, "an entry of images"),
        ({"options": ["a", None]}, "an entry of options"),
        ({"turns": [{"role": "user", "text": None}]}, "a turn's role or text"),
    ],
)
def test_a_value_that_is_null_is_named(values, missing):
    with pytest.raises(DataError, match=f"^sample 'book/1': {missing} is null$"):
        from_row({**to_row(MCQ), **values})
