"""The names of a run's metrics (`pathor1.tracking` is where they go).

verl reports some hundred numbers a step under its own names; `NAMES` and `SECONDS` say which of them a run keeps. Those
that verl takes from the whole batch, for which it fetches all tokens from its queue, are made here of what the driver
has (`of_batch`), and `of_rollouts` adds what only the ledger knows. `pathor1.tracking.meanings` says what each is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pathor1.recipe import Recipe
from pathor1.rl.groups import REASONS, SAME, Selection
from pathor1.rl.ledger import LedgerRow

# Words of the n-grams by which repetition is measured.
NGRAM = 4

# verl's name -> ours
NAMES = {
    "actor/entropy": "actor/entropy",
    "actor/pg_loss": "actor/policy_loss",
    "actor/kl_loss": "actor/kl",
    "actor/grad_norm": "actor/gradient_norm",
    "actor/pg_clipfrac": "actor/clip_fraction",
    "actor/pg_clipfrac_lower": "actor/clip_fraction_dual",
    "actor/ppo_kl": "actor/kl_to_rollout_policy",
    "actor/lr": "actor/next_learning_rate",  # verl reports it when the step has moved the schedule on
    "rollout_corr/rollout_is_max": "carried/importance_weight_max",
    "rollout_corr/rollout_is_mean": "carried/importance_weight_mean",
    "rollout_corr/k3_kl": "staleness/kl",
    # Ours, which the trainer puts among verl's while a step is made.
    "rollout/probability_difference_max": "rollout/probability_difference_max",
    "rollout/probability_difference_mean": "rollout/probability_difference_mean",
}


# verl's name of a phase -> ours
SECONDS = {
    "step": "seconds/step",
    "gen": "seconds/generate",
    "stream": "seconds/stream",
    "old_log_prob": "seconds/old_log_prob",
    "ref": "seconds/reference",
    "adv": "seconds/advantage",
    "update_actor": "seconds/update",
    "update_weights": "seconds/weights_to_vllm",
    "save_checkpoint": "seconds/checkpoint",
}


def of_verl(metrics: Mapping[str, Any]) -> dict[str, float]:
    """verl's numbers of a step under our names; those it did not report are left out."""
    return {ours: float(metrics[theirs]) for theirs, ours in NAMES.items() if theirs in metrics}


def of_phases(seconds: Mapping[str, float]) -> dict[str, float]:
    """What verl has taken the time of in a step, in seconds, under our names."""
    return {ours: seconds[theirs] for theirs, ours in SECONDS.items() if theirs in seconds}


def of_batch(
    tags: Sequence[Mapping[str, Any]], rows: Sequence[LedgerRow], *, seconds: float, accelerators: int
) -> dict[str, float]:
    """What a step has learned from: how long its questions and answers are, and how fast it was. {} without rows.

    tags: verl's, of all that the ranks were given; what only fills their shares has tokens, and counts for no more.
    rows: what was learned from; seconds: that the step took; accelerators: that took part in it.
    """
    if not rows:
        return {}
    own = [tag for tag in tags if not tag.get("is_padding", False)]
    lengths = {part: [int(tag[f"{part}_len"]) for tag in own] for part in ("prompt", "response")}
    tokens = float(sum(int(tag["seq_len"]) for tag in tags))
    return {
        "advantage/max": max(row.advantage or 0.0 for row in rows),
        **{f"{part}_tokens/mean": sum(found) / len(found) for part, found in lengths.items()},
        **{f"{part}_tokens/max": float(max(found)) for part, found in lengths.items()},
        "tokens": tokens,
        "tokens_per_second_per_accelerator": tokens / (seconds * accelerators),
    }


def of_rollouts(rows: Sequence[LedgerRow], *, min_think_words: int) -> dict[str, float]:
    """What the rollouts of a step were like, those of dropped groups among them. {} without rows.

    Rewards by part; what a policy that hunts rewards shows first: the right format without reasoning, repetition, and
    a letter that it says more often than it is right (the labels' share is beside it).
    """
    if not rows:
        return {}
    count = len(rows)
    letters = [row for row in rows if row.task == "mcq"]
    values = {
        "reward/mean": sum(row.total for row in rows) / count,
        "reward/format": sum(row.format for row in rows) / count,
        "reward/accuracy": sum(row.accuracy for row in rows) / count,
        "reward/length": sum(row.length for row in rows) / count,
        "rollout/truncated": sum(row.truncated for row in rows) / count,
        "rollout/unparsed": sum(row.parsed is None for row in rows) / count,
        "rollout/without_reasoning": sum(row.format > 0 and think_words(row.text) < min_think_words for row in rows)
        / count,
        "rollout/repetition": sum(repetition(row.text) for row in rows) / count,
        "tokens/generated": float(sum(row.response_tokens for row in rows)),
    }
    for letter in sorted({row.answer for row in letters} | {row.parsed for row in letters if row.parsed}):
        values[f"letters/{letter}_said"] = sum(row.parsed == letter for row in letters) / len(letters)
        values[f"letters/{letter}_right"] = sum(row.answer == letter for row in letters) / len(letters)
    return values


def of_groups(selection: Selection, *, step: int) -> dict[str, float]:
    """What became of a step's groups: asked for, learned from, dropped by reason, carried on and from where."""
    groups, dropped = selection.groups, Counter(each.reason for each in selection.dropped)
    ended = [*groups, *(each.group for each in selection.dropped if each.reason != "failed")]
    flat = [group.pass_rate for group in ended if max(group.accuracies) - min(group.accuracies) <= SAME]
    ages = [step - group.step for group in groups if group.step < step]
    trained = [row for group in groups for row in group.rows]
    # How many updates of the actor lie between the weights that said an answer's first token and those that learn.
    staleness = [step - 1 - row["policy_version"] for row in trained]
    interrupted = sum(row.get("last_policy_version") is not None for row in trained)
    values = {
        "groups/asked": float(selection.asked),
        "groups/trained": float(len(groups)),
        "groups/informative": float(len(ended) - len(flat)),
        "groups/all_right": float(sum(rate > 0.5 for rate in flat)),
        "groups/all_wrong": float(sum(rate <= 0.5 for rate in flat)),
        "carried/from_before": float(len(ages)),
        "carried/age_max": float(max(ages, default=0)),
        "carried/to_next": float(len(selection.carried)),
        "tokens/trained": float(sum(row["response_tokens"] for row in trained)),
        "staleness/max": float(max(staleness, default=0)),
        "staleness/mean": sum(staleness) / max(len(staleness), 1),
        "staleness/interrupted": interrupted / max(len(trained), 1),
        "steps/skipped": float(not groups),
    }
    return values | {f"dropped/{reason}": float(dropped[reason]) for reason in REASONS}


def think_words(text: str) -> int:
    """The words of the <think> block; 0 where there is none."""
    found = re.search(r"<think>(.*?)</think>", text, re.DOTALL)
    return len(found.group(1).split()) if found else 0


def repetition(text: str) -> float:
    """The share of a text's `NGRAM`-grams of words that came before: 0 = none, near 1 = it turns in circles."""
    words = text.split()
    grams = [tuple(words[place : place + NGRAM]) for place in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def constants(recipe: Recipe) -> dict[str, float]:
    """What a dashboard and alerts compare a run's numbers with."""
    found = {"steps_planned": float(recipe.rl.steps), "limit/left_out_share": recipe.data.max_bad_fraction}
    if recipe.rl.max_probability_difference is not None:
        found["limit/probability_difference"] = recipe.rl.max_probability_difference
    return found
