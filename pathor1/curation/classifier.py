"""EfficientNet (timm) on Ray Train: which subfield a picture is of."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from pathor1.curation.by_part import has_gpus
from pathor1.curation.recipe_samples import Subfield
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError, ModelError, UserError
from pathor1.files import replacing

Row = dict[str, Any]
# Of a class that is rare the loss counts more, up to so many times.
MOST_WEIGHT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the training processes are told. labelled: Parquet with image (a square PNG) and place (of its class)."""

    settings: Subfield
    classes: tuple[str, ...]
    labelled: Path
    weights: Path
    seed: int


def square(image: bytes, size: int) -> Image.Image:
    """The picture within a square of `size` pixels, its aspect ratio kept, on white. Raises DataError."""
    picture = decode(image, min_pixels=1, max_pixels=LARGEST_PIXELS)
    picture.thumbnail((size, size), Image.Resampling.BICUBIC)
    if max(picture.size) < size:  # small ones are enlarged
        scale = size / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return canvas


def png(picture: Image.Image) -> bytes:
    """As bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def network(settings: Subfield, classes: int) -> Any:
    """The timm model, with pretrained weights from a local file where there is one.

    Raises ModelError for a name that timm does not know, and for a file that has no weights of this model.
    """
    import timm

    if settings.model not in timm.list_models():
        raise ModelError(f"subfield.model = {settings.model!r} is no model that timm knows, such as efficientnet_b0")
    made = timm.create_model(settings.model, pretrained=False, num_classes=classes)
    if settings.weights is None:
        return made
    file = Path(settings.weights)
    if not file.is_file():
        raise ModelError(f"subfield.weights: {file}: no such file")
    # Not timm's own way of loading: it passes over names that do not fit, and would train from random weights.
    head = f"{made.pretrained_cfg['classifier']}."
    try:
        state = timm.models.load_state_dict(str(file), weights_only=True)
        missing, unexpected = made.load_state_dict(
            {name: tensor for name, tensor in state.items() if not name.startswith(head)}, strict=False
        )
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"subfield.weights: {file}: no weights of {settings.model}: {line}") from error
    if wrong := [*unexpected, *(name for name in missing if not name.startswith(head))]:
        raise ModelError(
            f"subfield.weights: {file}: no weights of {settings.model}, by {wrong[0]} and {len(wrong) - 1} more"
        )
    return made


def train(job: Job, state: Path) -> None:
    """Trains on Ray Train, within a `ray_cluster`, and writes `job.weights`. state: a folder that Ray Train may use."""
    import ray.train
    from ray.train.torch import TorchTrainer

    gpu = has_gpus()
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.settings.workers,
            use_gpu=gpu,
            resources_per_worker={"GPU": 1} if gpu else {"CPU": 1},
        ),
        run_config=ray.train.RunConfig(name="subfield", storage_path=str(state)),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            if isinstance(failure, UserError):
                raise failure from None
        raise
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _train_worker(config: dict[str, Any]) -> None:
    train_on_rank(config["job"])


def train_on_rank(job: Job) -> None:
    """All epochs on this rank's share of each batch; rank 0 saves the weights."""
    import ray.train
    import ray.train.torch
    import torch
    from safetensors.torch import save_file

    settings, context = job.settings, ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(job.seed)
    table = pq.read_table(job.labelled)
    places = table["place"].to_numpy()
    device = ray.train.torch.get_device()
    model = ray.train.torch.prepare_model(network(settings, len(job.classes)))
    loss_of = torch.nn.CrossEntropyLoss(weight=class_weights(places, len(job.classes)).to(device))
    steps = settings.epochs * -(-len(places) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=max(2, steps))
    each = settings.batch_size // ranks
    for epoch in range(settings.epochs):
        order = np.random.default_rng([job.seed, epoch]).permutation(len(places))
        # The last batch is filled from the beginning, so that all ranks make the same steps.
        order = np.resize(order, -(-len(order) // settings.batch_size) * settings.batch_size)
        model.train()
        for batch in order.reshape(-1, settings.batch_size):
            mine = batch[rank * each : (rank + 1) * each]
            rng = np.random.default_rng([job.seed, epoch, int(mine[0])])
            pixels = np.stack([turned(_pixels(table["image"][int(row)].as_py()), rng) for row in mine])
            loss = loss_of(model(normal(pixels, device)), torch.from_numpy(places[mine]).to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if rank == 0:
        bare = model.module if hasattr(model, "module") else model
        with replacing(job.weights) as part:
            save_file({name: tensor.contiguous().cpu() for name, tensor in bare.state_dict().items()}, str(part))


def class_weights(places: npt.NDArray[np.int64], classes: int) -> Any:
    """Inverse to how often a class comes, 1 on average over the items, at most MOST_WEIGHT."""
    import torch

    counts = np.bincount(places, minlength=classes)
    weights = np.minimum(len(places) / np.maximum(counts, 1) / max(1, (counts > 0).sum()), MOST_WEIGHT)
    return torch.tensor(weights, dtype=torch.float32)


def turned(pixels: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture in one of its eight positions: a section has no upper side."""
    found = np.rot90(pixels, int(rng.integers(4)))
    return np.ascontiguousarray(found[:, ::-1] if rng.integers(2) else found)


def normal(pixels: npt.NDArray[np.uint8], device: Any) -> Any:
    """[items, side, side, 3] bytes -> [items, 3, side, side] floats, as ImageNet's networks take them."""
    import torch

    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)
    floats = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
    return (floats - mean) / deviation


def _pixels(image: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


class Predict:
    """Rows with id, image and a caption -> rows of predictions, in one of Ray Data's actors."""

    def __init__(self, settings: Subfield, classes: Sequence[str], weights: Path, caption: str) -> None:
        import torch
        from safetensors.torch import load_file

        self.settings, self.classes, self.caption = settings, classes, caption
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = network(settings.model_copy(update={"weights": None}), len(classes))
        model.load_state_dict(load_file(str(weights)))
        self.model: Any = model.to(self.device).eval()

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """A row whose picture cannot be read is left out."""
        while batch := list(islice(rows, self.settings.batch_size)):
            yield from self._predict(batch)

    def _predict(self, rows: list[Row]) -> Iterator[Row]:
        import torch

        kept: list[Row] = []
        pictures: list[npt.NDArray[np.uint8]] = []
        for row in rows:
            try:
                pictures.append(np.asarray(square(row["image"], self.settings.size)))
            except DataError:
                continue
            kept.append(row)
        if not kept:
            return
        with torch.inference_mode():
            shares = self.model(normal(np.stack(pictures), self.device)).softmax(dim=1).cpu().numpy()
        for row, share in zip(kept, shares, strict=True):
            first, second = np.argsort(-share)[:2]
            yield {
                "id": row["id"],
                "predicted": self.classes[int(first)],
                "confidence": float(share[first]),
                "second": self.classes[int(second)],
                "margin": float(share[first] - share[second]),
                "caption": row[self.caption],
            }
