"""As `raycap extract`, on a cluster: `ray job submit --working-dir . -- python jobs/extract.py SOURCE ...`."""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["extract", *sys.argv[1:]]))
