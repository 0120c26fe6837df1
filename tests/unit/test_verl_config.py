"""A recipe becomes verl's config: every number in its place, every key one that verl has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pathor1.errors import RecipeError
from pathor1.recipe import Recipe, load
from pathor1.rl.verl_config import INSTEAD, OPEN_TABLES, apply_user_keys, batches_ahead, build, leaves

RECIPES = sorted((Path(__file__).parents[2] / "ray_jobs" / "recipes").glob("*.toml"))
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def recipe(**values: Any) -> Recipe:
    tree: dict[str, Any] = {"name": "a", "model": {"path": "m"}, "data": {"train": ["t"]}, "rl": {"steps": 1}}
    return Recipe.model_validate({**tree, **values})


def keys_of(config: Any) -> set[str]:
    from omegaconf import OmegaConf

    return leaves(OmegaConf.to_container(config, resolve=False))


def value(config: Any, key: str) -> Any:
    from omegaconf import OmegaConf

    found = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.fixture(scope="module")
def verls_own() -> Any:
    """verl's config before anything of ours."""
    import verl
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer")


@pytest.fixture(scope="module")
def built(verls_own: Any) -> dict[tuple[str, str], Any]:
    """Every recipe that comes with the project, for either kind of machine, as a run resolves it."""
    from omegaconf import OmegaConf

    found = {}
    for path in RECIPES:
        for accelerator in ("cpu", "gpu"):
            config = build(load(path), accelerator=accelerator)
            OmegaConf.resolve(config)
            found[path.stem, accelerator] = config
    return found


def test_every_recipe_is_accepted_by_verl(built: dict[tuple[str, str], Any]) -> None:
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    assert len(built) == 2 * len(RECIPES) >= 6
    for config in built.values():
        validate_config(config, use_reference_policy=value(config, f"{ACTOR}.use_kl_loss"), use_critic=False)
        assert omega_conf_to_dataclass(config.actor_rollout_ref.rollout).name == "vllm"


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_no_key_is_invented(verls_own: Any, accelerator: str) -> None:
    """A name that verl does not read would be set and change nothing."""
    import transfer_queue
    from omegaconf import OmegaConf
    from verl.workers.config import FSDPEngineConfig, RolloutConfig

    rl = {"steps": 1, "algorithm": "dapo", "mode": "separate_async"}
    config = build(recipe(rl=rl, cluster={"rollout_accelerators": 1}), accelerator=accelerator)
    ours = (*(f"{table}." for table in OPEN_TABLES), "pathor1.")
    # What verl's file leaves out, the classes that are made of it have.
    in_classes = {f"{ROLLOUT}.{name}" for name in RolloutConfig.__dataclass_fields__}
    for role in ("actor", "ref"):
        in_classes |= {f"actor_rollout_ref.{role}.fsdp_config.{name}" for name in FSDPEngineConfig.__dataclass_fields__}
    queues = OmegaConf.load(
        Path(transfer_queue.__file__).parent / "config.yaml"
    )  # verl hands its table on to the queue
    in_classes |= {f"transfer_queue.{name}" for name in keys_of(queues)}
    for key in keys_of(config) - keys_of(verls_own):
        assert key.startswith(ours) or any(f"{key}.".startswith(f"{name}.") for name in in_classes), key


