"""A model as judge of open answers: ten scores and right or wrong, each verdict on disk as it comes.

A verdict that is malformed is asked for again, and in the end counted as unscored, never as zero. What the server did
not answer is not stored, so that the next start asks again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pathor1.benchmark import Judge
from pathor1.errors import UserError
from pathor1.evaluation.answers import Answer, Parts
from pathor1.evaluation.endpoint import Client, RefusedError, each
from pathor1.evaluation.intervals import mean, wilson
from pathor1.evaluation.judge_prompts import (
    AGAIN,
    CORRECT_FORM,
    CORRECTNESS,
    CRITERIA,
    PROMPT_VERSION,
    SCORES_FORM,
    SCORING,
    case,
    problem,
)
from pathor1.evaluation.progress import EVERY, Progress
from pathor1.samples import Sample

# Verdicts in a part on disk.
PART = 64
_SHOWN = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judge said of one answer. `problem`: why it is unscored; None = it is scored.

    scores: 1 to 10 for each of `CRITERIA`. correct: 0 or 1. replies: what the judge said last to both questions.
    """

    id: str
    answer: str  # a digest of the answer that was judged
    judge: str
    prompt_version: str
    scores: list[int] | None
    overall: float | None  # the mean of the scores
    correct: int | None
    attempts: int
    problem: str | None
    replies: str


VERDICTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("prompt_version", pa.string(), nullable=False),
        *(pa.field(name, pa.int32()) for name in CRITERIA),
        pa.field("overall", pa.float64()),
        pa.field("correct", pa.int32()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("problem", pa.string()),
        pa.field("replies", pa.string(), nullable=False),
    ]
)


def judge(
    settings: Judge,
    asked: Sequence[tuple[Sample, Answer]],
    folder: Path,
    *,
    name: str,
) -> dict[str, Verdict]:
    """The verdicts on the answers by question's id: those in `folder`-DIGEST, and new ones, which are written there.

    An answer that the server did not give a verdict on is left out. `name` is what progress is told by. Raises RunError
    where the server takes no request at all: a wrong key, model or URL, or no answer.
    """
    told = {"judge": settings.model, "url": settings.url, "prompt_version": PROMPT_VERSION}
    parts = Parts(folder, VERDICTS, {**told, "max_tokens": settings.max_tokens, "attempts": settings.attempts})
    wanted = {(sample.id, digest(answer)): (sample, answer) for sample, answer in asked}
    found = {verdict.id: verdict for verdict in map(_from_row, parts.read()) if (verdict.id, verdict.answer) in wanted}
    waiting = [pair for (id_, _), pair in wanted.items() if id_ not in found]
    if not waiting:
        return found
    client = Client(settings.url, settings.model, settings)
    progress = Progress(name, total=len(waiting), what="verdicts")
    new: list[Verdict] = []
    written = time.monotonic()

    def keep() -> None:
        parts.write([_to_row(verdict) for verdict in new])
        found.update({verdict.id: verdict for verdict in new})
        progress.add(len(new))
        new.clear()

    results = each(waiting, lambda pair: verdict_on(client, settings, *pair), at_once=settings.concurrency)
    with closing(results):
        try:
            for _, verdict in results:
                if isinstance(verdict, Verdict):
                    new.append(verdict)
                if len(new) >= PART or time.monotonic() - written > EVERY:
                    keep()
                    written = time.monotonic()
        except UserError:
            keep()
            raise
    keep()
    return found


def digest(answer: Answer) -> str:
    """Of an answer's text: a verdict is on one answer, and on no other to the same question."""
    return hashlib.sha256(answer.text.encode()).hexdigest()[:16]


def verdict_on(client: Client, settings: Judge, sample: Sample, answer: Answer) -> Verdict:
    """Asks for the scores and for right or wrong. Raises UnansweredError, and RunError as `Client.chat` does."""
    scores = _asked(client, settings, SCORING, case(sample, answer.text), SCORES_FORM)
    correct = _asked(client, settings, CORRECTNESS, case(sample, _final(answer.text)), CORRECT_FORM)
    wrong = scores.problem or correct.problem
    values = [scores.numbers[name] for name in CRITERIA] if wrong is None else None
    return Verdict(
        id=sample.id,
        answer=digest(answer),
        judge=client.model,
        prompt_version=PROMPT_VERSION,
        scores=values,
        overall=None if values is None else sum(values) / len(values),
        correct=None if wrong is not None else correct.numbers["correct"],
        attempts=scores.attempts + correct.attempts,
        problem=wrong,
        replies=json.dumps([scores.reply, correct.reply], ensure_ascii=False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    numbers: dict[str, int]
    problem: str | None
    attempts: int
    reply: str


def _asked(client: Client, settings: Judge, told: str, text: str, form: dict[str, Any]) -> _Asked:
    chat = [{"role": "system", "content": told}, {"role": "user", "content": text}]
    reply, wrong, attempt = "", None, 0
    for attempt in range(1, settings.attempts + 1):
        try:
            made = client.chat(chat, max_tokens=settings.max_tokens, temperature=0.0, schema=form)
        except RefusedError as error:
            return _Asked(numbers={}, problem=f"refused: {error}", attempts=attempt, reply="")
        reply = made.text[:_SHOWN]
        numbers, wrong = problem(made.text, form)
        if wrong is None:
            return _Asked(numbers=numbers, problem=None, attempts=attempt, reply=reply)
        # The same question would be answered in the same way, at temperature 0.
        again = AGAIN.format(problem=wrong)
        chat = [*chat[:2], {"role": "assistant", "content": reply}, {"role": "user", "content": again}]
    return _Asked(numbers={}, problem=f"malformed: {wrong}", attempts=attempt, reply=reply)


def _final(text: str) -> str:
    """The answer without the reasoning, where the response has both; else all of it."""
    start, end = text.rfind("<answer>"), text.rfind("</answer>")
    if 0 <= start < end:
        return text[start + len("<answer>") : end].strip()
    return text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text


def _to_row(verdict: Verdict) -> dict[str, Any]:
    row = asdict(verdict)
    scores = row.pop("scores") or [None] * len(CRITERIA)
    return {**row, **dict(zip(CRITERIA, scores, strict=True))}


def _from_row(row: Mapping[str, Any]) -> Verdict:
    rest = {key: value for key, value in row.items() if key not in CRITERIA}
    scores = None if rest["problem"] is not None else [row[name] for name in CRITERIA]
    return Verdict(scores=scores, **rest)


def judged(verdicts: Sequence[Verdict], asked: int) -> dict[str, dict[str, Any]]:
    """What a judge's verdicts on `asked` answers come to: {measure: value, interval and n}.

    judged_accuracy: the share that is right, of those that were scored; overall_score and each criterion: the mean of
    those, 1 to 10; unscored: the share, of all, that has no verdict.
    """
    scored = [verdict for verdict in verdicts if verdict.problem is None]
    found: dict[str, dict[str, Any]] = {"unscored": asdict(wilson(asked - len(scored), asked))}
    if scored:
        found["judged_accuracy"] = asdict(wilson(sum(one.correct or 0 for one in scored), len(scored)))
        found["overall_score"] = asdict(mean([one.overall or 0.0 for one in scored]))
        for place, name in enumerate(CRITERIA):
            found[name] = asdict(mean([(one.scores or [])[place] for one in scored]))
    return found
