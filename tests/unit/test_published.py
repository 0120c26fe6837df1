"""The published numbers: every overall is that of its cells, and where the paper errs it is marked."""

from __future__ import annotations

import pytest

from pathor1.errors import RecipeError
from pathor1.evaluation.published import Published, named, published

TABLES = published()
ROWS = [(name, model) for name, table in TABLES.items() for model in table.rows]


def right(table: Published, model: str) -> dict[str, int]:
    """How many questions of each column a row has right: the only whole number that its percentage can stand for."""
    cells, _ = table.rows[model]
    return {column: round(percent * table.counts[column] / 100) for column, percent in cells.items()}


@pytest.mark.parametrize(("name", "model"), ROWS)
def test_every_cell_is_a_number_of_questions(name: str, model: str) -> None:
    table = TABLES[name]
    cells, _ = table.rows[model]
    assert cells.keys() == table.counts.keys()
    for column, count in right(table, model).items():
        assert 100 * count / table.counts[column] == pytest.approx(cells[column], abs=0.00501)


@pytest.mark.parametrize(("name", "model"), [row for row in ROWS if row[0] != "yes-no"])
def test_every_overall_is_that_of_its_cells_or_is_marked(name: str, model: str) -> None:
    table = TABLES[name]
    _, printed = table.rows[model]
    recomputed = 100 * sum(right(table, model).values()) / table.questions
    marked = table.wrong_overall.get(model)
    assert recomputed == pytest.approx(printed if marked is None else marked, abs=0.00501)
    if marked is not None:
        assert abs(recomputed - (printed or 0)) > 0.01, "what is right is not marked"


def test_the_papers_tables_are_whole() -> None:
    assert {name: table.questions for name, table in TABLES.items()} == {
        "pathmmu-test-tiny": 1139,
        "pathmmu-test": 8454,
        "pathmmu-val": 705,
        "yes-no": 3705,
    }
    assert {len(table.rows) for table in TABLES.values()} == {18}
    assert len({tuple(table.rows) for table in TABLES.values()}) == 1, "the same models in the same order"
    assert named("pathmmu-test").wrong_overall == {"LLaVA-Onevision-7B": 21.66}
    assert sum(right(TABLES["pathmmu-test-tiny"], "Patho-R1-7B").values()) == 792
    assert sum(right(TABLES["pathmmu-test"], "Patho-R1-7B").values()) == 5357
    assert sum(right(TABLES["pathmmu-val"], "Patho-R1-7B").values()) == 444
    assert TABLES["yes-no"].rows["Patho-R1-7B"] == ({"Quilt-VQA": 64.72, "PathVQA": 46.97}, None)


def test_what_nobody_published() -> None:
    with pytest.raises(RecipeError, match="'pathmmu': none of pathmmu-test-tiny, pathmmu-test"):
        named("pathmmu")
