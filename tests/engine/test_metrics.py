"""A run's numbers where Prometheus looks for them: at the metrics port of a Ray node."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest
from processes import wait_until

pytestmark = pytest.mark.timeout(300)


def test_rays_own_metrics_have_the_runs_numbers(tmp_path: Path) -> None:
    import ray

    from pathor1.rl.metrics import MetricsLog

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

        def gauge(name: str) -> list[tuple[str, float]]:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text = answer.read().decode()
            found = re.findall(rf"^ray_pathor1_{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
            return [(re.findall(r'run="([^"]*)"', labels)[0], float(value)) for labels, value in found]

        with MetricsLog(tmp_path / "m.jsonl", tmp_path / "tensorboard", run="demo", keep_up_to=0) as log:
            log.write(7, {"reward/accuracy": 0.25, "dropped/all_wrong": 3.0})
            wait_until(lambda: gauge("reward_accuracy") == [("demo", 0.25)], 60, "the gauge at the node's port")
            wait_until(lambda: gauge("dropped_all_wrong") == [("demo", 3.0)], 60, "the other")
            assert gauge("step") == [("demo", 7.0)]
    finally:
        ray.shutdown()
