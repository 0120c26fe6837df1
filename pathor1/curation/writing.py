"""Has a model write what it is asked for, by a server or by vLLM on Ray Data; each reply is on disk as it comes.

Only text is sent. An interrupted start goes on with what has no reply yet, as does one with other prompts. What a
server refuses is kept as refused, and what it did not answer is asked for by the next start.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pathor1.curation.limits import CHARACTERS_A_TOKEN, Cost, Rate
from pathor1.curation.made import read_rows
from pathor1.curation.recipe_samples import Reason
from pathor1.curation.schemas_samples import REPLY
from pathor1.errors import Fault, RunError, UserError
from pathor1.evaluation.answers import Parts
from pathor1.evaluation.endpoint import Client, RefusedError, Reply, UnansweredError, each
from pathor1.evaluation.progress import EVERY, Progress
from pathor1.files import replacing

Row = dict[str, Any]
# Replies in a part on disk, and requests in a row group and in an engine's batch.
PART = 64
GROUP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests in a Parquet file: `key`, `prompt`, and whatever else goes along to the replies.

    key: of the prompt and what it is for. A reply is known by it, so that one to other words is another.
    """

    path: Path

    @classmethod
    def write(cls, path: Path, rows: Iterator[Row], schema: pa.Schema) -> Requests:
        """Writes them, a row group in memory at a time."""
        with replacing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            waiting: list[Row] = []
            for row in rows:
                waiting.append(row)
                if len(waiting) == GROUP:
                    writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                    waiting.clear()
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
        return cls(path=path)

    @property
    def schema(self) -> pa.Schema:
        """That of the rows of replies: without the prompts, which are long and can be made again."""
        found = pq.read_schema(self.path)
        return pa.schema([*found.remove(found.get_field_index("prompt")), *REPLY])

    def groups(self) -> int:
        """How many row groups there are."""
        return int(pq.ParquetFile(self.path).num_row_groups)

    def group(self, index: int, done: frozenset[str] | set[str]) -> list[Row]:
        """The requests of a row group that have no reply yet."""
        rows = pq.ParquetFile(self.path).read_row_group(index).to_pylist()
        return [row for row in rows if row["key"] not in done]

    def waiting(self, done: frozenset[str] | set[str]) -> Iterator[Row]:
        """All requests that have no reply yet, a row group in memory at a time."""
        for index in range(self.groups()):
            yield from self.group(index, done)


def key(id_: str, prompt: str) -> str:
    """By which the reply to a prompt is known."""
    return hashlib.sha256(f"{id_}\0{prompt}".encode()).hexdigest()[:32]


def replies_store(runs: Path, name: str, requests: Requests, settings: Reason) -> Parts:
    """Where replies are kept: beside the stages, so that what was paid for outlives a stage that is made anew.

    What is made of other models or settings, but for the prompts, lies in another folder.
    """
    named = ["url", "model", "max_tokens", "temperature", *(["max_model_tokens"] if settings.url is None else [])]
    return Parts(runs / "replies" / name, requests.schema, {each: getattr(settings, each) for each in named})


def replies_in(store: Parts, requests: Requests) -> Iterator[Row]:
    """The stored replies to these requests, each once, a few in memory at a time."""
    wanted = set(pq.read_table(requests.path, columns=["key"])["key"].to_pylist())
    for path in sorted(store.folder.glob("part-*.parquet")):
        for row in read_rows(path):
            if row["key"] in wanted:  # else of an item that has gone, of other words, or of a second process
                wanted.discard(row["key"])
                yield row


def write_replies(settings: Reason, requests: Requests, store: Parts, *, name: str) -> Cost:
    """Asks for all that has no reply in `store` yet, and writes the replies there; returns what all have cost.

    name: by which progress is told. Raises RunError where it costs more than the budget, where the server takes no
    request, and where it left some without an answer; Fault where an engine died.
    """
    cost, done = _done(settings, store)
    count = characters = 0
    for row in requests.waiting(done):
        count += 1
        characters += len(row["prompt"])
    if not count:
        return cost
    expected = cost.expected(count, characters)
    told = f"{count:,} requests, some {characters / CHARACTERS_A_TOKEN:,.0f} tokens in"
    print(f"{name}: {told}, expected to cost {expected:.2f} {settings.currency}", flush=True)
    cost.check(expected)
    progress = Progress(name, total=count, what="replies")
    unanswered = 0
    source = _by_server if settings.url else _by_engines
    with closing(source(settings, requests, done)) as batches:
        for batch in batches:
            rows = [row for row in batch if row is not None]
            unanswered += len(batch) - len(rows)
            store.write(rows)
            for row in rows:
                cost.add(tokens_in=row["tokens_in"], tokens_out=row["tokens_out"])
            left = count - progress.done - len(rows)
            progress.told = f"{cost}" + (f", {cost.expected(left, 0):.2f} more expected" if left and cost.money else "")
            progress.add(len(rows))
            cost.check()
    if unanswered:
        raise RunError(
            f"{settings.url} has not answered {unanswered} of {count} requests; the same command asks for those alone"
        )
    return cost


def _done(settings: Reason, store: Parts) -> tuple[Cost, set[str]]:
    """What the replies on disk have cost, and which they are; their texts are not read."""
    cost, done = Cost(settings), set[str]()
    for path in sorted(store.folder.glob("part-*.parquet")):
        for row in pq.read_table(path, columns=["key", "tokens_in", "tokens_out"]).to_pylist():
            done.add(row["key"])
            cost.add(tokens_in=row["tokens_in"], tokens_out=row["tokens_out"])
    return cost, done


