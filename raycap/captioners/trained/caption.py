"""What a captioner says of one picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.schema import SUCCESS
from raycap.search import Hypothesis


@dataclass(frozen=True)
class Alternative:
    """One caption of several."""

    caption: str
    score: float
    """Length-normalised log-probability: higher is surer."""


@dataclass(frozen=True)
class Caption:
    """One picture's row; where `status` is not success, `error_message` says why and the caption is empty."""

    caption: str
    score: float
    alternatives: tuple[Alternative, ...]
    """The next best captions, where the search was asked for more than one."""
    status: str
    error_message: str
    width: int
    """Of the picture as a viewer shows it; 0 where it could not be read."""
    height: int
    words: tuple[str, ...] = ()
    attention: NDArray[np.float32] | None = None
    """Where the captioner looked for each word [T, P], if asked for and if the decoder looks anywhere."""

    @classmethod
    def failed(cls, status: str, reason: str, width: int = 0, height: int = 0) -> "Caption":
        """The row of a picture that could not be captioned."""
        return cls("", float("nan"), (), status, reason, width, height)

    @property
    def succeeded(self) -> bool:
        return self.status == SUCCESS

    def __str__(self) -> str:
        return self.caption if self.succeeded else f"({self.status}: {self.error_message})"


class Foretold(NamedTuple):
    """How well a captioner foretells a picture's own captions, when it reads the true words so far."""

    surprise: float
    """Cross-entropy in nats, summed over the words."""
    right: int
    """Words that it thought the likeliest."""
    words: int
    """True words, with the `<end>` of each caption."""


class Seen(NamedTuple):
    """What a captioner makes of a square of pixels."""

    hypotheses: list[Hypothesis]
    """Best first."""
    foretold: Foretold | None = None
    """Of the picture's own captions, where they were given."""


@dataclass(frozen=True)
class Explanation:
    """A caption and the picture as the encoder saw it, with a map of attention for each word."""

    caption: Caption
    pixels: NDArray[np.uint8]  # [S, S, 3]
    aspect: float
    """Height by width to show the pixels at: a squashed picture gets its own shape back."""

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Draw the panel, one tile for each word, as PNG, which holds the notes too."""
        from raycap import plots  # matplotlib takes a while, and few callers draw

        assert self.caption.attention is not None
        panel = plots.attention_panel(
            self.pixels, self.caption.words, self.caption.attention, self.aspect
        )
        plots.save(panel, Path(path), notes)
