"""An RL step of a real-size model on one GPU: pathor1 beside verl's own trainer, on the same card.

    .venv/bin/python benchmarks/gpu/rl.py --model-size 3b --prompts 16 --rollouts 8 --response-tokens 512 --out rl.json

Qwen2.5-VL in its published size with random weights, trained by GRPO on rendered pictures of 512 x 512 pixels: Ray,
verl 0.9.1, vLLM and FSDP as in a run. Both trainers have the same model, questions, batch, engine and verl config; they
take turns, each in a process of its own. verl's gets the questions by its own dataset, agent loop and reward worker,
with as many processes as it has by itself. pathor1 writes its ledger and metrics; neither writes a checkpoint, which
would be 60 GB, and neither has a reference model (KL coefficient 0).

A model with random weights says anything, so that nearly all answers have full length, all rewards are 0, and so are
the advantages and gradients: the passes are computed all the same, and take as long. What the numbers do not show is
the wait for one long answer among short ones.

step s       Seconds of a step, the median of all but the first of each run, in which kernels are compiled.
gen, old lp, update, weights
             Of these: generating, log-probabilities before the update, forward and backward passes with the optimizer
             step, and the weights' way to vLLM, with which vLLM wakes. `other` is the rest.
gen tok/s    Generated tokens, over the seconds of generating. `tok/s` is all tokens of the batch over the whole step.
busy         Share of the time in which a kernel ran, by the driver's count, while generating and while updating.
MFU          Of the update: the operations that the model needs (`benchmarks/gpu/flops.py`: 6 for each weight and token,
             attention and vision tower added, what is computed twice counted once) over its seconds and the GPU's peak.
GB           The most memory that all processes together held on the GPU, their CUDA contexts included.
ready s      From the command to the first step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flops
import phases
import real_size
import watch

HERE = Path(__file__).resolve()
TRAINERS = ("pathor1", "verl")
PHASES = {"gen": "gen", "old_log_prob": "old lp", "update_actor": "update", "update_weights": "weights"}
# Dense bfloat16 of the vendors' data sheets, in operations a second, by a part of the GPU's name; the first that fits.
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "L40S": 362e12}
# How vLLM runs its layers. graphs: decoding is captured in CUDA graphs, and nothing is compiled, which starts sooner.
ENGINES: dict[str, dict[str, Any]] = {
    "compiled": {},
    "graphs": {"compilation_config": json.dumps({"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"})},
    "eager": {},
}
# Text of a question beside its picture, in tokens of the small tokenizer.
QUESTION = 256


def make(folder: Path, arguments: argparse.Namespace) -> None:
    """The questions, in pathor1's form and in verl's, and the model."""
    from pathor1.data.rendered import render
    from pathor1.model import tiny

    rows = max(arguments.prompts * arguments.steps, 32)
    train = render(folder / "data", seed=0, counts={"train": rows}, size=arguments.picture)["train"]
    write_for_verl(train, folder / "verl.parquet")
    if not (folder / "model").exists():
        if arguments.model_size == "tiny":
            tiny.make(folder / "model", [train])
        else:
            real_size.write(folder / "model", arguments.model_size, [train])


def write_for_verl(train: Path, path: Path) -> None:
    """The same questions as verl's dataset wants them."""
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
        for index, sample in enumerate(read(train))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_recipe(folder: Path, name: str, arguments: argparse.Namespace) -> Path:
    """A run's recipe, as one would write it for the one GPU that there is."""
    from pathor1.recipe import Recipe, load, to_toml

    prompt = (arguments.picture // 28) ** 2 + QUESTION
    keys: dict[str, Any] = {
        f"actor_rollout_ref.rollout.engine_kwargs.vllm.{key}": value for key, value in ENGINES[arguments.engine].items()
    }
    if not arguments.dry_run:
        # By itself torch's AdamW takes room for another copy of the weights, which one GPU has not.
        keys["actor_rollout_ref.actor.optim.override_optimizer_config"] = {"fused": True}
    if arguments.offload:
        keys |= {f"actor_rollout_ref.actor.fsdp_config.{key}_offload": True for key in ("param", "optimizer")}
    recipe = Recipe.model_validate(
        {
            "name": name,
            "runs_dir": str(folder),
            "model": {"path": str(folder / "model"), "dtype": "float32" if arguments.dry_run else "bfloat16"},
            "data": {
                "train": [str(folder / "data/train.parquet")],
                "system_prompt": "none",
                "max_prompt_tokens": prompt,
                "workers": 1 if arguments.dry_run else 2,
            },
            "rl": {
                "algorithm": "grpo",
                "kl_coefficient": 0.0,
                "steps": arguments.steps,
                "prompts_per_step": arguments.prompts,
                "group_size": arguments.rollouts,
                "prompts_per_update": arguments.prompts,
                "max_response_tokens": arguments.response_tokens,
                "max_tokens_per_update": max(arguments.tokens_per_pass, prompt + arguments.response_tokens),
                "save_every": 1_000_000,
                "reward": {"overlong_cache_tokens": arguments.response_tokens // 4},
            },
            "rollout": {
                "memory_fraction": arguments.memory_fraction,
                "enforce_eager": arguments.engine == "eager",
                "max_batched_tokens": 2048 if arguments.dry_run else 8192,
            },
            "cluster": {"accelerators_per_node": 1},
            "verl": keys,
        }
    )
    path = folder / f"{name}.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    path.write_text(to_toml(load(path, arguments.set)), encoding="utf-8")
    return path


def train_pathor1(path: Path, found: Path) -> None:
    """pathor1's run, in this process, but for its checkpoint at the end."""
    from pathor1.recipe import load
    from pathor1.rl import memory, run, trainer

    phases.record(found / "phases.jsonl")
    memory.of_checkpoint = lambda size: 0  # what the look beforehand asks of the disk
    trainer.RLTrainer._save_checkpoint = lambda self, *_: None  # type: ignore[method-assign]
    folder = run.train(load(path))
    (found / "steps.jsonl").write_text(folder.metrics.read_text(encoding="utf-8"), encoding="utf-8")


def score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any], **_: Any) -> float:
    """What verl's reward worker calls: the same rules."""
    from rewards import accuracy_reward, format_reward

    return format_reward(solution_str) + accuracy_reward(solution_str, ground_truth)


