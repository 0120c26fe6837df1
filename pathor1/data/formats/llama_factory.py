"""LLaMA-Factory's conversations: one .json (a list) or .jsonl file, pictures named from its folder on.

{messages: [{role: system | user | assistant, content}], images: [path]}, or sharegpt's form {conversations: [{from:
system | human | gpt, value}], images}; either may have the system's text in a field `system`. Each picture has a mark
"<image>" in a turn, which is taken out; meta's image_turns keeps the turn of each. An item with videos or audio, or
with as many marks as not pictures, is left out. The file's stem is the set's name, and all is in the split "train".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pathor1.data.formats.record import Built, Format, Record, entries, field, file_in, json_lines, record, text
from pathor1.data.formats.values import MARK, check_marks, json_list, known, list_of, name_of, without_marks
from pathor1.errors import DataError
from pathor1.samples import Sample, Turn

LAYOUT = "LLaMA-Factory's has items of messages and images"
# sharegpt's names; other names stay, and are the sample's problem.
ROLES = {"human": "user", "gpt": "assistant"}


def records(source: Path) -> Iterator[Record]:
    """The items in the order of the file."""
    if not source.is_file() or source.suffix not in (".json", ".jsonl"):
        raise DataError(f"{source}: no .json or .jsonl file; give the file of LLaMA-Factory's items, images beside it")
    items = json_list(source, LAYOUT) if source.suffix == ".json" else json_lines(source)
    for place, item in enumerate(items):
        yield record(f"{source.name}, {place}", partial(_build, item, place, source))


def _build(item: Any, place: int, source: Path) -> Built:
    for other in ("videos", "audios"):
        if entries(item).get(other):
            raise DataError(f"has {other}; only pictures can be used")
    turns = _turns(item)
    names = [name_of(name, "images") for name in list_of(item, "images")] if item.get("images") is not None else []
    image_turns = [number for number, turn in enumerate(turns) for _ in range(turn.text.count(MARK))]
    check_marks(len(image_turns), len(names))
    sample = Sample(
        id=f"{source.stem}/train/{place}",
        source=source.stem,
        task="conversation",
        question="",
        answer="",
        turns=tuple(Turn(role=turn.role, text=without_marks(turn.text)) for turn in turns),
        split="train",
        meta={**known(item, "id"), "images": names, "image_turns": image_turns} if names else known(item, "id") or None,
    )
    return sample, tuple(file_in(source.parent, name) for name in names)


def _turns(item: Mapping[str, Any]) -> list[Turn]:
    """The turns with their marks."""
    field(item, "messages", "conversations")
    name, keys = ("messages", ("role", "content"))
    if item.get(name) is None:
        name, keys = ("conversations", ("from", "value"))
    turns = [] if item.get("system") in (None, "") else [Turn(role="system", text=text(item, "system"))]
    for turn in list_of(item, name):
        role, said = text(entries(turn), keys[0]), text(turn, keys[1])
        turns.append(Turn(role=ROLES.get(role, role), text=said))
    return turns


FORMAT = Format(source="a .json or .jsonl file, with its images beside it", records=records)
