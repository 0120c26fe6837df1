"""Commands on files of samples: import a public set, check what is there."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from pathor1.commands import Arguments, Command

if TYPE_CHECKING:
    from pathor1.data.checking import Findings

# Of what is wrong, so many are printed; `--fix` writes all.
SHOWN = 20


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _add_import(parser: argparse.ArgumentParser) -> None:
    from pathor1.data.formats import NAMES

    parser.add_argument("format", metavar="FORMAT", choices=sorted(NAMES), help=", ".join(sorted(NAMES)))
    parser.add_argument("source", metavar="SOURCE", type=Path, help="what was downloaded; docs/formats.md says which")
    parser.add_argument("--out", type=Path, required=True, help="folder for SPLIT/*.parquet")
    parser.add_argument("--workers", type=_positive, default=2, help="processes that read pictures side by side (2)")


def _run_import(arguments: Arguments) -> int:
    from pathor1.data import importing

    outcome = importing.run(arguments.format, arguments.source, arguments.out, workers=arguments.workers)
    for split, count in outcome.written.items():
        print(f"{arguments.out / split}: {count:,} samples")
    if outcome.left_out:
        print(
            f"left out: {outcome.left_out:,} of {outcome.items:,} items, each with its reason in "
            f"{arguments.out / importing.LEFT_OUT}; the first: {outcome.first_left_out}"
        )
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="PATH",
        nargs="+",
        help="files of samples, folders of them, or patterns in quotes, also of s3:// and gs://; together one set",
    )
    parser.add_argument(
        "--fix", type=Path, metavar="DIR", help="write the good rows to this folder, and the bad ones beside them"
    )
    parser.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="processes that look, side by side (one a CPU)"
    )


def _run_check(arguments: Arguments) -> int:
    from pathor1.data import checking
    from pathor1.data.row_groups import expand

    files = expand(arguments.data)
    if arguments.fix is not None:
        checking.refuse_taken(files, arguments.fix)
    findings = checking.check(files, workers=arguments.workers)
    print(_report(findings))
    if arguments.fix is not None:
        for path in checking.fix(files, findings, arguments.fix):
            print(f"{path} written")
    if not findings.bad:
        return 0
    for bad in findings.bad[:SHOWN]:
        print(f"pathor1: {bad}", file=sys.stderr)
    further = f", {SHOWN} of them above" if len(findings.bad) > SHOWN else ""
    advice = "" if arguments.fix else "; `--fix DIR` writes the others to a new folder"
    print(f"pathor1: {len(findings.bad):,} of {findings.rows:,} rows cannot be used{further}{advice}", file=sys.stderr)
    return 2


def _report(findings: Findings) -> str:
    """What the rows are, a line for each thing that is counted."""
    lines = [f"{'rows':<12} {findings.rows:,}, with {findings.pictures:,} pictures"]
    for name, counts in findings.counts.items():
        lines.append(f"{name:<12} {_shares(counts)}")
    for (one, other), count in sorted(findings.shared.items()):
        lines.append(f"{'shared':<12} {count:,} pictures are in {one} and in {other}")
    return "\n".join(lines)


def _shares(counts: Counter[str]) -> str:
    total = counts.total()
    return ", ".join(f"{value} {count:,} ({count / total:.1%})" for value, count in sorted(counts.items()))


COMMANDS = (
    Command(
        name="data import",
        help="Turn a public set, as it is downloaded, into files of samples",
        example="pathor1 data import pathmmu downloads/PathMMU --out data/pathmmu",
        add=_add_import,
        run=_run_import,
    ),
    Command(
        name="data check",
        help="Look at every row and picture: what they are, and whether training on them would go wrong",
        example="pathor1 data check data/pathmmu/val data/pathmmu/test --fix data/pathmmu-good",
        add=_add_check,
        run=_run_check,
    ),
)
