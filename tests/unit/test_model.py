"""The check of a model's folder, and the small model: Qwen2.5-VL in all but its size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import Small

from pathor1.errors import DataError, ModelError
from pathor1.model import tiny
from pathor1.model.check import check
from pathor1.model.tiny import SPECIAL_TOKENS, TAG_TOKENS
from pathor1.samples import Sample, write

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own

QWEN: dict[str, Any] = {"model_type": "qwen2_5_vl", "vision_config": {}}
PROCESSOR = ("preprocessor_config.json", "tokenizer_config.json")


def folder(path: Path, config: object, *names: str) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name in names:
        (path / name).write_text("{}")
    return str(path)


def refused(path: str) -> str:
    with pytest.raises(ModelError) as caught:
        check(path)
    line = str(caught.value)
    assert line.startswith(path)
    assert "\n" not in line
    return line.removeprefix(path)


# ---------------------------------------------------------------------- the check of a folder


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_a_model_that_can_be_trained(tmp_path: Path, kind: str) -> None:
    check(folder(tmp_path / "old", {**QWEN, "model_type": kind}, *PROCESSOR))
    check(folder(tmp_path / "new", {**QWEN, "model_type": kind}, "processor_config.json", "tokenizer_config.json"))


def test_the_small_model_can_be_trained(small: Small) -> None:
    check(str(small.model))


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-VL-7B-Instruct", "me/my_model.v2"])
def test_a_name_on_a_hub_is_left_to_transformers(name: str) -> None:
    check(name)


@pytest.mark.parametrize(
    "name", ["none", "./model", "../model", "../no/model", "runs/demo/models/base", "/no/model", "a b/c"]
)
def test_what_is_neither_a_folder_nor_a_hubs_name(name: str) -> None:
    assert refused(name) == ": no such model folder; `pathor1 model tiny` makes a small one to try things on"


def test_a_file_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name in ("weights.bin", "empty"):
        assert refused(str(tmp_path / name)) == ": not a model folder, it has no config.json"


@pytest.mark.parametrize(
    ("config", "names", "line"),
    [
        ("{", PROCESSOR, "/config.json: not JSON (Expecting property name enclosed in double quotes: "),
        ("[1]", PROCESSOR, "/config.json: JSON but not an object; it is no model's"),
        (
            {"model_type": "qwen2"},
            PROCESSOR,
            ": a qwen2 model without a vision part; it takes one of qwen2_5_vl, qwen3_vl",
        ),
        (
            {"model_type": "llava", "vision_config": {}},
            PROCESSOR,
            ": a vision-language model of type llava; it takes one of qwen2_5_vl, qwen3_vl",
        ),
        (QWEN, (), ": no preprocessor_config.json; save the processor beside the model"),
        (QWEN, PROCESSOR[1:], ": no preprocessor_config.json; save the processor beside the model"),
        (QWEN, PROCESSOR[:1], ": no tokenizer_config.json; save the processor beside the model"),
        (QWEN, ("processor_config.json",), ": no tokenizer_config.json; save the processor beside the model"),
    ],
)
def test_folders_that_cannot_be_trained(tmp_path: Path, config: object, names: tuple[str, ...], line: str) -> None:
    assert refused(folder(tmp_path / "model", config, *names)).startswith(line)


# ---------------------------------------------------------------------- the small model


@pytest.fixture(scope="module")
def processor(small: Small) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(small.model)


@pytest.fixture(scope="module")
def model(small: Small) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(small.model)


def test_transformers_loads_it_as_qwen2_5_vl(model: Any, processor: Any) -> None:
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert model.config.model_type == "qwen2_5_vl"
    assert 500_000 < sum(parameter.numel() for parameter in model.parameters()) < 5_000_000
    sections = model.config.text_config.rope_parameters["mrope_section"]
    assert 2 * sum(sections) == model.config.text_config.hidden_size // model.config.text_config.num_attention_heads


def test_it_sees_and_speaks(model: Any, processor: Any) -> None:
    import torch

    def logits(shade: int) -> Any:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        pictures = [Image.new("RGB", (84, 56), (shade, 90, 90))]
        inputs = processor(text=[text], images=pictures, return_tensors="pt")
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 6  # 84 x 56 pixels, 28 x 28 a token
        with torch.no_grad():
            return model(**inputs).logits[0, -1]

    dark, light = logits(10), logits(250)
    assert torch.isfinite(dark).all()
    assert (dark - light).abs().max() > 1e-3


def test_ids_of_special_tokens_agree_everywhere(model: Any, processor: Any) -> None:
    ids = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    assert sorted(ids.values()) == list(range(len(SPECIAL_TOKENS)))
    config, tokenizer = model.config, processor.tokenizer
    assert config.image_token_id == processor.image_token_id == ids["<|image_pad|>"]
    assert config.video_token_id == ids["<|video_pad|>"]
    assert (config.vision_start_token_id, config.vision_end_token_id) == (
        ids["<|vision_start|>"],
        ids["<|vision_end|>"],
    )
    ends = (tokenizer.eos_token_id, config.text_config.eos_token_id, model.generation_config.eos_token_id)
    pads = (tokenizer.pad_token_id, config.text_config.pad_token_id, model.generation_config.pad_token_id)
    assert ends == (ids["<|im_end|>"],) * 3
    assert pads == (ids["<|endoftext|>"],) * 3
    assert config.text_config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings


def test_tags_are_tokens_that_are_kept_and_specials_are_not(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for tag in TAG_TOKENS:
        (token,) = tokenizer(tag, add_special_tokens=False)["input_ids"]
        assert token not in tokenizer.all_special_ids
        assert token in tokenizer(f"a{tag}b{tag}\n", add_special_tokens=False)["input_ids"]
    answer = "<think>keratin\n pearls </think><answer>B</answer>"
    for token in SPECIAL_TOKENS:
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
        ids = tokenizer(answer + token, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == answer


@given(text=st.text(st.characters(codec="utf-8")) | st.text("aZ 1.,'\n\t-é病理<>|"))
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back(processor: Any, text: str) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def qwen(chat: list[dict[str, Any]], *, ask: bool) -> str:
    """The chat format of Qwen2.5-VL, written down once more."""
    text = "" if chat[0]["role"] == "system" else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for turn in chat:
        parts = turn["content"]
        if not isinstance(parts, str):
            picture = "<|vision_start|><|image_pad|><|vision_end|>"
            parts = "".join(picture if part["type"] == "image" else part["text"] for part in parts)
        text += f"<|im_start|>{turn['role']}\n{parts}<|im_end|>\n"
    return text + ("<|im_start|>assistant\n" if ask else "")


words = st.text(st.characters(codec="utf-8"), max_size=10)
parts = st.lists(st.just({"type": "image"}) | st.builds(lambda text: {"type": "text", "text": text}, words), max_size=4)
turns = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "assistant"]),
    words | parts,
)


@given(chat=st.lists(turns, min_size=1, max_size=4), ask=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_chat_template_says_what_qwens_says(processor: Any, chat: list[dict[str, Any]], ask: bool) -> None:
    for template in (processor, processor.tokenizer):
        assert template.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask) == qwen(chat, ask=ask)


# ---------------------------------------------------------------------- how it is made


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "train.parquet"
    asked = Sample(
        id="1",
        source="s",
        task="mcq",
        question="Which fits: zyxomatosis or 2024 others?",
        options=("melanoma", "lymphoma"),
        answer="B",
        explanation="<think>wuzzled</think>",
    )
    write([asked], path)
    return path


def make(out: Path, texts: Path, **values: Any) -> int:
    return tiny.make(out, [texts], **{"hidden": 64, "layers": 1, "vision_hidden": 32, "vision_layers": 1, **values})


def test_the_same_seed_gives_the_same_model_and_another_one_another(tmp_path: Path, texts: Path) -> None:
    import torch

    state = torch.random.get_rng_state()
    counts = {make(tmp_path / name, texts, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(counts) == 1
    first, same, other = (tmp_path / name for name in "abc")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in same.iterdir())
    different = [name for name in names if (first / name).read_bytes() != (other / name).read_bytes()]
    assert different == ["model.safetensors"]
    assert all((first / name).read_bytes() == (same / name).read_bytes() for name in names)


def test_it_has_as_many_parameters_as_it_says_and_the_sizes_asked_for(tmp_path: Path, texts: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    count = make(tmp_path / "m", texts, hidden=128, layers=3, vision_hidden=96, vision_layers=2)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert (len(model.model.language_model.layers), len(model.model.visual.blocks)) == (3, 2)
    assert model.config.text_config.hidden_size == model.config.vision_config.out_hidden_size == 128
    assert model.config.vision_config.hidden_size == 96


def test_a_word_that_stands_once_in_the_data_is_a_token(tmp_path: Path, texts: Path) -> None:
    from transformers import AutoTokenizer

    make(tmp_path / "m", texts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    for word in (" zyxomatosis", " melanoma", "wuzzled", "Which"):
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer(" zyxomatous", add_special_tokens=False)["input_ids"]) > 1


def test_digits_are_tokens_of_their_own_however_often_a_number_stands_in_the_data(tmp_path: Path, texts: Path) -> None:
    from transformers import AutoTokenizer

    make(tmp_path / "m", texts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    pieces = [tokenizer.decode([token]) for token in tokenizer("or 2024 others", add_special_tokens=False)["input_ids"]]
    assert pieces == ["or", " ", "2", "0", "2", "4", " others"]


@pytest.mark.parametrize(
    "sizes",
    [{"hidden": 100}, {"hidden": 0}, {"hidden": -64}, {"layers": 0}, {"vision_hidden": 48}, {"vision_layers": 0}],
)
def test_sizes_that_do_not_fit(tmp_path: Path, texts: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(
        DataError, match="^hidden has to be a multiple of 64, vision_hidden of 32, and layers at least 1$"
    ):
        make(tmp_path / "m", texts, **sizes)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_needs_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^no text to train a tokenizer on; give sample files$"):
        tiny.make(tmp_path / "m", [])
    with pytest.raises(DataError, match="no such file"):
        make(tmp_path / "m", tmp_path / "none.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_replaced(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for out in (tmp_path, Path("..")):
        with pytest.raises(ModelError, match="holds something that is no model; give a folder that is not there yet$"):
            make(out, texts)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    monkeypatch.chdir(tmp_path)


def test_an_earlier_model_and_an_empty_folder_are_replaced(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    make(tmp_path / "m", texts)
    (tmp_path / "m" / "extra").write_text("of the earlier model")
    monkeypatch.chdir(tmp_path / "m")
    make(Path(), texts)  # `--out .`
    monkeypatch.chdir(tmp_path)
    check(str(tmp_path / "m"))
    assert not (tmp_path / "m" / "extra").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_pictures_become_tokens_of_28_pixels(processor: Any) -> None:
    rng = np.random.default_rng(0)
    for width, height in ((28, 28), (56, 28), (140, 84), (30, 57)):
        pictures = [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))]
        grid = processor.image_processor(images=pictures, return_tensors="pt")["image_grid_thw"][0].tolist()
        assert grid == [1, 2 * round(height / 28), 2 * round(width / 28)]
