"""Where a run's metrics go beside its folder: can Weights & Biases and MLflow be reached? Asked before anything starts.

verl would find out when all is started: from W&B by a traceback, and from MLflow not at all: it goes on without.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from pathor1.errors import RecipeError

# W&B's modes in which nothing is sent.
NOT_SENT = ("offline", "dryrun", "disabled")
# Where verl writes when MLFLOW_TRACKING_URI is not set.
VERLS_MLFLOW = "sqlite:////tmp/mlruns.db"
# MLflow's own would ask a server that is not there for four minutes.
MLFLOW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def check(trackers: Sequence[str]) -> None:
    """Raises RecipeError for a tracker whose package is not installed, or which cannot be written to."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f'trackers = ["{name}"]: {name} is not installed; pip install "pathor1[{name}]"')
    if "wandb" in trackers:
        _check_wandb()
    if "mlflow" in trackers:
        _check_mlflow()


def _check_wandb() -> None:
    """Raises RecipeError where W&B has no key, or refuses it, or does not answer; not where nothing is sent to it."""
    import wandb

    settings = wandb.setup().settings
    offline = "set WANDB_MODE=offline to keep what would be sent in the run's folder"
    try:
        if settings.mode not in NOT_SENT and not wandb.login(prompt=False):
            raise RecipeError(
                f'trackers = ["wandb"]: there is no API key for {settings.base_url}; set WANDB_API_KEY or call '
                f"`wandb login`, or {offline}"
            )
    except wandb.errors.AuthenticationError as error:
        told = f"{_line(error)}; check WANDB_API_KEY and WANDB_BASE_URL, or {offline}"
        raise RecipeError(f'trackers = ["wandb"]: {told}') from error
    finally:
        wandb.teardown()  # the process that has asked; the run has one of its own


def _check_mlflow() -> None:
    """Raises RecipeError where MLflow's store cannot be read."""
    import mlflow

    uri = os.environ.get("MLFLOW_TRACKING_URI", VERLS_MLFLOW)
    before = {name: os.environ.get(name) for name in MLFLOW_RETRIES}
    os.environ.update(MLFLOW_RETRIES)
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # a database, a server, a provider: each has errors of its own
        told = f"the store at MLFLOW_TRACKING_URI cannot be read: {_line(error)}"  # the URI may hold a password
        raise RecipeError(f'trackers = ["mlflow"]: {told}') from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
