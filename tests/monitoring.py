"""The dashboard and the alerts, as tests of several tiers read them; and Prometheus, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "cluster" / "grafana"
ALERTS = FOLDER / "alerts.yml"
# Of GPUs, which no machine without one reports.
OF_GPUS = ("ray_node_gram_used", "ray_node_gram_available", "ray_node_gpus_utilization")

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (on Debian: apt-get install prometheus)",
)


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "pathor1.json").read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Panel and legend, and the expression, of every query."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} / {target['legendFormat']}", target["expr"]


def metrics(expression: str) -> set[str]:
    """The metrics that an expression asks for."""
    return set(re.findall(r"\bray_[a-z0-9_]+", expression))
