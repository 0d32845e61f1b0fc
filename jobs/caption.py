"""`raycap caption` as a job:

ray job submit --working-dir . -- python jobs/caption.py SOURCE ...
"""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["caption", *sys.argv[1:]]))
