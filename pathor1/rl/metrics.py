"""The names of a run's metrics, and where they go: one JSON object a step, and TensorBoard.

verl reports some hundred numbers a step under its own names; `NAMES` says which of them a run keeps, and
`of_rollouts` adds what only the ledger knows.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pathor1 import files
from pathor1.rl.ledger import LedgerRow

# A group in which all rollouts got the same accuracy does not say what is right; format and length may still differ.
SAME = 1e-6

# verl's name -> ours
NAMES = {
    "critic/advantages/max": "advantage/max",
    "response_length/mean": "response_tokens/mean",
    "response_length/max": "response_tokens/max",
    "prompt_length/mean": "prompt_tokens/mean",
    "prompt_length/max": "prompt_tokens/max",
    "actor/entropy": "actor/entropy",
    "actor/pg_loss": "actor/policy_loss",
    "actor/kl_loss": "actor/kl",
    "actor/grad_norm": "actor/gradient_norm",
    "actor/pg_clipfrac": "actor/clip_fraction",
    "actor/pg_clipfrac_lower": "actor/clip_fraction_dual",
    "actor/ppo_kl": "actor/kl_to_rollout_policy",
    "actor/lr": "actor/next_learning_rate",  # verl reports it when the step has moved the schedule on
    "training/rollout_probs_diff_max": "rollout/probability_difference_max",
    "training/rollout_probs_diff_mean": "rollout/probability_difference_mean",
    "training/filter_groups/evicted_samples": "groups/filtered",
    "training/filter_groups/discarded_surplus_samples": "groups/surplus_discarded",
    "timing_s/step": "seconds/step",
    "timing_s/gen": "seconds/generate",
    "timing_s/old_log_prob": "seconds/old_log_prob",
    "timing_s/ref": "seconds/reference",
    "timing_s/adv": "seconds/advantage",
    "timing_s/update_actor": "seconds/update",
    "timing_s/update_weights": "seconds/weights_to_vllm",
    "timing_s/save_checkpoint": "seconds/checkpoint",
    "perf/total_num_tokens": "tokens",
    "perf/throughput": "tokens_per_second_per_accelerator",
}


def of_verl(metrics: Mapping[str, Any]) -> dict[str, float]:
    """verl's numbers of a step under our names; those it did not report are left out."""
    return {ours: float(metrics[theirs]) for theirs, ours in NAMES.items() if theirs in metrics}


def of_rollouts(rows: Sequence[LedgerRow]) -> dict[str, float]:
    """Rewards by part, and what the groups were like. Raises ValueError without rows."""
    if not rows:
        raise ValueError("a step without rollouts has no metrics")
    count = len(rows)
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row.accuracy)
    flat = [values[0] for values in groups.values() if max(values) - min(values) <= SAME]
    return {
        "reward/mean": sum(row.total for row in rows) / count,
        "reward/format": sum(row.format for row in rows) / count,
        "reward/accuracy": sum(row.accuracy for row in rows) / count,
        "reward/length": sum(row.length for row in rows) / count,
        "rollout/truncated": sum(row.truncated for row in rows) / count,
        "rollout/unparsed": sum(row.parsed is None for row in rows) / count,
        "groups/trained": float(len(groups)),
        "groups/informative": float(len(groups) - len(flat)),
        "groups/all_right": float(sum(value > 0.5 for value in flat)),
        "groups/all_wrong": float(sum(value <= 0.5 for value in flat)),
    }


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl` and writes the same numbers to TensorBoard.

    A resumed run goes on behind its last checkpoint: `keep_up_to` drops the steps that are run again.
    """

    def __init__(self, path: Path, tensorboard: Path, *, keep_up_to: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.split("\n")[:-1]  # what stands behind the last line's end is half a line of a run that was killed
        files.write(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= keep_up_to))
        self._file = path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(tensorboard), purge_step=keep_up_to + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One step's numbers, with ten digits, and null for what is not finite; on disk when this returns."""
        row = {"step": step, **{name: _rounded(value) for name, value in sorted(values.items())}}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()


def _rounded(value: float) -> float | None:
    return float(f"{value:.10g}") if math.isfinite(value) else None
