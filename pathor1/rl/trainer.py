"""verl's synchronous trainer with our stream in and our ledger out.

    stream -> question groups -> vLLM: n rollouts, scored -> log-probabilities -> advantages -> update -> weights

The loop is verl's `PPOTrainer.fit`; this class says where its prompts come from, where its checkpoints go, what is
kept of every step, and when it has to stop: when vLLM's probabilities are not the actor's.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray.base import ResourcePoolManager
from verl.trainer.ppo.v1 import PPOTrainerSync
from verl.utils.debug import marked_timer

from pathor1 import attempts, checkpoints
from pathor1.data import prompt_length
from pathor1.data.left_out import LeftOut
from pathor1.data.stream import SampleStream, StreamRow, StreamState
from pathor1.errors import DataError, RunError
from pathor1.recipe import Recipe
from pathor1.rl import carried, ledger, on_ranks, one_pass, pictures
from pathor1.rl.client import TimedClient
from pathor1.rl.copies import CheckpointStore, Copies
from pathor1.rl.evaluations import Evaluations
from pathor1.rl.groups import Dropped, Rules, Selection
from pathor1.rl.health import Health
from pathor1.rl.metrics import constants, of_groups, of_rollouts, of_verl
from pathor1.rl.pools import NodePools
from pathor1.rl.questions import Questions
from pathor1.rl.record import dropped_rows, probability_differences, trained_rows
from pathor1.rl.sampler import PARTITION, GroupSampler, NothingToLearn
from pathor1.rl.stopping import Abandoned, Stop, Stopped, listening
from pathor1.runs import RunFolder
from pathor1.samples import Sample
from pathor1.tracking.log import MetricsLog

# So many steps without an update, one after the other, end a run: nothing in its data can be learned from.
MOST_SKIPPED = 10
# A disk with fewer bytes free is full: torch writes in pieces, and gives up at the first that does not fit.
FULL = 16 << 20

OnStep = Callable[[int, dict[str, float]], None]


class RLTrainer(PPOTrainerSync):
    """One run: `config` is verl's config of its recipe; `on_step` is told each step's metrics, `health` each phase."""

    resource_pool_manager: ResourcePoolManager

    def __init__(
        self,
        config: DictConfig,
        *,
        recipe: Recipe,
        folder: RunFolder,
        make_stream: Callable[[StreamState | None], SampleStream[Sample]],
        rules: Rules,
        on_step: OnStep,
        health: Health,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.make_stream = make_stream
        self.rules = rules
        self.questions = Questions(revisit_every=recipe.rl.revisit_every)
        self.on_step = on_step
        self.left_out_in_a_row = 0
        self.skipped_in_a_row = 0
        self.unsealed: tuple[Path, checkpoints.Manifest] | None = None
        self.stop = Stop()
        self.health = health
        self.scores: list[float] = []  # of the steps since the last checkpoint, by rl.best_by
        self.evaluations = Evaluations(recipe, folder.held_out)
        self.evaluation: dict[str, float] = {}  # of the present step
        self.copies = Copies(folder.checkpoints, recipe.rl.keep_checkpoints, CheckpointStore.of(recipe))
        self.takes_one_pass = one_pass.is_enough(recipe, config)
        with open_dict(config):
            if self.takes_one_pass:
                config.algorithm.rollout_correction = None  # it compares vLLM's numbers with those of a first pass
                # Without a gradient, so that nothing has to be kept for it.
                config.actor_rollout_ref.actor.calculate_entropy = True
                config.actor_rollout_ref.actor.fsdp_config.entropy_checkpointing = True
            config.trainer.save_freq = recipe.rl.save_every
            config.trainer.resume_mode = "disable"  # `_load_checkpoint` below knows where ours are
        super().__init__(config)

    # ------------------------------------------------------------------ what verl asks its trainer for

    def _build_replay_buffer(self) -> GroupSampler:
        return GroupSampler(self.rules, ask=self._ask, look_up=self.stop.abandon)

    def _init_dataloader(self) -> None:
        """No data loader: prompts come from the stream, which opens when the checkpoint's cursor is known."""
        total = self.config.trainer.total_training_steps
        self.total_training_steps = total
        self.steps_per_epoch = total  # verl counts epochs in steps; a run is one
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = total

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        verls = self.resource_pool_manager
        self.resource_pool_manager = NodePools(
            resource_pool_spec=verls.resource_pool_spec,
            mapping=verls.mapping,
            on_cpu=self.config.trainer.device == "cpu",
        )

    def get_llm_client(self) -> TimedClient:
        return self.llm_server_manager.get_client(client_cls=TimedClient)

    def _ask(self, count: int) -> None:
        """Hands the next questions of the stream to the agents."""
        with marked_timer("stream", self.timing_raw):
            questions = self._next_train_batch(count)
        self.agent_loop_manager.generate_sequences(questions)

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The next questions of the stream, as verl hands them to the agent loop."""
        count = num_prompts or self.config.data.train_batch_size
        rows: list[StreamRow[Sample]] = []
        while len(rows) < count:
            usable, dropped = self.stream.take(count - len(rows))
            for row in [*dropped, *usable]:
                problem = row.problem or self._prompt_problem(row.sample)
                if problem is not None:
                    self._leave_out(row, problem)
                elif not self.questions.pass_over(row.sample.id):
                    rows.append(row)
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

    def _leave_out(self, row: StreamRow[Sample], problem: str) -> None:
        """Says which row is left out and why. Raises DataError where too many are, or a whole epoch's worth was."""
        place = f"epoch {row.epoch}, row {row.position} of {row.source}"
        print(f"left out: sample {row.sample.id} ({place}): {problem}", flush=True)
        self.left_out.add(row, problem)
        self.left_out_in_a_row += 1
        if self.left_out_in_a_row > self.stream.rows:
            raise DataError(f"none of the {self.stream.rows} training samples can be used; the last: {problem}")

    def prepare_step(self) -> dict[str, Any]:
        """Nothing is asked for yet: the sampler does it, when it knows what waits."""
        pool = self.sampler.pool
        pictures.clear_all_but(str(group.number) for group in pool.waiting)
        self.questions.begin()
        self.evaluation = {}
        self.begun_at = self.stream.state(), list(pool.waiting), pool.share
        return {}

    @property
    def sampler(self) -> GroupSampler:
        """verl's replay buffer is ours."""
        return cast(GroupSampler, self.replay_buffer)

    def fit(self, agent_loop_manager: Any) -> None:
        """Trains to the last step. Raises Stopped where the run is asked to stop, with its checkpoint written."""
        self.sampler.watch(agent_loop_manager.agent_loop_workers)
        with self.stream, self.log, self.ledger, listening(self.stop):
            try:
                super().fit(agent_loop_manager)
            except Abandoned:
                self._save_before_step()
                raise Stopped(self.global_steps) from None

    def _step_once(self, metrics: dict[str, Any], timing_raw: dict[str, float], sample_batch_size: int) -> KVBatchMeta:
        try:
            batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        except NothingToLearn:
            self.on_sample_end()  # vLLM gives its memory back, as it would have
            # verl removes a step's rollouts from the queue, and cannot remove none: an empty entry stands for them.
            key, tag = f"skipped-{self.global_steps}", {"is_padding": True}
            tq.kv_batch_put(keys=[key], tags=[tag], partition_id=PARTITION)
            batch = KVBatchMeta(partition_id=PARTITION, keys=[key], tags=[tag])
        self.sampler.forget_dropped()
        selection = self.sampler.selection  # recorded now: a checkpoint comes next, and holds the record
        for group in (*selection.groups, *(each.group for each in selection.dropped if each.reason != "failed")):
            self.questions.add(group)
        return batch

    # ------------------------------------------------------------------ phases of a step, and where one may be given up

    def on_sample_begin(self) -> None:
        self.health.phase("generation")
        super().on_sample_begin()

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self.stop.abandon()
        self.health.phase("log-probabilities of the reference")
        return super()._compute_ref_log_prob(batch, metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self.stop.abandon()
        self.health.phase("advantages")
        return super()._compute_advantage(batch, metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self.stop.abandon()  # from here on the step is finished
        self.health.phase("update")
        batch = super()._update_actor(batch, metrics)
        if self.takes_one_pass:
            one_pass.take_measured(metrics)
            self._refuse_difference(metrics["rollout/probability_difference_max"])
        return batch

    def on_step_end(self) -> None:
        if self.stop.asked:
            return  # vLLM is not asked again
        self.health.phase("weights to vLLM")
        super().on_step_end()

    # ------------------------------------------------------------------ held-out questions

    def on_train_begin(self) -> None:
        """Makes up for the evaluation of the last step, where the run was stopped before or in it."""
        step = self.global_steps - 1
        values = self._evaluate(step)
        if self.stop.asked:
            raise Stopped(step)
        if values:
            self.log.add(step, values)
            self._score(values)
            path = checkpoints.folder(self.folder.checkpoints, step)
            self._seal_with_score(path, checkpoints.read(path))
            self.copies.renew(path)
        if step >= self.total_training_steps:  # there is nothing else to do
            self.copies.wait()

    def _validate(self) -> dict[str, float]:
        """What verl asks for behind a step, when vLLM has the step's weights; {}, as verl would print all of it."""
        self.evaluation = self._evaluate(self.global_steps)
        return {}

    def _evaluate(self, step: int) -> dict[str, float]:
        """The numbers of the present weights, those of `step`; {} where none are owed, or the run is asked to stop.

        `step` becomes the last one where the patience of the run is at its end.
        """
        if self.stop.asked or not self.evaluations.is_owed(step):
            return {}
        self.health.phase("evaluation")
        agents, servers = self.agent_loop_manager.agent_loop_workers, self.llm_server_manager.server_handles
        try:
            values = self.evaluations.evaluate(step, agents, servers=len(servers), look_up=self.stop.abandon)
        except Abandoned:  # the run that goes on makes up for it
            self._quiet_vllm()
            return {}
        if self.evaluations.end_early() and step < self.total_training_steps:
            print(f"step {step}: stops early (rl.early_stop_patience)", flush=True)
            self.total_training_steps = step
            self._quiet_vllm()
        return values

    def _quiet_vllm(self) -> None:
        """vLLM answers nothing any more and gives its memory back, as it would have at the end of a step's answers."""
        self.checkpoint_manager.abort_replicas(reject_request=True)
        self.on_sample_end()

    # ------------------------------------------------------------------ checkpoints

    def _load_checkpoint(self) -> None:
        root = self.folder.checkpoints
        path = checkpoints.latest(root)
        checkpoints.remove_incomplete(root)
        self.global_steps = 0
        state: StreamState | None = None
        done: Sequence[checkpoints.Evaluated] = ()
        if path is not None:
            manifest = checkpoints.read(path)
            on_ranks.load(self.actor_rollout_wg, path, manifest)
            self.global_steps, state = manifest.step, manifest.stream
            done = manifest.evaluations
            self.questions.load(path)
            carried.load(path, self.sampler.pool)
        self.evaluations.go_on(self.global_steps, done)
        ledger.remove_after(self.folder.ledger, self.global_steps)
        waiting = {str(group.number) for group in self.sampler.pool.waiting}
        ledger.remove_groups(self.folder.ledger, self.global_steps, waiting)
        self.ledger = ledger.Writer(self.folder.ledger)
        self.stream = self.make_stream(state)
        self.left_out = LeftOut(
            self.folder.left_out, start=self.stream.state(), max_fraction=self.recipe.data.max_bad_fraction
        )
        self.log = MetricsLog(
            self.folder.metrics,
            self.folder.tensorboard,
            run=self.recipe.name,
            keep_up_to=self.global_steps,
            trackers=self.recipe.trackers,
            recipe=self.recipe.model_dump(mode="json"),
            constants=constants(self.recipe),
        )

    def _save_before_step(self) -> None:
        """The checkpoint of the step before this one, which is given up: the model is as that one left it."""
        self.global_steps -= 1
        last = checkpoints.latest(self.folder.checkpoints)
        if self.global_steps == 0 or (last is not None and checkpoints.read(last).step == self.global_steps):
            return
        if self.health.current == "generation":
            self._quiet_vllm()
        stream, self.sampler.pool.waiting, self.sampler.pool.share = self.begun_at
        self.questions.rewind()
        self._save_checkpoint(stream)
        self.ledger.flush()
        self._seal()
        self.copies.wait()

    def _save_checkpoint(self, stream: StreamState | None = None) -> None:
        """Writes everything but the manifest, or nothing. stream: the place to go on from; None = where it is now.

        Raises OSError with ENOSPC where the disk is full, which torch has many words for, and none that says so.
        """
        self.health.phase("checkpoint")
        path = checkpoints.folder(self.folder.checkpoints, self.global_steps)
        try:
            self._write_checkpoint(path, stream or self.stream.state())
        except Exception as error:
            free = shutil.disk_usage(self.folder.path).free
            shutil.rmtree(path, ignore_errors=True)  # what is half written would keep it full
            if free < FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
            raise

    def _write_checkpoint(self, path: Path, stream: StreamState) -> None:
        written = on_ranks.save(self.actor_rollout_wg, path, self.global_steps)
        carried.save(path, self.sampler.pool)
        self.questions.save(path)
        shutil.copyfile(self.folder.recipe, path / checkpoints.RECIPE)
        ours = [name for name in checkpoints.contents(path) if name not in written]
        written |= checkpoints.describe(path, ours, sync=True)
        ranks = self.actor_rollout_wg.world_size
        manifest = checkpoints.Manifest(step=self.global_steps, stream=stream, ranks=ranks, files=written)
        self.unsealed = path, manifest  # sealed when the step's metrics are written too: neither is without the other

    def _seal(self) -> None:
        """Makes what `_save_checkpoint` wrote a checkpoint, copies it to the store, and removes older ones."""
        if self.unsealed is None:
            return
        self._seal_with_score(*self.unsealed)
        self.unsealed = None
        self.copies.prune_and_copy()

    def _seal_with_score(self, path: Path, manifest: checkpoints.Manifest) -> None:
        score = checkpoints.score(self.recipe.rl.best_by, self.scores) or manifest.score
        checkpoints.seal(path, replace(manifest, score=score, evaluations=tuple(self.evaluations.done)))
        self.scores = []

    def _score(self, values: Mapping[str, float]) -> None:
        """Takes down a step's value of rl.best_by; an evaluation is of the weights of its own step alone."""
        metric = self.recipe.rl.best_by
        if metric == "evaluation/accuracy":
            self.scores = []
        if metric in values:
            self.scores.append(values[metric])

    # ------------------------------------------------------------------ what is checked and kept of a step

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self.stop.abandon()
        if self.takes_one_pass:
            return batch
        self.health.phase("log-probabilities")
        batch = super()._compute_old_log_prob(batch, metrics)
        differences = probability_differences(batch, self.global_steps)
        metrics["rollout/probability_difference_max"] = difference = float(differences.max())  # NaN where one is
        metrics["rollout/probability_difference_mean"] = float(differences.mean())
        self._refuse_difference(difference)
        return batch

    def _refuse_difference(self, difference: float) -> None:
        """Raises RunError where vLLM's probabilities are too far from the actor's."""
        limit = self.recipe.rl.max_probability_difference
        if limit is not None and not difference <= limit:
            self.log.gauges.show({"rollout/probability_difference_max": difference})  # there is no step to show it with
            raise RunError(
                f"step {self.global_steps}: a token's probability differs by {difference:.2g} between vLLM and the "
                f"actor, more than rl.max_probability_difference = {limit:g}: vLLM does not serve the actor's weights, "
                "or a hardly trained model expects picture tokens in its answers, which vLLM never says"
            )

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        selection = self.sampler.selection
        ends = global_steps == self.total_training_steps
        stops = self.stop.asked and (not ends or self.evaluations.is_owed(global_steps))
        if (stops or ends) and self.unsealed is None:
            self._save_checkpoint()
        self.health.phase("record")
        if selection.groups:
            super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        else:
            metrics["timing_s/step"] = timing_raw["step"]
        dropped = list(selection.dropped)
        if ends:  # what waits now waits in vain
            dropped += [Dropped(group=group, reason="budget") for group in selection.carried]
        rows = [*trained_rows(batch, selection, global_steps), *dropped_rows(dropped, global_steps)]
        self.ledger.write(global_steps, rows)
        values = {
            **of_verl(metrics),
            **of_rollouts(rows, min_think_words=self.recipe.rl.reward.min_think_words),
            **of_groups(selection, step=global_steps),
            "data/left_out": float(self.left_out.count),
            "data/left_out_share": self.left_out.share,
            "data/passed_over": float(self.questions.passed_over),
            "run/restarts": float(max(0, attempts.number() - 1)),
            **self.copies.metrics(),
            **self.evaluation,
        }
        self._score(values)
        for source in self.stream.state().sources:
            values[f"data/{source.name}/epoch"] = float(source.cursor.epoch)
            values[f"data/{source.name}/position"] = float(source.cursor.position)
        if self.unsealed is not None:
            self.ledger.flush()
        self.log.write(global_steps, values)
        self._seal()
        if stops or ends:
            self.copies.wait()
        self.on_step(global_steps, values)
        if stops:
            raise Stopped(global_steps)
        self._refuse_to_go_on(selection)

    def _refuse_to_go_on(self, selection: Selection) -> None:
        """Raises RunError after many steps without an update."""
        self.skipped_in_a_row = 0 if selection.groups else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MOST_SKIPPED:
            raise RunError(
                f"{MOST_SKIPPED} steps one after the other had fewer than rl.min_groups = {self.rules.min_groups} "
                "groups to learn from: the model is right, or wrong, on nearly all questions; train on harder or "
                "easier ones, or without rl.dynamic_sampling"
            )
