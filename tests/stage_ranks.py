"""One rank of a few supervised steps by DeepSpeed, without Ray: `python -m stage_ranks FOLDER [resumed]`.

FOLDER has `cases.json` (name -> training, layout, dtype ...), and of each model `MODEL/` and `MODEL.pkl`, samples that
are encoded for it, with their sources. Of each case it gets `NAME/`, the trained model, and `NAME.json`, what came of
the steps; of some `NAME-saved/`, the checkpoint behind the first step, from which `resumed` goes on, to `NAME-resumed`.
`refused-RANKS.json` is what is said of the checkpoint of another model.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Steps of a case: the second has an optimizer with a memory, and another rate.
STEPS = 2


def main(folder: Path, *, resumed: bool) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = json.loads((folder / "cases.json").read_text())
    for name, case in cases.items():
        if resumed and not case["resumed"]:
            continue
        out = folder / (f"{name}-resumed" if resumed else name)
        steps = run(case, folder, saved=folder / f"{name}-saved", out=out, resumed=resumed)
        if dist.get_rank() == 0:
            out.with_suffix(".json").write_text(json.dumps(steps))
    others = {name: {**case, "model": "qwen3_vl"} for name, case in cases.items() if case["resumed"]}
    told = {name: refused(case, folder, folder / f"{name}-saved", resumed=resumed) for name, case in others.items()}
    if dist.get_rank() == 0:
        (folder / f"refused-{dist.get_world_size()}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def build(case: dict[str, Any], folder: Path, *, universal: bool) -> Any:
    """The engine of a case."""
    import torch
    from transformers import AutoModelForImageTextToText

    from pathor1.recipe import Model
    from pathor1.supervised import engine
    from pathor1.supervised.encode import load_processor
    from pathor1.supervised.loss import AssistantLoss
    from pathor1.supervised.parts import choose
    from pathor1.training import Stage

    path, training = str(folder / case["model"]), Stage.model_validate(case["training"])
    model = Model(path=path, dtype=case["dtype"], gradient_checkpointing=case["gradient_checkpointing"])
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_pretrained(path, dtype=getattr(torch, model.dtype))
    network.train()
    choose(network, training)
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    module = AssistantLoss(network, load_processor(path).image_processor)
    return engine.build(module, model, training, gpu=False, universal=universal)


def load(trained: Any, saved: Path, *, resumed: bool) -> None:
    """Takes up the checkpoint behind the first step; resumed: it is that of another number of ranks."""
    from pathor1 import checkpoints
    from pathor1.supervised import checkpoint

    latest = checkpoints.latest(saved)
    assert latest is not None
    universal = saved / "universal" if resumed else None
    if universal is not None:
        checkpoint.make_universal(latest, universal)
    checkpoint.load(trained, latest, universal)


def refused(case: dict[str, Any], folder: Path, saved: Path, *, resumed: bool) -> str:
    """What is said when a model is to go on from the checkpoint of another one; "" = nothing."""
    from pathor1.errors import RunError

    try:
        load(build(case, folder, universal=resumed), saved, resumed=resumed)
    except RunError as error:
        return str(error)
    return ""


def run(case: dict[str, Any], folder: Path, *, saved: Path, out: Path, resumed: bool) -> list[Any]:
    """The steps of a case, each on all samples; those behind the checkpoint, where it is resumed."""
    import torch.distributed as dist

    from pathor1.data.stream import StreamState
    from pathor1.supervised import checkpoint, engine
    from pathor1.supervised.batches import Collate
    from pathor1.supervised.encode import IGNORED, load_processor
    from pathor1.supervised.packing import Layout, pack
    from pathor1.training import Stage

    training, processor = Stage.model_validate(case["training"]), load_processor(str(folder / case["model"]))
    samples = pickle.loads((folder / f"{case['model']}.pkl").read_bytes())
    packed = pack([len(each.input_ids) for each, _ in samples], Layout(**case["layout"]), dist.get_world_size())
    collate = Collate.of(processor)
    passes = [collate([[samples[number] for number in row] for row in rows]) for rows in packed[dist.get_rank()]]
    learned = sum(int((sample.labels != IGNORED).sum()) for sample, _ in samples)
    sources = len({source for _, source in samples})
    trained = build(case, folder, universal=resumed)
    if resumed:
        load(trained, saved, resumed=True)
    done: list[engine.Stepped] = []
    for step in range(2 if resumed else 1, STEPS + 1):
        done.append(engine.step(trained, passes, learned=learned, sources=sources))
        if case["resumed"] and step == 1:
            place = StreamState(seed=0, sources=())
            checkpoint.save(trained, processor, saved, 1, stream=place, recipe="", lora=training.lora, keep=1)
    checkpoint.save_model(trained, processor, out, lora=training.lora)
    return [{**asdict(each), "passes": len(passes), "learned": learned} for each in done]


if __name__ == "__main__":
    main(Path(sys.argv[1]), resumed="resumed" in sys.argv[2:])
