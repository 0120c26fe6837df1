"""A language model that looks for further sentences on a figure; what is not in the text word for word is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pathor1.curation.recipe import Endpoint
from pathor1.curation.stage import Dropped, Row
from pathor1.errors import RunError
from pathor1.evaluation.endpoint import Client, RefusedError, UnansweredError

if TYPE_CHECKING:
    from pathor1.curation.references import Figure

PROMPT_VERSION = 1
_PROMPT = """\
Below are a figure's caption and the body text of the pages around it, from a pathology textbook. Which sentences of
the body text speak of what this figure shows? Copy each of them word for word, changing nothing; none is an answer too.

Caption: {caption}

Body text:
{text}

Answer with JSON alone: {{"sentences": ["..."]}}"""
_SCHEMA = {
    "title": "sentences",
    "type": "object",
    "properties": {"sentences": {"type": "array", "items": {"type": "string"}}},
    "required": ["sentences"],
    "additionalProperties": False,
}
# A quotation of fewer letters could stand anywhere.
SHORTEST = 20


class ReferenceModel:
    """A model behind a server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._client = Client(endpoint.url, endpoint.model, endpoint)
        self._max_tokens = endpoint.max_tokens
        self._concurrency = endpoint.concurrency

    def rows(
        self,
        book: str,
        texts: Mapping[int, str],
        figures: Sequence[Figure],
        known: set[tuple[str, str]],
        *,
        tool: str,
    ) -> Iterable[Row | Dropped]:
        """Rows for sentences that are not `known` (figure's id, sentence), and Dropped for what is not in the text.

        texts: body text by page. Raises RunError where the server does not answer, with all its retries.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            replies = pool.map(lambda figure: self._ask(figure, texts), figures)
            for figure, reply in zip(figures, replies, strict=True):
                if isinstance(reply, Dropped):
                    yield reply
                    continue
                for sentence in reply:
                    each = checked(figure, sentence, texts, book=book, tool=f"{tool}, {self._client.model}")
                    if isinstance(each, Dropped) or (figure.id, each["sentence"]) not in known:
                        yield each

    def _ask(self, figure: Figure, texts: Mapping[int, str]) -> list[str] | Dropped:
        around = [texts[page] for page in (figure.page - 1, figure.page, figure.page + 1) if page in texts]
        prompt = _PROMPT.format(caption=figure.caption, text="\n\n".join(around))
        try:
            reply = self._client.chat(
                [{"role": "user", "content": prompt}], max_tokens=self._max_tokens, temperature=0.0, schema=_SCHEMA
            )
            found = json.loads(reply.text)["sentences"]
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                raise TypeError("no list of texts")
        except RefusedError as error:
            return Dropped(where=figure.id, reason="the model's server refused it", detail=str(error))
        except UnansweredError as error:
            raise RunError(f"{error}; run the stage again, it goes on where it was") from None
        except (ValueError, KeyError, TypeError) as error:
            return Dropped(where=figure.id, reason="the model's reply is not as asked for", detail=repr(error)[:200])
        return list(dict.fromkeys(found))


def checked(figure: Figure, sentence: str, texts: Mapping[int, str], *, book: str, tool: str) -> Row | Dropped:
    """A row for a sentence that stands in the text, in whatever lines; Dropped for one that does not."""
    words = [re.escape(word) for word in sentence.split()]
    found = None
    if sum(map(len, words)) >= SHORTEST:
        pattern = re.compile(r"\s+".join(words))
        for page in (figure.page, figure.page - 1, figure.page + 1):
            found = pattern.search(texts.get(page, ""))
            if found:
                return {
                    "id": f"{figure.id}/p{page:05d}-{found.start()}-model",
                    "book": book,
                    "page": page,
                    "figure": figure.id,
                    "number": figure.printed,
                    "panels": [],
                    "mention": "",
                    "sentence": found.group().replace("\n", " "),
                    "start": found.start(),
                    "end_page": page,
                    "end": found.end(),
                    "tool": tool,
                }
    return Dropped(where=figure.id, reason="the model's sentence is not in the text", detail=sentence[:300])
