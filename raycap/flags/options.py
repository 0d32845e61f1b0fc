"""The options of the flags."""

import math
from dataclasses import dataclass

from raycap.errors import UserError
from raycap.flags.languages import LANGUAGES


@dataclass(frozen=True)
class Flags:
    """When a caption gets a flag. Flags are words in the column `flags`; flagged captions stay in
    the table, and `--retry flagged` tries them again."""

    min_score: float | None = None
    """low_score: the score is below this. Short: --min-score. None: never."""
    language: str = ""
    """wrong_language: the caption is in another language than this one, such as en or de. Short:
    --language. Empty: never."""
    many: int = 20
    """same_as_many: at least so many different pictures have this caption, and also at least the
    share below. 0: never."""
    many_share: float = 0.005
    """same_as_many: the share of the table's captions, 0.005 for one in 200."""

    def __post_init__(self) -> None:
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise UserError(f"--flags.min-score is {self.min_score}: give a number such as -1.5")
        if self.language and self.language not in LANGUAGES:
            known = ", ".join(sorted(LANGUAGES))
            raise UserError(f"--flags.language is {self.language!r}: give one of {known}")
        if self.many < 0 or self.many == 1:
            raise UserError(f"--flags.many is {self.many}: give at least 2, or 0 for never")
        if not 0.001 <= self.many_share <= 1:
            raise UserError(
                f"--flags.many-share is {self.many_share}: give a share of the captions, 0.001 to "
                "1, such as 0.01"
            )
