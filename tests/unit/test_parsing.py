"""What responses chose, strictly and leniently: nothing is guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathor1.evaluation.parsing import lenient, strict
from pathor1.samples import Sample

MCQ = Sample(
    id="1",
    source="x",
    task="mcq",
    question="Which?",
    options=("melanoma", "benign naevus", "carcinoma", "carcinoma in situ", "viral infection"),
    answer="B",
)
YES_NO = Sample(id="2", source="x", task="yes_no", question="Is it?", answer="yes")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<think>x</think><answer>B</answer>", "B"),
        ("<answer>(B)</answer>", "B"),
        ("<answer>b</answer>", "B"),
        ("<answer>B.</answer>", "B"),
        ("<answer>B. benign naevus</answer>", "B"),
        ("<answer>B) Benign Naevus, as its cells mature</answer>", "B"),
        ("<answer>B: naevus</answer>", None),  # neither the option's text nor the beginning of it
        ("<answer>Benign  naevus.</answer>", "B"),
        ("<answer>**B**</answer>", "B"),
        ("<answer>The correct answer is option D: carcinoma in situ</answer>", "D"),
        ("<answer>C. carcinoma</answer>", "C"),
        ("<answer>C. carcinoma in situ</answer>", None),  # that is D
        ("<answer>A. benign naevus</answer>", None),
        ("<answer>A or B</answer>", None),
        ("<answer>B, C</answer>", None),
        ("<answer>E. coli</answer>", None),
        ("<answer>A lesion of the skin</answer>", None),
        ("<answer>F</answer>", None),  # there are five
        ("<answer></answer>", None),
        ("<answer>A</answer> or <answer>B</answer>", None),
        ("<answer>B</answer> or <answer>B</answer>", "B"),
        ("<answer>unclear</answer> the answer is B", None),  # the block is what counts
        ("<answer>B", "B"),
        ("<think>A? No.</think>B", "B"),
        ("\\boxed{B}", "B"),
        ("benign naevus", "B"),
        ("It matures, so the answer is B because of that.", "B"),
        ("Answer: (C)", "C"),
        ("the answer is a melanoma", None),
        ("The answer is A melanoma", None),  # an article, or a letter: two readings
        ("The answer is not B. The answer is C", "C"),
        ("Either the answer is B or the answer is C", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_letters_are_read_leniently(text: str, letter: str | None) -> None:
    assert lenient(text, MCQ) == letter


@pytest.mark.parametrize("text", ["<answer>(B)</answer>", "<answer>b</answer>", "B", "<answer>benign naevus</answer>"])
def test_what_the_reward_does_not_read_is_not_read_strictly(text: str) -> None:
    assert strict(text, MCQ) is None
    assert strict("<answer> B </answer>", MCQ) == "B"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<answer>YES</answer>", "yes"),
        ("<answer>Yes.</answer>", "yes"),
        ("<answer>No, there is none</answer>", "no"),
        ("<answer>The answer is no</answer>", "no"),
        ("Yes, there is.", "yes"),
        ("So the answer is: **no**", "no"),
        ("<answer>No evidence of necrosis</answer>", None),  # a sentence, which may deny what was asked, or not
        ("<answer>yes and no</answer>", None),
        ("<answer>B</answer>", None),
        ("Nothing of the kind", None),
    ],
)
def test_yes_and_no_are_read_leniently(text: str, word: str | None) -> None:
    assert lenient(text, YES_NO) == word


@given(st.text())
def test_whatever_is_read_strictly_is_read_leniently_too(text: str) -> None:
    for response in (text, f"<answer>{text}</answer>"):
        for sample in (MCQ, YES_NO):
            found = strict(response, sample)
            if found is not None and found != "F":
                assert lenient(response, sample) == found


@pytest.mark.parametrize(
    "text", ["<answer>" * 100_000, "answer is " * 100_000, "the final " * 100_000, "(" * 1_000_000, "A." * 500_000]
)
def test_a_megabyte_of_anything_is_read(text: str) -> None:
    # What backtracks takes hours: the tests' limit of ten minutes is what it would fail by.
    for response in (text, f"<answer>{text}</answer>"):
        assert lenient(response, MCQ) is None
        assert lenient(response, YES_NO) is None
