"""Recipe -> verl's config: one function, `build`.

verl 0.9.1 has some 800 keys; the recipe's own set the ones that matter here, and its `[verl]` table any other, checked
against verl's own config: an unknown key fails with the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathor1.errors import RecipeError
from pathor1.model.check import largest_weight
from pathor1.recipe import Recipe
from pathor1.rl.algorithms import Algorithm, resolve

LOSS_AGGREGATION = {"sequence-mean": "seq-mean-token-mean", "token-mean": "token-mean"}
# Of the forward and backward passes; sums over ranks and buffers are float32 in both.
MIXED_PRECISION = {
    dtype: {"param_dtype": short, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    for dtype, short in (("bfloat16", "bf16"), ("float32", "fp32"))
}
# Keys that verl reads but whose defaults its config does not list; everything else has to exist there.
OPEN_TABLES = (
    "actor_rollout_ref.actor.optim.override_optimizer_config",
    "actor_rollout_ref.rollout.engine_kwargs",
    "actor_rollout_ref.model.override_config",
    "data.mm_processor_kwargs",
    "data.apply_chat_template_kwargs",
)
# Keys of verl that a key of the recipe sets, which more than verl depends on: set here, they would be at odds with it.
INSTEAD = {
    "actor_rollout_ref.model.path": "model.path",
    "actor_rollout_ref.rollout.dtype": "model.dtype",
    "data.train_files": "data.train",
    "data.val_files": "data.test",
    "data.max_prompt_length": "data.max_prompt_tokens",
    "data.max_response_length": "rl.max_response_tokens",
    "data.train_batch_size": "rl.prompts_per_step",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "rl.prompts_per_update",
    "actor_rollout_ref.rollout.n": "rl.group_size",
    "algorithm.filter_groups.enable": "rl.dynamic_sampling",
    "trainer.v1.trainer_mode": "rl.mode",
    "trainer.v1.separate_async.parameter_sync_step": "rl.prompts_per_update",
    "actor_rollout_ref.hybrid_engine": "rl.mode",
    "actor_rollout_ref.rollout.nnodes": "cluster.rollout_accelerators",
    "actor_rollout_ref.rollout.n_gpus_per_node": "cluster.rollout_accelerators",
    "trainer.v1.sampler.max_off_policy_threshold": "rl.max_carry_steps",
    "trainer.v1.sampler.max_off_policy_strategy": "rl.max_carry_steps",
    "trainer.total_training_steps": "rl.steps",
    "trainer.total_epochs": "rl.steps",
    "trainer.save_freq": "rl.save_every",
    "trainer.test_freq": "rl.evaluate_every",
    "trainer.max_actor_ckpt_to_keep": "rl.keep_checkpoints",
    "trainer.experiment_name": "name",
    "trainer.default_local_dir": "runs_dir",
    "trainer.nnodes": "cluster.nodes",
    "trainer.n_gpus_per_node": "cluster.accelerators_per_node",
}


def build(recipe: Recipe, *, accelerator: str) -> Any:
    """verl's config (an omegaconf DictConfig, interpolations unresolved) for a recipe.

    accelerator: "cpu" or "gpu", what the ranks run on. Raises RecipeError for a key of `[verl]` that verl does not
    have, or a value that does not fit it.
    """
    import verl
    from hydra import compose, initialize_config_dir
    from omegaconf import open_dict

    folder = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("ppo_trainer")
    algorithm = resolve(recipe.rl)
    settings = {
        **_training(recipe, algorithm),
        **_rollout(recipe),
        **(_on_cpu(recipe) if accelerator == "cpu" else _on_gpu(recipe)),
        **(_separate(recipe, accelerator) if recipe.rl.mode == "separate_async" else {}),
    }
    with open_dict(config):
        for key, value in settings.items():
            _set(config, key, value)
        config.pathor1 = _agent_settings(recipe, algorithm, accelerator)
    apply_user_keys(config, recipe.verl)
    if accelerator == "cpu":
        _fuse_adam(config)
    _refuse_too_far_ahead(recipe, batches_ahead(recipe, config))
    return config


def _fuse_adam(config: Any) -> None:
    """Torch's AdamW in one kernel, where the user has not said otherwise.

    On a CPU its default takes the parameters, which are DTensors here, one by one through a dozen operations of Python.
    """
    optimizer = config.actor_rollout_ref.actor.optim
    if (optimizer.optimizer_impl, optimizer.optimizer) != ("torch.optim", "AdamW"):
        return
    if not {"fused", "foreach"} & set(optimizer.override_optimizer_config or {}):
        _set(config, f"{OPEN_TABLES[0]}.fused", True)


def carries(recipe: Recipe) -> bool:
    """Whether groups may be learned from in a later step than they were asked in."""
    rl = recipe.rl
    return rl.mode != "sync" or (resolve(rl).dynamic_sampling and rl.carry_steps > 0)


def batches_ahead(recipe: Recipe, config: Any) -> float:
    """How many batches of questions are asked before the step that learns from them. config: verl's."""
    batches: float = config.trainer.v1[recipe.rl.mode].get("num_warmup_batches", 0)
    return batches


