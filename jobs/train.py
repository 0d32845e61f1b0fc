"""`raycap train` as a job:

ray job submit --working-dir . -- python jobs/train.py --config FILE
"""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
