"""The report page: its tables, the answers it shows, and what it does where something is missing."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathor1.data.rendered import render
from pathor1.errors import RunError
from pathor1.recipe import load, to_toml
from pathor1.report import page, steps, summary
from pathor1.report.rollouts import Rollouts, choose, collect, extremes
from pathor1.rl import ledger
from pathor1.rl.ledger import LedgerRow
from pathor1.samples import Sample, read, write

DEMO = Path(__file__).parents[2] / "ray_jobs" / "recipes" / "demo_grpo.toml"
ALL = {
    "actor/entropy": 0.5,
    "actor/gradient_norm": 0.7,
    "actor/kl": 0.01,
    "groups/all_right": 1.0,
    "groups/all_wrong": 2.0,
    "groups/informative": 5.0,
    "dropped/stale": 1.0,
    "evaluation/accuracy": 0.5,
    "evaluation/accuracy_high": 0.75,
    "evaluation/accuracy_low": 0.25,
    "response_tokens/max": 20.0,
    "response_tokens/mean": 14.0,
    "reward/accuracy": 0.25,
    "reward/format": 0.75,
    "reward/mean": 1.0,
    "rollout/probability_difference_max": 2e-5,
    "rollout/truncated": 0.0,
    "seconds/step": 12.0,
}


# ---------------------------------------------------------------------------------------------------- what is reported


def make_run(folder: Path, *, samples: int = 24, train: list[Path] | None = None) -> Path:
    """A run folder with its recipe and nothing else; its samples are rendered where no files are given."""
    files = train or [render(folder / "data", seed=3, counts={"train": samples})["train"]]
    paths = json.dumps([str(file) for file in files])
    sizes = ["rl.steps=40", "warm_start.steps=700"]
    recipe = load(DEMO, [f"name={folder.name}", f"runs_dir={folder.parent}", f"data.train={paths}", *sizes])
    folder.mkdir(exist_ok=True)
    (folder / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    return folder


def write_metrics(folder: Path, count: int) -> None:
    rows = [{"step": step, **ALL} for step in range(1, count + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def rollout(step: int, sample: Sample, *, group: str = "0-0", number: int = 0, right: bool = True) -> LedgerRow:
    said = sample.answer if right else next(letter for letter in "ABCD" if letter != sample.answer)
    return LedgerRow(
        step=step,
        group=group,
        rollout=number,
        id=sample.id,
        source=sample.source,
        task=sample.task,
        text=f"<think>glands {said}</think><answer>{said}</answer>",
        answer=sample.answer,
        parsed=said,
        reason="format: right; accuracy: in words",
        format=1.0,
        accuracy=float(right),
        length=0.0,
        format_weight=1.0,
        accuracy_weight=1.0,
        length_weight=0.0,
        total=1.0 + right,
        advantage=0.5 if right else -1.5,
        response_tokens=14,
        truncated=False,
        stop_reason="completed",
        asked=step,
        policy_version=step - 1,
    )


def step_rows(step: int, samples: list[Sample], *, group_size: int = 4) -> list[LedgerRow]:
    """Of each question one right and three wrong rollouts."""
    return [
        rollout(step, sample, group=f"0-{place:03d}", number=number, right=number == 2)
        for place, sample in enumerate(samples)
        for number in range(group_size)
    ]


def text_of(path: Path) -> str:
    """What a reader of the page reads, with one space for any white space."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def own_script(content: str) -> tuple[str, str]:
    """A page without the last script on it, and that."""
    rest, _, script = content.rpartition("<script>")
    script, _, end = script.partition("</script>")
    return rest + end, script