def _refuse_too_far_ahead(recipe: Recipe, batches: float) -> None:
    """Raises RecipeError where so many batches ahead could not be learned from in their time."""
    if not 0 <= batches <= recipe.rl.carry_steps:
        raise RecipeError(
            f"[verl] trainer.v1.{recipe.rl.mode}.num_warmup_batches = {batches:g} is not between 0 and "
            f"rl.max_carry_steps = {recipe.rl.carry_steps}: answers would wait for longer than they may"
        )


def _training(recipe: Recipe, algorithm: Algorithm) -> dict[str, Any]:
    rl, model, cluster = recipe.rl, recipe.model, recipe.cluster
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.filter_groups.enable": False,  # `pathor1.rl.groups` does it
        # Groups that waited for a step were said by older weights: tokens weigh π_now / π_then, cut off at 2 (TIS).
        "algorithm.rollout_correction.rollout_is": "token" if carries(recipe) else None,
        "data.train_batch_size": rl.prompts_per_step,
        "data.max_prompt_length": recipe.data.max_prompt_tokens,
        "data.max_response_length": rl.max_response_tokens,
        "actor_rollout_ref.model.path": recipe.model.path,
        "actor_rollout_ref.model.enable_gradient_checkpointing": model.gradient_checkpointing,
        "actor_rollout_ref.model.external_lib": "pathor1.rl.pictures",
        "actor_rollout_ref.model.override_config": {"attn_implementation": model.attention},
        f"{actor}.strategy": "fsdp2",
        f"{actor}.ppo_mini_batch_size": rl.prompts_per_update,
        f"{actor}.clip_ratio": algorithm.clip_low,
        f"{actor}.clip_ratio_low": algorithm.clip_low,
        f"{actor}.clip_ratio_high": algorithm.clip_high,
        f"{actor}.loss_agg_mode": LOSS_AGGREGATION[algorithm.loss_aggregation],
        f"{actor}.use_kl_loss": algorithm.kl_coefficient > 0,
        f"{actor}.kl_loss_coef": algorithm.kl_coefficient,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.optim.clip_grad": rl.max_gradient_norm,
        f"{actor}.optim.lr": rl.learning_rate,
        f"{actor}.optim.lr_warmup_steps": rl.warmup_steps,
        f"{actor}.optim.zero_indexed_step": False,  # the first step of a warm-up has a rate above 0
        f"{actor}.optim.weight_decay": rl.weight_decay,
        # verl trains in bfloat16 whatever the model's type is, unless its mixed precision says otherwise.
        **{
            f"actor_rollout_ref.{role}.fsdp_config.mixed_precision": MIXED_PRECISION[model.dtype]
            for role in ("actor", "ref")
        },
        # Static micro-batches mis-split 3-row mRoPE positions now and then; token budgets take another path.
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": rl.max_tokens_per_update,
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
        "reward.num_workers": 0,  # rewards are pure functions of text: the agent scores them itself
        "trainer.v1.trainer_mode": rl.mode,
        "trainer.nnodes": cluster.nodes,
        "trainer.n_gpus_per_node": cluster.accelerators_per_node,
        "trainer.total_training_steps": rl.steps,
        "trainer.val_before_train": False,
        "trainer.test_freq": rl.evaluate_every or -1,
        "trainer.logger": [],
        "trainer.project_name": "pathor1",
        "trainer.experiment_name": recipe.name,
        "transfer_queue.enable": True,
    }


