"""One rank of a few supervised steps by DeepSpeed, without Ray: `python -m stage_ranks FOLDER`.

FOLDER has `cases.json` (name -> training, layout, dtype ...), `samples.pkl` (encoded, with their sources) and `model`.
Of each case it gets `NAME/`, the trained model, and `NAME.json`, what came of the steps.
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


def main(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from pathor1.supervised.encode import load_processor

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = str(folder / "model")
    processor = load_processor(model)
    samples = pickle.loads((folder / "samples.pkl").read_bytes())
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        steps = run(case, model, processor, samples, folder / name)
        if dist.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(steps))
    dist.destroy_process_group()


def run(case: dict[str, Any], path: str, processor: Any, samples: list[tuple[Any, int]], out: Path) -> list[Any]:
    """The steps of a case, each on all samples."""
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForImageTextToText

    from pathor1.recipe import Model
    from pathor1.supervised import checkpoint, engine
    from pathor1.supervised.batches import Collate
    from pathor1.supervised.encode import IGNORED
    from pathor1.supervised.loss import AssistantLoss
    from pathor1.supervised.packing import Layout, pack
    from pathor1.supervised.parts import choose
    from pathor1.training import Stage

    training = Stage.model_validate(case["training"])
    model = Model(path=path, dtype=case["dtype"], gradient_checkpointing=case["gradient_checkpointing"])
    torch.manual_seed(0)
    network = AutoModelForImageTextToText.from_pretrained(path, dtype=getattr(torch, model.dtype))
    network.train()
    choose(network, training)
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    trained = engine.build(AssistantLoss(network, processor.image_processor), model, training, gpu=False)
    packed = pack([len(each.input_ids) for each, _ in samples], Layout(**case["layout"]), dist.get_world_size())
    collate = Collate.of(processor)
    passes = [collate([[samples[number] for number in row] for row in rows]) for rows in packed[dist.get_rank()]]
    learned = sum(int((sample.labels != IGNORED).sum()) for sample, _ in samples)
    sources = len({source for _, source in samples})
    steps = [engine.step(trained, passes, learned=learned, sources=sources) for _ in range(STEPS)]
    checkpoint.save_model(trained, processor, out, lora=training.lora)
    return [{**asdict(each), "passes": len(passes), "learned": learned} for each in steps]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
