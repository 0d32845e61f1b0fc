"""`raycap extract` as a job:

ray job submit --working-dir . -- python jobs/extract.py SOURCE ...
"""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
