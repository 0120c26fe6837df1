"""What a step costs: pathor1, stock verl, TRL, and the floor, which is vLLM alone and bare torch.

    .venv/bin/python benchmarks/step_overhead.py --sizes small large --rounds 3 --out step_overhead.json

Contestants take turns, `--rounds` times, each in processes of its own; see `contestants.py` for what all of them get.
A step is counted from the line of one step to that of the next, so that all lies in it, also what a trainer does
behind what it calls a step. The first `--skip` steps, in which processes are still at work on their start, are left
out.

step      Seconds, the median of all steps of all rounds, with the shortest and the longest.
CPU       Seconds of CPU that all processes of the contestant spend on a step, the median: on a machine that others use
          too, it says more than the clock.
x floor   The median of step over the floor's.
phases    Seconds, the median, by the contestant's own names. Where phases overlap, they add up to more than the step.

small     pathor1's small model, of 0.7 million parameters: 8 prompts x 4 answers x 32 tokens.
large     The same architecture with 59 million parameters: 8 prompts x 4 answers x 128 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contestants

STEPS = {"small": 24, "large": 8}


def table(size: str, found: Sequence[dict[str, Any]]) -> str:
    """The lines of one size."""
    floor = next((each["step"]["median"] for each in found if each["name"] == "floor"), None)
    lines = [f"{size:<9} {'step s':>8} {'(range)':>16} {'CPU s':>7} {'x floor':>8}  phases, s"]
    for each in found:
        step = each["step"]
        over = f"{step['median'] / floor:8.2f}" if floor else f"{'':>8}"
        phases = "  ".join(f"{name} {seconds:.3f}" for name, seconds in each["phases"].items())
        span = f"({step['least']:.2f} to {step['most']:.2f})"
        lines.append(
            f"{each['name']:<9} {step['median']:8.3f} {span:>16} {each['cpu']['median']:7.2f} {over}  {phases}"
        )
    return "\n".join(lines)


def summed_up(name: str, runs: Sequence[contestants.Run], skip: int) -> dict[str, Any]:
    """A contestant's numbers over all rounds."""
    phases = [phase for run in runs for phase in run.phases[skip:]]
    names = dict.fromkeys(name for phase in phases for name in phase)
    return {
        "name": name,
        "step": _spread([step for run in runs for step in run.steps(skip)]),
        "cpu": _spread([step for run in runs for step in run.cpu_steps(skip)]),
        "first_step": _spread([run.ends[0] for run in runs]),
        "phases": {each: round(statistics.median(p[each] for p in phases if each in p), 4) for each in names},
        "steps": [[round(end, 3) for end in run.ends] for run in runs],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
        "count": len(values),
    }


def main() -> None:
    """Runs all contestants of all sizes, in turns, and tells of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["small", "large"], choices=list(STEPS))
    parser.add_argument("--contestants", nargs="*", default=list(contestants.NAMES), choices=contestants.NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run; as many as the size has by default")
    parser.add_argument("--skip", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where data, models and runs are made and kept")
    parser.add_argument("--out", type=Path, help="the numbers as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": contestants.machine(), "sizes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            folder = (arguments.folder or Path(temporary)).absolute() / size
            job = contestants.make(folder, contestants.SIZES[size], arguments.steps or STEPS[size])
            runs: dict[str, list[contestants.Run]] = {name: [] for name in arguments.contestants}
            for number in range(arguments.rounds):
                for name in arguments.contestants:
                    runs[name].append(contestants.run(name, job))
                    last = summed_up(name, runs[name][-1:], arguments.skip)
                    print(f"round {number + 1}: {table(size, [last]).splitlines()[1]}", file=sys.stderr, flush=True)
            found = [summed_up(name, runs[name], arguments.skip) for name in arguments.contestants]
            results["sizes"][size] = {"parameters": job.parameters, "contestants": found}
            print(table(size, found), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
