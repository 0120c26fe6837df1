"""A run's numbers where Prometheus looks for them: at the metrics port of a Ray node."""

from __future__ import annotations

import math
import re
import time
import urllib.request
from pathlib import Path

import pytest
from processes import wait_until

pytestmark = pytest.mark.timeout(300)
# Ray forgets a gauge that was not set for two of its reports; they come every 10 s when nothing else is said.
REPORT_SECONDS = 4


def test_rays_own_metrics_have_the_runs_numbers(tmp_path: Path) -> None:
    import ray

    from pathor1.tracking.log import MetricsLog
    from pathor1.tracking.meanings import OF_A_STEP

    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _system_config={"metrics_report_interval_ms": 1000 * REPORT_SECONDS},
    )
    try:
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

        def page() -> str:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()

        def gauge(name: str, label: str = "run") -> list[tuple[str, float]]:
            found = re.findall(rf"^ray_pathor1_{name}{{([^}}]*)}} (\S+)$", page(), re.MULTILINE)
            return [(re.findall(rf'\b{label}="([^"]*)"', labels)[0], float(value)) for labels, value in found]

        paths = tmp_path / "m.jsonl", tmp_path / "tensorboard"
        with MetricsLog(*paths, run="demo", keep_up_to=6, constants={"steps_planned": 9.0}) as log:
            wait_until(lambda: gauge("step") == [("demo", 6.0)], 60, "where the run begins")
            began = time.time()
            every = dict.fromkeys([name for name in OF_A_STEP if "SOURCE" not in name and name != "step"], 0.0)
            values = {
                "reward/accuracy": 0.25,
                "dropped/all_wrong": 3.0,
                "data/Färbung/epoch": 2.0,
                "actor/kl": math.nan,
            }
            log.write(7, {**every, **values})
            wait_until(lambda: gauge("reward_accuracy") == [("demo", 0.25)], 60, "the gauge at the node's port")
            ((_, done),) = gauge("last_step_timestamp_seconds")
            assert began - 1 < done < time.time()
            assert gauge("data_epoch", "source") == [(r"F\\xe4rbung", 2.0)], "Ray takes ASCII alone"
            assert gauge("actor_kl") == [], "what is not finite is no number"
            assert "# HELP ray_pathor1_reward_accuracy rollouts with the right answer (0 to 1)" in page()
            time.sleep(3 * REPORT_SECONDS)  # a long step
            assert gauge("reward_accuracy") == [("demo", 0.25)]
            assert gauge("last_step_timestamp_seconds") == [("demo", done)]
            assert gauge("steps_planned") == [("demo", 9.0)]
            assert gauge("step") == [("demo", 7.0)]
            log.write(8, {"reward/accuracy": 0.5})
            log.gauges.show({"rollout/probability_difference_max": 0.75})
            wait_until(lambda: not gauge("dropped_all_wrong"), 60, "what step 8 does not have is gone")
            assert gauge("reward_accuracy") == [("demo", 0.5)]
            assert gauge("rollout_probability_difference_max") == [("demo", 0.75)]
        wait_until(lambda: not gauge("step"), 60, "the gauges of a run that has ended are gone")
    finally:
        ray.shutdown()


def test_mlflow_has_the_numbers_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own client and store, in the form that it writes when no server is set."""
    import mlflow

    from pathor1.errors import RecipeError
    from pathor1.recipe import load
    from pathor1.tracking import trackers
    from pathor1.tracking.log import MetricsLog

    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path))  # a folder: MLflow keeps none any more
    with pytest.raises(RecipeError, match="the store at MLFLOW_TRACKING_URI cannot be read: The filesystem"):
        trackers.check(["mlflow"])  # verl would say so among its warnings and go on without
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    trackers.check(["mlflow"])
    recipe = load("ray_jobs/recipes/patho_r1_3b_dapo.toml").model_dump(mode="json")
    paths = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    with MetricsLog(*paths, run="demo", keep_up_to=0, trackers=["mlflow"], recipe=recipe) as log:
        log.write(1, {"reward/accuracy": 0.25})
        log.write(2, {"reward/accuracy": 0.5, "dropped/all_wrong": 3.0})
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("pathor1").experiment_id])
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "reward/accuracy")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.25), (2, 0.5)]
    assert run.data.metrics["dropped/all_wrong"] == 3.0
    assert run.data.params["rl/algorithm"] == "dapo"
