"""The dashboard and the alerts ask for metrics that exist, and say what they show; the pages about them are current."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring import ALERTS, dashboard, metrics, needs_prometheus, panels, queries

from pathor1.metric_docs import render
from pathor1.rl.groups import REASONS
from pathor1.rl.metrics import SECONDS
from pathor1.tracking.meanings import OF_A_RUN, OF_A_STEP, gauge

ROOT = Path(__file__).parents[2]
OURS = {f"ray_{gauge(name)[0]}" for name in (*OF_A_STEP, *OF_A_RUN)}
# Grafana's ids of units (packages/grafana-data/src/valueFormats/categories.ts) that make sense here.
UNITS = {"none", "s", "bytes", "percent", "percentunit"}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def rays() -> set[str]:
    """The metrics that the dashboards of the installed Ray ask for."""
    (folder,) = find_spec("ray").submodule_search_locations  # type: ignore[union-attr]  # installed, not imported
    files = Path(folder, "dashboard/modules/metrics/dashboards").glob("*_panels.py")
    return set().union(*(metrics(path.read_text(encoding="utf-8")) for path in files))


def test_every_panel_says_what_it_shows() -> None:
    board = dashboard()
    assert (board["uid"], board["title"]) == ("pathor1-run", "pathor1 run")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        name = panel["title"]
        assert name, panel["id"]
        assert panel["description"].endswith("."), name
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, name
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, name
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJ"[: len(panel["targets"])]), name
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"]), name
    titles = [panel["title"] for panel in panels() if panel["type"] == "timeseries"]
    assert len(set(titles)) == len(titles)


def test_panels_lie_side_by_side() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard()["panels"]]
    for (one, a), (other, b) in combinations(places, 2):
        across = a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
        down = a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]
        assert not (across and down), f"{one} lies over {other}"
    assert all(place["x"] + place["w"] <= 24 for _, place in places)


def test_every_query_is_of_the_chosen_run_and_session() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "SessionName"]
    assert metrics(variables["run"]["query"]["query"] + variables["SessionName"]["query"]["query"]) <= OURS
    for name, expression in queries():
        for metric, selector in re.findall(r"\b(ray_[a-z0-9_]+)({[^}]*})?", expression):
            assert 'SessionName=~"$SessionName"' in selector, name
            assert ('run="$run"' in selector) == (metric in OURS), name


def test_every_metric_that_is_asked_for_exists() -> None:
    known = OURS | rays()
    assert len(known) > 200
    for name, expression in [*queries(), *((rule["alert"], rule["expr"]) for rule in rules())]:
        assert metrics(expression), name
        assert metrics(expression) <= known, name


def test_what_a_run_is_judged_by_is_on_the_dashboard() -> None:
    shown = set().union(*(metrics(expression) for _, expression in queries()))
    wanted = {f"dropped/{reason}" for reason in REASONS}
    wanted |= set(SECONDS.values())
    wanted |= {"reward/mean", "reward/accuracy", "reward/format", "reward/length", "groups/informative", "actor/kl"}
    wanted |= {"rollout/probability_difference_max", "carried/age_max", "staleness/max", "data/left_out"}
    wanted |= {"tokens_per_second_per_accelerator", "last_step_timestamp_seconds", "steps_planned"}
    assert {f"ray_{gauge(name)[0]}" for name in wanted} <= shown


def test_an_alert_says_what_is_wrong_and_how_bad() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels." in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        assert f"`{rule['alert']}`" in page, "docs/operations.md says what to do"


@needs_prometheus
@pytest.mark.parametrize("arguments", [("check", "rules", ALERTS), ("test", "rules", "tests/unit/alerts_test.yml")])
def test_alerts_fire_when_they_should_and_not_otherwise(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_metrics_is_current() -> None:
    page = ROOT / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == render(), "run: python -m pathor1.metric_docs docs/metrics.md"


def test_the_page_of_operations_names_metrics_that_exist() -> None:
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    groups = {name.split("/")[0] for name in OF_A_STEP if "/" in name}
    named = {name for name in re.findall(r"`([a-z_]+/[A-Za-z_/]+)`", page) if name.split("/")[0] in groups}
    assert len(named) > 20
    assert named <= OF_A_STEP.keys()
    assert set(re.findall(r"`(ray_[a-z0-9_]+)`", page)) <= OURS | rays()
