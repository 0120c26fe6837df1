"""One attempt at an RL run, the child of `pathor1 rl`, whose arguments it takes.

    python -m pathor1.attempt RECIPE|--resume RUN [--set KEY=VALUE]...

On the CPU it begins with what it and its workers import, and forks from that what starts them.
"""

import sys

from pathor1 import attempts
from pathor1.fork_server import import_and_fork
from pathor1.ray_cluster import installed_accelerator
from pathor1.rl.imported import EARLY, LATE, VARIABLES

if __name__ == "__main__":
    attempts.begin()
    if installed_accelerator() == "cpu":
        import_and_fork(EARLY, LATE, VARIABLES)
    from pathor1.cli import main  # behind the fork: numpy starts threads where it may have more than one

    sys.exit(main(["rl", *sys.argv[1:]]))
