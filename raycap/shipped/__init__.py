"""The captioner that comes with raycap; its model card lies beside its weights."""

from pathlib import Path

NAME = "shipped"


def place_of(captioner: str) -> str:
    """Where a captioner is: `shipped` is the one in this package, all else a path or URI."""
    return str(Path(__file__).parent / "captioner") if captioner == NAME else captioner
