"""Sample -> chat messages. The prompt never sees the answer, the explanation or anything else that tells it."""

from __future__ import annotations

from typing import Any, Literal

from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample
from rewards import format_problem

SystemPrompt = Literal["chain_of_thought", "chain_of_draft", "none"]

# The published prompts of Patho-R1 (its README); the paper's evaluation compares the two.
SYSTEM_PROMPTS: dict[SystemPrompt, str | None] = {
    "chain_of_thought": (
        "You are a pathology expert, your task is to answer question step by step. Use the following format:"
        "<think> Your step-by-step reasoning </think><answer> Your final answer </answer>"
    ),
    "chain_of_draft": (
        "You are a pathology expert, your task is to think step by step, but only keep a minimum draft for each "
        "thinking step, with 5 words at most. Return the answer at the end of the response after a separator. "
        "Use the following format:<think> Your step-by-step reasoning </think><answer> Your final answer </answer>"
    ),
    "none": None,
}


def question_text(sample: Sample) -> str:
    """The question with its lettered options, one a line."""
    if sample.options is None:
        return sample.question
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, sample.options, strict=False)]
    return "\n".join([sample.question, *lines])


def messages(sample: Sample, system_prompt: SystemPrompt = "chain_of_thought") -> list[dict[str, Any]]:
    """Chat messages in the form of transformers and Qwen: one image entry for each picture, then the text.

    The images themselves are not in the messages; they are handed to the processor in the same order.
    """
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    if text := question_text(sample):  # a caption has none
        content.append({"type": "text", "text": text})
    chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
    system = SYSTEM_PROMPTS[system_prompt]
    return chat if system is None else [{"role": "system", "content": system}, *chat]


def taught_messages(sample: Sample, system_prompt: SystemPrompt = "chain_of_thought") -> list[dict[str, Any]]:
    """Chat messages with what a supervised stage teaches the assistant to say; images as in `messages`.

    A conversation is given as its turns, its pictures before the text of the first user turn; a caption without an
    explanation as it is, behind its pictures and what was asked, if anything was, and without the system prompt, which
    asks for reasoning; any other sample as its question and an answer that reasons first. Raises DataError for a
    question without an explanation, as an answer that comes from nowhere would teach the model not to reason, and for
    an explanation or answer that breaks the format.
    """
    if sample.task == "caption" and not (sample.explanation or "").strip():
        if not sample.images:
            raise DataError(f"{sample.id}: a caption without a picture")
        return [*messages(sample, "none"), {"role": "assistant", "content": sample.answer}]
    if sample.task != "conversation":
        if not (sample.explanation or "").strip():
            raise DataError(f"{sample.id}: has no explanation, which is what <think> is taught from")
        response = response_text(sample.explanation or "", sample.answer)
        if problem := format_problem(response):
            raise DataError(f"{sample.id}: its explanation or answer has tags of the format in it: {problem}")
        return [*messages(sample, system_prompt), {"role": "assistant", "content": response}]
    chat: list[dict[str, Any]] = [{"role": turn.role, "content": turn.text} for turn in sample.turns or ()]
    first = next((turn for turn in chat if turn["role"] == "user"), None)
    if sample.images:
        if first is None:
            raise DataError(f"{sample.id}: has pictures and no user turn to show them in")
        pictures = [{"type": "image"} for _ in sample.images]
        first["content"] = [*pictures, {"type": "text", "text": first["content"]}]
    system = SYSTEM_PROMPTS[system_prompt]
    if system is not None and chat[0]["role"] != "system":
        return [{"role": "system", "content": system}, *chat]
    if chat[0]["role"] == "assistant":
        raise DataError(f"{sample.id}: the assistant speaks first, before there is a prompt")
    return chat


def response_text(explanation: str, answer: str) -> str:
    """What a supervised stage teaches the model to say: reasoning in <think>, the answer in <answer>."""
    return f"<think>{explanation}</think><answer>{answer}</answer>"
