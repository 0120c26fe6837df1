"""What the benchmarks of `benchmarks/gpu` count by: sizes, operations, spans of time, the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

FOLDER = Path(__file__).parents[2] / "benchmarks/gpu"


@pytest.fixture
def gpu(monkeypatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    import flops
    import phases
    import real_size
    import rl
    import watch

    return {"flops": flops, "phases": phases, "real_size": real_size, "rl": rl, "watch": watch}


class Ids:
    """Stands for a tokenizer: the config needs the special tokens' ids alone."""

    def convert_tokens_to_ids(self, token: str) -> int:
        return len(token)


# As the published safetensors of Qwen/Qwen2.5-VL-3B-Instruct and -7B-Instruct hold them.
@pytest.mark.parametrize(("size", "count"), [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_a_size_has_the_published_number_of_parameters(gpu, size, count):
    assert gpu["real_size"].parameters(gpu["real_size"].config(size, Ids())) == count


def test_a_filled_vocabulary_leaves_every_text_as_it_was(gpu, tmp_path):
    from transformers import AutoTokenizer

    from pathor1.model.tiny import make_processor

    text = "Which tissue is this? <think>Nuclei are large.</think><answer>B</answer><|im_end|>"
    make_processor([text]).save_pretrained(tmp_path)
    before = AutoTokenizer.from_pretrained(tmp_path)
    gpu["real_size"].fill_vocabulary(tmp_path / "tokenizer.json", 2000)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert len(before) < len(after) == 2000
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.decode([1999]) == "#1999"
    assert after.eos_token_id == before.eos_token_id


def small_config(**text) -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 500,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            **text,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [2],
            "window_size": 112,
        },
        image_token_id=7,
        vision_start_token_id=6,
        tie_word_embeddings=False,
    )


def test_operations_are_those_that_torch_counts(gpu):
    from torch.utils.flop_counter import FlopCounterMode

    config = small_config()
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    side = 16  # patches: two windows by two
    patches, image = side * side, side * side // 4
    ids = torch.full((1, image + 37), 100)
    ids[0, 4], ids[0, 5 : 5 + image] = 6, 7
    picture = {"pixel_values": torch.randn(patches, 3 * 2 * 14 * 14), "image_grid_thw": torch.tensor([[1, side, side]])}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, mm_token_type_ids=(ids == 7).int(), **picture)
    # torch counts what is masked too, and the angles of the positions, which are a ten-thousandth.
    count = {"tokens": ids.shape[1], "predicted": ids.shape[1], "patches": patches}
    ours = gpu["flops"].forward(gpu["flops"].shape(config), **count, causal=False)
    assert ours == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_training_is_three_times_the_forward_pass_and_causal_attention_half_of_all(gpu):
    flops = gpu["flops"]
    shape = flops.shape(small_config())
    count = {"tokens": 1000, "predicted": 10, "patches": 0}
    whole, causal = (flops.forward(shape, **count, causal=each) for each in (False, True))
    assert whole - causal == 3 * 2 * 1000**2 * 128  # layers x 2 s^2 x width
    assert flops.training(shape, **count) == 3 * causal
    assert flops.forward(shape, **{**count, "predicted": 11}) - causal == 2 * 128 * 500  # width x vocabulary


def test_phases_are_read_by_step_and_the_gpu_is_looked_at_within_them(gpu, tmp_path):
    path = tmp_path / "phases.jsonl"
    told = [("gen", 0, 4), ("update_actor", 5, 9), ("step", 0, 10), ("gen", 10, 12), ("step", 10, 20)]
    path.write_text(
        "".join(json.dumps(dict(zip(("phase", "begin", "end"), each, strict=True))) + "\n" for each in told)
    )
    steps = gpu["phases"].read(path)
    assert steps == [{"gen": (0, 4), "update_actor": (5, 9), "step": (0, 10)}, {"gen": (10, 12), "step": (10, 20)}]
    assert gpu["phases"].spans(steps, "update_actor") == [(5, 9)]
    look = gpu["watch"].Look
    looks = [look(1, 1.0, 10**9, 300.0), look(4.5, 0.0, 3 * 10**9, 100.0), look(11, 0.5, 2 * 10**9, 200.0)]
    seen = gpu["watch"].during(looks, gpu["phases"].spans(steps, "gen"))
    assert seen == {"busy": 0.75, "power_w": 250, "memory_gb": 2.0}
    assert gpu["watch"].during(looks, [(30, 40)]) == {"busy": None, "power_w": None, "memory_gb": None}


def test_a_step_is_counted_over_the_seconds_of_its_phases(gpu):
    shape = gpu["flops"].shape(small_config())
    times = {"gen": (0.0, 4.0), "old_log_prob": (4.0, 5.0), "update_actor": (5.0, 7.0), "step": (0.0, 10.0)}
    step = {"tokens": 800.0, "response_tokens/mean": 60.0, "patches": 64.0}
    found = gpu["rl"].measure_step(times, step, answers=8, shape=shape, peak=1e12)
    needed = 8 * gpu["flops"].training(shape, tokens=100, predicted=60, patches=64)
    assert found["mfu"] == pytest.approx(needed / 2.0 / 1e12, abs=1e-4)
    assert (found["generated_tokens_per_s"], found["tokens_per_s"]) == (8 * 60 / 4, 80)
    assert (found["update_weights_s"], found["other_s"]) == (0, 3)
    unknown = gpu["rl"].measure_step(times, step, answers=8, shape=shape, peak=None)
    run = {"trainer": "pathor1", "ready_s": 30.0, "steps": [unknown, unknown]}
    nothing = gpu["watch"].during([], [])
    lines = gpu["rl"].table([{**run, "gpu": nothing, "gpu_gen": nothing, "gpu_update_actor": nothing}]).splitlines()
    assert " ".join(lines[1].split()) == "pathor1 10.00 4.00 1.00 2.00 0.00 3.00 120 80 - - - - 30"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_script_says_so_and_stops():
    done = subprocess.run([sys.executable, FOLDER / "rl.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "torch finds none here" in done.stderr
