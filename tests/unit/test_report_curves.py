"""The report's curves: where their points lie, what thinning and gaps do, and the files they are drawn from."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathor1.errors import RunError
from pathor1.report import steps
from pathor1.report.curves import Chart, Series, bucket_size, linear_axis, log_axis, number, step_axis, svg, thin
from pathor1.rl import held_out
from pathor1.rl.groups import Selection
from pathor1.rl.ledger import LedgerRow
from pathor1.rl.metrics import NAMES, SECONDS, of_batch, of_groups, of_rollouts


def series(values: list[float], *, first: int = 1) -> Series:
    return Series(name="line", steps=range(first, first + len(values)), values=values)


def chart(values: list[float], **changes: object) -> Chart:
    return replace(Chart(title="T", unit="U", series=(series(values),)), **changes)


def drawn(one: Chart) -> ET.Element:
    markup = svg(one)
    assert markup is not None
    return ET.fromstring(str(markup))


def lines(root: ET.Element) -> list[list[tuple[float, float]]]:
    paths = [path.attrib["d"] for path in root.iter("path") if path.attrib["class"].startswith("line")]
    return [[(float(x), float(y)) for x, y in (point.split() for point in d[1:].split("L"))] for d in paths]


def dots(root: ET.Element) -> list[tuple[float, float]]:
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter("circle")]


def words(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text")]


def test_a_thinned_line_is_the_mean_of_each_bucket() -> None:
    points = thin(series([float(value) for value in range(1000)]))
    assert bucket_size(1000) == 3
    assert len(points) == 334
    assert points[:2] == [(2.0, 1.0), (5.0, 4.0)]
    assert points[-1] == (1000.0, 999.0)  # of the one step that is left over
    assert thin(series([0.0, 9.0, 0.0] * 300), bucket="max")[:2] == [(2.0, 9.0), (5.0, 9.0)]
    assert thin(series([1.0] * 400)) == [(float(step), 1.0) for step in range(1, 401)]
    assert len(thin(series([1.0] * 401))) == 201
    assert max(len(thin(series([1.0] * count))) for count in (799, 10_000, 123_457)) == 400


def test_what_is_no_number_is_left_out_of_a_bucket_and_is_a_gap_where_it_is_all_there_is() -> None:
    values = [1.0, math.nan, math.inf, math.nan, 5.0, 7.0] + [0.0] * 600
    points = thin(series(values))
    assert points[0] == (1.5, 1.0)
    assert points[1][0] == 3.5
    assert math.isnan(points[1][1])
    assert points[2] == (5.5, 6.0)


def test_axes() -> None:
    assert linear_axis(0.0, 1.0).ticks == (0.0, 0.5, 1.0)
    axis = linear_axis(0.31, 0.68)
    assert (axis.low, axis.high) == pytest.approx((0.3, 0.7))
    assert axis.ticks == pytest.approx((0.3, 0.4, 0.5, 0.6, 0.7))
    assert linear_axis(-30.0, 0.0).ticks == (-30.0, -20.0, -10.0, 0.0)
    assert (linear_axis(0.0, 0.0).low, linear_axis(0.0, 0.0).high) == (0.0, 1.0)
    constant = linear_axis(14.0, 14.0)
    assert constant.low < 14.0 < constant.high
    logarithmic = log_axis(2e-6, 1e-3)
    assert (logarithmic.low, logarithmic.high) == (-6, -3)
    assert logarithmic.ticks == pytest.approx((1e-6, 1e-5, 1e-4, 1e-3))
    assert logarithmic.share(1e-4) == pytest.approx(2 / 3)
    assert len(log_axis(1e-40, 1e40).ticks) <= 6
    assert step_axis(1, 40).ticks == (10, 20, 30, 40)
    assert step_axis(1, 2).ticks == (1, 2)
    assert step_axis(7, 7).ticks == (7,)


def test_a_point_lies_where_its_numbers_say() -> None:
    # 400 x 220 with margins of 46, 12, 22 and 36: steps lie in 46 ... 388, values in 184 (low) ... 22 (high)
    root = drawn(chart([0.0, 0.25, 1.0]))
    assert lines(root) == [[(46.0, 184.0), (217.0, 143.5), (388.0, 22.0)]]
    assert dots(root) == [(388.0, 22.0)]
    assert words(root) == ["U", "0", "0.5", "1", "1", "2", "3", "step"]
    assert root.attrib["aria-label"] == "T: line 1 last"


def test_a_log_axis_gives_each_power_of_ten_the_same_room_and_its_limit_a_line() -> None:
    root = drawn(chart([1e-6, 1e-5, 1e-4], log=True, limit=1e-3))
    assert lines(root) == [[(46.0, 184.0), (217.0, 130.0), (388.0, 76.0)]]
    limit = next(path for path in root.iter("path") if path.attrib["class"] == "limit")
    assert limit.attrib["d"] == "M46 22.0H388"
    assert words(root)[1:5] == ["1e-6", "1e-5", "1e-4", "1e-3"]
    assert words(root)[-1] == "limit 0.001"
    assert list(root.iter("text"))[-1].attrib["y"] == "35.0"  # below the line, above is no room
    low = drawn(chart([1e-6, 1e-5, 1e-1], log=True, limit=1e-3))
    assert list(low.iter("text"))[-1].attrib["y"] == "81.8"  # 22 + 2/5 x 162 - 5
    assert [len(line) for line in lines(drawn(chart([1e-6, 1e-5, 0.0, 1e-4, 1e-6], log=True)))] == [2, 2]


def test_one_step_is_a_dot_in_the_middle() -> None:
    root = drawn(chart([0.25], include=(0.0, 1.0)))
    assert lines(root) == []
    assert dots(root) == [(217.0, 143.5)]
    assert words(root) == ["U", "0", "0.5", "1", "1", "step"]


def test_a_gap_divides_a_line() -> None:
    root = drawn(chart([0.0, 1.0, math.nan, 1.0, math.inf, 0.5, 0.0]))
    assert [len(line) for line in lines(root)] == [2, 2]
    assert dots(root) == [(217.0, 22.0), (388.0, 184.0)]  # the point that stands alone, and the end
    assert svg(chart([math.nan, math.inf])) is None
    assert svg(chart([0.0, -1.0], log=True)) is None


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12),
    first=st.integers(0, 10**6),
    log=st.booleans(),
)
def test_whatever_the_numbers_all_is_inside_the_picture(values: list[float], first: int, log: bool) -> None:
    markup = svg(Chart(title="T", unit="U", series=(series(values, first=first),), log=log))
    if markup is None:
        return
    root = ET.fromstring(str(markup))
    for x, y in [*(point for line in lines(root) for point in line), *dots(root)]:
        assert 46 <= x <= 388
        assert 22 <= y <= 184
    assert 2 <= len(root.findall("path[@class='grid']")) <= 6


def test_numbers_in_words() -> None:
    assert [number(value) for value in (0.0, 0.41234, 2.3e-05, 12.345, 1234.5, math.nan)] == [
        "0",
        "0.412",
        "2.3e-05",
        "12.3",
        "1,234",
        "nan",
    ]


# -------------------------------------------------------------------------------------------------------------- steps


def test_a_line_that_was_being_written_when_the_run_stopped_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a": NaN, "b": "text", "c": null}\n{"step": 3, "a": 0.')
    first, second = steps.read(path)
    assert (first.step, dict(first.values)["a"]) == (1, 0.5)
    assert second.step == 2
    assert math.isnan(second.values["a"])
    assert "b" not in second.values
    assert "c" not in second.values
    path.write_text('{"step": 1}\n{"step": 2}')  # whole, but for the end of the line
    assert [step.step for step in steps.read(path)] == [1, 2]
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff')
    assert [step.step for step in steps.read(path)] == [1]
    assert steps.read(tmp_path / "none.jsonl") == []


def test_of_a_step_that_comes_twice_the_later_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 1, "a": 2}\n{"step": 2, "a": 3}\n')
    assert [(step.step, step.values["a"]) for step in steps.read(path)] == [(1, 2.0), (2, 3.0)]


@pytest.mark.parametrize("line", ["{", "[1]", "7", "", '{"a": 1}', '{"step": 1.5}', '{"step": "1"}', "[" * 100_000])
def test_any_other_malformed_line_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    for rest in ('{"step": 3}\n', ""):
        path.write_text(f'{{"step": 1}}\n{line}\n{rest}')
        with pytest.raises(RunError) as error:
            steps.read(path)
        assert str(error.value).startswith(f"{path}:2: not a JSON object")
        assert "\n" not in str(error.value)


def test_a_figure_for_each_metric_that_is_there() -> None:
    names = [name for plan in steps.RL for name in plan.names]
    everything = [steps.Step(step, dict.fromkeys(names, 0.5)) for step in (1, 2)]
    assert [figure.title for figure in steps.figures(everything, steps.RL)] == [plan.title for plan in steps.RL]
    bare = [steps.Step(step, {"reward/mean": 1.5, "groups/all_wrong": 4.0}) for step in (1, 2)]
    reward, groups = steps.figures(bare, steps.RL)
    assert reward.legend == (("c0", "reward", "1.5"),)
    assert groups.legend == (("c0", "all wrong", "4"),)
    assert steps.figures([], steps.RL) == []


def test_the_figures_are_of_metrics_that_a_run_writes() -> None:
    row = LedgerRow(
        step=1, group="0-0", rollout=0, id="a", source="s", task="mcq", text="", answer="A", parsed=None, reason="",
        format=0.0, accuracy=0.0, length=0.0, format_weight=1.0, accuracy_weight=1.0, length_weight=0.0, total=0.0,
        advantage=None, response_tokens=1, truncated=False, stop_reason="completed", asked=1, policy_version=0,
    )  # fmt: skip
    nothing = Selection(groups=(), dropped=(), asked=0, carried=())
    tags = [{"prompt_len": 1, "response_len": 1, "seq_len": 2}]
    written = {*NAMES.values(), *SECONDS.values(), *of_batch(tags, [row], seconds=1.0, accelerators=1)}
    written |= {*of_rollouts([row], min_think_words=1), *of_groups(nothing, step=1)}
    written |= {*held_out.metrics([row]), "seconds/evaluation"}
    assert {name for plan in steps.RL for name in plan.names} <= written


def test_a_figure_says_what_it_leaves_out() -> None:
    rows = [steps.Step(step, {"actor/kl": math.nan if step == 5 else 0.1}) for step in range(1, 1001)]
    (figure,) = steps.figures(rows, steps.RL)
    assert figure.note == "each point: the mean of 3 steps; no number to draw at 1 of 1000 steps"
    (figure,) = steps.figures(rows[5:15], steps.RL)
    assert figure.note == ""
    rows = [steps.Step(step, {"rollout/probability_difference_max": 1e-5}) for step in range(1, 802)]
    rows[100].values["rollout/probability_difference_max"] = 1e-2  # type: ignore[index]
    (figure,) = steps.figures(rows, steps.RL, limit=1e-3)
    assert figure.note == "each point: the max of 3 steps"
    heights = [y for line in lines(ET.fromstring(str(figure.svg))) for _, y in line]
    assert min(heights) == 22.0  # the one step above the limit is not averaged away


def test_an_interval_is_a_band_and_what_some_steps_have_is_one_line() -> None:
    numbers = [steps.Step(step, {"reward/mean": 1.0}) for step in range(1, 6)]
    for step, value in ((2, 0.5), (4, 1.0)):
        within = {"evaluation/accuracy": value, "evaluation/accuracy_low": value - 0.5, "evaluation/accuracy_high": 1.0}
        numbers[step - 1] = steps.Step(step, within)
    figure = steps.figures(numbers, steps.RL)[0]
    assert figure.title == "Held-out questions"
    assert figure.legend == (("c0", "right", "1 (0.5 to 1)"),)
    assert figure.note == ""
    paths = {path.attrib["class"]: path.attrib["d"] for path in ET.fromstring(str(figure.svg)).iter("path")}
    # Steps 2 to 4 lie in 46 ... 388, shares 0 to 1 in 184 ... 22.
    assert paths["line c0"] == "M46.0 103.0L388.0 22.0"
    assert paths["band c0"] == "M46.0 184.0L388.0 103.0L388.0 22.0L46.0 22.0Z"
    (alone,) = steps.figures(numbers[:2], steps.RL[:1])
    paths = {path.attrib["class"]: path.attrib["d"] for path in ET.fromstring(str(alone.svg)).iter("path")}
    assert paths["reach c0"] == "M217.0 184.0L217.0 22.0"


def test_a_line_that_is_zero_throughout_is_left_out_where_there_are_many() -> None:
    numbers = [steps.Step(step, {"dropped/stale": 0.0, "dropped/failed": float(step == 2)}) for step in (1, 2, 3)]
    (figure,) = steps.figures(numbers, steps.RL)
    assert (figure.title, figure.legend) == ("Groups dropped, by reason", (("c0", "failed", "0"),))
