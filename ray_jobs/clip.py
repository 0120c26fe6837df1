"""PathoCLIP's training as a Ray job: `ray job submit --working-dir . -- python -m ray_jobs.clip RECIPE`.

The same as `pathor1 clip train`, whose arguments it takes: exit code 0, and the job SUCCEEDED, only when it is done.
"""

import sys

from pathor1.cli import main

if __name__ == "__main__":
    sys.exit(main(["clip", "train", *sys.argv[1:]]))
