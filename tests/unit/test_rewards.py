"""The rewards by table, by property, and on texts of a megabyte."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import (
    LETTERS,
    Answer,
    accuracy_reward,
    format_problem,
    format_reward,
    overlong_penalty,
    read_answer,
    read_letter,
    read_yes_no,
    yes_no_reward,
)

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
RIGHT = "<think>keratin pearls</think><answer>B</answer>"

# Everything a model may say, lone surrogates too, with tags and pieces of tags more often than by chance.
any_text = st.lists(
    st.one_of(
        st.sampled_from(
            [*TAGS, "<", ">", "</", "<Think>", "<answer", "A", "B", "yes", " ", "\n", "<answer>A</answer>"]
        ),
        st.text(st.characters(exclude_categories=())),
    )
).map("".join)
plain = st.text(st.characters(exclude_characters="<"))
blank = st.text(" \n\t\r")


@st.composite
def well_formed(draw: st.DrawFn, answer: st.SearchStrategy[str] = plain) -> str:
    before, between, after = draw(blank), draw(blank), draw(blank)
    return f"{before}<think>{draw(plain)}</think>{between}<answer>{draw(answer)}</answer>{after}"


@pytest.mark.parametrize(
    "text",
    [
        RIGHT,
        "<think></think><answer></answer>",
        " \n<think>a\nb</think>\n\n<answer>\nB\n</answer>\n",
        "<think>a < b > c </thinking> <Answer></think><answer>B</answer>",
        "<think>\u0000\ud800 病理</think><answer>any text</answer>",
    ],
)
def test_format_is_right(text: str) -> None:
    assert format_problem(text) is None
    assert format_reward(text) == 1.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no <think>"),
        ("B", "no <think>"),
        ("<answer>B</answer>", "no <think>"),
        ("<think>a</think>", "no <answer>"),
        ("<think>a</think><answer>B", "no </answer>"),
        ("<think>a<answer>B</answer>", "no </think>"),
        ("<Think>a</Think><answer>B</answer>", "no <think>"),
        ("<think >a</think><answer>B</answer>", "no <think>"),
        ("<think>a</think><ANSWER>B</ANSWER>", "no <answer>"),
        ("<think><think>a</think><answer>B</answer>", "<think> stands 2 times, it may stand once"),
        (RIGHT + RIGHT, "<think> stands 2 times, it may stand once"),
        (RIGHT + "<answer>B</answer>", "<answer> stands 2 times, it may stand once"),
        (RIGHT + "</answer>", "</answer> stands 2 times, it may stand once"),
        (
            "<answer>B</answer><think>a</think>",
            "the tags stand in the order <answer> </answer> <think> </think>",
        ),
        (
            "<think>a<answer>B</answer></think>",
            "the tags stand in the order <think> <answer> </answer> </think>",
        ),
        (
            "<think>a<answer></think>B</answer>",
            "the tags stand in the order <think> <answer> </think> </answer>",
        ),
        ("Sure. " + RIGHT, "text outside the tags: 'Sure.'"),
        ("<think>a</think>so<answer>B</answer>", "text outside the tags: 'so'"),
        (RIGHT + "\n<|im_end|>", "text outside the tags: '<|im_end|>'"),
        (RIGHT + "\x1b[31m" + "x" * 99, "text outside the tags: '\\x1b[31m" + "x" * 35 + "…'"),
        (RIGHT + "\u200b", "text outside the tags: '\\u200b'"),
    ],
)
def test_format_is_wrong(text: str, problem: str) -> None:
    assert format_problem(text) == problem
    assert format_reward(text) == 0.0


@pytest.mark.parametrize(
    ("text", "content", "reason"),
    [
        ("<answer> B </answer>", "B", None),
        ("no tags but <answer>melanoma in situ</answer> here", "melanoma in situ", None),
        ("B", None, "no <answer> block"),
        ("<Answer>B</Answer>", None, "no <answer> block"),
        ("<answer>B", None, "<answer> is never closed"),
        ("B</answer>", None, "</answer> without <answer> before it"),
        ("</answer>B<answer>", None, "</answer> without <answer> before it"),
        ("<answer>A</answer><answer>A</answer>", None, "2 answer blocks, one may stand"),
        ("<answer><answer>A</answer></answer>", None, "2 answer blocks, one may stand"),
        ("<answer>A</answer></answer></answer>", None, "3 answer blocks, one may stand"),
        ("<answer> \n </answer>", None, "the <answer> block is empty"),
    ],
)
def test_read_answer(text: str, content: str | None, reason: str | None) -> None:
    assert read_answer(text) == Answer(content, reason)


@pytest.mark.parametrize("letter", LETTERS)
def test_accuracy_of_each_letter(letter: str) -> None:
    for answer in LETTERS:
        assert accuracy_reward(f"<answer>\n {letter}\t</answer>", answer) == (1.0 if letter == answer else 0.0)


@pytest.mark.parametrize(
    "content",
    [
        "A.",
        "(A)",
        "A)",
        "A or B",
        "A B",
        "AB",
        "AA",
        "a",
        "",
        " ",
        "G",
        "A. Adenocarcinoma",
        "Α",
        "Ａ",
        "**A**",
        "\ud800",
    ],
)
def test_only_a_single_letter_is_an_answer(content: str) -> None:
    text = f"<think>x</think><answer>{content}</answer>"
    assert read_letter(text).content is None
    assert read_letter(text).reason
    assert [accuracy_reward(text, answer) for answer in (*LETTERS, content, content.strip())] == [0.0] * 8


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<answer>A.</answer>", "answer 'A.' is not a single letter A-F"),
        ("<answer>A\nB</answer>", r"answer 'A\nB' is not a single letter A-F"),
        (f"<answer>{'x' * 50}</answer>", f"answer '{'x' * 40}…' is not a single letter A-F"),
        ("<answer>A</answer><answer>A</answer>", "2 answer blocks, one may stand"),
    ],
)
def test_why_there_is_no_letter(text: str, reason: str) -> None:
    assert read_letter(text) == Answer(None, reason)


def test_accuracy_asks_for_one_block_and_not_for_the_format() -> None:
    assert accuracy_reward("I think <answer>C</answer>", "C") == 1.0
    assert accuracy_reward("<answer>C</answer><answer>C</answer>", "C") == 0.0
    assert accuracy_reward("<think>I will write <answer>.</think><answer>C</answer>", "C") == 0.0


@pytest.mark.parametrize(
    ("content", "answer", "reward"),
    [
        ("yes", "yes", 1.0),
        ("no", "no", 1.0),
        (" Yes\n", "yes", 1.0),
        ("NO", "no", 1.0),
        ("yes", "Yes", 1.0),
        ("no", "yes", 0.0),
        ("yes", "no", 0.0),
        ("yes.", "yes", 0.0),
        ("yes, because", "yes", 0.0),
        ("yes or no", "yes", 0.0),
        ("y", "yes", 0.0),
        ("", "yes", 0.0),
        ("", "", 0.0),
        ("maybe", "maybe", 0.0),
        ("yeſ", "yes", 0.0),
        ("A", "A", 0.0),
    ],
)
def test_yes_no(content: str, answer: str, reward: float) -> None:
    assert yes_no_reward(f"<think>x</think><answer>{content}</answer>", answer) == reward


def test_yes_no_reads_one_block() -> None:
    assert read_yes_no("<answer>Yes</answer>") == Answer("yes", None)
    assert read_yes_no("<answer>Yes.</answer>") == Answer(None, "answer 'Yes.' is not yes or no")
    assert read_yes_no("<answer>yes</answer><answer>yes</answer>") == Answer(None, "2 answer blocks, one may stand")


@pytest.mark.parametrize(
    ("length", "penalty"),
    [
        (0, 0.0),
        (16383, 0.0),
        (16384, 0.0),
        (17408, -0.25),
        (18432, -0.5),
        (20479, -4095 / 4096),
        (20480, -1.0),
        (99999, -1.0),
    ],
)
def test_overlong_penalty(length: int, penalty: float) -> None:
    assert overlong_penalty(length, 20480, 4096) == penalty


def test_no_penalty_is_zero_without_a_sign() -> None:
    assert str(overlong_penalty(16384, 20480, 4096)) == "0.0"


@pytest.mark.parametrize(
    ("length", "max_length", "cache_length", "message"),
    [
        (-1, 100, 10, "length is -1"),
        (5, 100, 0, "cache_length is 0"),
        (5, 100, -10, "cache_length is -10"),
        (5, 100, 100, "below max_length, 100"),
        (5, 100, 101, "below max_length, 100"),
        (5, 0, 10, "below max_length, 0"),
    ],
)
def test_overlong_penalty_refuses(length: int, max_length: int, cache_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        overlong_penalty(length, max_length, cache_length)


@given(st.integers(2, 10**6).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m - 1))), st.integers(0, 2 * 10**6))
def test_overlong_penalty_follows_the_equation(limits: tuple[int, int], length: int) -> None:
    max_length, cache = limits
    penalty = overlong_penalty(length, max_length, cache)
    if length <= max_length - cache:
        assert penalty == 0.0
    elif length <= max_length:
        assert penalty == pytest.approx(((max_length - cache) - length) / cache)
        assert -1.0 <= penalty < 0.0
    else:
        assert penalty == -1.0
    assert overlong_penalty(length + 1, max_length, cache) <= penalty


@given(well_formed())
def test_well_formed_text_has_the_format(text: str) -> None:
    assert format_reward(text) == 1.0


@given(well_formed(), st.sampled_from(TAGS), st.data())
def test_one_more_tag_breaks_the_format(text: str, tag: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + tag + text[at:]
    # A tag put into a tag takes the outer one away and leaves the counts as they were; that is no added tag.
    if sum(changed.count(each) for each in TAGS) == 5:
        assert format_reward(changed) == 0.0


@given(well_formed(), st.sampled_from(TAGS))
def test_one_tag_less_breaks_the_format(text: str, tag: str) -> None:
    assert format_reward(text.replace(tag, "")) == 0.0
    assert format_reward(text.replace(tag, tag.upper())) == 0.0


@given(well_formed(), st.text(st.characters(exclude_characters="<>")).filter(str.strip), st.sampled_from([0, 1, 2]))
def test_words_outside_break_the_format(text: str, words: str, place: int) -> None:
    start, middle, end = 0, text.index("<answer>"), len(text)
    at = (start, middle, end)[place]
    assert format_reward(text[:at] + words + text[at:]) == 0.0


@given(well_formed(st.sampled_from(LETTERS)), st.sampled_from(LETTERS))
def test_accuracy_is_equality_of_letters(text: str, answer: str) -> None:
    said = text[text.index("<answer>") + len("<answer>")]
    assert accuracy_reward(text, answer) == float(said == answer)
    assert sum(accuracy_reward(text, each) for each in LETTERS) == 1.0


@given(any_text, st.one_of(st.sampled_from([*LETTERS, "yes", "no", ""]), st.text()))
def test_any_text_has_a_reward(text: str, answer: str) -> None:
    assert format_reward(text) == (1.0 if format_problem(text) is None else 0.0)
    assert accuracy_reward(text, answer) in (0.0, 1.0)
    assert yes_no_reward(text, answer) in (0.0, 1.0)
    one_block = text.count("<answer>") == text.count("</answer>") == 1
    if accuracy_reward(text, answer) or yes_no_reward(text, answer):
        assert one_block
    for found in (read_answer(text), read_letter(text), read_yes_no(text)):
        assert (found.content is None) == (found.reason is not None)
        assert found.content is None or one_block
    for words in (format_problem(text), read_letter(text).reason, read_yes_no(text).reason):
        assert words is None or (words and "\n" not in words and len(words.encode()) < 1000)


@pytest.mark.parametrize(
    "piece",
    [
        *TAGS,
        "<think></think>",
        "<answer>A</answer>",
        "<",
        "</",
        "<thin",
        "</answer",
        "<<<<<<<think>",
        " ",
        "x",
        "<answer>A",
        "\ud800",
    ],
)
def test_a_megabyte_of_anything(piece: str) -> None:
    """Quadratic work on a megabyte would be minutes a piece: it would show as a test that does not end."""
    text = piece * (1_000_000 // len(piece))
    inside = f"<think>{text}</think><answer>A</answer>"
    assert format_reward(text) == 0.0
    assert accuracy_reward(text, "A") == 0.0
    assert yes_no_reward(text, "yes") == 0.0
    has_tags = any(tag in text for tag in TAGS)
    assert format_reward(inside) == float(not has_tags)
    assert accuracy_reward(inside, "A") == float(not any(tag in text for tag in TAGS[2:]))
    assert accuracy_reward(f"<answer>{text}</answer>", "A") == 0.0
    assert len(format_problem(text) or "") < 200


def test_rewards_import_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"rewards"}
    for path in Path(rewards.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed, path
