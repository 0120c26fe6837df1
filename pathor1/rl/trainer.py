"""verl's synchronous trainer with our stream in and our ledger out.

    stream -> question groups -> vLLM: n rollouts, scored -> log-probabilities -> advantages -> update -> weights

The loop is verl's `PPOTrainer.fit`; this class says where its prompts come from, where its checkpoints go, what is
kept of every step, and when it has to stop: when vLLM's probabilities are not the actor's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray.base import RayResourcePool, ResourcePoolManager
from verl.trainer.ppo.v1 import PPOTrainerSync

from pathor1.data import prompt_length
from pathor1.data.stream import SampleStream, StreamRow, StreamState
from pathor1.errors import DataError, RunError
from pathor1.rl import checkpoints, ledger, pictures
from pathor1.rl.ledger import LedgerRow
from pathor1.rl.left_out import LeftOut
from pathor1.rl.metrics import MetricsLog, of_rollouts, of_verl
from pathor1.rl.sampler import GroupSampler
from pathor1.runs import RunFolder
from pathor1.samples import Sample

# In batches: so many questions are asked in place of uninformative ones before a step is given up.
MOST_REFILLS = 20

OnStep = Callable[[int, dict[str, float]], None]


class RLTrainer(PPOTrainerSync):
    """One run: `config` is verl's config of its recipe; `on_step` is told each step's metrics."""

    resource_pool_manager: ResourcePoolManager

    def __init__(
        self,
        config: DictConfig,
        *,
        folder: RunFolder,
        make_stream: Callable[[StreamState | None], SampleStream],
        save_every: int,
        keep_checkpoints: int,
        max_probability_difference: float | None,
        max_bad_fraction: float,
        on_step: OnStep,
    ) -> None:
        self.folder = folder
        self.make_stream = make_stream
        self.save_every = save_every
        self.keep_checkpoints = keep_checkpoints
        self.max_probability_difference = max_probability_difference
        self.max_bad_fraction = max_bad_fraction
        self.on_step = on_step
        self.left_out_in_a_row = 0
        self.refilled = 0
        self.unsealed: tuple[Path, checkpoints.Manifest] | None = None
        with open_dict(config):
            config.trainer.save_freq = save_every
            config.trainer.resume_mode = "disable"  # `_load_checkpoint` below knows where ours are
        super().__init__(config)

    # ------------------------------------------------------------------ what verl asks its trainer for

    def _build_replay_buffer(self) -> GroupSampler:
        config = self.config
        filtering = config.algorithm.filter_groups
        return GroupSampler(
            trainer_mode="sync",
            trainer_config=config.trainer.v1.sync,
            max_off_policy_threshold=None,
            max_off_policy_strategy="drop",
            sampler_kwargs=config.trainer.v1.sampler.sampler_kwargs,
            refill_fn=self._refill,
            filter_groups_metric=filtering.metric if filtering.enable else None,
            train_batch_size=config.data.train_batch_size,
            gen_batch_size=1 if filtering.enable else config.data.train_batch_size,
        )

    def _init_dataloader(self) -> None:
        """No data loader: prompts come from the stream, which opens when the checkpoint's cursor is known."""
        total = self.config.trainer.total_training_steps
        self.total_training_steps = total
        self.steps_per_epoch = total  # verl counts epochs in steps; a run is one
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = total

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.config.trainer.device == "cpu":
            manager = self.resource_pool_manager
            self.resource_pool_manager = CpuResourcePools(
                resource_pool_spec=manager.resource_pool_spec, mapping=manager.mapping
            )

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The next questions of the stream, as verl hands them to the agent loop."""
        count = num_prompts or self.config.data.train_batch_size
        rows: list[StreamRow] = []
        while len(rows) < count:
            usable, dropped = self.stream.take(count - len(rows))
            for row in [*dropped, *usable]:
                problem = row.problem or self._prompt_problem(row.sample)
                if problem is None:
                    rows.append(row)
                else:
                    self._leave_out(row, problem)
            self.left_out_in_a_row = 0 if rows else self.left_out_in_a_row
        return TensorDict(
            {
                "uid": NonTensorStack(*(str(row.number) for row in rows)),
                "index": NonTensorStack(*range(count)),
                "sample": NonTensorStack(*(NonTensorData(row.sample) for row in rows)),
                "global_steps": NonTensorData(self.global_steps),
            },
            batch_size=count,
        )

    def _prompt_problem(self, sample: Sample) -> str | None:
        """Why verl cannot train on a question, found before it costs a rollout; None = it can."""
        if not sample.images:
            return "has no picture, and verl cannot train on a batch without any"
        limit = self.config.data.max_prompt_length
        sizes = [prompt_length.size(picture) for picture in sample.images]
        tokens = prompt_length.prompt_tokens(sample, sizes, self.processor, self.config.pathor1.system_prompt)
        if tokens > limit:
            return f"the prompt has {tokens} tokens and data.max_prompt_tokens is {limit}"
        return None

    def _leave_out(self, row: StreamRow, problem: str) -> None:
        """Says which row is left out and why. Raises DataError where too many are, or a whole epoch's worth was."""
        place = f"epoch {row.epoch}, row {row.position} of {row.source}"
        print(f"left out: sample {row.sample.id} ({place}): {problem}", flush=True)
        self.left_out.add(row, problem)
        self.left_out_in_a_row += 1
        if self.left_out_in_a_row > self.stream.rows:
            raise DataError(f"none of the {self.stream.rows} training samples can be used; the last: {problem}")

    def prepare_step(self) -> dict[str, Any]:
        self.refilled = 0
        under_way = (tq.kv_list("train") or {}).get("train", {})
        pictures.clear_all_but(key.split("_")[0] for key in under_way)
        return super().prepare_step()

    def _refill(self, count: int) -> int:
        """More questions in place of groups without a difference. Raises RunError where that has no end."""
        self.refilled += count
        if self.refilled > MOST_REFILLS * self.config.data.train_batch_size:
            raise RunError(
                f"step {self.global_steps}: {self.refilled} more questions gave too few groups with a difference; the "
                "model is right or wrong on nearly all: train on harder or easier ones, or without dynamic_sampling"
            )
        return super()._add_prompts_to_generate(count)

    def fit(self, agent_loop_manager: Any) -> None:
        self.replay_buffer.watch(agent_loop_manager.agent_loop_workers)
        with self.stream, self.log:
            super().fit(agent_loop_manager)

    # ------------------------------------------------------------------ checkpoints

    def _load_checkpoint(self) -> None:
        root = self.folder.checkpoints
        path = checkpoints.latest(root)
        checkpoints.remove_incomplete(root)
        self.global_steps = 0
        state: StreamState | None = None
        if path is not None:
            manifest = checkpoints.read(path)
            ranks = self.actor_rollout_wg.world_size
            if manifest.ranks != ranks:
                raise RunError(
                    f"{path}: was written by {manifest.ranks} ranks and this run has {ranks}; set cluster.nodes and "
                    "cluster.accelerators_per_node as they were"
                )
            self.actor_rollout_wg.load_checkpoint(local_path=str(path / "actor"), del_local_after_load=False)
            self.global_steps, state = manifest.step, manifest.stream
        ledger.remove_after(self.folder.ledger, self.global_steps)
        self.stream = self.make_stream(state)
        self.left_out = LeftOut(self.folder.left_out, start=self.stream.state(), max_fraction=self.max_bad_fraction)
        self.log = MetricsLog(self.folder.metrics, self.folder.tensorboard, keep_up_to=self.global_steps)

    def _save_checkpoint(self) -> None:
        root = self.folder.checkpoints
        path = checkpoints.folder(root, self.global_steps)
        self.actor_rollout_wg.save_checkpoint(str(path / "actor"), None, self.global_steps, max_ckpt_to_keep=None)
        (path / "actor" / "huggingface").rename(path / "huggingface")
        manifest = checkpoints.Manifest(
            step=self.global_steps, stream=self.stream.state(), ranks=self.actor_rollout_wg.world_size
        )
        self.unsealed = path, manifest  # sealed when the step's metrics are written too: neither is without the other

    # ------------------------------------------------------------------ what is checked and kept of a step

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        difference = float(metrics["training/rollout_probs_diff_max"])
        limit = self.max_probability_difference
        if limit is not None and not difference <= limit:
            raise RunError(
                f"step {self.global_steps}: a token's probability differs by {difference:.2g} between vLLM and the "
                f"actor, more than rl.max_probability_difference = {limit:g}: vLLM does not serve the actor's weights, "
                "or a hardly trained model expects picture tokens in its answers, which vLLM never says"
            )
        return batch

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        rows = self._ledger_rows(batch, global_steps)
        ledger.write(self.folder.ledger, global_steps, rows)
        values = {**of_verl(metrics), **of_rollouts(rows)}
        for source in self.stream.state().sources:
            values[f"data/{source.name}/epoch"] = float(source.cursor.epoch)
            values[f"data/{source.name}/position"] = float(source.cursor.position)
        values["data/dropped_rows"] = float(self.left_out.count)
        self.log.write(global_steps, values)
        if self.unsealed is not None:
            checkpoints.seal(*self.unsealed)
            checkpoints.prune(self.folder.checkpoints, self.keep_checkpoints)
            self.unsealed = None
        self.on_step(global_steps, values)

    def _ledger_rows(self, batch: KVBatchMeta, step: int) -> list[LedgerRow]:
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields", "advantages"]
        )
        # A rollout's advantage is the same on all of its tokens.
        advantages = [float(row[0]) for row in data["advantages"].unbind()]
        rows: list[LedgerRow] = []
        for key, extra, advantage in zip(batch.keys, list(data["extra_fields"]), advantages, strict=True):
            group, rollout, _ = key.rsplit("_", 2)
            rows.append(LedgerRow(step=step, group=group, rollout=int(rollout), advantage=advantage, **extra["ledger"]))
        return sorted(rows, key=lambda row: (row.group, row.rollout))


class CpuResourcePools(ResourcePoolManager):
    """verl's resource pools for ranks that take one CPU each and no accelerator."""

    def create_resource_pool(self) -> None:
        for name, ranks in self.resource_pool_spec.items():
            self.resource_pool_dict[name] = RayResourcePool(
                process_on_nodes=ranks, use_gpu=False, name_prefix=name, max_colocate_count=1
            )
