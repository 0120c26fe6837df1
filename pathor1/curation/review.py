"""The review page of a stage: its counts, what was dropped and why, and pictures with what was found in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files as resources

from jinja2 import Environment, StrictUndefined

from pathor1.curation.made import DROPPED, Made
from pathor1.curation.stage import Card
from pathor1.data.images import LARGEST_PIXELS, decode
from pathor1.errors import DataError

# So many of a stage's items are looked at, for those that a person should see.
LOOKED_AT = 2000
LONGEST_SIDE = 560  # pixels of a picture on the page
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0e7490", "#a16207")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    """A card as the template has it: the picture small and as a data URI, with the size that boxes are in."""

    card: Card
    uri: str | None
    width: int
    height: int
    problem: str = ""


def html(made: Made, cards: Iterable[Card], *, show: int) -> str:
    """The page: at most `show` cards, the flagged ones first, and of the others those that lie evenly apart."""
    flagged, others = _Even(2 * show), _Even(2 * show)
    for card in cards:
        (flagged if card.flagged else others).add(card)
    room = max(show - len(flagged.kept), show // 4)  # some that seem right are shown as well
    chosen = [*_spread(flagged.kept, show - min(room, len(others.kept))), *_spread(others.kept, room)]
    kinds = {kind: COLOURS[place % len(COLOURS)] for place, kind in enumerate(sorted(_kinds(chosen)))}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources("pathor1.curation").joinpath("review.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text).render(made=made, shown=chosen, kinds=kinds, dropped_file=DROPPED)


class _Even:
    """At most so many of the cards that come, evenly apart, with their pictures small: of 2,000 pages they are 8 GB."""

    def __init__(self, most: int) -> None:
        self.kept: list[_Shown] = []
        self._most, self._seen, self._step = most, 0, 1

    def add(self, card: Card) -> None:
        if self._seen % self._step == 0:
            if len(self.kept) == self._most:
                del self.kept[1::2]
                self._step *= 2
            if self._seen % self._step == 0:
                self.kept.append(_shown(card))
        self._seen += 1


def _spread(cards: list[_Shown], count: int) -> list[_Shown]:
    if len(cards) <= count:
        return cards
    return [cards[place * len(cards) // count] for place in range(count)]


def _kinds(cards: Iterable[_Shown]) -> set[str]:
    return {box.kind for shown in cards for box in shown.card.boxes}


def _shown(card: Card) -> _Shown:
    if card.picture is None:
        return _Shown(card=card, uri=None, width=0, height=0)
    try:
        picture = decode(card.picture, min_pixels=1, max_pixels=LARGEST_PIXELS)
    except DataError as error:
        return _Shown(card=replace(card, picture=None), uri=None, width=0, height=0, problem=str(error))
    width, height = picture.size
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return _Shown(card=replace(card, picture=None), uri=uri, width=width, height=height)