def _by_server(settings: Reason, requests: Requests, done: set[str]) -> Generator[list[Row | None]]:
    """None stands for a request that the server has not answered."""
    client = Client(settings.url or "", settings.model, settings)
    calls, tokens = Rate(settings.requests_per_minute), Rate(settings.tokens_per_minute)

    def ask(row: Row) -> Reply:
        guess = len(row["prompt"]) / CHARACTERS_A_TOKEN + settings.expected_tokens
        calls.take()
        tokens.take(guess)
        try:
            reply = client.chat(
                [{"role": "user", "content": row["prompt"]}],
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
            )
        except RefusedError as error:
            reply = Reply(text="", finish=f"refused: {error}", tokens=0)
        tokens.correct(reply.prompt_tokens + reply.tokens - guess)
        return reply

    found: list[Row | None] = []
    written = time.monotonic()
    with closing(each(requests.waiting(done), ask, at_once=settings.concurrency)) as results:
        try:
            for row, reply in results:
                found.append(None if isinstance(reply, UnansweredError) else _row(row, reply))
                if len(found) >= PART or time.monotonic() - written > EVERY:
                    yield found
                    found, written = [], time.monotonic()
        except UserError:
            yield found  # what was written is not asked for again
            raise
        yield found


def _row(row: Mapping[str, Any], reply: Reply) -> Row:
    rest = {name: value for name, value in row.items() if name != "prompt"}
    counts = {"tokens_in": reply.prompt_tokens, "tokens_out": reply.tokens}
    return {**rest, "reply": reply.text, "finish": reply.finish, **counts}


def _by_engines(settings: Reason, requests: Requests, done: set[str]) -> Generator[list[Row | None]]:
    import ray

    from pathor1.data.block_source import dataset, handed_out
    from pathor1.ray_cluster import check_resources, installed_accelerator, ray_cluster

    accelerator = installed_accelerator()
    width = settings.tensor_parallel if accelerator == "gpu" else 1
    with ray_cluster(environment(settings), log_to_driver=False):
        what = f"{settings.engines} engines (reason.engines x reason.tensor_parallel)"
        check_resources(accelerator.upper(), settings.engines * width, what)
        known = ray.put(frozenset(done))
        reads = [_Read(requests, index, known) for index in range(requests.groups())]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray 2.64 will have another way to say max_restarts
            written = dataset(reads, name="reason", workers=max(2, settings.engines)).map_batches(
                WriteBatch,
                fn_constructor_args=(settings, accelerator),
                batch_size=GROUP,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=settings.engines),
                num_cpus=1,
                num_gpus=width if accelerator == "gpu" else None,
                max_restarts=0,  # an engine that dies is asked the same again, without end
            )
        try:
            with closing(handed_out(written)) as tables:
                for table in tables:
                    yield table.to_pylist()
        except ray.exceptions.RayActorError as error:
            raise Fault(
                "an engine has died, as a rule for want of memory; what was written is kept: give the command again"
            ) from error


@dataclass(frozen=True, slots=True)
class _Read:
    """The requests of a row group that have no reply: one of Ray Data's tasks. done: a reference to the ids."""

    requests: Requests
    index: int
    done: Any

    def __call__(self) -> Iterator[pa.Table]:
        import ray

        rows = self.requests.group(self.index, ray.get(self.done))
        yield pa.Table.from_pylist(rows, schema=pq.read_schema(self.requests.path))


class WriteBatch:
    """Requests -> rows with replies: one of Ray Data's actors, with an engine of its own."""

    def __init__(self, settings: Reason, accelerator: str) -> None:
        import os

        from transformers import AutoTokenizer

        for name, value in environment(settings).items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self.settings = settings
        self.tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
        self.llm: Any = LLM(
            model=settings.model,
            dtype="float32" if accelerator == "cpu" else "bfloat16",
            max_model_len=settings.max_model_tokens,
            tensor_parallel_size=settings.tensor_parallel if accelerator == "gpu" else 1,
            enforce_eager=accelerator == "cpu",
            use_tqdm_on_load=False,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        replies: list[Reply] = [Reply(text="", finish="", tokens=0)] * len(rows)
        asked: list[tuple[int, list[int]]] = []
        for place, row in enumerate(rows):
            chat = [{"role": "user", "content": row["prompt"]}]
            text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(tokens) >= self.settings.max_model_tokens:
                why = f"refused: a prompt of {len(tokens)} tokens, reason.max_model_tokens is too small"
                replies[place] = Reply(text="", finish=why, tokens=0)
            else:
                asked.append((place, tokens))
        outputs = self._written([tokens for _, tokens in asked]) if asked else []
        for (place, tokens), output in zip(asked, outputs, strict=True):
            one = output.outputs[0]
            replies[place] = Reply(
                text=one.text, finish=one.finish_reason, tokens=len(one.token_ids), prompt_tokens=len(tokens)
            )
        schema = table.schema
        out = pa.schema([*schema.remove(schema.get_field_index("prompt")), *REPLY])
        return pa.Table.from_pylist([_row(row, reply) for row, reply in zip(rows, replies, strict=True)], schema=out)

    def _written(self, prompts: list[list[int]]) -> list[Any]:
        """The engine's outputs for prompts as tokens."""
        from vllm import SamplingParams

        settings = self.settings
        sampling = [
            SamplingParams(
                temperature=settings.temperature,
                max_tokens=min(settings.max_tokens, settings.max_model_tokens - len(tokens)),
            )
            for tokens in prompts
        ]
        inputs = [{"prompt_token_ids": tokens} for tokens in prompts]
        return list(self.llm.generate(inputs, sampling, use_tqdm=False))


def environment(settings: Reason) -> dict[str, str]:
    """How vLLM is to run: variables that have to be set before it is first imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gb),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
