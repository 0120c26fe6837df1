"""verl's trainer with our stream in and our ledger out.

    stream -> question groups -> vLLM: n rollouts, scored -> log-probabilities -> advantages -> update -> weights

The loop is verl's `PPOTrainer.fit`; this class says where its prompts come from, where its checkpoints go, what is
kept of every step, and when it has to stop: when vLLM's probabilities are not the actor's. How generating and learning
take turns is `pathor1.rl.modes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.single_controller.ray.base import ResourcePoolManager
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.debug import marked_timer
from verl.workers.rollout.replica import RolloutReplicaRegistry

from pathor1 import attempts, checkpoints
from pathor1.data.stream import SampleStream, StreamState
from pathor1.errors import RunError
from pathor1.recipe import Recipe
from pathor1.rl import balance, carried, group_advantages, ledger, on_ranks, one_pass, pictures
from pathor1.rl.client import TimedClient
from pathor1.rl.evaluations import Evaluations
from pathor1.rl.groups import Dropped, Rules, Selection, joined
from pathor1.rl.health import Health
from pathor1.rl.intake import Intake
from pathor1.rl.keeper import Keeper
from pathor1.rl.metrics import constants, of_batch, of_groups, of_phases, of_rollouts, of_verl
from pathor1.rl.pools import NodePools
from pathor1.rl.questions import Questions
from pathor1.rl.record import dropped_rows, probability_differences, said_by, trained_rows
from pathor1.rl.sampler import PARTITION, GroupSampler, NothingToLearn
from pathor1.rl.stopping import Abandoned, Stop, Stopped, listening
from pathor1.rl.vllm_server import Replica
from pathor1.runs import RunFolder
from pathor1.samples import Sample
from pathor1.tracking.log import MetricsLog

# So many steps without an update, one after the other, end a run: nothing in its data can be learned from.
MOST_SKIPPED = 10
# The key in the queue, with a step behind it, of what stands for the rollouts of a part that has none.
SKIPPED = "skipped"

OnStep = Callable[[int, dict[str, float]], None]

balance.install()


class RLTrainer(PPOTrainer):
    """One run: `config` is verl's config of its recipe; `on_step` is told each step's metrics, `health` each phase."""

    resource_pool_manager: ResourcePoolManager
    client: type[TimedClient] = TimedClient  # by which the agents ask vLLM
    replica: type[Replica] = Replica  # which has its servers

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
        self.skipped_in_a_row = 0
        self.timing_raw: dict[str, float] = {}
        self.stop = Stop()
        self.health = health
        self.evaluations = Evaluations(recipe, folder.held_out)
        self.evaluation: dict[str, float] = {}  # of the present step
        self.keeper = Keeper(recipe, folder, self.evaluations)
        self.probe: KVBatchMeta | None = None  # an answer of the present step's that nothing is learned from
        self.takes_one_pass = one_pass.is_enough(recipe, config)
        self.has_group_advantages = self.takes_one_pass and group_advantages.is_enough(config)
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

    def _setup(self) -> None:
        RolloutReplicaRegistry.register("vllm", lambda: self.replica)
        super()._setup()

    def _build_replay_buffer(self) -> GroupSampler:
        return GroupSampler(self.rules, ask=self._ask, look_up=self._abandon)

    def _init_dataloader(self) -> None:
        """No data loader: prompts come from the stream, which opens when the checkpoint's cursor is known."""
        total = self.config.trainer.total_training_steps
        self.total_training_steps = total
        self.steps_per_epoch = total  # verl counts epochs in steps; a run is one
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = total * self.parameter_sync_step

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        verls = self.resource_pool_manager
        self.resource_pool_manager = NodePools(
            resource_pool_spec=verls.resource_pool_spec,
            mapping=verls.mapping,
            on_cpu=self.config.trainer.device == "cpu",
        )

    @property
    def engines(self) -> Any:
        """verl's manager of the vLLM servers that answer."""
        return self.llm_server_manager

    def get_llm_client(self) -> TimedClient:
        client: TimedClient = self.engines.get_client(client_cls=self.client)
        return client

    def _ask(self, count: int) -> dict[int, Sample]:
        """Hands the next questions to the agents, and returns them by their numbers in the run."""
        with marked_timer("stream", self.timing_raw):
            questions = self.intake.take(count)
        self.agent_loop_manager.generate_sequences(self._batch(questions))
        return questions

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The next questions, as verl hands them to the agent loop."""
        return self._batch(self.intake.take(num_prompts or self.config.data.train_batch_size))

    def _batch(self, questions: Mapping[int, Sample]) -> TensorDict:
        return TensorDict(
            {
                "uid": NonTensorStack(*(str(number) for number in questions)),
                "index": NonTensorStack(*range(len(questions))),
                "sample": NonTensorStack(*(NonTensorData(sample) for sample in questions.values())),
                "global_steps": NonTensorData(self.global_steps),
            },
            batch_size=len(questions),
        )

    def prepare_step(self) -> dict[str, Any]:
        """Nothing is asked for yet: the sampler does it, when it knows what waits."""
        pool = self.sampler.pool
        waiting = (group.number for group in pool.waiting)
        pictures.clear_all_but(str(number) for number in (*waiting, *self.sampler.under_way))
        self.questions.begin()
        self.evaluation = {}
        self.probe = None
        self.begun_at = self.stream.state(), list(pool.waiting), pool.share, self._unanswered()
        self.sampler.begin(self.global_steps)
        return {}

    def _unanswered(self) -> dict[int, Sample]:
        """The questions that are asked, or are to be asked before others, and have no answer yet."""
        return {**self.sampler.under_way, **self.intake.again}

    def _reissue_inflight_prompts(self, partition_id: str = PARTITION) -> int:
        """Nothing: what a checkpoint has left unanswered comes first where questions are asked for."""
        return 0

    def _add_async_warmup_batches(self, num_warmup_batches: float) -> None:
        """Asks what the rules say is asked before its step."""
        self.sampler.ask_ahead(self.global_steps)

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
            key, tag = f"{SKIPPED}-{self.global_steps}-{self.local_trigger_step}", {"is_padding": True}
            tq.kv_batch_put(keys=[key], tags=[tag], partition_id=PARTITION)
            batch = KVBatchMeta(partition_id=PARTITION, keys=[key], tags=[tag])
        self.sampler.forget_dropped()
        selection = self.sampler.selections[-1]  # recorded now: a checkpoint comes next, and holds the record
        for group in (*selection.groups, *(each.group for each in selection.dropped if each.reason != "failed")):
            self.questions.add(group)
        return batch

    # ------------------------------------------------------------------ phases of a step, and where one may be given up

    def _abandon(self) -> None:
        """Raises Abandoned where the run is asked to stop, and the step has not changed the model yet."""
        if self.local_trigger_step == 0:
            self.stop.abandon()

    def on_sample_begin(self) -> None:
        self.health.phase("generation")
        super().on_sample_begin()

    def on_sample_end(self) -> None:
        """vLLM may rest, when it has said what it is compared with the actor by, where what is learned from is old."""
        groups, version = self.sampler.selections[-1].groups, self.global_steps - 1
        if self.local_trigger_step == 0 and groups and not any(said_by(group, version) for group in groups):
            self.probe = self.sampler.probe(self.global_steps, copies=self.actor_rollout_wg.world_size)
        super().on_sample_end()

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self._abandon()
        self.health.phase("log-probabilities of the reference")
        return super()._compute_ref_log_prob(batch, metrics)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self._abandon()
        self.health.phase("advantages")
        if not self.has_group_advantages:
            return super()._compute_advantage(batch, metrics)
        made = group_advantages.compute(
            batch, self.sampler.selections[-1], config=self.config, mask_truncated=self.recipe.rl.mask_truncated
        )
        fields = TensorDict({"advantages": made}, batch_size=len(made))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self._abandon()  # from here on the step is finished
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
            self.keeper.add_evaluation(step, values)
        if step >= self.total_training_steps:  # there is nothing else to do
            self.keeper.copies.wait()
        super().on_train_begin()

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
        agents, servers = self.agent_loop_manager.agent_loop_workers, self.engines.server_handles
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
        super().on_sample_end()

    # ------------------------------------------------------------------ checkpoints

    def _load_checkpoint(self) -> None:
        root = self.folder.checkpoints
        path = checkpoints.latest(root)
        checkpoints.remove_incomplete(root)
        self.global_steps = 0
        state: StreamState | None = None
        again: dict[int, Sample] = {}
        done: Sequence[checkpoints.Evaluated] = ()
        if path is not None:
            manifest = checkpoints.read(path)
            on_ranks.load(self.actor_rollout_wg, path, manifest)
            self.global_steps, state = manifest.step, manifest.stream
            done = manifest.evaluations
            self.questions.load(path)
            again = carried.load(path, self.sampler.pool)
        self.evaluations.go_on(self.global_steps, done)
        ledger.remove_after(self.folder.ledger, self.global_steps)
        waiting = {str(group.number) for group in self.sampler.pool.waiting}
        ledger.remove_groups(self.folder.ledger, self.global_steps, waiting)
        self.ledger = ledger.Writer(self.folder.ledger)
        self.stream = self.make_stream(state)
        self.intake = Intake(
            self.recipe,
            self.folder,
            stream=self.stream,
            again=again,
            record=self.questions,
            processor=self.processor,
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
        stream, self.sampler.pool.waiting, self.sampler.pool.share, unanswered = self.begun_at
        self.questions.rewind()
        self._save_checkpoint(stream, unanswered)
        self.ledger.flush()
        self.keeper.seal()
        self.keeper.copies.wait()

    def _save_checkpoint(
        self, stream: StreamState | None = None, unanswered: Mapping[int, Sample] | None = None
    ) -> None:
        """Writes what a checkpoint holds. stream, unanswered: the place to go on from; None = where it is now."""
        self.health.phase("checkpoint")
        self.keeper.write(
            self.actor_rollout_wg,
            self.global_steps,
            stream=stream or self.stream.state(),
            pool=self.sampler.pool,
            asked=self._unanswered() if unanswered is None else unanswered,
            questions=self.questions,
        )

    # ------------------------------------------------------------------ what is checked and kept of a step

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict[str, Any]) -> KVBatchMeta:
        self._abandon()
        if self.takes_one_pass:
            return batch
        self.health.phase("log-probabilities")
        batch = super()._compute_old_log_prob(batch, metrics)
        differences = probability_differences(batch, version=self.global_steps - 1)
        if not len(differences) and self.probe is not None:
            probe = super()._compute_old_log_prob(self.probe, {})
            differences = probability_differences(probe, version=self.global_steps - 1)
            tq.kv_clear(keys=probe.keys, partition_id=PARTITION)
            self.probe = None  # a later part of the step has nothing to measure by: the first has
        if len(differences):
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
        selection = joined(self.sampler.selections)
        ends = global_steps == self.total_training_steps
        stops = self.stop.asked and (not ends or self.evaluations.is_owed(global_steps))
        if (stops or ends) and self.keeper.unsealed is None:
            self._save_checkpoint()
        self.health.phase("record")
        batch = _learned_from(batch)
        dropped = list(selection.dropped)
        if ends:  # what waits now waits in vain
            dropped += [Dropped(group=group, reason="budget") for group in selection.carried]
        trained = trained_rows(batch, selection, global_steps)
        rows = [*trained, *dropped_rows(dropped, global_steps)]
        self.ledger.write(global_steps, rows)
        accelerators = self._get_n_gpus_for_throughput()
        values = {
            **of_verl(metrics),
            **of_phases(timing_raw),
            **of_batch(batch.tags, trained, seconds=timing_raw["step"], accelerators=accelerators),
            **of_rollouts(rows, min_think_words=self.recipe.rl.reward.min_think_words),
            **of_groups(selection, step=global_steps),
            **self.intake.metrics(),
            "run/restarts": float(max(0, attempts.number() - 1)),
            **self.keeper.copies.metrics(),
            **self.evaluation,
        }
        self.keeper.score(values)
        if self.keeper.unsealed is not None:
            self.ledger.flush()
        self.log.write(global_steps, values)
        self.keeper.seal()
        if stops or ends:
            self.keeper.copies.wait()
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


def _learned_from(batch: KVBatchMeta) -> KVBatchMeta:
    """A step's rollouts without the entries that stand for parts that have none."""
    kept = [(key, tag) for key, tag in zip(batch.keys, batch.tags, strict=True) if not key.startswith(SKIPPED)]
    return KVBatchMeta(partition_id=batch.partition_id, keys=[key for key, _ in kept], tags=[tag for _, tag in kept])
