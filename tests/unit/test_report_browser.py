"""The report page in a real browser: Chromium, where there is one on the path."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import make_run, rollout, step_rows, write_metrics

from pathor1.report import page as report
from pathor1.rl import ledger
from pathor1.samples import read

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; what it opens here is our own file.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a run with rewards of -1 to 2 over three steps, and one answer that wants to run."""
    folder = make_run(tmp_path_factory.mktemp("browser") / "run")
    samples = list(read(folder / "data" / "train.parquet"))
    write_metrics(folder, 3)
    for step in (1, 2, 3):
        ledger.write(folder / "ledger", step, step_rows(step, samples[4 * step : 4 * step + 4], group_size=3))
    worst = replace(rollout(2, samples[0], group="9", right=False), total=-1.0, text=EVIL)
    ledger.write(folder / "ledger", 2, [worst, *step_rows(2, samples[8:12], group_size=3)])
    return report.write(folder)


def rewards(page: Any, name: str = "reward") -> list[float]:
    """Of the answers that are to be seen, in their order."""
    found: list[str] = page.eval_on_selector_all(
        "article", f"all => all.filter((one) => one.offsetParent !== null).map((one) => one.dataset.{name})"
    )
    return [float(one) for one in found]


def test_answers_are_filtered_and_sorted_and_nothing_else_happens(browser: Any, path: Path) -> None:
    page = browser.new_page()
    happened: list[str] = []
    page.on("console", lambda message: happened.append(message.text))
    page.on("pageerror", lambda error: happened.append(str(error)))
    page.on("request", lambda request: happened.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    total = len(rewards(page))
    assert total >= 20
    assert page.inner_text("output") == f"{total} of {total}"
    kind, order = page.locator("select[name=kind]"), page.locator("select[name=order]")
    order.select_option("reward-down")
    assert rewards(page) == sorted(rewards(page), reverse=True)
    assert len(set(rewards(page))) == 3
    order.select_option("reward-up")
    assert rewards(page) == sorted(rewards(page))
    order.select_option("step-up")
    assert rewards(page, "step") == sorted(rewards(page, "step"))
    assert set(rewards(page, "step")) == {1, 2, 3}
    order.select_option("step-down")
    assert rewards(page, "step") == sorted(rewards(page, "step"), reverse=True)
    kind.select_option("worst")
    order.select_option("reward-up")
    assert rewards(page) == [-1.0, 1.0, 1.0, 1.0, 1.0]
    assert page.inner_text("output") == f"5 of {total}"
    # What a model says is text, also for a browser.
    assert page.locator("article:visible .text").first.inner_text() == EVIL
    kind.select_option("best")
    assert rewards(page) == [2.0] * 5
    kind.select_option("right")
    order.select_option("page")
    right = len(rewards(page))
    kind.select_option("wrong")
    assert (set(rewards(page)), right + len(rewards(page))) == ({-1.0, 1.0}, total)
    assert page.title() == "run – pathor1 run report"
    assert happened == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_at_the_width_of_a_phone_nothing_sticks_out(browser: Any, path: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    shades = [int(shade) for shade in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(shades) < 64) if scheme == "dark" else (min(shades) > 192)


def test_without_scripts_all_answers_are_there_and_no_controls(browser: Any, path: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(path.as_uri())
    assert page.locator("article:visible").count() >= 20
    assert not page.locator("form").is_visible()
