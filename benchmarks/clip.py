"""Images a second, and for each second of CPU: `pathor1 clip train` against open_clip's own training script.

    .venv/bin/python benchmarks/clip.py --rounds 5 --out clip.json

Both train the same small model, from the same random weights, on the same pictures, with the same optimizer and
schedule, in float32: ours from Parquet, open_clip from the shards that `pathor1 clip shards` makes of it. They take
turns, each with one process for data and one that trains; torch has as many threads in both. Orders and cuts of the
pictures differ, and so losses are compared over the last steps. Steps count from `--warm` on: before, ours uses up what
was read ahead while it started.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from contestants import packages
from rates import Round, lines_of, losses_of, rated, table, watch, write

CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 96, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
RATE, WARMUP = 1e-3, 5
LAST = 20  # steps over which losses are compared
STEP = re.compile(r"Train Epoch: .* Loss: ([\d.]+) \(")
RECIPE = """
name = "bench"
runs_dir = "FOLDER/runs"
[model]
architecture = "FOLDER/small.json"
dtype = "float32"
[data]
workers = 1
[stage_1]
train = ["FOLDER/train.parquet"]
steps = STEPS
batch_size = BATCH
learning_rate = RATE
warmup_steps = WARMUP
[cluster]
accelerators_per_node = 1
"""


def prepare(folder: Path, pairs: int, size: int) -> None:
    """The model, and pictures with captions as JPEG, in Parquet and in eight shards."""
    from PIL import Image

    from pathor1.data.rendered import render
    from pathor1.samples import read
    from pathor1.samples import write as write_samples

    def as_jpeg(data: bytes) -> bytes:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    (folder / "small.json").write_text(json.dumps(CONFIG))
    drawn = render(folder / "drawn", seed=0, size=size, counts={"train": pairs}, captions=True)["train"]
    train = folder / "train.parquet"
    write_samples((replace(each, images=(as_jpeg(each.images[0]),)) for each in read(drawn)), train)
    shards = ["--out", str(folder / "shards"), "--pairs", str(math.ceil(pairs / 8))]
    subprocess.run([sys.executable, "-m", "pathor1.cli", "clip", "shards", str(train), *shards], check=True)


def ours(folder: Path, arguments: argparse.Namespace, number: int) -> Round:
    """A run of `pathor1 clip train`."""
    values = {"FOLDER": folder, "STEPS": arguments.steps, "BATCH": arguments.batch, "RATE": RATE, "WARMUP": WARMUP}
    text = RECIPE
    for word, value in values.items():
        text = re.sub(rf"\b{word}\b", str(value), text)
    path = folder / "recipe.toml"
    path.write_text(text)
    runs = folder / f"runs-{number}"
    command = [sys.executable, "-m", "pathor1.cli", "clip", "train", str(path), "--set", f"runs_dir={runs}"]
    command += ["--set", f"seed={number}"]
    metrics = runs / "bench/metrics.jsonl"
    threads = {"OMP_NUM_THREADS": str(arguments.threads)}
    looks = watch(command, folder / "ours.log", lambda: lines_of(metrics), **threads)
    return rated("pathor1", looks, losses_of(metrics), warm=arguments.warm, batch=arguments.batch)


def theirs(folder: Path, arguments: argparse.Namespace, number: int) -> Round:
    """A run of `open_clip_train.main`, with the numbers of our recipe."""
    shards = sorted((folder / "shards").glob("*.tar"))
    code = (
        "import open_clip, sys; open_clip.add_model_config(sys.argv.pop(1)); "
        "from open_clip_train.main import main; main(sys.argv[1:])"
    )
    options = {
        "--train-data": f"{folder}/shards/{{{shards[0].stem}..{shards[-1].stem}}}.tar",
        "--dataset-type": "webdataset",
        "--train-num-samples": arguments.steps * arguments.batch,
        "--model": "small",
        "--batch-size": arguments.batch,
        "--epochs": 1,
        "--workers": 1,
        "--precision": "fp32",
        "--lr": RATE,
        "--warmup": WARMUP,
        "--beta1": 0.9,
        "--beta2": 0.98,
        "--eps": 1e-6,
        "--wd": 0.2,
        "--seed": number,
        "--log-every-n-steps": 1,
        "--logs": folder / "logs",
        "--name": f"bench-{number}",
        "--device": "cpu",
    }
    command = [sys.executable, "-c", code, str(folder / "small.json"), "--local-loss", "--gather-with-grad"]
    command += [str(part) for option in options.items() for part in option]
    log = folder / "theirs.log"

    def found() -> list[float]:
        return [float(loss) for loss in STEP.findall(log.read_text(encoding="utf-8"))]

    variables = {"PYTHONPATH": str(packages("open_clip")), "OMP_NUM_THREADS": str(arguments.threads)}
    looks = watch(command, log, lambda: len(found()), **variables)
    return rated("open_clip", looks, found(), warm=arguments.warm, batch=arguments.batch)


def main() -> None:
    """Makes the data, lets both take turns, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000, help="pictures with captions (4000)")
    parser.add_argument("--size", type=int, default=512, help="pixels of a picture's side (512)")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each (120)")
    parser.add_argument("--warm", type=int, default=40, help="of them, that do not count (40)")
    parser.add_argument("--batch", type=int, default=64, help="pairs a step (64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (as many as there are cores)")
    parser.add_argument("--rounds", type=int, default=5, help="of both, in turn (5)")
    parser.add_argument("--out", type=Path, help="JSON file of all that was measured")
    arguments = parser.parse_args()
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, arguments.pairs, arguments.size)
        for number in range(arguments.rounds):
            for run in (ours, theirs):
                rounds.append(run(folder, arguments, number))
                print(f"{rounds[-1].name}: {rounds[-1].per_second:.1f} images/s", file=sys.stderr, flush=True)
    print(table(rounds, "images", last=LAST))
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        write(rounds, settings, arguments.out)


if __name__ == "__main__":
    main()
