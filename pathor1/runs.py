"""The run folder: where everything of a run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of a run. Whatever is not there yet has not happened yet."""

    path: Path

    @classmethod
    def create(cls, runs_dir: str | Path, name: str) -> RunFolder:
        """Makes the folders of a run, where they are not there."""
        folder = cls(Path(runs_dir) / name)
        for part in (folder.ledger, folder.checkpoints, folder.held_out):
            part.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def recipe(self) -> Path:
        """The resolved recipe: every value, absolute paths."""
        return self.path / "recipe.toml"

    @property
    def reward_function(self) -> Path:
        """The file of the run's own reward function, as it was when the run was started."""
        return self.path / "reward_function.py"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def warm_start_metrics(self) -> Path:
        """The same of the supervised stage before RL."""
        return self.path / "warm_start.jsonl"

    @property
    def warm_start_left_out(self) -> Path:
        """The samples that the supervised stage before RL could not use, as in `left_out`."""
        return self.path / "warm_start_left_out.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same numbers for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def ledger(self) -> Path:
        """One Parquet file a step, one row a rollout."""
        return self.path / "ledger"

    @property
    def left_out(self) -> Path:
        """One JSON object for each sample that could not be used: its place, its id and why."""
        return self.path / "left_out.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Evaluation results, one JSON file each."""
        return self.path / "eval"

    @property
    def held_out(self) -> Path:
        """The answers of evaluations within the run: one Parquet file each, in the columns of the ledger."""
        return self.evaluation / "steps"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def comparison(self) -> Path:
        """The page that puts the run beside others."""
        return self.path / "compare.html"

    @property
    def summary(self) -> Path:
        """What came out, as JSON."""
        return self.path / "summary.json"
