"""`raycap combine`: one captioner of several, in a folder of its own."""

from raycap.captioners.trained.combine import combine as combine_folders
from raycap.config import Config
from raycap.terminal import printable, write_out


def combine(config: Config) -> int:
    """Exit code 0 when the folder is written."""
    options = config.combine
    combine_folders(options)
    out = printable(options.out)
    write_out(
        f"written: {out}; {len(options.captioners)} captioners, by {options.by}\n"
        f"how good it is: raycap evaluate {out} --references SOURCE --split dev\n"
    )
    return 0
