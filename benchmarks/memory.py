"""Memory at its peak, of all processes of a run: pathor1 and stock verl on the demonstration's model and batch.

    .venv/bin/python benchmarks/memory.py --rounds 3 --out memory.json

Looked at five times a second, from the command to the end of the last step; see `contestants.py`. Memory is the
proportional set size (PSS): a page that several processes share, of a file or since a fork, counts once in all. Beside
it stands the sum of resident sets, in which such a page counts once for each. Ray's object store is in both.

processes  How many there were when PSS was at its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import contestants

NAMES = ("pathor1", "verl")
STEPS = 6
EVERY = 0.2  # seconds


class Peak:
    """The largest sum so far."""

    def __init__(self) -> None:
        self.pss = self.rss = self.processes = 0
        self._next = 0.0

    def look(self, mark: str) -> None:
        """Adds up the processes of a contestant, where it is time to."""
        if time.monotonic() < self._next:
            return
        sums = [each for process in contestants.processes(mark) if (each := _sizes(process))]
        pss, rss = (sum(each[place] for each in sums) for place in (0, 1))
        self.rss = max(self.rss, rss)
        if pss > self.pss:
            self.pss, self.processes = pss, len(sums)
        self._next = time.monotonic() + EVERY


def _sizes(process: int) -> tuple[int, int] | None:
    """PSS and resident set of a process in bytes; None = it is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines[1:])}
    return found["Pss"], found["Rss"]


def main() -> None:
    """Runs both in turns, and tells of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where data, model and runs are made and kept")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, int]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        job = contestants.make(folder, contestants.SIZES["demo"], STEPS)
        for _ in range(arguments.rounds):
            for name in NAMES:
                peak = Peak()
                contestants.run(name, job, look=peak.look)
                found[name].append({"pss": peak.pss, "rss": peak.rss, "processes": peak.processes})
    medians = {name: statistics.median(each["pss"] for each in found[name]) for name in NAMES}
    for name in NAMES:
        pss, rss = ([each[kind] / 2**30 for each in found[name]] for kind in ("pss", "rss"))
        print(
            f"{name:<8} PSS {statistics.median(pss):5.2f} GiB ({min(pss):.2f} to {max(pss):.2f})   "
            f"resident sets {statistics.median(rss):5.2f} GiB   processes {found[name][-1]['processes']:>3}   "
            f"{medians[name] / medians['verl']:.0%} of verl's",
            flush=True,
        )
    if arguments.out:
        results: dict[str, Any] = {"machine": contestants.machine(), "runs": found}
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