def test_the_numbers_of_a_recipe_stand_where_verl_reads_them() -> None:
    config = build(
        recipe(
            name="my-run",
            seed=11,
            model={"path": "/m", "gradient_checkpointing": False},
            data={"train": ["t"], "max_prompt_tokens": 100, "system_prompt": "chain_of_draft"},
            rl={
                "steps": 7,
                "prompts_per_step": 12,
                "prompts_per_update": 6,
                "group_size": 4,
                "max_response_tokens": 50,
                "learning_rate": 3e-5,
                "warmup_steps": 5,
                "weight_decay": 0.3,
                "max_gradient_norm": 0.7,
                "temperature": 0.9,
                "top_p": 0.95,
                "max_tokens_per_update": 1234,
                "reward": {"format": 0.25, "accuracy": 0.5, "length": 0.125, "overlong_cache_tokens": 9},
            },
            rollout={
                "tensor_parallel": 2,
                "memory_fraction": 0.4,
                "max_sequences": 17,
                "max_batched_tokens": 777,
                "enforce_eager": True,
                "timeout": 33.0,
            },
            cluster={"nodes": 2, "accelerators_per_node": 4},
        ),
        accelerator="gpu",
    )
    expected = {
        "algorithm.adv_estimator": "grpo",
        "data.train_batch_size": 12,
        "data.max_prompt_length": 100,
        "data.max_response_length": 50,
        "actor_rollout_ref.model.path": "/m",
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        f"{ACTOR}.ppo_mini_batch_size": 6,
        f"{ACTOR}.optim.lr": 3e-5,
        f"{ACTOR}.optim.lr_warmup_steps": 5,
        f"{ACTOR}.optim.weight_decay": 0.3,
        f"{ACTOR}.optim.clip_grad": 0.7,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": 1234,
        f"{ROLLOUT}.log_prob_use_dynamic_bsz": True,
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu": 1234,
        "actor_rollout_ref.ref.log_prob_use_dynamic_bsz": True,
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": 1234,
        f"{ROLLOUT}.n": 4,
        f"{ROLLOUT}.temperature": 0.9,
        f"{ROLLOUT}.top_p": 0.95,
        f"{ROLLOUT}.seed": 11,
        f"{ROLLOUT}.tensor_model_parallel_size": 2,
        f"{ROLLOUT}.gpu_memory_utilization": 0.4,
        f"{ROLLOUT}.max_num_seqs": 17,
        f"{ROLLOUT}.max_num_batched_tokens": 777,
        f"{ROLLOUT}.max_model_len": 150,
        f"{ROLLOUT}.enforce_eager": True,
        f"{ROLLOUT}.calculate_log_probs": True,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 8,
        "transfer_queue.backend.SimpleStorage.required_node_resource": "GPU",
        "trainer.nnodes": 2,
        "trainer.n_gpus_per_node": 4,
        "trainer.total_training_steps": 7,
        "trainer.test_freq": -1,
        "trainer.experiment_name": "my-run",
        "pathor1": {
            "system_prompt": "chain_of_draft",
            "min_pixels": 3136,
            "max_pixels": 501760,
            "format_weight": 0.25,
            "accuracy_weight": 0.5,
            "length_weight": 0.125,
            "overlong_cache_tokens": 9,
            "mask_truncated": False,
            "rollout_timeout": 33.0,
            "seeded_answers": False,
        },
    }
    assert {key: value(config, key) for key in expected} == expected


PRESETS: dict[str, dict[str, Any]] = {
    "grpo": {
        "algorithm.rollout_correction.rollout_is": None,
        f"{ACTOR}.clip_ratio_low": 0.2,
        f"{ACTOR}.clip_ratio_high": 0.2,
        f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean",
        f"{ACTOR}.use_kl_loss": True,
        f"{ACTOR}.kl_loss_coef": 0.01,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        "algorithm.filter_groups.enable": False,
        "algorithm.use_kl_in_reward": False,
        "algorithm.norm_adv_by_std_in_grpo": True,
        "pathor1.length_weight": 0.0,
    },
    "dapo": {
        f"{ACTOR}.clip_ratio_low": 0.2,
        f"{ACTOR}.clip_ratio_high": 0.28,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.use_kl_loss": False,
        "algorithm.filter_groups.enable": False,
        "algorithm.rollout_correction.rollout_is": "token",
        "algorithm.use_kl_in_reward": False,
        "pathor1.length_weight": 1.0,
    },
}


@pytest.mark.parametrize("algorithm", PRESETS)
@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_presets_reach_verl(algorithm: str, accelerator: str) -> None:
    config = build(recipe(rl={"steps": 1, "algorithm": algorithm}), accelerator=accelerator)
    assert {key: value(config, key) for key in PRESETS[algorithm]} == PRESETS[algorithm]


def test_a_number_of_the_recipe_goes_before_the_presets() -> None:
    values = {"clip_low": 0.1, "clip_high": 0.4, "kl_coefficient": 0.5, "dynamic_sampling": False}
    config = build(recipe(rl={"steps": 1, "algorithm": "dapo", **values}), accelerator="cpu")
    found = [
        value(config, f"{ACTOR}.{key}") for key in ("clip_ratio_low", "clip_ratio_high", "kl_loss_coef", "use_kl_loss")
    ]
    assert found == [0.1, 0.4, 0.5, True]
    assert value(config, "algorithm.filter_groups.enable") is False


