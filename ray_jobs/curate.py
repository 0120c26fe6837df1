"""A stage of curation as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.curate STAGE RECIPE`.

The same as `pathor1 curate`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when it is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["curate", *sys.argv[1:]]))
