"""Makes `docs/metrics.md` from the meanings of a run's numbers: `python -m pathor1.metric_docs docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from pathor1 import files
from pathor1.tracking.meanings import OF_A_RUN, OF_A_STAGE, OF_A_STEP, OF_CLIP, Meaning, gauge

_HEAD = """\
# Metrics

<!-- Made by `python -m pathor1.metric_docs docs/metrics.md` from pathor1/tracking/meanings.py; change it there. -->

A step's numbers are a line of `metrics.jsonl` in the run folder. They also go to TensorBoard, to the `trackers` of the
recipe, and to Ray's metrics, where Prometheus finds them: `reward/accuracy` is there
`ray_pathor1_reward_accuracy{run="demo"}`. What a step does not have, as the KL of a run without a reference model, is
left out.

| name | unit | what it is |
|---|---|---|
"""

_GAUGES = """
`data/SOURCE/...` has the source as a label: `ray_pathor1_data_epoch{run="demo", source="quilt"}`. SOURCE is an entry of
`data.train` when there are `data.weights`, else `train`. These are in Ray's metrics alone:

| name | unit | what it is |
|---|---|---|
"""

_STAGES = """
# Metrics of the supervised stages

Continued pretraining and fine-tuning have these, in the same places; a warm start has them in `warm_start.jsonl`.
`loss/SOURCE` is `ray_pathor1_loss_by_source{run="...", source="quilt"}`.

| name | unit | what it is |
|---|---|---|
"""

_CLIP = """
# Metrics of contrastive training

`pathor1 clip train` has these, and `learning_rate`, `gradient_norm`, `data/left_out`, `data/left_out_share` and the
seconds of a supervised stage.

| name | unit | what it is |
|---|---|---|
"""


def render() -> str:
    """The page as Markdown."""
    of_a_run = {f"ray_{gauge(name)[0]}": meaning for name, meaning in OF_A_RUN.items()}
    return _HEAD + _rows(OF_A_STEP) + _GAUGES + _rows(of_a_run) + _STAGES + _rows(OF_A_STAGE) + _CLIP + _rows(OF_CLIP)


def _rows(meanings: Mapping[str, Meaning]) -> str:
    return "".join(f"| `{name}` | {meaning.unit} | {meaning.text} |\n" for name, meaning in meanings.items())


if __name__ == "__main__":
    files.write(Path(sys.argv[1]), render())
