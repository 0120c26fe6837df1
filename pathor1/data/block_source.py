"""Ray Data's source of planned blocks: one read task for each, in the order of the plan."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import ray.data
from ray.data._internal.execution import backpressure_policy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pathor1.data.read_block import BYTES_PER_TABLE

Read = Callable[[], Iterable[pa.Table]]
# A share of a CPU: a laptop's two CPUs also hold the training ranks.
CPUS_PER_WORKER = 0.25
# What `tables` holds ready, in bytes: some seconds of training. Ray Data would fill half of the object store.
BYTES_AHEAD = 256 << 20
# Blocks of rows that workers encode are about so large: the first is waited for, and Ray Data takes 8 ms for each.
ENCODED_BLOCK_BYTES = 4 << 20
# Under which a pipeline's context has how many rows are to lie ready.
ROWS_AHEAD = "pathor1.rows_ahead"
# Seconds that Ray Data's loop waits behind a turn in which nothing has changed. A turn takes it milliseconds: where a
# table lies ready, each such wait is twice as long as the one before, up to the longest.
LOOK, LONGEST_LOOK = 0.05, 0.4


class Pause(ExecutionCallback):
    """Has Ray Data's loop wait where it cannot go on: a table is ready and may not be taken, as enough lies ahead.

    By itself it would ask again at once, and take one of the driver's CPUs, and its Python lock, for most of a run. And
    where it knows of nobody who takes the tables, it takes back all that holds it, again and again.
    """

    def __init__(self) -> None:
        self._before: list[tuple[int, ...]] = []
        self._look = LOOK

    def before_execution_starts(self, executor: Any) -> None:
        """Called by Ray Data: somebody takes the tables, and holds none."""
        executor.set_external_consumer_bytes(0)

    def on_execution_step(self, executor: Any) -> None:
        """Called by Ray Data behind each turn of the loop, in the loop's thread."""
        now: list[tuple[int, ...]] = [
            (each.metrics.num_tasks_submitted, each.metrics.num_task_outputs_generated, len(state.output_queue))
            for each, state in executor._topology.items()
        ]
        if now == self._before:
            time.sleep(self._look)
            ready = now[-1][-1]
            self._look = min(2 * self._look, LONGEST_LOOK) if ready else LOOK
        else:
            self._look = LOOK
        self._before = now


class EnoughAhead(backpressure_policy.BackpressurePolicy):
    """Has tasks wait while as many rows lie ready as are wanted: of small pictures, bytes alone would be an hour's.

    Where Ray Data's queue is all but empty they go on whatever else is ready: a task of a later block may be, whose
    tables come after those of a task that is not.
    """

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        """Bytes that may be taken of what an operator's tasks have made: 0, or None = as many as there are."""
        if op.output_dependencies:  # what it makes does not lie ready, but goes on
            return None
        ready: int = self._topology[op].output_queue.num_blocks
        wanted: int = self._data_context.get_config(ROWS_AHEAD)
        made = op.metrics
        rows = made.rows_task_outputs_generated / max(made.num_task_outputs_generated, 1)  # of a block
        return 0 if ready > 1 and (ready + op.internal_output_queue_num_blocks()) * rows >= wanted else None


class BlockSource(Datasource):
    """Hands each of `reads`, and nothing of the others, to one task."""

    def __init__(self, reads: Sequence[Read]) -> None:
        super().__init__()
        self.reads = reads

    def get_name(self) -> str:
        return "Samples"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, unknown) for read in self.reads]


def tables(reads: Sequence[Read], *, name: str, workers: int, rows_ahead: int | None = None) -> Generator[pa.Table]:
    """The tables of all reads in order, read ahead by `workers` tasks until the generator is closed.

    rows_ahead: about how many rows lie ready at most; `BYTES_AHEAD` is a limit too, and the only one where it is None.
    """
    return handed_out(dataset(reads, name=name, workers=workers, bytes_ahead=BYTES_AHEAD, rows_ahead=rows_ahead))


def blocks(reads: Sequence[Read], *, name: str, workers: int, rows_ahead: int | None = None) -> Generator[Any]:
    """The same as references (ray.ObjectRef), of tables that cost work, for processes that fetch them themselves."""
    made = dataset(
        reads,
        name=name,
        workers=workers,
        bytes_ahead=BYTES_AHEAD,
        rows_ahead=rows_ahead,
        block_bytes=ENCODED_BLOCK_BYTES,
    )
    return references(made)


def handed_out(made: Any) -> Generator[pa.Table]:
    """A dataset's tables as they come, until the generator is closed; see `references`."""
    with closing(references(made)) as found:
        for block in found:
            yield ray.get(block)


def references(made: Any) -> Generator[Any]:
    """A dataset's tables as references, as they come. Ray Data stops when the generator ends or is closed.

    Who does not take it to its end has to close it: Ray Data would go on, and after the cluster is left start another.
    """
    # Not `iter_batches`: its threads live on for a while after it is closed, and end the process when Ray is left.
    bundles = made.iter_internal_ref_bundles()
    try:
        for bundle in bundles:
            yield from bundle.block_refs
    finally:
        del bundles  # its end is the pipeline's end


def dataset(
    reads: Sequence[Read],
    *,
    name: str,
    workers: int,
    bytes_ahead: int | None = None,
    rows_ahead: int | None = None,
    joined: bool = True,
    block_bytes: int = BYTES_PER_TABLE,
) -> Any:
    """The rows of all reads in order, at most `workers` of them at a time (a ray.data.Dataset, lazy).

    name: by which Ray's dashboard and metrics know it, with a number of Ray's behind it. joined: small tables become
    blocks of `block_bytes`; else each that is handed out stays a block, for rows of which each is long work: those of a
    block go to one worker, and are done when all of them are.
    """
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    if bytes_ahead is not None:
        context.execution_options.resource_limits = ray.data.ExecutionResources(object_store_memory=bytes_ahead)
    if rows_ahead is not None:
        context.set_config(ROWS_AHEAD, rows_ahead)
        policies = backpressure_policy.ENABLED_BACKPRESSURE_POLICIES
        context.set_config(
            backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
            [*context.get_config(backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies), EnoughAhead],
        )
    # By Ray Data's own 128 MB a small set comes all at once; what is half as large again as this is cut: a copy.
    context.target_max_block_size = block_bytes if joined else 1
    context.memory_usage_poll_interval_s = None  # reads through all of a worker's memory maps, every second
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Pause]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of each pipeline that starts and ends
    with ray.data.DataContext.current(context):  # a dataset keeps the context it was made in
        made = ray.data.read_datasource(
            BlockSource(reads),
            num_cpus=CPUS_PER_WORKER,
            compute=ray.data.TaskPoolStrategy(workers),
            override_num_blocks=len(reads),
        )
    made.set_name(re.sub(r"[^\w.-]", "_", name))  # Ray names a log file by it
    return made
