"""An evaluation as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.evaluate RECIPE`.

The same as `pathor1 evaluate`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when it is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
