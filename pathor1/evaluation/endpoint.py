"""Models behind OpenAI-compatible servers: requests with limits, retries, and what they may fail by.

The client is openai's own: it makes a request again after a time-out, a lost connection, HTTP 408, 409, 429 and 5xx,
and waits as long as the server's Retry-After says, or else twice as long each time. The key is read from the
environment when the client is made, and is taken out of whatever a server says before that is shown or stored.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pathor1.benchmark import BenchmarkRecipe, Requests
from pathor1.data.images import decode
from pathor1.errors import DataError, RunError
from pathor1.evaluation.answers import Answer
from pathor1.evaluation.questions import Asked
from pathor1.prompts import messages
from pathor1.samples import Sample

# So many requests in a row that a server did not answer, each with all its retries, end the evaluation.
FAILURES = 5
_SHOWN = 300

In = TypeVar("In")
Out = TypeVar("Out")


class UnansweredError(Exception):
    """A server did not answer a request, with all its retries; another time it may."""


class RefusedError(Exception):
    """A server has said no to one request, and would again: it is too long, or its filter has something against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A server's answer to a request."""

    text: str
    finish: str
    tokens: int  # generated; 0 where the server does not say
    prompt_tokens: int = 0  # likewise


class Client:
    """A model behind a server. model: None = the only one that it serves. Threads may share it."""

    def __init__(self, url: str, model: str | None, requests: Requests) -> None:
        from openai import OpenAI

        self.url = url
        self._key = os.environ.get(requests.key_variable, "")
        self._variable = requests.key_variable
        self._client: Any = OpenAI(
            base_url=url,
            api_key=self._key or "none",
            timeout=requests.timeout_seconds,
            max_retries=requests.retries,
        )
        self.model: str = model or self._only_model()

    def chat(
        self,
        chat: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The reply to a chat; with `schema`, a JSON schema with a title, in that form.

        Raises RefusedError, UnansweredError, and RunError where no request could be answered: a wrong key, model or
        URL.
        """
        form: dict[str, Any] = {}
        if schema is not None:
            named = {"name": schema["title"], "strict": True, "schema": schema}
            form["response_format"] = {"type": "json_schema", "json_schema": named}
        made = self._asked(
            lambda: self._client.chat.completions.create(
                model=self.model, messages=list(chat), max_tokens=max_tokens, temperature=temperature, **form
            )
        )
        # A server may send anything, and the client checks no types.
        choices: Any = getattr(made, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            raise UnansweredError(f"{self.url}: the reply is no chat completion")
        usage = getattr(made, "usage", None)
        return Reply(
            text=self.clean(str(message.content or "")),
            finish=str(choices[0].finish_reason or "stop"),
            tokens=int(usage.completion_tokens) if usage else 0,
            prompt_tokens=int(usage.prompt_tokens or 0) if usage else 0,
        )

    def clean(self, text: str) -> str:
        """A text without the key: a server may repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def _only_model(self) -> str:
        try:
            served = [model.id for model in self._asked(self._client.models.list).data]
        except (UnansweredError, RefusedError) as error:
            raise RunError(str(error)) from None
        if len(served) != 1:
            raise RunError(f"{self.url} serves {', '.join(served) or 'no model'}; name one: {self.url}#NAME")
        return served[0]

    def _asked(self, request: Callable[[], Any]) -> Any:
        import openai

        try:
            return request()
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            what = f"HTTP {error.status_code}: {self._said(error)}"
            hint = "check the URL and the model's name"
            if error.status_code != 404:
                hint = f"set {self._variable}, in the environment, to a key that may use it"
            raise RunError(f"{self.url}: {what}; {hint}") from None
        except (openai.RateLimitError, openai.InternalServerError, openai.ConflictError) as error:
            raise UnansweredError(f"{self.url}: HTTP {error.status_code}: {self._said(error)}") from None
        except openai.APIStatusError as error:
            raise RefusedError(f"HTTP {error.status_code}: {self._said(error)}") from None
        except openai.APITimeoutError:
            raise UnansweredError(f"{self.url}: no answer in time") from None
        except openai.APIError as error:  # no connection, or a reply that is none
            raise UnansweredError(f"{self.url}: {self._said(error)}") from None
        except ValueError as error:  # a reply that is no JSON
            raise UnansweredError(f"{self.url}: a reply that is no JSON: {self._said(error)}") from None

    def _said(self, error: Exception) -> str:
        text = " ".join(self.clean(str(error)).split())
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def each(
    items: Iterable[In], work: Callable[[In], Out], *, at_once: int
) -> Generator[tuple[In, Out | UnansweredError]]:
    """`work` of each item, at most `at_once` at a time, as they are done; items are taken as they are needed.

    Where a request was not answered, its error stands in place of what it gives. Raises RunError when `FAILURES` in a
    row were not.
    """
    items = iter(items)
    failures = 0
    pool = ThreadPoolExecutor(at_once)
    try:
        running: dict[Future[Out], In] = {pool.submit(work, item): item for item in islice(items, at_once)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                running.update({pool.submit(work, following): following for following in islice(items, 1)})
                error = future.exception()
                if not isinstance(error, UnansweredError):
                    failures = 0
                    yield item, future.result()
                    continue
                failures += 1
                if failures == FAILURES:
                    raise RunError(f"{error}; {FAILURES} requests in a row were not answered")
                yield item, error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def answers(client: Client, asked: Asked, recipe: BenchmarkRecipe) -> list[Answer]:
    """All answers of a served model to a question.

    One that the server refuses is answered by nothing, and says why. Raises DataError for a picture that cannot be
    read, UnansweredError, and RunError as `Client.chat` does.
    """
    evaluation, sampled = recipe.evaluation, asked.kind == "sampled"
    chat = chat_with_pictures(asked.sample, recipe)
    found: list[Answer] = []
    # A request for each: not every server can be asked for several answers at a time.
    for number in range(evaluation.sampled_answers if sampled else 1):
        try:
            temperature = evaluation.temperature if sampled else 0.0
            reply = client.chat(chat, max_tokens=recipe.max_new_tokens, temperature=temperature)
        except RefusedError as error:
            reply = Reply(text="", finish=f"refused: {error}", tokens=0)
        found.append(
            Answer(id=asked.sample.id, number=number, text=reply.text, finish=reply.finish, tokens=reply.tokens)
        )
    return found


def chat_with_pictures(sample: Sample, recipe: BenchmarkRecipe) -> list[dict[str, Any]]:
    """The same messages that our own engine is given, with the pictures in them as data URLs of PNG."""
    pictures = iter([_data_url(sample, picture, recipe) for picture in sample.images])
    chat = messages(sample, recipe.data.system_prompt)
    for message in chat:
        if isinstance(message["content"], list):
            message["content"] = [
                {"type": "image_url", "image_url": {"url": next(pictures)}} if part["type"] == "image" else part
                for part in message["content"]
            ]
    return chat


def _data_url(sample: Sample, picture: bytes, recipe: BenchmarkRecipe) -> str:
    data = recipe.data
    try:
        decoded = decode(picture, min_pixels=data.min_pixels, max_pixels=data.max_pixels)
    except DataError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error
    buffer = io.BytesIO()
    decoded.save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
