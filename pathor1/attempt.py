"""One attempt at an RL run, the child of `pathor1 rl`, whose arguments it takes.

    python -m pathor1.attempt RECIPE|--resume RUN [--set KEY=VALUE]...

On the CPU it begins with what it and its workers import, and forks from that what starts them.
"""

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pathor1 import attempts
from pathor1.fork_server import import_and_fork
from pathor1.ray_cluster import may_fork
from pathor1.rl.imported import EARLY, LATE, VARIABLES


def end_with(main: Callable[[], int]) -> NoReturn:
    """Ends this process with what `main` returns, and with what libraries want to do at the end.

    But without taking Python down: that looks at each of the millions of objects that they have made, which takes 5 to
    10 s of a slow CPU, and waits for their threads.
    """
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (as Python does it)
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    attempts.begin()
    if may_fork():
        import_and_fork(EARLY, LATE, VARIABLES)
    from pathor1.cli import main  # behind the fork: numpy starts threads where it may have more than one

    end_with(lambda: main(["rl", *sys.argv[1:]]))
