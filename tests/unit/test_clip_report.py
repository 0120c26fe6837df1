"""The tables and the page of an evaluation: what was measured, beside what was published."""

from __future__ import annotations

import json

import pytest
from formats import png

from pathor1.clip import tables
from pathor1.errors import RunError
from pathor1.report import clip
from pathor1.report.boxes import boxes
from pathor1.samples import Sample, write


def share(value, n=100):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def classified(value):
    return {
        "classes": ["a", "b"],
        "accuracy": share(value),
        "balanced": share(value - 0.2),
        "confusion": [[9, 1], [3, 7]],
        "left_out": {},
    }


def retrieved(value, file="gone.parquet"):
    recall = {"at": {str(k): share(value) for k in (1, 5, 10, 20)}, "mean": value, "n": 40}
    return {
        "image_to_text": recall,
        "text_to_image": {**recall, "mean": value / 2},
        "gallery": [
            {
                "id": "p1",
                "file": file,
                "caption": "<b>a gland</b>",
                "found": [{"caption": "a gland", "right": True}, {"caption": "a duct", "right": False}],
            }
        ],
        "left_out": {},
    }


def probed(values):
    fits = [
        {"shots": shots, "seed": seed, "accuracy": value, "balanced": value, "converged": seed > 0}
        for shots in (2, 8)
        for seed, value in enumerate(values)
    ]
    return {"fits": fits, "left_out": {}}


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_zero_shot_beside_table_2():
    sets = ["LC-Lung", "LC-Colon", "WSSS4LUAD", "SICAPv2", "BMT"]
    found = {"mine": {name: classified(0.5 + place / 10) for place, name in enumerate(sets)}}
    text = tables.text("zero_shot", found)
    mine = rows(text)[1]
    assert mine[0] == "mine"
    assert mine[-2:] == ["70.00", "50.00"]
    assert "50.00 (40.00 to 60.00)" in text
    line = next(line for line in text.splitlines() if line.startswith("paper: PathoCLIP-B"))
    assert "75.73 (printed 75.28)" in line
    # Of another selection of sets the paper has no mean.
    some = tables.text("zero_shot", {"mine": {"BMT": classified(0.5), "own": classified(0.5)}})
    assert next(row for row in rows(some) if row[1:2] == ["PathoCLIP-L"])[2:] == ["38.44", "-", "-", "-"]
    assert "paper" not in tables.text("zero_shot", {"mine": {"own": classified(0.5)}})


def test_retrieval_beside_table_1():
    text = tables.text("retrieval", {"mine": {"ARCH": retrieved(0.25)}})
    assert rows(text)[2] == ["mine", *["25.00/25.00"] * 4, "25.00", "12.50", "40"]
    assert next(row for row in rows(text) if row[1:2] == ["PathoCLIP-L"])[2:] == [
        "30.73/28.20", "61.01/59.45", "73.92/71.91", "83.44/81.77", "62.28", "60.33", "2688",
    ]  # fmt: skip
    assert "0.83 (printed 0.34)" in text or "0.84 (printed 0.34)" in text
    assert "paper" not in tables.text("retrieval", {"mine": {"own": retrieved(0.25)}})


def test_a_probe_has_median_and_ends_and_says_what_did_not_converge():
    text = tables.text("probe", {"mine": {"BMT": probed([0.5, 0.9, 0.6])}})
    assert "60.0 (50.0 to 90.0)" in text
    assert rows(text)[-1][-1] == "2"


def write_results(folder, **results):
    (folder / "eval").mkdir(parents=True)
    for what, found in results.items():
        (folder / f"eval/{what}.json").write_text(json.dumps({"models": {"mine": "m"}, "results": {"mine": found}}))


def test_the_page_has_all_of_it(tmp_path):
    pair = Sample(id="p1", source="s", task="caption", question="", answer="a gland", images=(png(0, (40, 40)),))
    write([pair], tmp_path / "pairs.parquet")
    write_results(
        tmp_path / "e",
        zero_shot={"BMT": classified(0.5)},
        retrieval={"ARCH": retrieved(0.25, str(tmp_path / "pairs.parquet")), "gone": retrieved(0.5)},
        probe={"BMT": probed([0.5, 0.9, 0.6])},
    )
    assert clip.is_evaluation(tmp_path / "e")
    page = clip.write(tmp_path / "e").read_text()
    assert page.count("paper: PathoCLIP-L") == 2
    assert "70.0 %" in page
    assert "&lt;b&gt;a gland&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == 1
    assert "its picture is not there any more" in page
    assert "gone.parquet" in page
    assert page.count('<span class="verdict wrong">wrong</span> a duct') == 2
    assert "<script" not in page
    assert page.count('aria-label="BMT: medians of 8: mine 0.6"') == 1


def test_a_folder_without_results(tmp_path):
    assert not clip.is_evaluation(tmp_path)
    with pytest.raises(RunError, match="no evaluation of CLIP models"):
        clip.write(tmp_path)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/probe.json").write_text("[]")
    with pytest.raises(RunError, match="probe.json: malformed"):
        clip.write(tmp_path)


def test_a_box_has_its_quartiles_where_they_belong():
    values = [0.0, 0.25, 0.5, 0.75, 1.0]
    figure = str(boxes("t", "u", {"m": {"2": values}}, "shots"))
    # The axis from 0 to 1 is drawn from 184 up to 22: quartiles at 143.5 and 62.5, the median at 103.
    assert "V143.5" in figure
    assert "V62.5" in figure
    assert " 103.0h" in figure
    assert "<circle" not in figure
    far = str(boxes("t", "u", {"m": {"2": [*values[1:4], 0.5, 0.5, 9.0]}}, "shots"))
    assert far.count("<circle") == 1