def _rollout(recipe: Recipe) -> dict[str, Any]:
    rl, rollout = recipe.rl, recipe.rollout
    prefix = "actor_rollout_ref.rollout"
    return {
        f"{prefix}.name": "vllm",
        f"{prefix}.n": rl.group_size,
        f"{prefix}.temperature": rl.temperature,
        f"{prefix}.top_p": rl.top_p,
        f"{prefix}.seed": recipe.seed,
        f"{prefix}.dtype": recipe.model.dtype,
        f"{prefix}.tensor_model_parallel_size": rollout.tensor_parallel,
        f"{prefix}.gpu_memory_utilization": rollout.memory_fraction,
        f"{prefix}.max_num_seqs": rollout.max_sequences,
        f"{prefix}.max_num_batched_tokens": rollout.max_batched_tokens,
        f"{prefix}.max_model_len": recipe.data.max_prompt_tokens + rl.max_response_tokens,
        f"{prefix}.enforce_eager": rollout.enforce_eager,
        f"{prefix}.calculate_log_probs": True,
    }


def _separate(recipe: Recipe, accelerator: str) -> dict[str, Any]:
    """What verl's separate_async needs: vLLM's own accelerators, and a way for weights to get there."""
    rl, rollout, engine = recipe.rl, "actor_rollout_ref.rollout", "actor_rollout_ref.rollout.checkpoint_engine"
    updates = rl.prompts_per_step // rl.prompts_per_update  # in each of which verl learns from a part of a step
    ways = {
        "cpu": {f"{engine}.backend": "gloo", f"{engine}.custom_backend_module": "pathor1.backends.gloo_weights"},
        "gpu": {f"{engine}.backend": "nccl"},
    }
    return {
        "actor_rollout_ref.hybrid_engine": False,
        f"{rollout}.nnodes": 1,
        f"{rollout}.n_gpus_per_node": recipe.cluster.rollout_accelerators,
        "trainer.v1.separate_async.parameter_sync_step": updates,
        # verl counts its schedule in updates then, and ours are in steps.
        "actor_rollout_ref.actor.optim.lr_warmup_steps": rl.warmup_steps * updates,
        **ways[accelerator],
    }


def _on_gpu(recipe: Recipe) -> dict[str, Any]:
    ranks = recipe.cluster.nodes * recipe.cluster.accelerators_per_node
    return {
        "trainer.device": "cuda",
        # verl packs sequences without padding by flash-attn's own kernels.
        "actor_rollout_ref.model.use_remove_padding": recipe.model.attention == "flash_attention_2",
        # One process for each rank, as verl has it: pictures and their pixels go through these.
        "actor_rollout_ref.rollout.agent.num_workers": ranks,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": ranks,
        "transfer_queue.backend.SimpleStorage.required_node_resource": "GPU",  # not on a head that only directs
        "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls": (
            "pathor1.backends.weight_sockets.WorkerExtension"
        ),
    }


