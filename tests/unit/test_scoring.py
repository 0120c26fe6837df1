"""One rollout's score: its parts, their weights, and the reason."""

from __future__ import annotations

import pytest

from pathor1.rl.scoring import RewardWeights, RolloutScore, label_problem, score_rollout

RIGHT = "<think>glands</think><answer>C</answer>"
DAPO = RewardWeights(length=1.0)


def score(
    text: str,
    *,
    answer: str = "C",
    task: str = "mcq",
    tokens: int = 10,
    truncated: bool = False,
    weights: RewardWeights | None = None,
) -> RolloutScore:
    return score_rollout(
        text,
        answer=answer,
        task=task,
        response_tokens=tokens,
        truncated=truncated,
        max_response_tokens=100,
        overlong_cache_tokens=40,
        weights=weights or RewardWeights(),
    )


def test_grpo_is_format_plus_accuracy() -> None:
    assert score(RIGHT) == RolloutScore(
        total=2.0,
        format=1.0,
        accuracy=1.0,
        length=0.0,
        parsed="C",
        reason="format: right; accuracy: C is right",
        truncated=False,
    )
    assert score(RIGHT, answer="A").total == 1.0
    assert score(RIGHT, answer="A").reason == "format: right; accuracy: C is wrong, A is right"
    assert score("<answer>C</answer>").total == 1.0
    assert score("C").reason == "format: no <think>; accuracy: no <answer> block"
    assert score("C").parsed is None


def test_dapo_adds_the_length() -> None:
    long = score(RIGHT, tokens=90, weights=DAPO)
    assert (long.format, long.accuracy, long.length, long.total) == (1.0, 1.0, -0.75, 1.25)
    assert long.reason.endswith("; length: 90 tokens, 60 are free")
    assert score(RIGHT, tokens=60, weights=DAPO).total == 2.0
    assert "length" not in score(RIGHT, tokens=60, weights=DAPO).reason
    assert score(RIGHT, tokens=90).length == 0.0


def test_each_part_has_its_own_weight() -> None:
    weights = RewardWeights(format=0.1, accuracy=0.9, length=0.5)
    assert score(RIGHT, tokens=80, weights=weights).total == pytest.approx(0.1 + 0.9 - 0.25)
    assert score("<answer>C</answer>", tokens=100, weights=weights).total == pytest.approx(0.9 - 0.5)
    assert score(RIGHT, answer="A", weights=weights).total == pytest.approx(0.1)


def test_the_parts_are_before_their_weights() -> None:
    weights = RewardWeights(format=0.0, accuracy=0.0, length=0.0)
    assert (score(RIGHT, weights=weights).format, score(RIGHT, weights=weights).accuracy) == (1.0, 1.0)
    assert score(RIGHT, weights=weights).total == 0.0


def test_limits_are_unused_without_a_length_weight() -> None:
    result = score_rollout(
        RIGHT,
        answer="C",
        task="mcq",
        response_tokens=5,
        truncated=False,
        max_response_tokens=8,
        overlong_cache_tokens=4096,
        weights=RewardWeights(),
    )
    assert result.total == 2.0


def test_a_cut_response_is_recorded_and_fails_by_its_tags() -> None:
    cut = score("<think>and so on and", tokens=100, truncated=True, weights=DAPO)
    assert cut.truncated
    assert (cut.format, cut.accuracy, cut.length, cut.total) == (0.0, 0.0, -1.0, -1.0)
    assert cut.reason.endswith("; cut at the token limit")
    assert score(RIGHT, tokens=100, truncated=True).total == 2.0


def test_yes_no() -> None:
    text = "<think>x</think><answer>Yes</answer>"
    assert score(text, answer="yes", task="yes_no").total == 2.0
    assert score(text, answer="yes", task="yes_no").parsed == "yes"
    assert score(text, answer="no", task="yes_no").reason == "format: right; accuracy: yes is wrong, no is right"
    assert score(RIGHT, answer="no", task="yes_no").reason.endswith("accuracy: answer 'C' is not yes or no")


@pytest.mark.parametrize(
    ("answer", "task", "message"),
    [
        ("G", "mcq", "'G' is not a letter A-F"),
        ("c", "mcq", "'c' is not a letter A-F"),
        ("", "mcq", "'' is not a letter A-F"),
        ("ABC", "mcq", "'ABC' is not a letter A-F"),
        ("yes", "mcq", "'yes' is not a letter A-F"),
        ("Yes", "yes_no", "'Yes' is neither 'yes' nor 'no'"),
        ("A", "yes_no", "'A' is neither 'yes' nor 'no'"),
        ("melanoma", "open", "no accuracy reward for task 'open'"),
    ],
)
def test_a_label_that_nothing_can_equal_is_an_error(answer: str, task: str, message: str) -> None:
    assert message in (label_problem(answer, task) or "")
    with pytest.raises(ValueError, match=message):
        score(RIGHT, answer=answer, task=task)
