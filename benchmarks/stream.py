"""The stream against a torch DataLoader and verl's RLHFDataset: samples a second, and memory at its peak.

    .venv/bin/python benchmarks/stream.py --rows 1000 10000 100000 --out stream.json

Each loader reads the same pictures (JPEG, `--side` pixels square) from Parquet, decodes them and brings them to half
that side, with one worker process, in a shuffled order; verl's, which resizes nothing, only decodes. Loaders take
turns, `--rounds` times, each in a process of its own; the table has medians, the JSON every round. Samples a second are
counted from the first sample on (`start` is what it took to get there), and for each second of CPU of the loader: of
the worker and the process that takes the samples, and in the column after it of Ray's own processes too, which a run on
Ray has anyway and whose share of a core does not grow with the number of workers. Memory is the proportional set size
of all processes of the loader, looked at twice a second by another process.

`dataloader` brings pictures to their size by PIL's `resize`, as one writes it; `dataloader_same_decoder` by what the
stream does (`pathor1.data.images.fit`, which decodes large JPEGs at a fraction of their size), so that what is left
between the two is Ray Data and a DataLoader. The set of both is written once more before they start, as an Arrow file
that is mapped into memory; that is part of their `start`. `dataloader_parquet` has that decoder too, and reads and
unpacks Parquet as it goes, as the stream does: it does the same work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

# So many different pictures, repeated: making them is not what is measured.
DIFFERENT = 64
EVERY = 0.5  # seconds between two looks at a loader's memory
LOADERS = ("pathor1", "dataloader", "dataloader_same_decoder", "dataloader_parquet", "verl")


def make(folder: Path, rows: int, side: int) -> Path:
    """The set, in pathor1's form and in verl's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pathor1.samples import Sample, write

    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in range(DIFFERENT)]
    pictures: list[bytes] = []
    for small in smooth:
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    path = folder / f"{rows}.parquet"
    write(
        (
            Sample(
                id=f"s{row}",
                source="bench",
                task="mcq",
                question="Which?",
                options=("a", "b"),
                answer="A",
                images=(pictures[row % DIFFERENT],),
            )
            for row in range(rows)
        ),
        path,
    )
    with pq.ParquetWriter(folder / f"{rows}.verl.parquet", _verl_schema(pa)) as writer:
        for first in range(0, rows, 256):
            writer.write_table(
                pa.Table.from_pylist(
                    [
                        {
                            "prompt": [{"role": "user", "content": "<image>Which?"}],
                            "images": [{"bytes": pictures[row % DIFFERENT]}],
                            "data_source": "bench",
                        }
                        for row in range(first, min(first + 256, rows))
                    ],
                    schema=_verl_schema(pa),
                )
            )
    return path


def _verl_schema(pa: Any) -> Any:
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    image = pa.struct([("bytes", pa.binary())])
    return pa.schema([("prompt", pa.list_(turn)), ("images", pa.list_(image)), ("data_source", pa.string())])


