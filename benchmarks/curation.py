"""Curation's stages pages to references: CPU seconds a page, and how time and memory grow with the book.

    .venv/bin/python benchmarks/curation.py --pages 10 100 1000 --out curation.json

The pages are those of the tests' book, the six that are no scans over and over, in books of at most 500: two columns,
composite figures with letters that are read by OCR. Each size runs in a process of its own, in one thread and without
Ray, so that seconds of CPU are those of one core; `peak_gb` is the process's largest resident set, `disk_gb` what all
stages have written. `--scans N` measures a book of N scanned pages as well, whose layout is OCR's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
STAGES = ("pages", "layout", "captions", "panels", "references")
SCANNED = 5
# A textbook has some 500 pages.
LONGEST = 500


def make(folder: Path, pages: int, *, scans: bool) -> Path:
    """A folder of books with so many pages in all, each of which begins with another page."""
    import pypdfium2
    import textbook

    library = folder / f"books-{pages}-{scans}"
    library.mkdir()
    source = pypdfium2.PdfDocument(textbook.make(folder / "small.pdf").path)
    chosen = [SCANNED - 1] if scans else [index for index in range(len(source)) if index != SCANNED - 1]
    for number, first in enumerate(range(0, pages, LONGEST)):
        book = pypdfium2.PdfDocument.new()
        turned = [*chosen[number % len(chosen) :], *chosen[: number % len(chosen)]]
        length = min(LONGEST, pages - first)
        while len(book) < length:
            book.import_pages(source, turned[: length - len(book)])
        buffer = io.BytesIO()
        book.save(buffer)
        (library / f"{number}.pdf").write_bytes(buffer.getvalue())
    return library


def measure(path: Path, runs: Path) -> dict[str, Any]:
    """Seconds of CPU by stage, here and now; and the largest resident set."""
    from pathor1.curation import pages, running
    from pathor1.curation.made import finished
    from pathor1.curation.recipe import Books, CurationRecipe
    from pathor1.curation.stage import Chunk, Stage

    pages._probed = lambda paths: ((each, pages.probe(each)) for each in paths)  # by Ray otherwise
    recipe = CurationRecipe(name="books", runs_dir=str(runs), books=Books(pdfs=[str(path)]))
    seconds: dict[str, float] = {}
    for name in STAGES:
        stage = running.load(name, recipe)
        assert isinstance(stage, Stage)
        started = time.process_time()
        folder = recipe.folder / name
        inputs = {each: finished(recipe.folder, each) for each in stage.inputs}
        plan = running._open(stage, folder, redo=False)
        chunks = [each for each in stage.chunks(inputs) if isinstance(each, Chunk)]
        work = stage.open()
        for chunk in chunks:
            running._write(stage.schema, folder, chunk, work(chunk))
        running._finish(name, folder, plan, inputs, [running._record(folder, chunk.key) for chunk in chunks], [])
        seconds[name] = round(time.process_time() - started, 2)
    # Not getrusage's, which begins with what the process had that started this one.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) * 1024 / 1e9
    disk = sum(each.stat().st_size for each in recipe.folder.rglob("*") if each.is_file()) / 1e9
    return {"cpu_seconds": seconds, "peak_gb": round(peak, 3), "disk_gb": round(disk, 3)}


def main() -> None:
    """Each size in a process of its own, a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--scans", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--book", type=Path, help=argparse.SUPPRESS)  # what a process of its own measures
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.book is not None:
            print(json.dumps(measure(arguments.book, Path(folder))))
            return
        results = []
        sizes = [(pages, False) for pages in arguments.pages]
        for pages, scans in [*sizes, *([(arguments.scans, True)] if arguments.scans else [])]:
            book = make(Path(folder), pages, scans=scans)
            command = [sys.executable, __file__, "--book", str(book)]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            found = json.loads(done.stdout.splitlines()[-1])
            total = sum(found["cpu_seconds"].values())
            row = {"pages": pages, "scans": scans, **found, "pages_a_second_a_core": round(pages / total, 2)}
            print(json.dumps(row), flush=True)
            results.append(row)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
