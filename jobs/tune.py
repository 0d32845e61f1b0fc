"""`raycap tune` as a job:

ray job submit --working-dir . -- python jobs/tune.py --config FILE --space FILE
"""

import sys

from raycap.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
