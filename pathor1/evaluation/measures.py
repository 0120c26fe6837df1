"""From answers to numbers: what each question is worth in each measure, and shares of them with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from pathor1.evaluation.answers import Answer
from pathor1.evaluation.intervals import difference, pass_at_k, wilson
from pathor1.evaluation.parsing import lenient, strict
from pathor1.evaluation.questions import ask, chance, value
from pathor1.samples import LETTERS, Sample
from rewards import format_reward

# measure -> question's id -> what the question is worth in it, 0 to 1
Worth = dict[str, dict[str, float]]
# how it was asked -> question's id -> its answers
ByKind = Mapping[str, Mapping[str, Sequence[Answer]]]

ALL = "overall"


def worth(samples: Sequence[Sample], answers: ByKind, *, seed: int) -> Worth:
    """What every answered question is worth in every measure that its answers allow; open ones have the formal ones.

    accuracy: the reward's rule. accuracy_lenient: what a person would read. unparsed, unparsed_lenient: no answer could
    be read. truncated: cut at the longest answer. refused: a server did not answer. accuracy_CHECK: under one of the
    recipe's checks. same_answer: the same option is chosen when they stand in another order. accuracy_sampled: the mean
    of the sampled answers. majority: what most of them chose. pass@k: one of k is right.
    """
    found: Worth = defaultdict(dict)
    for sample in samples:
        for kind, by_id in answers.items():
            if said := by_id.get(sample.id):
                for measure, number in _MEASURES[kind](_as_asked(sample, kind, seed), said).items():
                    found[measure][sample.id] = number
        _same_answer(sample, answers, seed, found)
    return dict(found)


def _as_asked(sample: Sample, kind: str, seed: int) -> Sample:
    """With its options in the order in which they were shown."""
    return ask(kind, [sample], seed=seed)[0] if kind == "shuffled_options" else sample


def _greedy(sample: Sample, said: Sequence[Answer]) -> dict[str, float]:
    (answer,) = said
    formal = {
        "format": format_reward(answer.text),
        "truncated": float(answer.finish == "length"),
        "refused": float(answer.finish.startswith("refused")),
    }
    if sample.task == "open":
        return formal
    read, kindly = strict(answer.text, sample), lenient(answer.text, sample)
    return {
        "accuracy": float(read == sample.answer),
        "accuracy_lenient": float(kindly == sample.answer),
        "unparsed": float(read is None),
        "unparsed_lenient": float(kindly is None),
        **formal,
    }


def _sampled(sample: Sample, said: Sequence[Answer]) -> dict[str, float]:
    read = [strict(answer.text, sample) for answer in said]
    n, right = len(read), sum(one == sample.answer for one in read)
    found = {"accuracy_sampled": right / n}
    if n > 1:
        found[f"majority@{n}"] = float(majority(read) == sample.answer)
        found |= {f"pass@{k}": pass_at_k(n, right, k) for k in _powers(n) if k > 1}
    return found


def majority(read: Sequence[str | None]) -> str | None:
    """The answer that most say, the first said of those that as many say; None where none could be read."""
    counts = Counter(one for one in read if one is not None)
    return counts.most_common(1)[0][0] if counts else None  # of equal counts the first met


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... below n, and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


def _checked(measure: str) -> Callable[[Sample, Sequence[Answer]], dict[str, float]]:
    def of(sample: Sample, said: Sequence[Answer]) -> dict[str, float]:
        return {measure: float(strict(said[0].text, sample) == sample.answer)} if sample.task != "open" else {}

    return of


_MEASURES: dict[str, Callable[[Sample, Sequence[Answer]], dict[str, float]]] = {
    "greedy": _greedy,
    "sampled": _sampled,
    "removed_pictures": _checked("accuracy_removed_pictures"),
    "shuffled_pictures": _checked("accuracy_shuffled_pictures"),
    "shuffled_options": _checked("accuracy_shuffled_options"),
}


def _same_answer(sample: Sample, answers: ByKind, seed: int, found: Worth) -> None:
    """Whether the option that is chosen is the same in both orders; no answer is no consistent one."""
    first = answers.get("greedy", {}).get(sample.id)
    second = answers.get("shuffled_options", {}).get(sample.id)
    if not first or not second:
        return
    texts = [_chosen(first[0], sample), _chosen(second[0], _as_asked(sample, "shuffled_options", seed))]
    found["same_answer"][sample.id] = float(texts[0] is not None and texts[0] == texts[1])


def _chosen(answer: Answer, sample: Sample) -> str | None:
    letter = lenient(answer.text, sample)
    return None if letter is None else (sample.options or ())[LETTERS.index(letter)]


def shares(found: Worth, samples: Sequence[Sample], column: str | None) -> dict[str, dict[str, Any]]:
    """{measure: {value of the column: share}} with Wilson's intervals; without a column, of `ALL` questions."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[ALL if column is None else value(sample, column)].append(sample)
    made: dict[str, dict[str, Any]] = {}
    for measure, by_id in found.items():
        for name, members in groups.items():
            numbers = [by_id[sample.id] for sample in members if sample.id in by_id]
            if numbers:
                made.setdefault(measure, {})[name] = asdict(wilson(min(sum(numbers), len(numbers)), len(numbers)))
    return made


def chances(samples: Sequence[Sample], column: str | None) -> dict[str, float]:
    """How often guessing is right among the closed questions, by value of the column."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if sample.task != "open":
            groups[ALL if column is None else value(sample, column)].append(chance(sample))
    return {name: sum(numbers) / len(numbers) for name, numbers in groups.items()}


def pairs(right: Mapping[str, Mapping[str, float]], samples: Sequence[Sample], column: str) -> list[dict[str, Any]]:
    """Each two models on the questions that both have answered: the later one against the earlier one.

    right: model -> question's id -> 0 or 1. Of all questions, and by value of the column.
    """
    found: list[dict[str, Any]] = []
    for before, after in combinations(right, 2):
        groups: dict[str, list[str]] = {ALL: []}
        for sample in samples:
            if sample.id in right[before] and sample.id in right[after]:
                groups[ALL].append(sample.id)
                groups.setdefault(value(sample, column), []).append(sample.id)
        for name, ids in groups.items():
            if not ids:
                continue
            told = difference([right[after][id_] for id_ in ids], [right[before][id_] for id_ in ids])
            row = {"model": after, "against": before, "on": name}
            found.append({**row, **asdict(told), "significant": told.significant})
    return found
