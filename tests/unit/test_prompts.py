"""What a model is asked, what it is taught, and what it must not be told."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathor1.errors import DataError
from pathor1.prompts import (
    SYSTEM_PROMPTS,
    SystemPrompt,
    messages,
    question_text,
    response_text,
    taught_messages,
)
from pathor1.samples import LETTERS, Sample, Task, Turn
from rewards import accuracy_reward, format_reward

PROMPTS: tuple[SystemPrompt, ...] = get_args(SystemPrompt)
MCQ = Sample(
    id="book/1",
    source="book",
    task="mcq",
    question="Which diagnosis fits?",
    options=("melanoma", "lymphoma"),
    answer="B",
    images=(b"1", b"2"),
    explanation="Large cells.",
)
TALK = Sample(
    id="talk/1",
    source="talk",
    task="conversation",
    question="",
    answer="",
    images=(b"1", b"2"),
    turns=(
        Turn(role="user", text="What is it?"),
        Turn(role="assistant", text="A naevus."),
        Turn(role="user", text="Why?"),
        Turn(role="assistant", text="It is even."),
    ),
)


def changed(**values: Any) -> Sample:
    return dataclasses.replace(MCQ, **values)


def pictures(chat: list[dict[str, Any]]) -> int:
    contents = [turn["content"] for turn in chat if not isinstance(turn["content"], str)]
    return sum(part["type"] == "image" for content in contents for part in content)


@pytest.mark.parametrize("prompt", PROMPTS)
@given(
    answer=st.sampled_from(LETTERS),
    explanation=st.none() | st.text(),
    meta=st.none() | st.dictionaries(st.text(), st.text()),
    name=st.text(),
    task=st.sampled_from(["mcq", "yes_no"]),
)
@settings(deadline=None)
def test_the_prompt_is_made_of_question_options_and_pictures_alone(
    prompt: SystemPrompt, answer: str, explanation: str | None, meta: dict[str, str] | None, name: str, task: Task
) -> None:
    other = changed(
        answer=answer, explanation=explanation, meta=meta, id=name, source=name, split=name, level=name, task=task
    )
    assert messages(other, prompt) == messages(MCQ, prompt)
    assert messages(changed(subfield="ihc", license=name, turns=TALK.turns), prompt) == messages(MCQ, prompt)


def test_the_prompt_does_not_hold_the_answer_of_a_question_without_options() -> None:
    sample = changed(task="open", options=None, answer="Pemphigus", explanation="Acantholysis, so Pemphigus")
    assert "Pemphigus" not in json.dumps([messages(sample, prompt) for prompt in PROMPTS])


def test_options_are_lettered_in_the_order_shown() -> None:
    assert question_text(MCQ) == "Which diagnosis fits?\nA. melanoma\nB. lymphoma"
    six = changed(options=tuple("uvwxyz"))
    assert question_text(six).splitlines()[1:] == ["A. u", "B. v", "C. w", "D. x", "E. y", "F. z"]
    assert question_text(changed(options=None)) == "Which diagnosis fits?"


@pytest.mark.parametrize("count", range(4))
def test_one_entry_a_picture_before_the_text(count: int) -> None:
    chat = messages(changed(images=(b"x",) * count), "none")
    assert [turn["role"] for turn in chat] == ["user"]
    assert chat[0]["content"] == [{"type": "image"}] * count + [{"type": "text", "text": question_text(MCQ)}]


def test_the_system_prompts_are_patho_r1s() -> None:
    chat = messages(MCQ)
    assert chat[0] == {"role": "system", "content": SYSTEM_PROMPTS["chain_of_thought"]}
    assert [turn["role"] for turn in messages(MCQ, "chain_of_draft")] == ["system", "user"]
    asked = "<think> Your step-by-step reasoning </think><answer> Your final answer </answer>"
    for prompt in ("chain_of_thought", "chain_of_draft"):
        text = SYSTEM_PROMPTS[prompt]
        assert text is not None
        assert text.startswith("You are a pathology expert, your task is to ")
        assert text.endswith(f"Use the following format:{asked}")
    assert "5 words at most" in (SYSTEM_PROMPTS["chain_of_draft"] or "")
    assert SYSTEM_PROMPTS["none"] is None


@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_is_taught_is_the_question_and_the_answer_in_the_format(prompt: SystemPrompt) -> None:
    chat = taught_messages(MCQ, prompt)
    assert chat[:-1] == messages(MCQ, prompt)
    assert chat[-1] == {"role": "assistant", "content": "<think>Large cells.</think><answer>B</answer>"}


@given(st.text(st.characters(exclude_characters="<>")), st.sampled_from(LETTERS))
@settings(deadline=None)
def test_what_is_taught_would_be_rewarded(explanation: str, answer: str) -> None:
    text = response_text(explanation, answer)
    assert (format_reward(text), accuracy_reward(text, answer)) == (1.0, 1.0)


@pytest.mark.parametrize("explanation", [None, "", " \n"])
def test_a_question_without_an_explanation_is_not_taught(explanation: str | None) -> None:
    with pytest.raises(DataError, match="^book/1: has no explanation, which is what <think> is taught from$"):
        taught_messages(changed(explanation=explanation))


@pytest.mark.parametrize("explanation", ["<think>Large cells.</think>", "So <answer>B</answer>", "Large</think>"])
def test_an_explanation_with_tags_of_its_own_would_teach_a_wrong_format(explanation: str) -> None:
    with pytest.raises(DataError, match="^book/1: .*stand") as caught:
        taught_messages(changed(explanation=explanation))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_conversation_is_its_turns_with_the_pictures_before_the_first_of_the_user(prompt: SystemPrompt) -> None:
    chat = taught_messages(TALK, prompt)
    system = SYSTEM_PROMPTS[prompt]
    if system is not None:
        assert chat.pop(0) == {"role": "system", "content": system}
    shown = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert chat == [
        {"role": "user", "content": shown},
        {"role": "assistant", "content": "A naevus."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "It is even."},
    ]


def test_a_conversation_keeps_its_own_system_turn() -> None:
    turns = (Turn(role="system", text="Be brief."), *(TALK.turns or ()))
    chat = taught_messages(dataclasses.replace(TALK, turns=turns))
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant"]
    assert chat[0]["content"] == "Be brief."
    assert pictures(chat) == 2


def test_a_conversation_that_the_assistant_opens_needs_a_system_prompt_before_it() -> None:
    talk = dataclasses.replace(TALK, turns=(Turn(role="assistant", text="Ask me."), *(TALK.turns or ())))
    assert [turn["role"] for turn in taught_messages(talk)][:2] == ["system", "assistant"]
    with pytest.raises(DataError, match="^talk/1: the assistant speaks first, before there is a prompt$"):
        taught_messages(talk, "none")


def test_a_conversation_in_which_nobody_is_shown_its_pictures_is_refused() -> None:
    said = (Turn(role="assistant", text="A naevus."),)
    with pytest.raises(DataError, match="^talk/1: has pictures and no user turn to show them in$"):
        taught_messages(dataclasses.replace(TALK, turns=said))
    assert pictures(taught_messages(dataclasses.replace(TALK, turns=said, images=()))) == 0
