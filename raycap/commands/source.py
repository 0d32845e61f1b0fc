"""The source that a command is given."""

from raycap.errors import UserError
from raycap.sources import Source


def checked_source(source: Source | None, command: str) -> Source:
    """The source, checked before anything is started."""
    if source is None:
        raise UserError(
            "which pictures? Give a folder, a list or a dataset: "
            f"raycap {command} SOURCE --out DIR"
        )
    source.check()
    return source
