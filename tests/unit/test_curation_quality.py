"""The rules of quality, on replies that a person has labelled with the rules that they break."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pathor1.curation.drafts import DRAFT_TASKS, MalformedError, read
from pathor1.curation.quality import RULE_NAMES, Limits, Written, findings, scores, to_look_at
from pathor1.curation.repetition import repetition
from pathor1.prompts import taught_messages

LABELLED = Path(__file__).with_name("quality_labelled.jsonl")
# Precision and recall of each rule, as they are: a change of a rule has to say what it did to them. The held-out part
# was labelled before the rules were last changed, and measured on when that was done; what is None never fired, or
# never should have.
MEASURED = {
    "tuned": {
        "tags": (12 / 12, 12 / 12),
        "language": (8 / 8, 8 / 9),
        "repetition": (6 / 6, 6 / 6),
        "not_an_option": (11 / 11, 11 / 11),
        "given_away": (6 / 6, 6 / 7),
        "speaks_of_its_source": (12 / 12, 12 / 12),
        "not_in_the_source": (33 / 35, 33 / 34),
        "too_long": (2 / 2, 2 / 2),
    },
    "held_out": {
        "tags": (None, None),
        "language": (None, None),
        "repetition": (None, None),
        "not_an_option": (4 / 4, 4 / 4),
        "given_away": (None, None),
        "speaks_of_its_source": (5 / 5, 5 / 5),
        "not_in_the_source": (8 / 11, 8 / 8),
        "too_long": (None, None),
    },
}


def labelled(part: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if part in (None, row["part"])]


def written(row: dict[str, Any]) -> Written:
    return Written(
        task=row["task"],
        reply=row["reply"],
        caption=row["caption"],
        references=tuple(row["references"]),
        finish=row["finish"],
    )


@pytest.mark.parametrize("part", ["tuned", "held_out"])
def test_precision_and_recall_of_each_rule(part: str) -> None:
    found = scores(((written(row), row["labels"]) for row in labelled(part)), Limits())
    assert {name: (score.precision, score.recall) for name, score in found.items()} == MEASURED[part]


def test_what_is_labelled_is_worth_measuring_on() -> None:
    rows = labelled()
    assert len(rows) >= 60
    assert {label for row in rows for label in row["labels"]} == set(RULE_NAMES)
    assert {row["task"] for row in rows} == set(DRAFT_TASKS)
    good = [row for row in rows if not row["labels"]]
    assert len(good) >= 25, "a rule that drops everything would be right on the others"
    assert {row["task"] for row in good} == set(DRAFT_TASKS)


@pytest.mark.parametrize("row", [row for row in labelled() if not row["labels"]], ids=lambda row: row["id"])
def test_what_is_good_becomes_a_sample_that_a_model_can_be_taught(row: dict[str, Any]) -> None:
    draft = read(row["reply"], row["task"])
    sample = draft.sample(id_=row["id"], source="book", image=b"x", subfield="ihc", level="hard")
    assert sample.problem() is None
    chat = taught_messages(sample)
    said = [turn["content"] for turn in chat if turn["role"] == "assistant"]
    assert len(said) == len(draft.rounds)
    for text, one in zip(said, draft.rounds, strict=True):
        assert text == f"<think>{one.reasoning}</think><answer>{one.answer}</answer>"


FORM = "<question>q</question><options>\nA. one\nB. two\n</options><think>t</think><answer>A</answer>"


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "no <question>"),
        ("I cannot help with that.", "no <question>"),
        (FORM.replace("<think>t</think>", ""), "no <think>"),
        (FORM + "<answer>B</answer>", "<answer> stands 2 times, not 1"),
        (FORM.replace("</answer>", ""), "<answer> is never closed"),
        (FORM.replace("<think>", ""), "</think> without <think>"),
        (FORM.replace("<think>t", "<think>t<answer>A</answer>"), "<answer> inside <think>"),
        (FORM.replace("<think>t</think>", "<think> </think>"), "<think> is empty"),
        (FORM + " I hope this helps!", "text outside the tags: 'I hope this helps!'"),
        (FORM.replace("B. two", "C. two"), "an option is not on a line of its own with the next letter: 'C. two'"),
        (FORM.replace("A. one\nB. two", "A. one B. two\nyes"), "an option is not on a line"),
        (FORM.replace("<question>q</question>", "") + "<question>q</question>", "the tags stand in the order"),
        (FORM + "<user>q</user>", "<user> has no place"),
    ],
)
def test_a_reply_without_the_form_says_in_what(reply: str, why: str) -> None:
    with pytest.raises(MalformedError) as error:
        read(reply, "multiple_choice")
    assert why in str(error.value)


def test_a_reasoning_models_own_thoughts_are_left_out() -> None:
    own = "<think>\nThe user wants one question. I must not name the diagnosis.\n</think>\n\n"
    assert read(own + FORM, "multiple_choice") == read(FORM, "multiple_choice")
    with pytest.raises(MalformedError):  # what stands before is no thought of its own
        read(f"{own}Here it is: {FORM}", "multiple_choice")


def test_rules_are_linear_in_the_length_of_the_text() -> None:
    # Whoever writes may be in a loop: quadratic or exponential rules would take minutes for one such reply.
    for text in ("<think>" * 40_000, "a " * 200_000, "x" * 400_000, "1" * 200_000 + "%", "the answer is " * 30_000):
        started = time.process_time()
        findings(Written(task="description", reply=text, caption="c"), Limits())
        assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("reasoning", "letter"),
    [
        ("The answer is B. Option A is wrong since there is keratin.", "B"),
        ("Option A has no clefts, and hence (C) is correct.", "C"),
        ("We can eliminate A, B and D, leaving C.", "C"),
        ("**Answer: C**", "C"),
        ("Nests of type A cells. What remains is D.", "D"),
        ("All in all the findings fit melanoma best.", "C"),
        ("Melanoma is unlikely.", None),
        ("Nests are seen (A to D, hematoxylin and eosin).", None),
        ("This was hepatitis B. A basal cell carcinoma has clefts.", None),
    ],
)
def test_reasoning_ends_at_the_letter_or_the_option_that_it_takes(reasoning: str, letter: str | None) -> None:
    options = "".join(
        f"{each}. {text}\n" for each, text in zip("ABCD", ("naevus", "wart", "melanoma", "cyst"), strict=True)
    )
    for answer in "ABCD":
        reply = f"<question>q</question><options>{options}</options><think>{reasoning}</think><answer>{answer}</answer>"
        found = {each.rule for each in findings(Written(task="multiple_choice", reply=reply, caption="x"), Limits())[1]}
        assert ("not_an_option" in found) == (letter is not None and answer != letter)


def test_what_is_said_of_another_disease_is_no_claim() -> None:
    said = "An adenoma has mucin, but no necrosis. {} The tumour is solid."
    for sentence, claimed in (
        ("Sarcoidosis has asteroid bodies.", False),
        ("Neoplastic cells have asteroid bodies.", True),
        ("This granuloma has asteroid bodies.", True),
        ("Asteroid bodies are seen, which would also be expected in sarcoidosis.", True),
        ("Asteroid bodies would be seen in sarcoidosis.", False),
        ("Sixty cells were counted.", True),
        ("It has two nuclei.", False),
    ):
        reply = f"<question>q</question><think>{said.format(sentence)}</think><answer>A solid tumour.</answer>"
        found = findings(Written(task="description", reply=reply, caption="A solid tumour."), Limits())[1]
        assert [each.rule for each in found] == ["not_in_the_source"] * claimed, sentence


def test_too_long_counts_words_over_all_rounds() -> None:
    reply = "".join(f"<user>why {n}?</user><think>{f'w{n} ' * 3}</think><answer>a{n}</answer>" for n in range(3))
    one = Written(task="multi_turn", reply=reply, caption="")
    assert "too_long" not in {each.rule for each in findings(one, Limits(most_words=12))[1]}
    assert [each.reason for each in findings(one, Limits(most_words=11))[1]] == ["12 words, 11 are the most"]


def test_a_person_is_shown_some_of_each_rule_and_some_that_are_kept() -> None:
    rules = {f"k{n}": () for n in range(50)} | {f"t{n}": ("tags",) for n in range(3)} | {"b": ("tags", "language")}
    chosen = to_look_at(rules, each=5, seed=1)
    assert {name: len(ids) for name, ids in chosen.items()} == {"kept": 5, "language": 1, "tags": 4}
    assert to_look_at(dict(reversed(rules.items())), each=5, seed=1) == chosen
    assert to_look_at(rules, each=5, seed=2)["kept"] != chosen["kept"]


def test_the_page_has_these_figures() -> None:
    page = (Path(__file__).parents[2] / "docs/curation-samples.md").read_text(encoding="utf-8")
    rows = {cells[1].strip("` "): cells[3:5] for line in page.splitlines() if len(cells := line.split("|")) == 6}
    for name in RULE_NAMES:
        for part, cell in zip(("tuned", "held_out"), rows[name], strict=True):
            told = [None if text.strip() == "-" else fraction(text) for text in cell.split(",")]
            expected = MEASURED[part][name]
            assert (told * 2 if told == [None] else told) == list(expected), f"{name}, {part}"


def fraction(text: str) -> float:
    above, below = text.split("/")
    return int(above) / int(below)


def test_a_text_that_is_said_twice_turns_in_a_circle_and_one_with_a_refrain_does_not() -> None:
    row = next(row for row in labelled() if row["id"] == "001")
    think = read(row["reply"], row["task"]).rounds[0].reasoning
    assert repetition(think) is None
    assert repetition(f"{think} {think}") == "48% of its runs of 6 words stand in it before"
    first = think.split(". ")[0]
    assert repetition(f"{think} {first}.") is None
