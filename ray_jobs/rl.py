"""RL as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.rl RECIPE [--set KEY=VALUE]`.

The same as `pathor1 rl`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when the run is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["rl", *sys.argv[1:]]))
