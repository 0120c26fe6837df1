"""A vision-language model on the panels of a figure, beside the rules; where they differ a person looks."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from pathor1.curation.labelling import Labelled, Panel
from pathor1.curation.pdf import Corners
from pathor1.curation.pictures import encode
from pathor1.curation.recipe import Endpoint
from pathor1.errors import RunError
from pathor1.evaluation.endpoint import Client, RefusedError, UnansweredError

PROMPT_VERSION = 1
_PROMPT = """\
The picture is a figure of a pathology textbook. Its caption, between the lines:
---
{caption}
---
List the panels of the figure. For each give its label, as the caption has it ("A", "B", "left"), or "" where the
figure is one panel, and its box [left, top, right, bottom] in thousandths of the picture's width and height.
Answer with JSON alone: {{"panels": [{{"label": "A", "box": [0, 0, 495, 1000]}}]}}"""
_SCHEMA = {
    "title": "panels",
    "type": "object",
    "properties": {
        "panels": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "box": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
                },
                "required": ["label", "box"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["panels"],
    "additionalProperties": False,
}
# Pictures are sent no larger; and boxes that share this much of what both cover are the same.
LONGEST, SAME = 1280, 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says. panels: label and box in pixels of the figure; problem: why there is no answer, or ""."""

    model: str
    panels: tuple[tuple[str, Corners], ...]
    problem: str = ""


class PanelModel:
    """A model behind a server. Threads may share it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._client = Client(endpoint.url, endpoint.model, endpoint)
        self._max_tokens = endpoint.max_tokens
        self.concurrency = endpoint.concurrency

    def ask(self, figure: Image.Image, caption: str) -> Answer:
        """The panels as the model sees them. Raises RunError where the server does not answer, with all retries."""
        small = figure.copy()
        small.thumbnail((LONGEST, LONGEST))
        url = f"data:image/png;base64,{base64.b64encode(encode(small, 'png')).decode('ascii')}"
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": _PROMPT.format(caption=caption)},
        ]
        chat = [{"role": "user", "content": content}]
        try:
            reply = self._client.chat(chat, max_tokens=self._max_tokens, temperature=0.0, schema=_SCHEMA)
        except RefusedError as error:
            return Answer(model=self._client.model, panels=(), problem=f"the model's server refused it: {error}")
        except UnansweredError as error:
            raise RunError(f"{error}; run the stage again, it goes on where it was") from None
        return answer(reply.text, figure.size, self._client.model)


def answer(text: str, size: tuple[int, int], model: str) -> Answer:
    """A reply as panels; one that is not as asked for is a problem, and never a guess."""
    try:
        found = json.loads(text)
        panels = [(str(each["label"]).strip(), [float(value) for value in each["box"]]) for each in found["panels"]]
        if not panels or any(len(box) != 4 or not _is_box(box) for _, box in panels):
            raise ValueError("a box that is none")
    except (ValueError, KeyError, TypeError) as error:
        return Answer(model=model, panels=(), problem=f"the model's reply is not as asked for: {error!r}"[:200])
    scale = (size[0] / 1000, size[1] / 1000) * 2
    boxes = tuple((name, _scaled(box, scale)) for name, box in panels)
    return Answer(model=model, panels=boxes)


def _is_box(box: Sequence[float]) -> bool:
    return 0 <= box[0] < box[2] <= 1000 and 0 <= box[1] < box[3] <= 1000


def _scaled(box: Sequence[float], scale: Sequence[float]) -> Corners:
    left, top, right, bottom = (value * by for value, by in zip(box, scale, strict=True))
    return left, top, right, bottom


def compared(found: Labelled, said: Answer, wanted: Sequence[str]) -> Labelled:
    """What the rules have found, with the model's say.

    The same panels: a doubt about labels that could not be read is lifted. Where the rules have left the figure whole
    and the model has exactly the caption's panels, those are taken, and a person looks. Else the rules stand, and a
    person looks.
    """
    if said.problem:
        return replace(found, review=_both(found.review, said.problem))
    theirs = {_name(label): box for label, box in said.panels}
    ours = {panel.label.lower(): panel.box for panel in found.panels}
    if theirs.keys() == ours.keys() and len(theirs) == len(said.panels):
        if set(ours) == {""} or all(_shared(ours[label], theirs[label]) >= SAME for label in ours):
            return replace(found, review="" if "in order" in found.review else found.review)
        return replace(found, review=_both(found.review, "the model's boxes are others"))
    if set(ours) == {""} and theirs.keys() == {label.lower() for label in wanted} and len(said.panels) == len(wanted):
        panels = tuple(Panel(label=label, box=theirs[label.lower()], label_from="model") for label in wanted)
        return Labelled(panels=panels, review=_both(found.review, "the panels are the model's"))
    names = ", ".join(label or "whole" for label, _ in said.panels)
    return replace(found, review=_both(found.review, f"the model has other panels: {names}"))


def _name(label: str) -> str:
    return label.strip("() .").lower()


def _both(one: str, other: str) -> str:
    return f"{one}; {other}" if one else other


def _shared(one: Corners, other: Corners) -> float:
    """Intersection over union."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, across) * max(0.0, down)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return common / max(areas - common, 1e-6)
