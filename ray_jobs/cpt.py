"""Continued pretraining as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.cpt RECIPE`.

The same as `pathor1 cpt`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when the stage is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["cpt", *sys.argv[1:]]))
