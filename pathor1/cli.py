"""The `pathor1` command: parse first, import later, so that `--help` answers at once.

Exit codes: 0 done; 2 the user's input is wrong, which is one line on stderr and no traceback; 130 stopped by Ctrl-C;
1 anything else.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from pathor1.commands import (
    Command,
    clip,
    curating,
    evaluating,
    jobs,
    keeping,
    looking,
    making,
    serving,
    sets,
    training,
)
from pathor1.errors import Fault, UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What torch and safetensors say instead: they write files of their own accord, and not by Python's errors.
DISK_FULL_WORDS = ("No space left on device", "PytorchStreamWriter failed writing file")
NOT_ALLOWED = (errno.EACCES, errno.EROFS)

GROUPS = {
    "data": "Make, import and check files of samples",
    "model": "Make models to try things on",
    "clip": "PathoCLIP: contrastive training and its evaluation",
    "cluster": "Manifests for Kubernetes",
}
COMMANDS: tuple[Command, ...] = (
    *making.COMMANDS,
    *sets.COMMANDS,
    *training.COMMANDS,
    *evaluating.COMMANDS,
    *clip.COMMANDS,
    *curating.COMMANDS,
    *jobs.COMMANDS,
    *keeping.COMMANDS,
    *looking.COMMANDS,
    *serving.COMMANDS,
)


class Parser(argparse.ArgumentParser):
    """argparse with mistakes in one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pathor1: {message}; see `{self.prog} --help`\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = build_parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered goes nowhere when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Fault as error:
        print(f"pathor1: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 1
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"pathor1: {line}", file=sys.stderr)
        return 2


def explain(error: BaseException) -> str | None:
    """One line where the user's input, or a full disk, is behind an error; None where a traceback says more."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            # Ray Data ends what happened in a worker with advice on its own settings.
            return " ".join(str(cause).partition("\nFailed to apply ")[0].splitlines())
        full = isinstance(cause, OSError) and cause.errno in DISK_FULL
        if full or any(words in str(cause) for words in DISK_FULL_WORDS):
            where = getattr(cause, "filename", None) or "while writing"
            return f"disk full: {where}; free some space and run this again (`pathor1 rl --resume RUN` goes on)"
        if isinstance(cause, OSError) and cause.errno in NOT_ALLOWED and cause.filename:
            return f"{cause.filename}: {cause.strerror}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from. Ray hands on what happened in another process as `cause`."""
    while error is not None:
        inner = getattr(error, "cause", None)
        error = inner if isinstance(inner, BaseException) else error
        yield error
        error = error.__cause__


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="pathor1",
        description="Trains Patho-R1, a pathology vision-language model that reasons before it answers.",
        epilog="Every command has its own --help, with an example. Exit codes: 0 done, 2 wrong input, 1 anything else.",
    )
    top = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    groups = {"": top}
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        if group not in groups:
            text = GROUPS[group]
            groups[group] = top.add_parser(group, help=text, description=f"{text}.").add_subparsers(
                metavar="COMMAND", required=True, dest=f"{group}_command"
            )
        child = groups[group].add_parser(
            name,
            help=command.help,
            description=f"{command.help}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add(child)
        child.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
