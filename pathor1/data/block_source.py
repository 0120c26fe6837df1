"""Ray Data's source of planned blocks: one read task for each, in the order of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

Read = Callable[[], Iterable[pa.Table]]
# A share of a CPU: a laptop's two CPUs also hold the training ranks.
CPUS_PER_WORKER = 0.25
# A worker hands rows on when it has this many bytes of them; by Ray Data's own 128 MB a small set comes all at once.
BYTES_HANDED_ON = 4 << 20


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


def dataset(reads: Sequence[Read], *, workers: int) -> Any:
    """The rows of all reads in order, at most `workers` of them at a time (a ray.data.Dataset, lazy)."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BYTES_HANDED_ON
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):  # a dataset keeps the context it was made in
        return ray.data.read_datasource(
            BlockSource(reads),
            num_cpus=CPUS_PER_WORKER,
            compute=ray.data.TaskPoolStrategy(workers),
            override_num_blocks=len(reads),
        )
