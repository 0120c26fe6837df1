"""Conversations of LLaMA-Factory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from formats import png

from pathor1.data.formats import load
from pathor1.data.formats.record import Record
from pathor1.errors import DataError
from pathor1.samples import Sample, Turn


def records(source: Path) -> list[Record]:
    return list(load("llama-factory").records(source))


def talk(*said: str, images: Any = None, **values: Any) -> dict[str, Any]:
    """User and assistant in turn."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(said)]
    return {"messages": messages, **({} if images is None else {"images": images}), **values}


def write(path: Path, items: list[Any]) -> Path:
    path.write_text(json.dumps(items) if path.suffix == ".json" else "\n".join(map(json.dumps, items)))
    (path.parent / "pictures").mkdir()
    for name in ("a", "b"):
        (path.parent / f"pictures/{name}.png").write_bytes(png(ord(name)))
    return path


def expected(place: int, *turns: tuple[str, str], meta: dict[str, Any] | None = None) -> Sample:
    return Sample(
        id=f"talks/train/{place}",
        source="talks",
        task="conversation",
        question="",
        answer="",
        turns=tuple(Turn(role=role, text=text) for role, text in turns),
        split="train",
        meta=meta,
    )


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_conversations_of_both_forms(tmp_path: Path, suffix: str) -> None:
    a, b = "pictures/a.png", "pictures/b.png"
    sharegpt = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nWhat is it?\nSay why."},
        {"from": "gpt", "value": "A naevus."},
    ]
    path = write(
        tmp_path / f"talks{suffix}",
        [
            talk("<image><image>Compare them.", "Same.", "And <image> here?", "No.", images=[a, b, a], id="x7"),
            {"conversations": sharegpt, "images": [b]},
            talk("Hello.", "Hi.", system="You are kind."),
            talk("What about <image>\n<image>\n?", "Both.", images=[a, b], system="", videos=[]),
            talk("<image>", "A gland.", images=[a]),
        ],
    )
    found = records(path)
    assert [one.where for one in found] == [f"talks{suffix}, {place}" for place in range(5)]
    assert [one.sample for one in found] == [
        expected(
            0,
            ("user", "Compare them."),
            ("assistant", "Same."),
            ("user", "And here?"),
            ("assistant", "No."),
            meta={"id": "x7", "images": [a, b, a], "image_turns": [0, 0, 2]},
        ),
        expected(
            1,
            ("system", "Be brief."),
            ("user", "What is it?\nSay why."),
            ("assistant", "A naevus."),
            meta={"images": [b], "image_turns": [1]},
        ),
        expected(2, ("system", "You are kind."), ("user", "Hello."), ("assistant", "Hi.")),
        expected(3, ("user", "What about \n?"), ("assistant", "Both."), meta={"images": [a, b], "image_turns": [0, 0]}),
        expected(4, ("user", ""), ("assistant", "A gland."), meta={"images": [a], "image_turns": [0]}),
    ]
    paths = {"a": tmp_path / a, "b": tmp_path / b}
    assert [one.pictures for one in found] == [
        tuple(paths[name] for name in key) for key in ("aba", "b", "", "ab", "a")
    ]
    assert all(one.sample and one.sample.problem() is None for one in found)


def test_bad_items_are_named(tmp_path: Path) -> None:
    a = "pictures/a.png"
    path = write(
        tmp_path / "talks.jsonl",
        [
            talk("<image>What?", "It.", images=[a, a]),
            talk("<image>What?", "It."),
            talk("<image>What?", "It.", images=["pictures/gone.png"]),
            talk("<image>What?", "It.", images=[f"/{a}"]),
            talk("<image>What?", "It.", images=["data:image/png;base64," + "A" * 300]),
            talk("<image>What?", "It.", images=a),
            talk("<video>What?", "It.", videos=["x.mp4"]),
            {"instruction": "What?", "output": "It."},
            {"messages": [{"role": "user"}]},
            {"messages": ["What?"]},
            {"messages": "What?"},
            {"conversations": [{"from": "human", "value": [{"type": "text"}]}]},
            7,
        ],
    )
    found = records(path)
    assert [(one.where, one.problem) for one in found] == [
        (f"talks.jsonl, {place}", problem)
        for place, problem in enumerate(
            (
                "1 <image> marks and 2 images, where each image needs its mark",
                "1 <image> marks and 0 images, where each image needs its mark",
                f"picture pictures/gone.png: not in {tmp_path}",
                f"picture /{a}: its name leads out of {tmp_path}",
                f"picture data:image/png;base64,{'A' * 58}: longer than the name of a file",
                "images is of type str, where a list is needed",
                "has videos; only pictures can be used",
                "no field messages or conversations; it has instruction, output",
                "no field content; it has role",
                "of type str, where a table of fields is needed",
                "messages is of type str, where a list is needed",
                "value is [{'type': 'text'}], where a text is needed",
                "of type int, where a table of fields is needed",
            )
        )
    ]


def test_what_the_sample_refuses(tmp_path: Path) -> None:
    call = {"conversations": [{"from": "function_call", "value": "f()"}, {"from": "gpt", "value": "It."}]}
    path = write(tmp_path / "talks.json", [call, {"messages": []}, talk("What?")])
    assert [one.sample.problem() for one in records(path) if one.sample] == [
        "a turn's role 'function_call' is none of system, user, assistant",
        "a conversation without turns",
        "a conversation in which the assistant says nothing",
    ]


def test_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    for source in (tmp_path, tmp_path / "gone.json", tmp_path / "x.csv"):
        with pytest.raises(DataError) as error:
            records(source)
        assert str(error.value) == (
            f"{source}: no .json or .jsonl file; give the file of LLaMA-Factory's items, images beside it"
        )
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"item": talk("What?", "It.")}))
    with pytest.raises(DataError) as error:
        records(path)
    assert str(error.value) == f"{path}: no JSON list; LLaMA-Factory's has items of messages and images"
    (tmp_path / "x.jsonl").write_text('{}\n{"messages"')
    with pytest.raises(DataError, match="x.jsonl, line 2: not JSON: "):
        records(tmp_path / "x.jsonl")