def test_machines_differ_where_they_have_to(built: dict[tuple[str, str], Any]) -> None:
    for (_, accelerator), config in built.items():
        on_cpu = accelerator == "cpu"
        assert config.pathor1.seeded_answers == on_cpu
        assert value(config, "trainer.device") == ("cpu" if on_cpu else "cuda")
        # The recipes take torch's own attention; verl packs by flash-attn's kernels alone.
        assert value(config, "actor_rollout_ref.model.use_remove_padding") is False
        extension = value(config, f"{ROLLOUT}.engine_kwargs.vllm").get("worker_extension_cls")
        name = "vllm_cpu.CpuWorkerExtension" if on_cpu else "weight_sockets.WorkerExtension"
        assert extension == f"pathor1.backends.{name}"
        if on_cpu:
            assert value(config, f"{ROLLOUT}.enforce_eager") is True
            assert value(config, f"{ROLLOUT}.free_cache_engine") is False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_actor_reference_and_vllm_calculate_in_one_type(dtype: str) -> None:
    config = build(recipe(model={"path": "m", "dtype": dtype}), accelerator="cpu")
    assert value(config, f"{ROLLOUT}.dtype") == dtype
    short = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    for role in ("actor", "ref"):
        types = value(config, f"actor_rollout_ref.{role}.fsdp_config.mixed_precision")
        assert types == {"param_dtype": short, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}


def test_keys_of_verl_are_set_last() -> None:
    keys = {
        f"{ACTOR}.optim.betas": [0.8, 0.9],
        f"{ACTOR}.ppo_max_token_len_per_gpu": 5,
        f"{ROLLOUT}.engine_kwargs.vllm.max_seq_len_to_capture": 64,
        "actor_rollout_ref.model.override_config.dropout": 0.1,
        f"{ACTOR}.optim.override_optimizer_config.fused": True,
    }
    config = build(recipe(verl=keys), accelerator="gpu")
    assert {key: value(config, key) for key in keys} == keys
    assert value(config, "actor_rollout_ref.model.override_config")["attn_implementation"] == "sdpa"
    with pytest.raises(RecipeError, match=r"^\[verl\] trainer.nodes: verl has no such key"):
        build(recipe(verl={"trainer.nodes": 1}), accelerator="gpu")


OVERRIDE = f"{ACTOR}.optim.override_optimizer_config"


@pytest.mark.parametrize(
    ("keys", "override"),
    [
        ({}, {"fused": True}),
        ({f"{OVERRIDE}.amsgrad": True}, {"amsgrad": True, "fused": True}),
        ({f"{OVERRIDE}.fused": False}, {"fused": False}),
        ({f"{OVERRIDE}.foreach": True}, {"foreach": True}),
        ({f"{ACTOR}.optim.optimizer": "SGD"}, None),
        ({f"{ACTOR}.optim.optimizer_impl": "torchao.optim"}, None),
    ],
)
def test_adamw_is_the_fused_one_on_a_cpu_where_nothing_else_is_said(keys: Any, override: Any) -> None:
    assert value(build(recipe(verl=keys), accelerator="cpu"), OVERRIDE) == override


