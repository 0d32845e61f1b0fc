"""Captions for large piles of pictures, and the captioners that write them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raycap.captioners import Captioner

__version__ = "0.1.0"
__all__ = ["Captioner", "__version__"]


def __getattr__(name: str) -> Any:
    """`from raycap import Captioner` loads torch only when it is asked for: `raycap --help` must
    not."""
    if name == "Captioner":
        from raycap.captioners import Captioner

        return Captioner
    raise AttributeError(f"module 'raycap' has no attribute {name!r}")
