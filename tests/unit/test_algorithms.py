"""GRPO and DAPO are the published numbers, and a recipe can set each."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from pathor1.recipe import Recipe
from pathor1.recipe_rl import RL
from pathor1.rl.algorithms import DAPO, GRPO, resolve, spell_out


def rl(**values: Any) -> RL:
    return RL.model_validate({"steps": 1, **values})


def recipe(**values: Any) -> Recipe:
    tree = {"name": "a", "model": {"path": "m"}, "data": {"train": ["t"]}, "rl": {"steps": 1, **values}}
    return Recipe.model_validate(tree)


def test_grpo() -> None:
    assert asdict(resolve(rl(algorithm="grpo"))) == {
        "name": "grpo",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "loss_aggregation": "sequence-mean",
        "kl_coefficient": 0.01,
        "dynamic_sampling": False,
        "format_weight": 1.0,
        "accuracy_weight": 1.0,
        "length_weight": 0.0,
    }


def test_dapo() -> None:
    assert asdict(resolve(rl(algorithm="dapo"))) == {
        "name": "dapo",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "loss_aggregation": "token-mean",
        "kl_coefficient": 0.0,
        "dynamic_sampling": True,
        "format_weight": 1.0,
        "accuracy_weight": 1.0,
        "length_weight": 1.0,
    }


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("clip_low", 0.1, "clip_low"),
        ("clip_high", 0.4, "clip_high"),
        ("loss_aggregation", "sequence-mean", "loss_aggregation"),
        ("kl_coefficient", 0.5, "kl_coefficient"),
        ("dynamic_sampling", False, "dynamic_sampling"),
    ],
)
def test_one_number_is_set_the_others_stay(key: str, value: Any, field: str) -> None:
    assert resolve(rl(algorithm="dapo", **{key: value})) == replace(DAPO, **{field: value})


@pytest.mark.parametrize("part", ["format", "accuracy", "length"])
def test_weights_are_set_zero_among_them(part: str) -> None:
    weight: dict[str, Any] = {f"{part}_weight": 0.0}
    assert resolve(rl(algorithm="dapo", reward={part: 0.0})) == replace(DAPO, **weight)


def test_zero_and_false_are_numbers_not_left_out() -> None:
    assert resolve(rl(kl_coefficient=0.0)) == replace(GRPO, kl_coefficient=0.0)


@pytest.mark.parametrize("algorithm", ["grpo", "dapo"])
def test_spelled_out_is_the_same_run_with_every_number(algorithm: str) -> None:
    chosen = recipe(algorithm=algorithm, clip_high=0.35, reward={"accuracy": 2.0, "overlong_cache_tokens": 7})
    spelled = spell_out(chosen)
    assert resolve(spelled.rl) == resolve(chosen.rl)
    may_be_none = {"max_probability_difference", "checkpoint_store", "early_stop_patience"}
    assert None not in spelled.rl.model_dump(exclude=may_be_none).values()
    assert None not in spelled.rl.reward.model_dump(exclude={"function"}).values()
    assert (spelled.rl.clip_high, spelled.rl.reward.accuracy, spelled.rl.reward.overlong_cache_tokens) == (0.35, 2.0, 7)
    assert Recipe.model_validate(spelled.model_dump()) == spelled
