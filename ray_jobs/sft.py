"""Fine-tuning, or a warm start, as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.sft RECIPE`.

The same as `pathor1 sft`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when the stage is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
