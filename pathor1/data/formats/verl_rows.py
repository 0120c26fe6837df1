"""verl's rows for reinforcement learning: a Parquet file, or a folder of them.

Columns: data_source, prompt: [{role, content}], images: [{bytes, path} or bytes], ability, reward_model: {style,
ground_truth}, extra_info: {split, index, answer, question}. The question is what the prompt's user says, or where
extra_info has one, that: a prompt adds instructions. Marks "<image>", one a picture, are taken out. Options are lines
"A. ...", "A) ..." or "(A) ..." from A on: with them and a letter as ground_truth it is multiple choice; "yes" or "no"
makes a yes/no question, anything else an open one. extra_info's index may repeat, so that rows are numbered by file.
Where extra_info has no split, the file's name tells it, else it is "train".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, field, picture_of_hub, record, text
from pathor1.data.formats.values import MARK, check_marks, known, list_of, rows_with, split_of, without_marks, yes_or_no
from pathor1.errors import DataError
from pathor1.samples import LETTERS, Sample, Task

COLUMNS = ("data_source", "prompt", "reward_model")
_OPTION = re.compile(r"[ \t]*(?:\(([A-Z])\)|([A-Z])[.)])[ \t]*(\S.*)")

# "test.parquet", "geo3k_train-00000-of-00002.parquet".
_SPLIT = re.compile(r"(?<![^\W_])(train|val|validation|test)(?![^\W_])")


def records(source: Path) -> Iterator[Record]:
    """The rows of the file, or of all files of the folder."""
    paths = [source] if source.is_file() else sorted(source.glob("*.parquet"))
    if not paths:
        raise DataError(f"{source}: no such file, and no folder of *.parquet; give a Parquet file of verl's rows")
    for path in paths:
        for place, row in enumerate(rows_with(path, COLUMNS, f"verl's rows have {', '.join(COLUMNS)}")):
            yield record(f"{path.name}, {place}", partial(_build, row, place, path))


def _build(row: Mapping[str, Any], place: int, path: Path) -> Built:
    name, extra = text(row, "data_source"), entries(row.get("extra_info") or {})
    reward = entries(field(row, "reward_model"))
    prompt, system = _prompt(row)
    images = list_of(row, "images") if row.get("images") is not None else []
    check_marks(prompt.count(MARK), len(images))
    asked = without_marks(text(extra, "question") if extra.get("question") else prompt)
    options = split_options(without_marks(prompt))[1]
    task, answer = _answer(text(reward, "ground_truth"), options)
    meta = {**known(row, "ability"), **known(reward, "style"), **known(extra, "index", "answer")}
    if system:
        meta["system"] = system
    sample = Sample(
        id=f"{name}/{path.stem}/{place}",
        source=name,
        task=task,
        question=split_options(asked)[0] if task == "mcq" else asked,
        options=options if task == "mcq" else None,
        answer=answer,
        split=split_of(text(extra, "split")) if extra.get("split") else _split_of_file(path),
        meta=meta or None,
    )
    return sample, tuple(map(picture_of_hub, images))


def _split_of_file(path: Path) -> str:
    found = _SPLIT.search(path.stem)
    return split_of(found.group()) if found else "train"


def _prompt(row: Mapping[str, Any]) -> tuple[str, str]:
    """What the user says, and what the system is told. Raises DataError where the assistant speaks as well."""
    said: dict[str, list[str]] = {"user": [], "system": []}
    for turn in list_of(row, "prompt"):
        role = text(entries(turn), "role")
        if role not in said:
            raise DataError(f"prompt has a turn of {role!r}; only a single question can be used")
        said[role].append(text(turn, "content"))
    return "\n".join(said["user"]), "\n".join(said["system"])


def split_options(asked: str) -> tuple[str, tuple[str, ...]]:
    """The text without its last run of lines "A. ...", "B. ..." (two or more, blank lines among them), and the run."""
    lines = asked.splitlines()
    best: list[tuple[int, str]] = []
    run: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        found = _OPTION.match(line)
        letter = (found.group(1) or found.group(2)) if found else None
        if found and letter == ascii_uppercase[len(run) % 26]:
            run.append((number, found.group(3).strip()))
        elif found and letter == "A":
            run = [(number, found.group(3).strip())]
        elif line.strip():
            run = []
        if len(run) >= 2:
            best = list(run)
    if not best:
        return asked.strip(), ()
    rest = lines[: best[0][0]] + lines[best[-1][0] + 1 :]
    return "\n".join(rest).strip(), tuple(option for _, option in best)


def _answer(truth: str, options: tuple[str, ...]) -> tuple[Task, str]:
    if options and truth in tuple(LETTERS):
        return "mcq", truth
    yes_no = yes_or_no(truth)
    return ("yes_no", yes_no) if yes_no else ("open", truth)


FORMAT = Format(source="a Parquet file of verl's rows, or a folder of them", records=records)
