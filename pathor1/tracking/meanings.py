"""What each number of a run means: `docs/metrics.md` is made of this, and so are the help texts of Ray's metrics."""

from __future__ import annotations

import re
from typing import NamedTuple


class Meaning(NamedTuple):
    """unit: of the value, "" for a plain number; text: what it is."""

    unit: str
    text: str


SHARE = "0 to 1"

# Every number that a step may have, by its name in metrics.jsonl. SOURCE is a part of data.train, LETTER an answer's.
OF_A_STEP = {
    "step": Meaning("", "the last step that is done, 1 = the first"),
    "run/restarts": Meaning("", "of the run by itself, since its command was given; at most cluster.max_restarts"),
    "reward/mean": Meaning("reward", "weighted sum of the reward's parts, mean over the step's rollouts"),
    "reward/accuracy": Meaning(SHARE, "rollouts with the right answer"),
    "reward/format": Meaning(SHARE, "rollouts in the right format"),
    "reward/length": Meaning("-1 to 0", "overlong punishment before its weight, mean over the rollouts"),
    "advantage/max": Meaning("", "largest advantage of a token"),
    "groups/asked": Meaning("groups", "questions that were asked in the step"),
    "groups/trained": Meaning("groups", "learned from"),
    "groups/informative": Meaning("groups", "some of whose answers are right and some are not"),
    "groups/all_right": Meaning("groups", "whose answers are all right: nothing to learn"),
    "groups/all_wrong": Meaning("groups", "whose answers are all wrong: nothing to learn"),
    "dropped/all_correct": Meaning("groups", "dropped, as all answers are right"),
    "dropped/all_wrong": Meaning("groups", "dropped, as all answers are wrong"),
    "dropped/outside_band": Meaning("groups", "dropped, as the pass rate is outside rl.keep_pass_rate"),
    "dropped/failed": Meaning("groups", "dropped, as they could not be generated"),
    "dropped/stale": Meaning("groups", "dropped, as they waited for longer than rl.max_carry_steps"),
    "dropped/budget": Meaning("groups", "dropped, as no batch had room for them and nothing may wait"),
    "steps/skipped": Meaning("0 or 1", "1 = no update, as fewer than rl.min_groups groups could be learned from"),
    "carried/from_before": Meaning("groups", "learned from that were asked in an earlier step"),
    "carried/to_next": Meaning("groups", "informative and left over: they wait for the next step"),
    "carried/age_max": Meaning("steps", "that the longest waiting of the groups learned from has waited"),
    "carried/importance_weight_max": Meaning("", "largest weight p_now/p_then of a token, cut off at 2"),
    "carried/importance_weight_mean": Meaning("", "mean of these weights"),
    "staleness/max": Meaning(
        "steps", "between the weights that said an answer's first token and those that learn from it"
    ),
    "staleness/mean": Meaning("steps", "its mean over the answers that were learned from"),
    "staleness/interrupted": Meaning(SHARE, "of them, answers that more than one step's weights have said"),
    "staleness/kl": Meaning("nats", "of the present weights from those that said the answers (k3)"),
    "rollout/truncated": Meaning(SHARE, "rollouts cut at rl.max_response_tokens"),
    "rollout/unparsed": Meaning(SHARE, "rollouts in which no answer that counts was found"),
    "rollout/without_reasoning": Meaning(SHARE, "in the right format with fewer than rl.reward.min_think_words words"),
    "rollout/repetition": Meaning(SHARE, "a text's 4-grams of words that came in it before, mean over the rollouts"),
    "rollout/probability_difference_max": Meaning(
        SHARE, "largest difference of a token's probability between vLLM and the actor"
    ),
    "rollout/probability_difference_mean": Meaning(SHARE, "its mean over the tokens"),
    "letters/LETTER_said": Meaning(SHARE, "multiple-choice rollouts that answer this letter"),
    "letters/LETTER_right": Meaning(SHARE, "multiple-choice rollouts whose right answer is this letter"),
    "evaluation/accuracy": Meaning(
        SHARE, "held-out questions answered right, greedily, by the weights behind the step"
    ),
    "evaluation/accuracy_low": Meaning(SHARE, "lower end of its 95 % interval (Wilson)"),
    "evaluation/accuracy_high": Meaning(SHARE, "upper end"),
    "evaluation/questions": Meaning("questions", "that were asked; those that failed count as wrong"),
    "evaluation/failed": Meaning(
        "questions", "of them without an answer, as none came in time or it could not be asked"
    ),
    "evaluation/format": Meaning(SHARE, "in the right format"),
    "evaluation/unparsed": Meaning(SHARE, "without an answer that counts"),
    "evaluation/truncated": Meaning(SHARE, "cut at rl.max_response_tokens"),
    "evaluation/response_tokens": Meaning("tokens", "of an answer, mean"),
    "evaluation/since_best": Meaning("evaluations", "behind the best so far, which rl.early_stop_patience bounds"),
    "response_tokens/mean": Meaning("tokens", "of an answer"),
    "response_tokens/max": Meaning("tokens", "of the longest answer"),
    "prompt_tokens/mean": Meaning("tokens", "of a question with its pictures"),
    "prompt_tokens/max": Meaning("tokens", "of the longest question"),
    "tokens": Meaning("tokens", "questions and answers that were learned from"),
    "tokens/generated": Meaning("tokens", "of all answers, those of dropped groups among them"),
    "tokens/trained": Meaning("tokens", "of the answers that were learned from"),
    "tokens_per_second_per_accelerator": Meaning("tokens/s", "`tokens` by `seconds/step` and by ranks"),
    "actor/entropy": Meaning("nats", "of the next token, mean over the answers' tokens"),
    "actor/policy_loss": Meaning("", "the clipped objective, negative"),
    "actor/kl": Meaning("nats", "to the frozen reference model (k3); only with rl.kl_coefficient > 0"),
    "actor/kl_to_rollout_policy": Meaning("nats", "of the updated actor from the policy that said the answers"),
    "actor/gradient_norm": Meaning("", "before clipping, mean over the step's updates"),
    "actor/clip_fraction": Meaning(SHARE, "tokens whose ratio was clipped"),
    "actor/clip_fraction_dual": Meaning(SHARE, "tokens at the lower bound for negative advantages"),
    "actor/next_learning_rate": Meaning("", "of the next step"),
    "seconds/step": Meaning("s", "the whole step"),
    "seconds/generate": Meaning("s", "of it: from the first question until all groups are done, the stream among it"),
    "seconds/stream": Meaning("s", "of that: waiting for the stream of samples, while nothing else was done"),
    "seconds/old_log_prob": Meaning("s", "of the step: log-probabilities under the actor before the update"),
    "seconds/reference": Meaning("s", "of the step: log-probabilities under the reference model"),
    "seconds/advantage": Meaning("s", "of the step: advantages"),
    "seconds/update": Meaning("s", "of the step: the actor's updates"),
    "seconds/weights_to_vllm": Meaning("s", "of the step: the new weights on their way to vLLM"),
    "seconds/checkpoint": Meaning("s", "of the step: writing a checkpoint, where one was due"),
    "seconds/evaluation": Meaning("s", "beside the step: held-out questions, where an evaluation was due"),
    "data/left_out": Meaning("samples", "that could not be used, since the run began"),
    "data/left_out_share": Meaning(SHARE, "of an epoch's samples of one source, the largest so far"),
    "data/passed_over": Meaning("questions", "not asked again yet, as they are settled (rl.revisit_every)"),
    "checkpoints/copies_failed": Meaning("copies", "to rl.checkpoint_store that were given up, where there is one"),
    "data/SOURCE/epoch": Meaning("epochs", "of this source that are finished"),
    "data/SOURCE/position": Meaning("rows", "of the present epoch that are passed"),
}
# Every number that a step of a supervised stage may have. SOURCE is the samples' own.
OF_A_STAGE = {
    "step": Meaning("", "the last step that is done, 1 = the first"),
    "loss": Meaning("nats", "-log p of a learned token, mean over those of all workers"),
    "loss/SOURCE": Meaning("nats", "the same over the samples of one source, where a step has several"),
    "learning_rate": Meaning("", "of the step"),
    "gradient_norm": Meaning("", "before clipping, of what trains"),
    "tokens": Meaning("tokens", "of the step's samples, those of pictures and prompts among them"),
    "tokens/learned": Meaning("tokens", "of them in the loss"),
    "tokens/padding_share": Meaning(SHARE, "places for tokens that were padding"),
    "tokens_per_second": Meaning("tokens/s", "`tokens` by `seconds/step`, of all workers together"),
    "data/left_out": Meaning("samples", "that could not be used, since the run began"),
    "data/left_out_share": Meaning(SHARE, "of an epoch's samples of one source, the largest so far"),
    "seconds/step": Meaning("s", "the whole step, without a checkpoint"),
    "seconds/data": Meaning("s", "of it: waiting for its samples"),
    "seconds/checkpoint": Meaning("s", "writing the checkpoint of the step before, where one was due"),
}
# Every number that a step of contrastive training may have, beside those of a stage that it shares.
OF_CLIP = {
    "stage": Meaning("1 or 2", "of the recipe"),
    "loss": Meaning("nats", "contrastive, of the whole batch: log(batch) by chance"),
    "similarity_scale": Meaning("", "by which similarities are multiplied, at most 100"),
    "captions/full": Meaning(SHARE, "captions as long as the model's context, which may have been cut"),
    "pairs_per_second": Meaning("pairs/s", "of all workers together, by `seconds/step`"),
}
# Gauges beside these, which do not change with a step or are no number of one.
OF_A_RUN = {
    "last_step_timestamp_seconds": Meaning("Unix s", "when the last step was done; before it, when the run began"),
    "steps_planned": Meaning("steps", "rl.steps"),
    "limit/probability_difference": Meaning(SHARE, "rl.max_probability_difference, where the recipe has one"),
    "limit/left_out_share": Meaning(SHARE, "data.max_bad_fraction"),
}


def entry(name: str) -> str:
    """The name under which the tables above have a metric. Example: "data/quilt/epoch" -> "data/SOURCE/epoch"."""
    name = re.sub("^loss/.+", "loss/SOURCE", name)
    return re.sub("^letters/[^_]+", "letters/LETTER", re.sub("^data/.+/", "data/SOURCE/", name))


def gauge(name: str) -> tuple[str, dict[str, str]]:
    """A metric's name among Ray's, without the `ray_` that Ray puts before it, and its labels beside `run`.

    Example: "data/quilt/epoch" -> ("pathor1_data_epoch", {"source": "quilt"})
    """
    labels = {}
    if found := re.match("^data/(.+)/([^/]+)$", name):
        labels["source"], name = found[1], f"data/{found[2]}"
    elif found := re.match("^loss/(.+)$", name):
        labels["source"], name = found[1], "loss_by_source"
    return "pathor1_" + re.sub(r"[^a-z0-9]", "_", name.lower()), labels  # Ray makes capitals small
