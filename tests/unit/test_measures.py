"""From answers to numbers, and numbers to tables."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from test_endpoint import recipe

from pathor1.errors import DataError
from pathor1.evaluation.answers import Answer, Answers, Found, slug, weights
from pathor1.evaluation.generate import ANSWERED, found_in
from pathor1.evaluation.measures import chances, majority, pairs, shares, worth
from pathor1.evaluation.published import Published, named
from pathor1.evaluation.questions import ask
from pathor1.evaluation.run import summarize
from pathor1.evaluation.tables import paper, stages
from pathor1.samples import LETTERS, Sample

RIGHT = "<think>x</think><answer>B</answer>"


def sample(number: int, **values: Any) -> Sample:
    made = Sample(
        id=f"q{number}",
        source="a" if number < 3 else "b",
        task="mcq",
        question="Which?",
        options=("melanoma", "naevus", "lentigo", "other"),
        answer="B",
    )
    return replace(made, **values)


def said(number: int, *texts: str, finish: str = "stop") -> list[Answer]:
    return [
        Answer(id=f"q{number}", number=place, text=text, finish=finish, tokens=5) for place, text in enumerate(texts)
    ]


def test_greedy_answers_are_read_strictly_and_leniently() -> None:
    asked = [sample(n) for n in range(5)] + [sample(5, task="yes_no", options=None, answer="yes")]
    answers = {
        "greedy": {
            "q0": said(0, RIGHT),
            "q1": said(1, "<answer>(B)</answer>"),
            "q2": said(2, "<answer>C</answer>"),
            "q3": said(3, "I cannot tell", finish="length"),
            "q4": said(4, "", finish="refused: HTTP 400"),
            "q5": said(5, "<answer>Yes, it is</answer>"),
        }
    }
    found = worth(asked, answers, seed=0)
    assert {measure: [by_id[f"q{n}"] for n in range(6)] for measure, by_id in found.items()} == {
        "accuracy": [1, 0, 0, 0, 0, 0],
        "accuracy_lenient": [1, 1, 0, 0, 0, 1],
        "unparsed": [0, 1, 0, 1, 1, 1],
        "unparsed_lenient": [0, 0, 0, 1, 1, 0],
        "format": [1, 0, 0, 0, 0, 0],
        "truncated": [0, 0, 0, 1, 0, 0],
        "refused": [0, 0, 0, 0, 1, 0],
    }
    by_source = shares(found, asked, "source")
    assert {name: (share["value"], share["n"]) for name, share in by_source["accuracy"].items()} == {
        "a": (pytest.approx(1 / 3), 3),
        "b": (0.0, 3),
    }
    assert shares(found, asked, None)["accuracy_lenient"]["overall"]["value"] == 0.5
    assert chances(asked, "source") == {"a": 0.25, "b": pytest.approx((0.25 + 0.25 + 0.5) / 3)}


def test_open_questions_have_no_accuracy_of_their_own() -> None:
    open_ = sample(0, task="open", options=None, answer="a naevus")
    found = worth([open_], {"greedy": {"q0": said(0, RIGHT)}, "removed_pictures": {"q0": said(0, RIGHT)}}, seed=0)
    assert found.keys() == {"format", "truncated", "refused"}
    assert chances([open_], None) == {}


def test_sampled_answers() -> None:
    texts = [f"<answer>{letter}</answer>" for letter in "BCB"] + ["none"]
    found = worth([sample(0)], {"sampled": {"q0": said(0, *texts)}}, seed=0)
    assert {measure: by_id["q0"] for measure, by_id in found.items()} == {
        "accuracy_sampled": 0.5,
        "majority@4": 1.0,
        "pass@2": pytest.approx(5 / 6),
        "pass@4": 1.0,
    }
    one = worth([sample(0)], {"sampled": {"q0": said(0, RIGHT)}}, seed=0)
    assert one == {"accuracy_sampled": {"q0": 1.0}}
    six = worth([sample(0)], {"sampled": {"q0": said(0, RIGHT, *["x"] * 5)}}, seed=0)
    assert [measure for measure in six if measure.startswith("pass")] == ["pass@2", "pass@4", "pass@6"]


@pytest.mark.parametrize(
    ("read", "chosen"),
    [
        (["A", "B", "B"], "B"),
        (["A", "B", None, None, None], "A"),  # no answer has no vote; of two with one each the first said counts
        ([None, None], None),
    ],
)
def test_the_majority_is_never_drawn(read: list[str | None], chosen: str | None) -> None:
    assert majority(read) == chosen


def test_the_same_answer_is_the_same_option_under_whatever_letter() -> None:
    asked = [sample(n) for n in range(4)]
    shuffled = {one.id: one for one in ask("shuffled_options", asked, seed=5)}

    def letter_of(id_: str, option: str) -> str:
        return f"<answer>{LETTERS[(shuffled[id_].options or ()).index(option)]}</answer>"

    answers = {
        "greedy": {"q0": said(0, RIGHT), "q1": said(1, "<answer>C</answer>"), "q2": said(2, RIGHT), "q3": said(3, "x")},
        "shuffled_options": {
            "q0": said(0, letter_of("q0", "naevus")),
            "q1": said(1, letter_of("q1", "lentigo")),
            "q2": said(2, RIGHT),  # the same letter: another option
            "q3": said(3, "x"),
        },
    }
    found = worth(asked, answers, seed=5)
    assert found["same_answer"] == {"q0": 1.0, "q1": 1.0, "q2": 0.0, "q3": 0.0}
    assert found["accuracy_shuffled_options"] == {"q0": 1.0, "q1": 0.0, "q2": 0.0, "q3": 0.0}


def test_pairs_are_of_the_questions_that_both_have_answered() -> None:
    asked = [sample(n) for n in range(5)]
    right = {
        "one": {"q0": 1.0, "q1": 0.0, "q2": 0.0, "q3": 0.0},
        "two": {"q0": 0.0, "q1": 1.0, "q2": 1.0, "q3": 1.0, "q4": 1.0},
        "three": {},
    }
    found = {(pair["model"], pair["against"], pair["on"]): pair for pair in pairs(right, asked, "source")}
    assert found.keys() == {("two", "one", "overall"), ("two", "one", "a"), ("two", "one", "b")}
    overall = found["two", "one", "overall"]
    assert (overall["n"], overall["gained"], overall["lost"], overall["value"]) == (4, 3, 1, 0.5)
    assert overall["p"] == pytest.approx(0.625)
    assert overall["significant"] is False
    assert found["two", "one", "b"]["n"] == 1


def test_answers_are_kept_apart_by_their_settings_and_only_whole_ones_are_read(tmp_path: Path) -> None:
    first = Answers(tmp_path / "greedy", {"model": "a"}, each=2)
    first.write([*said(0, "x", "y"), *said(1, "x")])
    first.write(reversed(said(2, "u", "v")))
    assert {id_: [one.text for one in of] for id_, of in first.read().items()} == {"q0": ["x", "y"], "q2": ["u", "v"]}
    assert Answers(tmp_path / "greedy", {"model": "b"}, each=2).read() == {}
    again = Answers(tmp_path / "greedy", {"model": "a"}, each=2)
    assert again.read() == first.read()
    assert not again.is_complete("all")
    first.complete("all")
    assert again.is_complete("all")
    assert not again.is_complete("others")
    assert slug("Qwen/Qwen2.5-VL-7B") == "Qwen_Qwen2.5-VL-7B"
    assert slug("../..") == "_"


def test_what_an_engine_on_ray_cannot_answer_ends_the_evaluation() -> None:
    rows = [{"kind": "greedy", **asdict(said(0, "x")[0])}, {"problem": "sample 'q3': too long"}]
    answer, problem = pa.Table.from_pylist(rows, schema=ANSWERED).to_pylist()
    assert found_in(answer) == Found("greedy", said(0, "x")[0])
    with pytest.raises(DataError, match="sample 'q3': too long"):
        found_in(problem)


def test_a_model_that_is_trained_again_in_its_folder_is_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = weights(str(tmp_path))
    assert [name for name, _, _ in before] == ["config.json", "model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert weights(str(tmp_path)) != before
    assert weights("Qwen/Qwen2.5-VL-7B") == []


# ---- tables


def results(tmp_path: Path, **tables: Any) -> dict[str, Any]:
    """Two models on seven questions of two subsets: one right four times, the other three times."""
    subsets = {f"q{n}": "Atlas" if n < 3 else "PathCLS" for n in range(7)}
    asked = [sample(n, meta={"subset": subsets[f"q{n}"]}, subfield="ihc" if n % 2 else None) for n in range(7)]
    models = {"one": {0, 1, 3, 4}, "two": {0, 1, 2}}
    answers = {
        name: {"greedy": {f"q{n}": said(n, RIGHT if n in right else "<answer>C</answer>") for n in range(7)}}
        for name, right in models.items()
    }
    made = recipe(
        tmp_path,
        "http://localhost/v1",
        models=dict.fromkeys(models, "http://localhost/v1"),
        benchmark={"columns": "meta.subset"},
        evaluation={"checks": [], "by": ["subfield"]},
        **tables,
    )
    return summarize(made, asked, answers, {name: {} for name in models})


TABLE = Published(
    title="Tiny",
    source="A paper, table 3",
    counts={"PathCLS": 4, "Atlas": 3},
    rows={"theirs": ({"PathCLS": 25.0, "Atlas": 33.33}, 28.57), "wrong": ({"PathCLS": 25.0, "Atlas": 33.33}, 99.0)},
    wrong_overall={"wrong": 28.57},
)


def cells(text: str, label: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return line.removeprefix(label).split()


def test_a_benchmarks_table_is_the_papers(tmp_path: Path) -> None:
    text = paper(results(tmp_path), title="Tiny", published=TABLE)
    lines = text.splitlines()
    assert lines[0] == "Tiny: percent of all questions; 95 % intervals."
    assert lines[2].split() == ["PathCLS", "Atlas", "Overall"], "in the published order"
    assert cells(text, "questions") == ["4", "3", "7"]
    assert cells(text, "theirs (published)") == ["25.00", "33.33", "28.57"]
    assert cells(text, "wrong (published)") == ["25.00", "33.33", "28.57*"]
    assert "* wrong: printed as 99.00; its cells give 28.57." in lines
    # The overall is that of all questions: 4 of 7, and not the mean of 50 % and 66.67 %.
    assert cells(text, "one") == ["50.00", "66.67", "57.14"]
    assert cells(text, "two") == ["0.00", "100.00", "42.86"]
    assert cells(text, "guessing") == ["25.00", "25.00", "25.00"]
    assert "25.0-84.2" in text, "Wilson's interval of 4 of 7"
    assert "Published: A paper, table 3, on 7 questions." in lines
    assert "Not the same questions" not in text
    assert "by subfield:" in lines
    assert "  one  ihc  66.67 (20.8-93.9) of 3" in lines
    assert "two against one: -14.29 points (-57.14 to +28.57), p = 1.000: not significant" in lines
    assert "two against one on PathCLS: -50.00 points (-100.00 to +0.00), p = 0.500: not significant" in lines


def test_a_table_says_when_its_questions_are_not_the_published_ones(tmp_path: Path) -> None:
    text = paper(results(tmp_path), title="x", published=replace(TABLE, counts={"PathCLS": 5, "Atlas": 3, "PubMed": 2}))
    assert "Not the same questions: published on PathCLS 5 (here 4), PubMed 2 (here 0)." in text
    assert cells(text, "one") == ["50.00", "66.67", "-", "57.14"]
    assert paper(results(tmp_path), title="PathMMU val", published=named("pathmmu-val")).count("(published)") == 18


def test_significant_differences_are_told_as_such() -> None:
    asked = [sample(n) for n in range(30)]
    right = {"one": {f"q{n}": 0.0 for n in range(30)}, "two": {f"q{n}": float(n < 20) for n in range(30)}}
    found = {
        "accuracy": {},
        "chance": {"a": 0.25},
        "columns": {"a": 30},
        "pairs": pairs(right, asked, "source"),
    }
    (line,) = stages(found).splitlines()[2:]
    assert line.startswith("two against one: +66.67 points (+50.00 to +83.33), p < 0.001")
    assert "not significant" not in line


def test_a_runs_table_has_a_line_for_each_model_and_set() -> None:
    def share(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}

    sets = {"rendered": share(0.5), "ihc": share(0.25)}
    found = {
        "accuracy": {"base": sets, "final": sets},
        "format": {"base": sets, "final": sets},
        "accuracy_sampled": {"base": sets, "final": sets},
        "accuracy_shuffled_pictures": {"base": {"rendered": share(0.125)}, "final": {}},
        "chance": {"rendered": 0.25, "ihc": 0.375},
        "columns": {"rendered": 8, "ihc": 8},
        "pairs": [],
    }
    lines = stages(found).splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["base", "rendered"],
        ["base", "ihc"],
        ["final", "rendered"],
        ["final", "ihc"],
    ]
    assert "50.0% (40.0% to 60.0%)" in lines[1]
    assert lines[1].endswith("12.5%")
    assert lines[2].endswith("-"), "no pictures could be exchanged"
    assert lines[5].startswith("on 8 rendered, 8 ihc held-out questions")
    assert lines[5].endswith("rendered 25.0%, ihc 37.5%")