def _on_cpu(recipe: Recipe) -> dict[str, Any]:
    """What vLLM's CPU engine and FSDP over gloo need; see `pathor1/backends`."""
    compiled = ("actor.use_torch_compile", "actor.fsdp_config.use_torch_compile", "ref.fsdp_config.use_torch_compile")
    return {
        "trainer.device": "cpu",
        "actor_rollout_ref.model.use_remove_padding": False,
        "actor_rollout_ref.rollout.agent.num_workers": recipe.cluster.nodes,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": recipe.cluster.nodes,
        "transfer_queue.backend.SimpleStorage.required_node_resource": "CPU",
        **{f"actor_rollout_ref.{key}": False for key in compiled},
        "actor_rollout_ref.rollout.enable_sleep_mode": False,
        "actor_rollout_ref.rollout.free_cache_engine": False,
        "actor_rollout_ref.rollout.enforce_eager": True,
        "actor_rollout_ref.rollout.load_format": "auto",
        # Weights go to vLLM through shared memory, in buckets that hold the largest of them.
        "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": max(
            64, (largest_weight(recipe.model.path) >> 20) + 1
        ),
        "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls": (
            "pathor1.backends.vllm_cpu.CpuWorkerExtension"
        ),
        "actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend": (
            # By its full name: vLLM takes "uni" on a CPU for "mp", which is one process more for each engine.
            "vllm.v1.executor.uniproc_executor.UniProcExecutor"
        ),
    }


def _agent_settings(recipe: Recipe, algorithm: Algorithm, accelerator: str) -> dict[str, Any]:
    """What our agent loop reads: it is handed verl's config and nothing else."""
    return {
        "system_prompt": recipe.data.system_prompt,
        "min_pixels": recipe.data.min_pixels,
        "max_pixels": recipe.data.max_pixels,
        "format_weight": algorithm.format_weight,
        "accuracy_weight": algorithm.accuracy_weight,
        "length_weight": algorithm.length_weight,
        "overlong_cache_tokens": recipe.rl.reward.overlong_cache_tokens,
        "mask_truncated": recipe.rl.mask_truncated,
        "rollout_timeout": recipe.rollout.timeout,
        # A GPU's sums depend on what else is in the batch, so its answers could not be had again; and a generator for
        # each answer would cost vLLM a kernel for each and token.
        "seeded_answers": accelerator == "cpu",
    }


def _set(config: Any, dotted: str, value: Any) -> None:
    from omegaconf import OmegaConf

    OmegaConf.update(config, dotted, value, merge=False, force_add=True)


def apply_user_keys(config: Any, keys: Mapping[str, Any]) -> None:
    """Sets the recipe's `[verl]` keys in place, dotted key -> value.

    Raises RecipeError for one that verl does not know or the recipe has a key of its own for.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = leaves(OmegaConf.to_container(config, resolve=False))
    for key, value in keys.items():
        if key in INSTEAD:
            raise RecipeError(f"[verl] {key}: is set by the recipe's own {INSTEAD[key]}; give that instead")
        if key not in known and not any(key.startswith(f"{table}.") for table in OPEN_TABLES):
            raise RecipeError(f"[verl] {key}: verl has no such key{_nearest(key, known)}")
        try:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        except OmegaConfBaseException as error:
            raise RecipeError(f"[verl] {key} = {value!r}: {str(error).splitlines()[0]}") from error


def leaves(tree: Any, prefix: str = "") -> set[str]:
    """Dotted keys of all leaves of a nested dict; an empty table is a leaf."""
    found: set[str] = set()
    for name, value in tree.items():
        key = f"{prefix}{name}"
        found |= leaves(value, f"{key}.") if isinstance(value, dict) and value else {key}
    return found


def _nearest(key: str, known: set[str]) -> str:
    """ ", did you mean ...", first by the key's last part, as most mistakes are in the path to it."""
    last = key.rsplit(".", 1)[-1]
    shortened = [name for name in known if name.endswith(f".{key}")]
    likely = shortened or [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = difflib.get_close_matches(key, sorted(likely or known), n=1, cutoff=0.0 if likely else 0.6)
    return f"; did you mean {near[0]}?" if near else "; see verl/trainer/config/ppo_trainer.yaml"
