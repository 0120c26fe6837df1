"""Evaluation within a run: which held-out questions, when, what came out, and whether the run ends by it.

Who asks, and waits, is `pathor1.rl.evaluations`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pathor1.checkpoints import Evaluated
from pathor1.data.row_groups import expand
from pathor1.errors import DataError
from pathor1.evaluation.intervals import wilson
from pathor1.evaluation.questions import Listing, listing, sampled
from pathor1.recipe import Recipe
from pathor1.rl.ledger import LedgerRow

# So many questions that failed stand in the log, with their reasons; the record has all.
TOLD = 3


def questions(recipe: Recipe, done: Sequence[Evaluated] = ()) -> Listing:
    """Those of `data.test` that evaluations ask, without their pictures: all, or a sample that the seed fixes.

    Raises DataError for files, and samples in them, that cannot be used, and where they are others than those of the
    evaluations that the run has made already.
    """
    found = sampled(
        listing(expand(recipe.data.test), tasks=recipe.data.tasks), recipe.rl.evaluate_samples, seed=recipe.seed
    )
    if done and done[-1].questions != found.digest:
        raise DataError(
            f"the held-out questions are others than at the evaluation of step {done[-1].step}, with which the run "
            "compares the next: set data.test and rl.evaluate_samples as they were, or start a new run with the "
            "checkpoint's huggingface folder as model.path"
        )
    return found


def is_owed(step: int, recipe: Recipe, done: Sequence[Evaluated]) -> bool:
    """Whether the weights behind a step are to be evaluated and have not been: every so many steps, and the last."""
    every = recipe.rl.evaluate_every
    due = every > 0 and step > 0 and (step % every == 0 or step >= recipe.rl.steps)
    return due and all(each.step != step for each in done)


def since_best(done: Sequence[Evaluated]) -> int:
    """How many evaluations came behind the best, the first of equals; 0 where there are none."""
    accuracies = [each.accuracy for each in done]
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0


def ends_early(done: Sequence[Evaluated], patience: int | None) -> bool:
    """Whether `patience` evaluations, one after the other, were no better than the best before them; None = never."""
    return patience is not None and since_best(done) >= patience


def metrics(rows: Sequence[LedgerRow]) -> dict[str, float]:
    """What an evaluation says in numbers. A question that failed counts as wrong, and in none of the right format."""
    n = len(rows)
    share = wilson(sum(row.accuracy for row in rows), n)
    answered = [row.response_tokens for row in rows if row.dropped is None]
    return {
        "evaluation/accuracy": share.value,
        "evaluation/accuracy_low": share.low,
        "evaluation/accuracy_high": share.high,
        "evaluation/questions": float(n),
        "evaluation/failed": float(n - len(answered)),
        "evaluation/format": sum(row.format for row in rows) / n,
        "evaluation/unparsed": sum(row.parsed is None for row in rows) / n,
        "evaluation/truncated": sum(row.truncated for row in rows) / n,
        "evaluation/response_tokens": sum(answered) / max(1, len(answered)),
    }


def told(rows: Sequence[LedgerRow], step: int) -> str:
    """An evaluation in words, and the first of its questions that failed."""
    found = metrics(rows)
    low, high = found["evaluation/accuracy_low"], found["evaluation/accuracy_high"]
    failed = [row for row in rows if row.dropped is not None]
    lines = [
        f"step {step}: {found['evaluation/accuracy']:.1%} of {len(rows)} held-out questions right "
        f"({low:.1%} to {high:.1%}), format {found['evaluation/format']:.1%}"
        + (f"; {len(failed)} without an answer, which counts as wrong" if failed else "")
    ]
    lines += [f"no answer: sample {row.id}: {row.reason}" for row in failed[:TOLD]]
    return "\n".join(lines)