def articles(path: Path) -> list[str]:
    return re.findall(r"<article .*?</article>", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def pixels(article: str) -> list[Image.Image]:
    uris = re.findall(r'<img src="data:image/(?:png|jpeg);base64,([^"]+)"', article)
    return [Image.open(io.BytesIO(base64.b64decode(uri, validate=True))) for uri in uris]


# ---------------------------------------------------------------------------------------------------------- the tables


def share(value: float, n: int = 400) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def test_the_headline_has_stages_as_rows_and_measures_of_each_set_as_columns(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    content = {
        "accuracy": {"base": {"ihc": share(0.25, 200)}, "final": {"rendered": share(0.712), "ihc": share(0.6, 200)}},
        "accuracy_sampled": {"final": {"rendered": share(0.68)}},
        "chance": {"rendered": {"value": 0.25, "n": 400}, "ihc": 0.3},
        "max_probability_difference": 2.34e-05,
        "seconds": {"warm_start": 410.2, "total": 1431.3},
        "versions": {"torch": "2.13.0+cpu"},
        "something": ["new"],
    }
    (folder / "summary.json").write_text(json.dumps(content))
    found = summary.read(folder / "summary.json")
    assert found is not None
    table = summary.headline(found)
    assert table is not None
    assert table.sets == (("ihc", ("right, greedy",)), ("rendered", ("right, greedy", "right, at temperature 1")))
    assert [(name, [cell.text for cell in cells]) for name, cells in table.rows] == [
        ("base", ["25.0 %", "", ""]),
        ("final", ["60.0 %", "71.2 %", "68.0 %"]),
        ("guessing", ["30.0 %", "25.0 %", ""]),
    ]
    assert table.rows[1][1][1].details == ("66.2 to 76.2 %", "n 400")
    assert table.rows[1][1][2].details == ("63.0 to 73.0 %",)
    text = text_of(page.write(folder))
    for piece in ("71.2 % 66.2 to 76.2 % n 400", "warm start 410", "total 1,431", "torch 2.13.0+cpu", ": 2.34e-05"):
        assert piece in text
    assert "the run stops above 0.001" in text


def test_an_empty_summary_is_fine_and_a_malformed_one_is_an_error(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").write_text("{}")
    assert "Results" not in text_of(page.write(folder))
    for content, words_ in (("{", "Invalid JSON"), ('{"accuracy": {"base": 3}}', "accuracy.base: ")):
        (folder / "summary.json").write_text(content)
        with pytest.raises(RunError, match=words_) as error:
            page.write(folder)
        assert str(error.value).startswith(f"{folder}/summary.json: ")
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- the answers


def test_twenty_rollouts_of_the_last_and_the_first_step_half_right_half_wrong(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    samples = list(read(folder / "data" / "train.parquet"))
    for step in (1, 2, 9, 10, 11):
        ledger.write(folder / "ledger", step, step_rows(step, samples[step : step + 12]))
    write_metrics(folder, 10)  # step 11 is of a run that was stopped and went on before it
    shown = collect(folder / "ledger", [str(folder / "data" / "train.parquet")], last_step=10)
    assert shown is not None
    rows = [one.row for one in shown.shown if "example" in one.kinds]
    assert [row.step for row in rows] == [10] * 10 + [1] * 10
    for half in (rows[:10], rows[10:]):
        assert [row.accuracy for row in half] == [1.0, 0.0] * 5
        assert len({row.group for row in half}) == 10
    assert shown.how.startswith("Examples: 10 rollouts of step 10, the last, and 10 of step 1, the first.")
    assert shown.how in text_of(page.write(folder))
    pages = [page.write(folder).read_bytes() for _ in range(2)]
    assert pages[0] == pages[1]
    assert len(articles(folder / "report.html")) == len(shown.shown)


def test_the_best_and_the_worst_are_of_all_steps_one_a_question_and_the_newest(tmp_path: Path) -> None:
    samples = list(islice(read(render(tmp_path, seed=3, counts={"train": 9})["train"]), 9))

    def write_step(step: int, rewards: dict[int, tuple[float, ...]]) -> None:
        rows = [
            replace(rollout(step, samples[place], group=str(place), number=number), total=total)
            for place, totals in rewards.items()
            for number, total in enumerate(totals)
        ]
        ledger.write(tmp_path / "ledger", step, rows)

    write_step(3, {0: (5.0, 9.0, 9.0), 1: (1.0, -2.0)})
    write_step(7, {0: (5.0, 9.0), 2: (5.0, -1.0), 3: (4.0, 0.0)})
    write_step(8, {0: (8.0, 8.0), 4: (3.0, 3.0), 5: (3.0, 3.0)})
    best, worst = extremes(tmp_path / "ledger", [3, 7, 8], 4)
    assert [(row.step, row.group, row.rollout, row.total) for row in best] == [
        (7, "0", 1, 9.0), (7, "2", 0, 5.0), (7, "3", 0, 4.0), (8, "4", 0, 3.0)
    ]  # fmt: skip
    assert [(row.step, row.group, row.rollout, row.total) for row in worst] == [
        (3, "1", 1, -2.0), (7, "2", 1, -1.0), (7, "3", 1, 0.0), (8, "4", 0, 3.0)
    ]  # fmt: skip


def test_the_choice_takes_questions_and_sources_in_turn_and_fills_up(tmp_path: Path) -> None:
    samples = list(read(render(tmp_path, seed=3, counts={"train": 12})["train"]))
    mixed = [replace(one, source="ihc" if place >= 8 else one.source) for place, one in enumerate(samples)]
    rows = step_rows(1, mixed)
    chosen = choose(rows, 8)
    kinds = Counter((row.source, row.accuracy) for row in chosen)
    assert kinds == {("ihc", 1.0): 2, ("ihc", 0.0): 2, ("rendered", 1.0): 2, ("rendered", 0.0): 2}
    assert chosen == choose(rows[::-1], 8)
    all_wrong = [rollout(1, samples[0], number=number, right=False) for number in range(6)]
    assert [row.rollout for row in choose(all_wrong, 4)] == [0, 1, 2, 3]
    assert len(choose(all_wrong, 20)) == 6


def steps_of(shown: Rollouts) -> list[int]:
    return [one.row.step for one in shown.shown if "example" in one.kinds]


def test_a_short_step_leaves_its_places_to_the_other_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    samples = list(read(folder / "data" / "train.parquet"))
    train = [str(folder / "data" / "train.parquet")]
    ledger.write(folder / "ledger", 999_999, step_rows(999_999, samples))
    only = collect(folder / "ledger", train, last_step=None)
    assert only is not None
    assert steps_of(only) == [999_999] * 20
    assert "the first" not in only.how
    ledger.write(folder / "ledger", 1_000_000, step_rows(1_000_000, samples[:1]))  # by name before step-999999
    both = collect(folder / "ledger", train, last_step=None)
    assert both is not None
    assert steps_of(both) == [1_000_000] * 4 + [999_999] * 16
    ledger.write(folder / "ledger", 999_999, step_rows(999_999, samples[:1]))
    ledger.write(folder / "ledger", 1_000_000, step_rows(1_000_000, samples))
    both = collect(folder / "ledger", train, last_step=None)
    assert both is not None
    assert steps_of(both) == [1_000_000] * 16 + [999_999] * 4


def test_a_rollout_is_shown_with_its_picture_options_text_and_rewards(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    samples = list(read(folder / "data" / "train.parquet"))
    ledger.write(folder / "ledger", 1, step_rows(1, samples[:10]))
    found = articles(page.write(folder))
    assert len(found) == 20
    by_id = {one.id: one for one in samples}
    for article in found:
        sample = by_id[re.search(r"rendered/3/train/\d+", article)[0]]  # type: ignore[index]
        (picture,) = pixels(article)
        original = Image.open(io.BytesIO(sample.images[0])).convert("RGB")
        assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(original))
        assert 'width="168" height="168"' in article  # 3 x 56
        assert 'class="enlarged"' in article
        assert sample.question in article
        items = [html.unescape(item) for item in re.findall(r"<li>(.*?)</li>", article, flags=re.DOTALL)]
        assert [item.split(" <span")[0] for item in items] == [
            f"{letter}. {option}" for letter, option in zip("ABCD", sample.options or (), strict=True)
        ]
        assert ["the right answer" in item for item in items] == [letter == sample.answer for letter in "ABCD"]
        said = re.search(r"&lt;answer&gt;([A-D])&lt;/answer&gt;", article)
        assert said is not None
        assert ["chosen" in item for item in items] == [letter == said[1] for letter in "ABCD"]
        right = said[1] == sample.answer
        assert f'<div class="text" tabindex="0">&lt;think&gt;glands {said[1]}&lt;/think&gt;' in article
        assert f"<dt>advantage</dt><dd>{0.5 if right else -1.5}</dd>" in article
        assert f"<dt>total</dt><dd>{2 if right else 1}</dd>" in article
        assert "format: right; accuracy: in words" in article


def test_what_a_model_or_a_data_set_says_is_text_and_nothing_else(tmp_path: Path) -> None:
    evil = '\n <script>alert("1")</script> & <img src=x onerror=alert(2)>\n\n  </div></article>{{ 7 * 7 }}'
    sample = Sample(
        id='"><script>', source="<b>", task="mcq", question="</p><i>q", options=("<u>a</u>", "b"), answer="A"
    )
    write([sample], tmp_path / "evil.parquet")
    folder = make_run(tmp_path / "run", train=[tmp_path / "evil.parquet"])
    row = replace(rollout(1, sample), text=evil, reason="<em>", advantage=None, parsed=None)
    ledger.write(folder / "ledger", 1, [row])
    (folder / "summary.json").write_text(
        json.dumps({"accuracy": {"<s>": {"<q>": share(0.5)}}, "versions": {"<a>": "<p>"}})
    )
    content, script = own_script(page.write(folder).read_text(encoding="utf-8"))
    assert not re.search(r"<(script|img|b|i|u|em|s|q|a)\b", content)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.unescape(content), "ours alone runs"
    assert content.count("</article>") == 1
    text = re.search(r'<div class="text" tabindex="0">(.*?)</div>', content, flags=re.DOTALL)
    assert text is not None
    assert html.unescape(text[1]) == evil
    read_ = text_of(folder / "report.html")
    for piece in (
        '"><script>',
        "</p><i>q",
        "A. <u>a</u>",
        "advantage not trained on",
        "answer that counts none",
        "<s>",
    ):
        assert piece in read_


def test_a_yes_no_question_has_no_options(tmp_path: Path) -> None:
    sample = Sample(id="y", source="s", task="yes_no", question="Is it benign?", answer="yes")
    write([sample], tmp_path / "yes_no.parquet")
    folder = make_run(tmp_path / "run", train=[tmp_path / "yes_no.parquet"])
    ledger.write(folder / "ledger", 1, [replace(rollout(1, sample), parsed="no", accuracy=0.0, truncated=True)])
    (article,) = articles(page.write(folder))
    assert "<li>" not in article
    assert "Is it benign?" in article
    assert "<dt>right answer</dt><dd>yes</dd>" in article
    assert "<dt>answer that counts</dt><dd>no</dd>" in article
    assert "<dt>tokens</dt><dd>14, cut</dd>" in article
    assert 'class="verdict wrong">wrong' in article


def test_a_broken_picture_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    good = next(iter(read(render(tmp_path, seed=3, counts={"train": 1})["train"]))).images[0]
    sample = Sample(
        id="b", source="s", task="mcq", question="Q", options=("a", "b"), answer="A", images=(good, good[:-900], b"x")
    )
    write([sample], tmp_path / "broken.parquet")
    folder = make_run(tmp_path / "run", train=[tmp_path / "broken.parquet"])
    ledger.write(folder / "ledger", 1, [rollout(1, sample)])
    (article,) = articles(page.write(folder))
    assert [picture.size for picture in pixels(article)] == [(56, 56)]
    assert "Picture 2 of 3 is not shown: a PNG picture that cannot be decoded" in html.unescape(article)
    assert "Picture 3 of 3 is not shown: 1 bytes that are no picture" in html.unescape(article)
    assert "A. a" in article


@pytest.mark.parametrize("left", ["nothing", "text", "another set"])
def test_without_its_data_a_rollout_is_shown_as_the_ledger_has_it(tmp_path: Path, left: str) -> None:
    folder = make_run(tmp_path / "run")
    train = folder / "data" / "train.parquet"
    ledger.write(folder / "ledger", 1, step_rows(1, list(read(train))))
    if left == "nothing":
        train.unlink()
    elif left == "text":
        train.write_text("no Parquet")
    else:
        render(folder / "data", seed=4, counts={"train": 3})
    found = articles(page.write(folder))
    assert len(found) == 25, "the best are others than the examples"
    for article in found:
        assert pixels(article) == []
        assert "no file of data.train that can be read has its sample" in article
        assert "&lt;think&gt;glands" in article
        assert re.search("<dt>right answer</dt><dd>[A-D]</dd>", article)
    assert ("Not read:" in text_of(folder / "report.html")) == (left != "another set")


# ------------------------------------------------------------------------------------------------------ the whole page


def test_a_run_with_nothing_in_it_has_a_page_that_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = page.write(folder)
    assert path == folder / "report.html"
    text = text_of(path)
    assert "0 of 40 steps done, after 0 of 700 supervised steps" in text
    assert "No step of reinforcement learning has been done yet" in text
    assert "The ledger holds no rollouts yet" in text
    assert "<svg" not in path.read_text(encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/me')
    ledger.write(folder / "ledger", 1, [])
    assert text_of(page.write(folder)) == text


def test_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_metrics(folder, 17)
    rows = [{"step": step, "loss": 2.0 / step, "problem": None} for step in range(1, 701)]
    (folder / "warm_start.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = page.write(folder)
    text = text_of(path)
    assert text.startswith("run – pathor1 run report run GRPO on runs/demo/models/warm_start : 17 of 40 steps done")
    assert "after 700 of 700 supervised steps (warm start)" in text
    assert "No step" not in text
    assert "Results" not in text
    assert "Warm start: loss loss 0.00286" in text
    assert "accuracy 0.25 format 0.75" in text
    assert "Held-out questions right 0.5 (0.25 to 0.75)" in text
    content = path.read_text(encoding="utf-8")
    assert content.count("<svg") == len(steps.RL) + 1
    assert content.count('class="limit"') == 1
    assert "limit 0.001" in text


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_metrics(folder, 5)
    ledger.write(folder / "ledger", 5, step_rows(5, list(read(folder / "data" / "train.parquet"))))
    content = page.write(folder).read_text(encoding="utf-8")
    assert content.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>run – pathor1 run report</title>" in content
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in content
    assert "prefers-color-scheme: dark" in content
    assert "://" not in content
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import|url\(", own_script(content)[0])
    sources = re.findall(r"""\b(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]*)""", content)
    assert len(sources) == len(articles(folder / "report.html")) == 25
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    samples = list(read(folder / "data" / "train.parquet"))
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(2000, len(ALL))))
    rows = [{"step": step, **dict(zip(ALL, row, strict=True))} for step, row in enumerate(values.tolist(), start=1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for step in (1, 2000):
        ledger.write(folder / "ledger", step, step_rows(step, samples))
    path = page.write(folder)
    content = path.read_text(encoding="utf-8")
    assert len(content) < 700_000
    assert max(d.count("L") for d in re.findall(r'class="line c\d" d="([^"]+)"', content)) == 399
    assert max(d.count("L") for d in re.findall(r'class="band c\d" d="([^"]+)"', content)) == 799
    assert "each point: the mean of 5 steps" in content


def test_what_is_no_run_is_an_error_of_one_line(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(RunError) as error:
            page.write(folder)
        assert str(error.value) == (
            f"{folder}: not the folder of a run, it has no recipe.toml; give one such as runs/demo"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_file_of_the_run_is_an_error_and_leaves_the_page_as_it_was(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_metrics(folder, 2)
    before = page.write(folder).read_bytes()
    (folder / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"/metrics\.jsonl:2: not a JSON object"):
        page.write(folder)
    write_metrics(folder, 2)
    (folder / "ledger").mkdir()
    broken = folder / "ledger" / "step-000002.parquet"
    broken.write_text("no Parquet")
    with pytest.raises(RunError, match="not a Parquet file") as error:
        page.write(folder)
    assert str(error.value).startswith(f"{broken}: ")
    broken.write_bytes((folder / "data" / "train.parquet").read_bytes())
    with pytest.raises(RunError, match="no column step, group, rollout"):
        page.write(folder)
    assert (folder / "report.html").read_bytes() == before
    assert not [file for file in folder.iterdir() if file.suffix == ".part"]
