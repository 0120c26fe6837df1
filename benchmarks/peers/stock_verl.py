"""A job as stock verl makes it: its trainer's own settings, with what its CPU needs, and its form of the questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Of a Ray that verl starts; refused where it joins one.
OWN_RAY = (
    "ray_kwargs.ray_init.num_cpus=16",
    "+ray_kwargs.ray_init.num_gpus=1",
    "+ray_kwargs.ray_init.object_store_memory=1000000000",
    "+ray_kwargs.ray_init.include_dashboard=False",
)


def no_reward(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """What verl's reward worker calls: a model that nobody has trained gives no right answer."""
    return 0.0


def write_data(job: Any) -> None:
    """The job's questions in verl's form, beside them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pathor1.prompts import question_text
    from pathor1.samples import read

    rows = [
        {
            "prompt": [{"role": "user", "content": "<image>" + question_text(sample)}],
            "images": [{"bytes": data} for data in sample.images],
            "data_source": sample.source,
            "reward_model": {"ground_truth": sample.answer},
            "extra_info": {"index": index},
        }
        for index, sample in enumerate(read(Path(job.data)))
    ]
    pq.write_table(pa.Table.from_pylist(rows), Path(job.folder, "verl.parquet"))


def settings(job: Any, *, joins: bool) -> list[str]:
    """Of verl's own trainer, with what its CPU needs; its defaults otherwise. joins: a Ray that is there already."""
    data, tokens = Path(job.folder, "verl.parquet"), job.prompts * job.rollouts * (128 + job.tokens)
    rollout, actor = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
    return [
        "algorithm.adv_estimator=grpo",
        f"data.train_files={data}",
        f"data.val_files={data}",
        f"data.train_batch_size={job.prompts}",
        "data.val_batch_size=8",
        "data.max_prompt_length=128",
        f"data.max_response_length={job.tokens}",
        "data.image_key=images",
        "data.dataloader_num_workers=0",
        f"actor_rollout_ref.model.path={job.model}",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{actor}.strategy=fsdp2",
        f"{actor}.ppo_mini_batch_size={job.prompts}",
        f"{actor}.optim.lr=1e-5",
        f"{actor}.use_torch_compile=False",
        f"{actor}.fsdp_config.use_torch_compile=False",
        f"{actor}.fsdp_config.dtype=float32",
        f"{actor}.use_dynamic_bsz=True",
        f"{actor}.ppo_max_token_len_per_gpu={tokens}",
        f"{rollout}.log_prob_use_dynamic_bsz=True",
        f"{rollout}.log_prob_max_token_len_per_gpu={tokens}",
        f"{rollout}.name=vllm",
        f"{rollout}.dtype=float32",
        f"{rollout}.tensor_model_parallel_size=1",
        f"{rollout}.n={job.rollouts}",
        f"{rollout}.ignore_eos=True",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.free_cache_engine=False",
        f"{rollout}.max_model_len={128 + job.tokens}",
        f"{rollout}.max_num_batched_tokens=4096",
        f"{rollout}.agent.num_workers=1",
        f"{rollout}.load_format=auto",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=256",
        f"+{rollout}.enable_sleep_mode=False",
        f"+{rollout}.engine_kwargs.vllm.worker_extension_cls=plain_sockets.PlainSockets",
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend=uni",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={Path(__file__).resolve()}",
        "reward.custom_reward_function.name=no_reward",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        "trainer.logger=[console]",
        "trainer.val_before_train=False",
        "trainer.total_epochs=1000",
        f"trainer.total_training_steps={job.steps}",
        "trainer.save_freq=-1",
        "trainer.test_freq=-1",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={job.folder}/of-verl",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        f"+ray_kwargs.ray_init.runtime_env.env_vars.PYTHONPATH={Path(__file__).resolve().parent}",  # `plain_sockets`
        *([] if joins else OWN_RAY),
    ]