def pathor1(path: Path, rows: int, pixels: int) -> Iterator[int]:
    """How many samples each hand-over had."""
    import ray

    from pathor1.data.sources import sources
    from pathor1.data.stream import Reading, SampleStream
    from pathor1.recipe import Data

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    data = Data(train=[str(path)], tasks=["mcq"], min_pixels=pixels, max_pixels=pixels, workers=1)
    with SampleStream(sources(data), seed=0, reading=Reading.of(data)) as stream:
        for _ in range(rows // 100):
            usable, _ = stream.take(100)
            yield len(usable)
    ray.shutdown()


def dataloader(path: Path, rows: int, pixels: int) -> Iterator[int]:
    """A map-style dataset over the file's rows, as one would write it."""
    return _dataloader(PictureSet(path, pixels, by_pil))


def dataloader_same_decoder(path: Path, rows: int, pixels: int) -> Iterator[int]:
    """The same with the stream's way from bytes to a picture."""
    from pathor1.data.images import fit

    return _dataloader(PictureSet(path, pixels, fit))


def dataloader_parquet(path: Path, rows: int, pixels: int) -> Iterator[int]:
    """Without a copy of the set in another form: row groups of the Parquet file, their rows in a shuffled order."""
    import torch.utils.data

    class Rows(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            import pyarrow.parquet as pq

            from pathor1.data.images import fit
            from pathor1.data.plan import plan
            from pathor1.data.row_groups import row_groups
            from pathor1.samples import from_row

            for block in plan(row_groups([str(path)]), seed=0, epoch=0, shuffle=True):
                file = pq.ParquetFile(path)
                table = file.read_row_groups([group.index for group in block.groups])
                columns = dict(zip(table.column_names, table.columns, strict=True))
                for index in block.order().tolist():
                    sample = from_row({name: column[index].as_py() for name, column in columns.items()})
                    assert sample.problem() is None
                    yield replace(
                        sample, images=tuple(fit(each, min_pixels=pixels, max_pixels=pixels) for each in sample.images)
                    )

    loader: Any = torch.utils.data.DataLoader(Rows(), batch_size=100, num_workers=1, prefetch_factor=2, collate_fn=list)
    for batch in loader:
        yield len(batch)


def by_pil(data: bytes, *, min_pixels: int, max_pixels: int) -> bytes:
    """A picture's pixels within the budget: opened, made RGB, resized."""
    from pathor1.data.images import fitted_size

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    size = fitted_size(*picture.size, min_pixels=min_pixels, max_pixels=max_pixels)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(buffer, "BMP")
    return buffer.getvalue()


def _dataloader(data: PictureSet) -> Iterator[int]:
    import torch.utils.data

    loader: Any = torch.utils.data.DataLoader(
        data, batch_size=100, shuffle=True, num_workers=1, prefetch_factor=2, collate_fn=list
    )
    for batch in loader:
        yield len(batch)


class PictureSet:
    """Rows by index. The table is mapped into memory, as Hugging Face's datasets do."""

    def __init__(self, path: Path, pixels: int, fit: Callable[..., bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.pixels, self.fit = pixels, fit
        arrow = path.with_suffix(".arrow")
        file = pq.ParquetFile(path)
        with pa.OSFile(str(arrow), "wb") as sink, pa.ipc.new_file(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=256):
                writer.write_batch(batch)
        table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
        self.columns = dict(zip(table.column_names, table.columns, strict=True))

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, index: int) -> Any:
        from pathor1.samples import from_row

        # Value by value, which costs two thirds of `table.slice(index, 1).to_pylist()`.
        sample = from_row({name: column[index].as_py() for name, column in self.columns.items()})
        assert sample.problem() is None
        fitted = [self.fit(data, min_pixels=self.pixels, max_pixels=self.pixels) for data in sample.images]
        return replace(sample, images=tuple(fitted))


def verl(path: Path, rows: int, pixels: int) -> Iterator[int]:
    """verl's own dataset and loader; it has no budget of pixels here."""
    import torch.utils.data
    from omegaconf import OmegaConf
    from transformers import AutoProcessor
    from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

    from pathor1.model import tiny

    model = path.parent / "model"
    if not model.exists():
        tiny.make(model, [path.parent / "tiny.parquet"], seed=0)
    processor: Any = AutoProcessor.from_pretrained(model)
    config = OmegaConf.create(
        {"cache_dir": str(path.parent / "cache"), "filter_overlong_prompts": False, "max_prompt_length": 2048}
    )
    dataset = RLHFDataset(str(path.with_suffix(".verl.parquet")), processor.tokenizer, config, processor)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=100, shuffle=True, num_workers=1, prefetch_factor=2, collate_fn=collate_fn
    )
    for batch in loader:
        yield len(batch["raw_prompt"])


def measure(loader: Callable[[Path, int, int], Iterator[int]], path: Path, rows: int, pixels: int) -> dict[str, float]:
    """Seconds to the first samples, and samples a second from then on, in this process."""
    me = psutil.Process()

    def cpu_seconds() -> dict[psutil.Process, float]:
        found = {}
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                found[process] = sum(process.cpu_times()[:4])  # with those of children that have ended
        return found

    started = time.monotonic()
    counts = loader(path, rows, pixels)
    count = first = next(counts)
    begun, before = time.monotonic(), cpu_seconds()
    ended, spent = begun, before
    for more in counts:
        count += more
        if count == rows:  # before the loader stops its processes, whose time is then lost
            ended, spent = time.monotonic(), cpu_seconds()
    assert count == rows, f"{count} of {rows} samples"
    # All but the one worker and the process that takes the samples are Ray's own: they look after the cluster.
    used = {process: seconds - before.get(process, 0.0) for process, seconds in spent.items()}
    taking = used.pop(me)
    return {
        "start_s": round(begun - started, 1),
        "samples_per_s": round((count - first) / (ended - begun), 1),
        "samples_per_cpu_s": round((count - first) / (taking + max(used.values())), 1),
        "samples_per_cpu_s_all": round((count - first) / (taking + sum(used.values())), 1),
    }


def watched(command: Sequence[str]) -> dict[str, float]:
    """What a process says last, as JSON, and the most memory of it and its own.

    It is looked at from here, as to look costs milliseconds for each process.
    """
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loader:
        root = psutil.Process(loader.pid)
        while loader.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, sum(map(_pss, [root, *root.children(recursive=True)])))
            time.sleep(EVERY)
        assert loader.stdout is not None
        said = loader.stdout.read()
    if loader.returncode:
        sys.exit(f"{' '.join(command)}: exit code {loader.returncode}")
    return {**json.loads(said.splitlines()[-1]), "peak_mb": round(peak / 1e6)}


def _pss(process: psutil.Process) -> float:
    """Proportional set size in bytes; 0 of one that has ended."""
    try:
        told = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"^Pss: +(\d+) kB", told, re.MULTILINE)
    return float(found[1]) * 1024 if found else 0.0


def show(rounds: Sequence[Mapping[str, Any]]) -> None:
    """One line of the table: the medians of a loader's rounds at one size."""
    middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0] if key != "loader"}
    print(
        "{loader:<23} {rows:>8,.0f} rows  start {start_s:>6.1f} s  {samples_per_s:>7.1f} samples/s  per CPU-s "
        "{samples_per_cpu_s:>7.1f}, with Ray's own {samples_per_cpu_s_all:>7.1f}  peak {peak_mb:>6,.0f} MB".format(
            loader=rounds[0]["loader"], **middle
        ),
        flush=True,
    )


def main() -> None:
    """Measures every loader at every size, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--side", type=int, default=448, help="of the pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="how often each loader has its turn at each size")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS)
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    parser.add_argument("--one", nargs=4, metavar=("LOADER", "FILE", "ROWS", "PIXELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, path, rows, pixels = arguments.one
        print(json.dumps(measure(globals()[name], Path(path), int(rows), int(pixels))))
        return
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        from pathor1.data.rendered import render

        render(Path(folder), seed=0, counts={"tiny": 50})
        for rows in arguments.rows:
            path = make(Path(folder), rows, arguments.side)
            pixels = (arguments.side // 2) ** 2
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.loaders}
            for turn in range(arguments.rounds):
                for name in arguments.loaders:
                    command = [sys.executable, __file__, "--one", name, str(path), str(rows), str(pixels)]
                    measured = {"loader": name, "rows": rows, **watched(command)}
                    found[name].append(measured)
                    results.append({"round": turn, **measured})
            for rounds in found.values():
                show(rounds)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
