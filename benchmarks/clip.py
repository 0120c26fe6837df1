"""Images a second: `pathor1 clip train` against open_clip's own training script, on the same pairs.

    .venv/bin/python benchmarks/clip.py --pairs 4000 --steps 120 --workers 1

Both train the same small model on the same pictures, ours from Parquet and open_clip's from the shards that `pathor1
clip shards` makes of it, one after the other, with as many processes for data. Counted is the second half of the steps:
before it, ours uses up what was read ahead while it started, some 1,800 pictures. open_clip_train needs webdataset and
pandas, which pathor1 does not: `uv pip install --target DIR 'webdataset<0.2.87' pandas`, and --with DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 3, "width": 96, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def main() -> None:
    """Makes the data, runs both in turn, and prints what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4000, help="pictures with captions (4000)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a picture's side (224)")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of each (120)")
    parser.add_argument("--batch", type=int, default=64, help="pairs a step (64)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make data, of each (1)")
    parser.add_argument("--rounds", type=int, default=2, help="of both, in turn (2)")
    parser.add_argument("--with", dest="packages", default="", help="a folder of packages for open_clip_train")
    parser.add_argument("--out", type=Path, help="a folder for all that is made (a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "small.json").write_text(json.dumps(CONFIG))
        prepare(folder, arguments)
        found: dict[str, list[float]] = {"pathor1": [], "open_clip": []}
        for number in range(arguments.rounds):
            found["pathor1"].append(ours(folder, arguments, number))
            found["open_clip"].append(theirs(folder, arguments, number))
            print(json.dumps({name: values[-1] for name, values in found.items()}), flush=True)
    best = {name: max(values) for name, values in found.items()}
    print(
        json.dumps({"images_per_second": found, "best": best, "ratio": best["pathor1"] / best["open_clip"]}, indent=1)
    )


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """Pictures with captions as JPEG, as Parquet and as shards."""
    if (folder / "shards").exists():
        return
    run(
        [
            sys.executable,
            "-m",
            "pathor1.cli",
            "data",
            "render",
            "--captions",
            "--out",
            str(folder / "drawn"),
            "--size",
            str(arguments.size),
            "--counts",
            f"train={arguments.pairs}",
        ]
    )
    sys.path.insert(0, str(ROOT))
    import io
    from dataclasses import replace

    from PIL import Image

    from pathor1.samples import read, write

    def as_jpeg(data: bytes) -> bytes:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    drawn = read(folder / "drawn/train.parquet")
    write((replace(each, images=(as_jpeg(each.images[0]),)) for each in drawn), folder / "train.parquet")
    shards = [str(folder / "train.parquet"), "--out", str(folder / "shards"), "--pairs", "500"]
    run([sys.executable, "-m", "pathor1.cli", "clip", "shards", *shards])


def ours(folder: Path, arguments: argparse.Namespace, number: int) -> float:
    """Images a second of our steps."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""name = "bench-{number}"
runs_dir = {json.dumps(str(folder / "runs"))}
[model]
architecture = {json.dumps(str(folder / "small.json"))}
dtype = "float32"
[data]
workers = {arguments.workers}
[stage_1]
train = [{json.dumps(str(folder / "train.parquet"))}]
steps = {arguments.steps}
batch_size = {arguments.batch}
learning_rate = 1e-3
warmup_steps = 5
[cluster]
accelerators_per_node = 1
"""
    )
    run([sys.executable, "-m", "pathor1.cli", "clip", "train", str(recipe)])
    lines = (folder / f"runs/bench-{number}/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][arguments.steps // 2 :]
    return arguments.batch * len(rows) / sum(row["seconds/step"] for row in rows)


def theirs(folder: Path, arguments: argparse.Namespace, number: int) -> float:
    """Images a second of open_clip's steps, as its log has them."""
    shards = sorted((folder / "shards").glob("*.tar"))
    span = f"{folder}/shards/{{{shards[0].stem}..{shards[-1].stem}}}.tar"
    code = (
        "import open_clip, sys; open_clip.add_model_config(sys.argv.pop(1)); "
        "from open_clip_train.main import main; main(sys.argv[1:])"
    )
    options = {
        "--train-data": span,
        "--dataset-type": "webdataset",
        "--train-num-samples": str(arguments.steps * arguments.batch),
        "--model": "small",
        "--batch-size": str(arguments.batch),
        "--epochs": "1",
        "--workers": str(arguments.workers),
        "--precision": "fp32",
        "--lr": "1e-3",
        "--warmup": "5",
        "--log-every-n-steps": "1",
        "--logs": str(folder / "logs"),
        "--name": f"bench-{number}",
        "--device": "cpu",
    }
    text = run(
        [sys.executable, "-c", code, str(folder / "small.json"), *(part for pair in options.items() for part in pair)],
        PYTHONPATH=arguments.packages,
    )
    steps = [
        (float(data), float(batch)) for data, batch in re.findall(r"Data \(t\): ([\d.]+) Batch \(t\): ([\d.]+)", text)
    ]
    if len(steps) < arguments.steps // 2:
        raise SystemExit(f"open_clip's log has {len(steps)} steps:\n{text[-3000:]}")
    times = [batch for _, batch in steps[arguments.steps // 2 :]]
    print(f"open_clip: median of a step {median(times):.3f} s", flush=True)
    return arguments.batch * len(times) / sum(times)


def run(command: list[str], **variables: str) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