def test_a_gpu_has_torchs_own_choice_of_adamw() -> None:
    assert value(build(recipe(), accelerator="gpu"), OVERRIDE) is None


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("actor.optim.betas", f"{ACTOR}.optim.betas"),
        (f"{ACTOR}.optim.beta", f"{ACTOR}.optim.betas"),
        ("trainer.nodes", "trainer.nnodes"),
        ("actor_rollout_ref.rolout.n", f"{ROLLOUT}.n"),
        (
            "actor_rollout_ref.ref.fsdp_config.reshard_after_foward",
            "actor_rollout_ref.ref.fsdp_config.reshard_after_forward",
        ),
    ],
)
def test_a_key_that_verl_does_not_have_fails_with_the_nearest(verls_own: Any, key: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_user_keys(verls_own, {key: 1})
    assert str(caught.value) == f"[verl] {key}: verl has no such key; did you mean {nearest}?"


@pytest.mark.parametrize("key", ["zzzzzz", "actor_rollout_ref", f"{ACTOR}.optim", "trainer.nnodes.more"])
def test_what_is_no_key_at_all_fails(verls_own: Any, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        apply_user_keys(verls_own, {key: 1})
    assert str(caught.value).startswith(f"[verl] {key}: verl has no such key; ")
    assert "\n" not in str(caught.value)


def test_a_key_that_the_recipe_has_its_own_for_names_that_one(verls_own: Any) -> None:
    keys = keys_of(verls_own)
    for key, ours in INSTEAD.items():
        assert key in keys, f"verl has no {key}"
        table, _, name = ours.rpartition(".")
        owner = Recipe.model_fields[table].annotation if table else Recipe
        assert owner is not None
        assert name in owner.model_fields, f"the recipe has no {ours}"
    with pytest.raises(RecipeError) as caught:
        apply_user_keys(verls_own, {f"{ROLLOUT}.n": 4})
    assert str(caught.value) == f"[verl] {ROLLOUT}.n: is set by the recipe's own rl.group_size; give that instead"


def test_a_value_that_the_config_cannot_hold_is_one_line(verls_own: Any) -> None:
    with pytest.raises(RecipeError, match=r"^\[verl\] trainer.device = '\$\{': ") as caught:
        apply_user_keys(verls_own.copy(), {"trainer.device": "${"})
    assert "\n" not in str(caught.value)


def test_leaves_are_dotted_names() -> None:
    tree = {"a": {"b": 1, "c": {}, "d": {"e": [1, {"f": 2}]}}, "g": None}
    assert leaves(tree) == {"a.b", "a.c", "a.d.e", "g"}
    assert leaves({}) == set()


MODE = {"steps": 7, "prompts_per_step": 32, "prompts_per_update": 8, "warmup_steps": 3}


def test_the_asynchronous_modes_weigh_what_older_weights_said() -> None:
    for mode, accelerators in (("sync", 0), ("colocate_async", 0), ("separate_async", 2)):
        made = recipe(rl={**MODE, "mode": mode}, cluster={"rollout_accelerators": accelerators})
        config = build(made, accelerator="gpu")
        assert value(config, "trainer.v1.trainer_mode") == mode
        correction = value(config, "algorithm.rollout_correction")
        assert (correction["rollout_is"], correction["rollout_is_threshold"], correction["bypass_mode"]) == (
            None if mode == "sync" else "token",
            2.0,
            False,
        )
        assert batches_ahead(made, config) == (0 if mode == "sync" else 1)
        assert value(config, "actor_rollout_ref.hybrid_engine") == (mode != "separate_async")


@pytest.mark.parametrize(("accelerator", "backend"), [("cpu", "gloo"), ("gpu", "nccl")])
def test_vllms_own_accelerators_get_weights_once_for_all_updates_of_a_step(accelerator: str, backend: str) -> None:
    made = recipe(rl={**MODE, "mode": "separate_async"}, cluster={"rollout_accelerators": 3})
    config = build(made, accelerator=accelerator)
    assert value(config, "trainer.v1.separate_async.parameter_sync_step") == 4
    # verl counts updates where ours are steps.
    assert value(config, f"{ACTOR}.optim.lr_warmup_steps") == 3 * 4
    assert (value(config, f"{ROLLOUT}.nnodes"), value(config, f"{ROLLOUT}.n_gpus_per_node")) == (1, 3)
    assert value(config, f"{ROLLOUT}.checkpoint_engine.backend") == backend


def test_what_is_asked_ahead_has_to_be_learned_from_in_its_time() -> None:
    key = "trainer.v1.colocate_async.num_warmup_batches"
    for batches in (0, 0.5, 2):
        made = recipe(rl={"steps": 1, "mode": "colocate_async"}, verl={key: batches})
        assert batches_ahead(made, build(made, accelerator="cpu")) == batches
    with pytest.raises(RecipeError) as caught:
        build(recipe(rl={"steps": 1, "mode": "colocate_async"}, verl={key: 2.5}), accelerator="cpu")
    assert str(caught.value) == (
        f"[verl] {key} = 2.5 is not between 0 and rl.max_carry_steps = 2: answers would wait for longer than they may"
    )
