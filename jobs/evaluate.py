"""`raycap evaluate` as a job:

ray job submit --working-dir . -- python jobs/evaluate.py TABLE --references SOURCE
"""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