def train_verl(path: Path, found: Path) -> None:
    """verl's own trainer by the config that pathor1 makes of the recipe, with verl's own data, agents and rewards."""
    import ray
    from omegaconf import open_dict
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    from pathor1.ray_cluster import choose_accelerator, stay_on_this_machine
    from pathor1.recipe import load
    from pathor1.rl.run import _environment
    from pathor1.rl.verl_config import build

    recipe = load(path)
    accelerator = choose_accelerator(recipe)
    # The tracker that writes a file runs where the trainer does, in a process of Ray's.
    variables = {"VERL_FILE_LOGGER_PATH": str(found / "verl.jsonl"), "HYDRA_FULL_ERROR": "1"}
    os.environ.update({**_environment(recipe, accelerator), **stay_on_this_machine(), **variables})
    config = build(recipe, accelerator=accelerator)
    with open_dict(config):
        del config.pathor1
        config.actor_rollout_ref.model.external_lib = None
        config.data.train_files = config.data.val_files = str(path.parent / "verl.parquet")
        config.data.image_key = "images"
        config.reward.custom_reward_function = {"path": str(HERE), "name": "score"}
        config.trainer.update({"logger": ["file"], "save_freq": -1, "test_freq": -1, "resume_mode": "disable"})
        config.trainer.total_epochs = recipe.rl.steps
        if accelerator == "cpu":
            config.reward.num_workers = 1
            config.data.dataloader_num_workers = 0
            config.ray_kwargs.ray_init.num_gpus = 1  # verl counts GPUs, also where its ranks take none
        else:  # verl's own
            config.reward.num_workers = config.actor_rollout_ref.rollout.agent.num_workers = 8
        # Its processes ask for a CPU each, and mostly wait: as many as they ask for, whatever there is.
        config.ray_kwargs.ray_init.update({"num_cpus": 64, "include_dashboard": False})

    class Runner(TaskRunnerV1.__ray_metadata__.modified_class):  # type: ignore[misc]
        def run(self, config: Any) -> None:
            phases.record(found / "phases.jsonl")
            super().run(config)

    run_ppo(config, ray.remote(num_cpus=1)(Runner))
    lines = [json.loads(line) for line in (found / "verl.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {
        "tokens": "perf/total_num_tokens",
        "response_tokens/mean": "response_length/mean",
        "prompt_tokens/mean": "prompt_length/mean",
    }
    steps = [{ours: line["data"][theirs] for ours, theirs in names.items()} for line in lines]
    (found / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")


def run_one(trainer: str, path: Path, found: Path) -> list[watch.Look]:
    """One run in a process of its own, and what the GPU did meanwhile."""
    found.mkdir(parents=True)
    command = [sys.executable, str(HERE), "--one", trainer, str(path), str(found)]
    folders = [str(HERE.parent), str(HERE.parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    begun = time.time()
    with watch.Watch() as seen, (found / "log").open("wb") as log:
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    (found / "begun").write_text(str(begun))
    if code:
        text = (found / "log").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"{trainer} ended with exit code {code}; its log ends with\n{text[-6000:]}")
    return seen.looks


def measure(
    trainer: str, found: Path, looks: Sequence[watch.Look], answers: int, shape: Any, peak: float | None
) -> Any:
    """The numbers of a run that is done. answers: of a step; shape: of the model; peak: operations a second."""
    timed = phases.read(found / "phases.jsonl")
    steps = [json.loads(line) for line in (found / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    begun = float((found / "begun").read_text())
    rows = [measure_step(times, step, answers, shape, peak) for times, step in zip(timed[1:], steps[1:], strict=True)]
    result: dict[str, Any] = {
        "trainer": trainer,
        "ready_s": round(timed[0]["step"][0] - begun, 1),
        "first_step_s": round(timed[0]["step"][1] - timed[0]["step"][0], 2),
        "steps": rows,
        "gpu": watch.during(looks, [(begun, float("inf"))]),
    }
    for phase in PHASES:
        result[f"gpu_{phase}"] = watch.during(looks, phases.spans(timed[1:], phase))
    return result


def measure_step(
    times: dict[str, tuple[float, float]], step: dict[str, float], answers: int, shape: Any, peak: float | None
) -> dict[str, float | None]:
    """One step: seconds by phase, tokens a second, and the share of the peak that the update reached.

    Answers are all nearly of one length, so that the square of a sequence's length is that of the mean.
    """
    seconds = {name: end - begin for name, (begin, end) in times.items()}
    told = {name: seconds.get(name, 0.0) for name in PHASES}
    generated = answers * step["response_tokens/mean"]
    length, patches = step["tokens"] / answers, step["patches"]
    answer = round(step["response_tokens/mean"])
    needed = answers * flops.training(shape, tokens=round(length), predicted=answer, patches=round(patches))
    return {
        "step_s": round(seconds["step"], 3),
        **{f"{name}_s": round(value, 3) for name, value in told.items()},
        "other_s": round(seconds["step"] - sum(told.values()), 3),
        "generated_tokens": generated,
        "tokens": step["tokens"],
        "generated_tokens_per_s": round(generated / seconds["gen"], 1),
        "tokens_per_s": round(step["tokens"] / seconds["step"], 1),
        "update_tflops": round(needed / seconds["update_actor"] / 1e12, 2),
        "mfu": round(needed / seconds["update_actor"] / peak, 4) if peak else None,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line for each trainer: medians over the steps of all its runs."""
    head = ["trainer", "step s", *PHASES.values(), "other", "gen tok/s", "tok/s", "busy gen", "busy upd", "MFU", "GB"]
    lines = [[*head, "ready s"]]
    for trainer in dict.fromkeys(result["trainer"] for result in results):
        runs = [result for result in results if result["trainer"] == trainer]

        def middle(name: str, digits: int, runs: Sequence[dict[str, Any]] = runs) -> str:
            found = [step[name] for run in runs for step in run["steps"] if step[name] is not None]
            return f"{statistics.median(found):.{digits}f}" if found else "-"

        def of_gpu(phase: str, name: str, runs: Sequence[dict[str, Any]] = runs) -> str:
            found = [run[phase][name] for run in runs if run[phase][name] is not None]
            return f"{statistics.median(found):.2f}" if found else "-"

        seconds = [middle(f"{name}_s", 2) for name in ("step", *PHASES, "other")]
        rates = [middle("generated_tokens_per_s", 0), middle("tokens_per_s", 0)]
        busy = [of_gpu("gpu_gen", "busy"), of_gpu("gpu_update_actor", "busy")]
        ready = f"{statistics.median(run['ready_s'] for run in runs):.0f}"
        lines.append([trainer, *seconds, *rates, *busy, middle("mfu", 3), of_gpu("gpu", "memory_gb"), ready])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-size", choices=("tiny", *real_size.TEXT), default="3b")
    parser.add_argument("--prompts", type=int, default=16, help="questions a step")
    parser.add_argument("--rollouts", type=int, default=8, help="answers to each")
    parser.add_argument("--response-tokens", type=int, default=512)
    parser.add_argument("--picture", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=4, help="of each run, the first of which is left out")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each trainer")
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--tokens-per-pass", type=int, default=4096, help="rl.max_tokens_per_update")
    parser.add_argument("--memory-fraction", type=float, default=0.35, help="rollout.memory_fraction")
    parser.add_argument("--engine", choices=tuple(ENGINES), default="compiled", help="how vLLM runs its layers")
    parser.add_argument("--offload", action="store_true", help="the actor's weights and optimizer wait in host memory")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other key of the recipe")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, where its name is not known here")
    parser.add_argument("--folder", type=Path, help="where all is kept; a model that is there already is taken")
    parser.add_argument("--make-only", action="store_true", help="only the questions and the model")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)  # the script's own test, on a CPU
    parser.add_argument("--one", nargs=3, metavar=("TRAINER", "RECIPE", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def benchmark(folder: Path, arguments: argparse.Namespace, gpu: str | None) -> list[dict[str, Any]]:
    """Makes what is not there, then all runs, one after the other."""
    from transformers import AutoConfig, AutoProcessor

    from pathor1.data.prompt_length import image_tokens

    make(folder, arguments)
    if arguments.make_only:
        return []
    shape = flops.shape(AutoConfig.from_pretrained(folder / "model"))
    processor = AutoProcessor.from_pretrained(folder / "model")
    patches = image_tokens([(arguments.picture, arguments.picture)], processor) * shape.merge
    named = next((value for name, value in PEAKS.items() if name in (gpu or "")), None)
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else named
    results: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for trainer in arguments.trainers:
            name = f"{trainer}-{number}-{time.strftime('%H%M%S')}"
            found = folder / "found" / name
            looks = run_one(trainer, make_recipe(folder, name, arguments), found)
            steps = found / "steps.jsonl"
            lines = [{**json.loads(line), "patches": patches} for line in steps.read_text().splitlines()]
            steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
            results.append(measure(trainer, found, looks, arguments.prompts * arguments.rollouts, shape, peak))
            print(table(results), flush=True)
            if arguments.out:
                settings = {name: str(value) for name, value in vars(arguments).items()}
                told = {"gpu": gpu, "settings": settings, "runs": results}
                arguments.out.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return results


def main() -> None:
    """Runs the benchmark, or one run of it; exit code 2 without a GPU."""
    arguments = parse()
    if arguments.one:
        trainer, path, found = arguments.one
        (train_pathor1 if trainer == "pathor1" else train_verl)(Path(path), Path(found))
        return
    gpu = watch.gpu()
    if gpu is None and not arguments.dry_run:
        print("benchmarks/gpu/rl.py measures on a GPU, and torch finds none here: nothing was run", file=sys.stderr)
        sys.exit(2)
    print(f"{gpu or 'no GPU'}: Qwen2.5-VL-{arguments.model_size}, random weights", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        benchmark((arguments.folder or Path(temporary)).absolute(), arguments, gpu)


if __name__ == "__main__":
    main()
