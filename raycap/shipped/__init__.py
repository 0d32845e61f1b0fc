"""The captioner that comes with raycap; its model card lies beside its weights."""

from pathlib import Path

NAME = "shipped"


def place_of(captioner: str) -> str:
    """The folder of a captioner: `shipped` is the one in this package, all else is a path or
    URI."""
    return str(Path(__file__).parent / "captioner") if captioner == NAME else captioner
