"""Models that are asked about panels and references: what they say is checked, and a server may fail in every way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from PIL import Image
from servers import Response, completion, error, serving

from pathor1.curation.panel_model import PanelModel
from pathor1.curation.recipe import Endpoint
from pathor1.curation.reference_model import ReferenceModel, checked
from pathor1.curation.references import Figure
from pathor1.curation.stage import Dropped
from pathor1.errors import RunError

FIGURE = Figure(id="b/p00002/f1", page=2, number=("1", "2"), panel="", printed="1-2", caption="Figure 1-2 Colon.")
TEXTS = {
    1: "Nothing of it stands here.",
    2: "Crypts are straight.\nThe crypts branch in chronic\ncolitis, as is seen here. The end.",
    3: "Overleaf the crypts are gone altogether.",
}


def endpoint(url: str) -> Endpoint:
    return Endpoint(url=url, model="m", retries=0, timeout_seconds=10.0, concurrency=2)


def test_a_model_is_shown_the_figure_and_its_caption() -> None:
    reply = json.dumps({"panels": [{"label": "A", "box": [0, 0, 500, 1000]}]})
    with serving(lambda body: completion(reply)) as server:
        found = PanelModel(endpoint(server.url)).ask(Image.new("RGB", (400, 200)), "Figure 1 Caption.")
    assert found.panels == (("A", (0.0, 0.0, 200.0, 200.0)),)
    assert found.model == "m"
    (request,) = server.requests
    picture, text = request["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert "Figure 1 Caption." in text["text"]
    assert request["response_format"]["json_schema"]["name"] == "panels"


def test_a_picture_that_is_refused_is_a_problem_and_a_server_that_is_gone_ends_the_stage() -> None:
    figure = Image.new("RGB", (40, 20))
    with serving(lambda body: error(400, "too large")) as server:
        found = PanelModel(endpoint(server.url)).ask(figure, "")
    assert found.problem.startswith("the model's server refused it: HTTP 400")
    for answer in (lambda body: error(500, "on fire"), lambda body: Response(b"{", headers={})):
        with serving(answer) as server, pytest.raises(RunError, match="run the stage again, it goes on where it was"):
            PanelModel(endpoint(server.url)).ask(figure, "")


def said(sentences: Any, known: set[tuple[str, str]] | None = None) -> list[Any]:
    text = sentences if isinstance(sentences, str) else json.dumps({"sentences": sentences})
    with serving(lambda body: completion(text)) as server:
        return list(ReferenceModel(endpoint(server.url)).rows("b", TEXTS, [FIGURE], known or set(), tool="pathor1"))


def test_a_sentence_that_stands_in_the_text_is_a_row_with_its_place() -> None:
    sentence = "The crypts branch in chronic colitis, as is seen here."
    (row,) = said([sentence])
    assert (row["page"], row["sentence"], row["mention"], row["tool"]) == (2, sentence, "", "pathor1, m")
    assert TEXTS[2][row["start"] : row["end"]].replace("\n", " ") == sentence
    assert said([sentence], {(FIGURE.id, sentence)}) == []
    (row,) = said(["Overleaf the crypts are gone altogether."])
    assert row["page"] == 3


@pytest.mark.parametrize(
    "sentence",
    ["The crypts branch in acute colitis, as is seen here.", "Colon.", "", ".*", "Crypts branch in chronic colitis"],
)
def test_a_sentence_that_does_not_is_refused(sentence: str) -> None:
    found = checked(FIGURE, sentence, TEXTS, book="b", tool="t")
    assert isinstance(found, Dropped)
    assert found.reason == "the model's sentence is not in the text"


@pytest.mark.parametrize("reply", ["", "no JSON", "[]", '{"sentences": "one"}', '{"sentences": [3]}'])
def test_a_reply_that_is_not_as_asked_for_is_told_of(reply: str) -> None:
    (found,) = said(reply)
    assert found.reason == "the model's reply is not as asked for"
    assert said([]) == []
