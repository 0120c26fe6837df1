"""What the processes of an RL run on the CPU import, and the variables that they do it with."""

from pathor1.fork_server import RAYS_ACTORS

# None of the first imports Ray, see `pathor1.fork_server`.
EARLY = (
    "torch",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "tensordict",
    "omegaconf",
    "datasets",
    "peft",
    "vllm.sampling_params",
    "vllm.model_executor.models.qwen2_5_vl",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.worker.cpu_worker",
    "fastapi",
    "uvicorn",
)
LATE = (
    RAYS_ACTORS,
    "ray.data",
    "vllm.v1.engine.core",
    "verl.workers.engine_workers",
    "pathor1.rl.vllm_server",
    "pathor1.rl.agent",
)
# vLLM compiles a comparison of its sampler by torch, whatever enforce_eager says: seconds of C++. OpenMP's threads that
# have nothing to do would turn in circles, on cores that other processes wait for. verl's queue would take eight
# threads for what it copies, and complains with every call where there are fewer cores.
ON_CPU = {"TORCH_COMPILE_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TQ_NUM_THREADS": "1"}
# What these read when they are imported. verl's own progress bar would write over the lines of steps.
VARIABLES = {**ON_CPU, "VLLM_LOGGING_LEVEL": "WARN", "TQDM_DISABLE": "1"}
