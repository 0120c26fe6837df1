"""What a supervised step is given: the tokens of the chat, labels on what the assistant says, patches of pictures."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import chats
import numpy as np
import pytest
from chats import CAPTION, CASES, MCQ, TALK, batch, png, processed, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import Small
from transformers.masking_utils import find_packed_sequence_indices

from pathor1.errors import DataError
from pathor1.prompts import SystemPrompt, messages, taught_messages
from pathor1.samples import Sample, Turn, read
from pathor1.supervised import encode as encoding
from pathor1.supervised.batches import Collate, from_row
from pathor1.supervised.encode import IGNORED, Encoded, encode, encode_all, load_processor, pieces

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # transformers' own

PROMPTS: tuple[SystemPrompt, ...] = get_args(SystemPrompt)


@pytest.fixture(scope="module")
def processor(small: Small) -> Any:
    return load_processor(str(small.model))


def encoded(sample: Sample, processor: Any, prompt: SystemPrompt = "none", limit: int = 500) -> Encoded:
    return encode(sample, processor, system_prompt=prompt, max_tokens=limit)


def said(done: Encoded, processor: Any) -> list[str]:
    """The runs of tokens that are learned, as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(done.input_ids.tolist(), done.labels.tolist(), strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [processor.tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("case", CASES)
def test_tokens_and_grids_are_those_of_the_processor(processor: Any, case: str, prompt: SystemPrompt) -> None:
    sample = CASES[case]
    done = encoded(sample, processor, prompt)
    whole = processed(taught_messages(sample, prompt), sample, processor, asks=False)
    assert done.input_ids.tolist() == whole["input_ids"][0].tolist()
    assert done.grids.tolist() == whole.get("image_grid_thw", np.zeros((0, 3))).tolist()
    assert len(done.labels) == len(done.input_ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_has_the_tokens_that_it_has_when_the_model_is_asked(processor: Any, prompt: SystemPrompt) -> None:
    done = encoded(MCQ, processor, prompt)
    asked = processed(messages(MCQ, prompt), MCQ, processor, asks=True)["input_ids"][0].tolist()
    assert done.input_ids.tolist()[: len(asked)] == asked
    assert done.labels.tolist()[: len(asked)] == [IGNORED] * len(asked)
    assert done.labels[len(asked)] != IGNORED


def test_what_is_learned_is_the_answer_and_the_token_that_ends_it(processor: Any) -> None:
    done = encoded(MCQ, processor)
    assert said(done, processor) == ["<think>Large cells, 病理.</think><answer>B</answer><|im_end|>"]
    assert done.labels[done.labels != IGNORED][-1] == processor.tokenizer.eos_token_id
    assert done.labels[-1] == IGNORED  # the line break behind the last turn, which nobody generates


def test_of_a_conversation_every_turn_of_the_assistant_is_learned_and_no_other(processor: Any) -> None:
    two = ["Two naevi.<|im_end|>", "They are even.<|im_end|>"]
    assert said(encoded(TALK, processor, "chain_of_thought"), processor) == two
    assert said(encoded(CASES["it begins"], processor), processor) == ["Ask me.<|im_end|>", *two]
    assert said(encoded(CASES["it ends with the user"], processor), processor) == two


def test_every_picture_has_as_many_tokens_as_its_grid_says(processor: Any) -> None:
    done = encoded(TALK, processor)
    start, pad = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|image_pad|>"])
    ids = done.input_ids.tolist()
    runs = [ids.index(start)]
    runs.append(ids.index(start, runs[0] + 1))
    counts = [next(n for n, token in enumerate(ids[place + 1 :]) if token != pad) for place in runs]
    assert done.grids.tolist() == [[1, 4, 4], [1, 8, 6]]
    assert counts == [4, 12]
    assert done.patches.shape == (16 + 48, 3 * 2 * 14 * 14)
    assert (done.patches.dtype, done.input_ids.dtype, done.labels.dtype) == (np.uint8, np.int32, np.int32)
    assert not set(done.labels.tolist()) & {pad, start}


def test_patches_are_the_pictures_pixels(processor: Any) -> None:
    """Channel, time, height and width of 14 x 14 pixels, in squares of two by two patches; time is a repetition."""
    done = encoded(replace(MCQ, images=(png(56, 56),)), processor)
    pixels = np.asarray(Image.open(io.BytesIO(png(56, 56))))
    patches = done.patches.reshape(2, 2, 2, 2, 3, 2, 14, 14)  # square's row and column, patch's row and column in it
    for time in (0, 1):
        rebuilt = patches[..., time, :, :].transpose(0, 2, 5, 1, 3, 6, 4).reshape(56, 56, 3)
        assert np.array_equal(rebuilt, pixels)


@pytest.mark.parametrize("case", CASES)
def test_the_limit_is_on_all_tokens_together(processor: Any, case: str) -> None:
    sample = CASES[case]
    count = len(encoded(sample, processor).input_ids)
    assert len(encoded(sample, processor, limit=count).input_ids) == count
    with pytest.raises(DataError) as caught:
        encoded(sample, processor, limit=count - 1)
    assert str(caught.value) == f"{sample.id}: {count} tokens, where max_tokens allows {count - 1}"


@pytest.mark.parametrize("data", [b"", b"no picture", png(84, 56)[:200]])
def test_a_picture_that_cannot_be_decoded_is_refused(processor: Any, data: bytes) -> None:
    with pytest.raises(DataError, match="^book/1: (an empty|.* no picture|a PNG picture that cannot be)") as caught:
        encoded(replace(MCQ, images=(data,)), processor)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pixels", [1, 56 * 56 + 1, 1 << 20])
def test_many_at_once_are_what_each_is_alone(processor: Any, monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    """However many pictures the image processor is given at a time, and whatever is wrong with some of the samples."""
    monkeypatch.setattr(encoding, "PIXELS_AT_A_TIME", pixels)
    broken = replace(MCQ, id="broken", images=(png(56, 56), b"no picture"))
    long = replace(MCQ, id="long", question="Which? " * 60)
    samples = [TALK, broken, MCQ, long, *CASES.values(), replace(MCQ, images=(png(56, 56),)), replace(MCQ, images=())]
    done = encode_all(samples, processor, system_prompt="none", max_tokens=120, min_pixels=1, max_pixels=10**8)
    assert len(done) == len(samples)
    for sample, found in zip(samples, done, strict=True):
        if sample.id in ("broken", "long"):
            with pytest.raises(DataError) as caught:
                encoded(sample, processor, limit=120)
            assert isinstance(found, DataError)
            assert str(found) == str(caught.value)
            continue
        assert isinstance(found, Encoded)
        alone = encoded(sample, processor, limit=120)
        for name in Encoded.__slots__:
            one, other = getattr(found, name), getattr(alone, name)
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.array_equal(one, other), (sample.id, name)


spoken = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)


@given(question=spoken.filter(str.strip), explanation=spoken.filter(str.strip))
@settings(max_examples=100, deadline=None)
def test_whatever_is_said_is_learned_to_the_letter(processor: Any, question: str, explanation: str) -> None:
    sample = replace(MCQ, question=question, explanation=explanation, images=())
    assert said(encoded(sample, processor), processor) == [f"<think>{explanation}</think><answer>B</answer><|im_end|>"]


@given(texts=st.lists(spoken, min_size=1, max_size=5), system=st.sampled_from(PROMPTS))
@settings(max_examples=60, deadline=None)
def test_pieces_are_the_whole_chat_in_order(processor: Any, texts: list[str], system: SystemPrompt) -> None:
    turns = tuple(Turn(role=("user", "assistant")[i % 2], text=text) for i, text in enumerate(["?", "!", *texts]))
    chat = taught_messages(replace(TALK, turns=turns, images=()), system)
    parts = list(pieces(chat, processor))
    assert "".join(text for text, _ in parts) == processor.apply_chat_template(chat, tokenize=False)
    heard = [text for text, is_said in parts if is_said]
    assert heard == [f"{turn.text}<|im_end|>" for turn in turns if turn.role == "assistant"]


def test_a_template_that_rewrites_earlier_turns_is_refused(processor: Any, small: Small) -> None:
    from transformers import AutoProcessor

    other = AutoProcessor.from_pretrained(small.model)
    other.chat_template = other.chat_template.replace(
        "{{ message['content'] }}<|im_end|>",
        "{{ message['content'] if loop.last or message['role'] == 'user' else '...' }}<|im_end|>",
    )
    with pytest.raises(DataError, match="chat template rewrites earlier turns"):
        encoded(TALK, other)
    assert len(said(encoded(MCQ, other), other)) == 1


def test_a_caption_is_said_as_it_is_and_asked_for_by_its_picture_alone(processor: Any) -> None:
    """Also where the stage has a system prompt: that one asks for reasoning."""
    done = encoded(CAPTION, processor, "chain_of_thought")
    assert said(done, processor) == ["Two even naevi.<|im_end|>"]
    heard = processor.tokenizer.decode(done.input_ids[done.labels == IGNORED])
    assert heard == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        f"{4 * '<|image_pad|>'}<|vision_end|><|im_end|>\n<|im_start|>assistant\n\n"
    )


def test_a_caption_without_a_picture_is_refused(processor: Any) -> None:
    with pytest.raises(DataError, match="^atlas/1: a caption without a picture$"):
        encoded(replace(CAPTION, images=()), processor)


def test_every_place_of_a_picture_and_two_turns(processor: Any) -> None:
    """A worked example: each token, whether it is learned, and the step before which it is predicted."""
    talk = replace(TALK, images=(png(56, 28),))
    done = encoded(talk, processor)
    tokens = processor.tokenizer.convert_ids_to_tokens(done.input_ids)
    learned = [token for token, label in zip(tokens, done.labels.tolist(), strict=True) if label != IGNORED]
    said_first = [*processor.tokenizer.tokenize("Two naevi."), "<|im_end|>"]
    said_then = [*processor.tokenizer.tokenize("They are even."), "<|im_end|>"]
    assert learned == [*said_first, *said_then]
    asks = "<|im_start|>assistant\n"
    question = ["<|vision_start|>", "<|image_pad|>", "<|image_pad|>", "<|vision_end|>"]
    frame = [
        *processor.tokenizer.tokenize("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"),
        *question,
        *processor.tokenizer.tokenize(f"What are they?<|im_end|>\n{asks}"),
    ]
    between = processor.tokenizer.tokenize(f"\n<|im_start|>user\nWhy?<|im_end|>\n{asks}")
    assert tokens == [*frame, *said_first, *between, *said_then, *processor.tokenizer.tokenize("\n")]
    expected = [IGNORED] * len(frame) + done.input_ids.tolist()[len(frame) : len(frame) + len(said_first)]
    expected += [IGNORED] * len(between)
    expected += [*done.input_ids.tolist()[len(expected) : len(expected) + len(said_then)], IGNORED]
    assert done.labels.tolist() == expected


# ---------------------------------------------------------------------- rows and batches


def test_rows_are_the_encoded_samples(small: Small, processor: Any) -> None:
    samples = [replace(sample, id=name) for name, sample in CASES.items()]
    rows = rows_of(small, *samples)
    assert rows.num_rows == len(samples)
    for index, (sample, row) in enumerate(zip(samples, rows.to_pylist(), strict=True)):
        done, read_back = encoded(sample, processor), from_row(rows, index)
        for name in ("input_ids", "labels", "patches", "grids"):
            assert np.array_equal(getattr(read_back, name), getattr(done, name)), name
        assert (row["id"], row["source"], row["epoch"], row["position"]) == (sample.id, sample.source, 0, index)
        assert (row["tokens"], row["learned"]) == (len(done.input_ids), int((done.labels != IGNORED).sum()))
        assert row["problem"] is None


def test_samples_that_cannot_be_used_keep_their_place_with_the_reason(small: Small) -> None:
    samples = [replace(MCQ, id=str(place)) for place in range(5)]
    samples[1] = replace(samples[1], explanation=None)
    samples[4] = replace(samples[4], explanation="so " * 300)
    rows = rows_of(small, *samples, problems={"2": "no picture"}).to_pylist()
    assert [row["position"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["problem"] for row in rows[:4]] == [
        None,
        "has no explanation, which is what <think> is taught from",
        "no picture",
        None,
    ]
    assert re.fullmatch(r"\d+ tokens, where max_tokens allows 500", rows[4]["problem"])
    assert [row["tokens"] > 0 for row in rows] == [True, False, False, True, False]


def test_a_batch_is_padded_on_the_right(small: Small, processor: Any) -> None:
    samples = [CASES[name] for name in ("question", "no picture", "conversation")]
    made = batch(small, processor, *samples)
    single = [encoded(sample, processor) for sample in samples]
    longest = max(len(done.input_ids) for done in single)
    pad = processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    for name in ("input_ids", "labels", "sources"):
        assert made.tensors()[name].shape == (3, longest)
        assert str(made.tensors()[name].dtype) == "torch.int64"
    for row, done in enumerate(single):
        count = len(done.input_ids)
        padding = longest - count
        assert made.input_ids[row].tolist() == done.input_ids.tolist() + [pad] * padding
        assert made.labels[row].tolist() == done.labels.tolist() + [IGNORED] * padding
        assert made.position_ids[0, row].tolist() == [*range(longest)]
    assert made.grids.tolist() == [[1, 4, 6], [1, 4, 4], [1, 8, 6]]
    assert made.patches.numpy().tobytes() == b"".join(done.patches.tobytes() for done in single)
    assert made.patches.shape == (24 + 16 + 48, 1176)


def test_packed_samples_lie_one_behind_the_other_each_with_its_own_places(small: Small, processor: Any) -> None:
    names = ("conversation", "no picture", "question")
    made = batch(small, processor, *(CASES[name] for name in names), packed=True)
    alone = [batch(small, processor, CASES[name]) for name in names]
    lengths = [len(encoded(CASES[name], processor).input_ids) for name in names]
    for name in ("input_ids", "labels"):
        each = zip((one.tensors()[name][0].tolist() for one in alone), lengths, strict=True)
        assert made.tensors()[name].tolist() == [[*chain.from_iterable(values[:length] for values, length in each)]]
    for axis in range(4):
        each = zip((one.position_ids[axis, 0].tolist() for one in alone), lengths, strict=True)
        assert made.position_ids[axis, 0].tolist() == [*chain.from_iterable(values[:length] for values, length in each)]
    assert made.grids.tolist() == [[1, 4, 4], [1, 8, 6], [1, 4, 6]]


def test_only_packed_rows_need_a_mask(small: Small, processor: Any) -> None:
    """Without one, SDPA is told that attention is causal, and leaves half of it out."""
    samples = [CASES[name] for name in ("question", "no picture")]
    for pictures in (samples, samples[1:] * 2):  # with a blank picture behind them, too
        apart, packed = (batch(small, processor, *pictures, packed=packed) for packed in (False, True))
        assert find_packed_sequence_indices(apart.position_ids[0]) is None
        assert find_packed_sequence_indices(packed.position_ids[0]) is not None


def test_a_batch_knows_the_source_of_every_token(small: Small, processor: Any) -> None:
    first, second = chats.encoded(small, CASES["question"], CASES["no picture"])
    made = Collate.of(processor)([[(first, 2), (second, 0)], [(second, 1)]])
    a, b = len(first.input_ids), len(second.input_ids)
    assert made.sources.tolist() == [[2] * a + [0] * b, [1] * b + [0] * a]


def test_a_batch_without_pictures(small: Small, processor: Any) -> None:
    """A blank one of one token behind everything, seen and learned by nobody: every rank runs the vision tower."""
    samples = [CASES["no picture"], CASES["it begins"]]
    made = batch(small, processor, *samples)
    longest = max(len(encoded(sample, processor).input_ids) for sample in samples)
    pad, image = processor.tokenizer.convert_tokens_to_ids(["<|vision_pad|>", "<|image_pad|>"])
    assert made.input_ids.shape == (2, longest + 1)
    assert made.input_ids[:, -1].tolist() == [image, pad]
    packed = batch(small, processor, *samples, packed=True)
    assert packed.input_ids[:, -1].tolist() == [image]
    assert not packed.position_ids[:, :, -1].any()
    assert made.labels[:, -1].tolist() == [IGNORED, IGNORED]
    assert (made.grids.tolist(), tuple(made.patches.shape)) == ([[1, 2, 2]], (4, 1176))
    assert not made.patches.any()
    with_one = batch(small, processor, *samples, CASES["question"])
    assert with_one.grids.tolist() == [[1, 4, 6]]


def test_a_batch_without_samples_has_nothing_to_learn(processor: Any) -> None:
    made = Collate.of(processor)([])
    assert made.labels.tolist() == [[IGNORED] * 3]
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert made.input_ids.tolist() == [[*[processor.tokenizer.pad_token_id] * 2, image]]


def test_more_image_tokens_than_pictures_are_refused(small: Small, processor: Any) -> None:
    (sample,) = chats.encoded(small, CASES["question"])
    with pytest.raises(DataError, match=r"^6 image tokens for pictures of 4; "):
        Collate.of(processor)([[(replace(sample, grids=np.array([[1, 4, 4]])), 0)]])


def test_rendered_samples_are_short(small: Small, processor: Any) -> None:
    """What the demonstration is built on: a question, its picture of 56 pixels and its answer in under 100 tokens."""
    lengths = [
        len(encoded(sample, processor).input_ids) for _, sample in zip(range(40), read(small.train), strict=False)
    ]
    assert max(lengths) < 100
