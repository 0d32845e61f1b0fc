"""The options of `raycap report`."""

from dataclasses import dataclass

from raycap.errors import UserError
from raycap.expressions import parse
from raycap.uris import has_scheme


@dataclass(frozen=True)
class Report:
    """What the page shows, and how large it may become."""

    tables: tuple[str, ...] = ()
    """Caption tables, as `raycap evaluate` takes them, or the folders of training runs and
    sweeps."""
    out: str = "report.html"
    """The page, one HTML file that needs nothing else."""
    title: str = ""
    """Its heading; empty: the names of what it shows."""
    only: str = ""
    """Only rows of the caption tables whose columns fit, such as 'flags has cut_off and width >
    500'."""
    pictures: int = 300
    """Pictures shown: failed ones, the best, the worst, those that the tables differ most about,
    and random others. Counts, scores and histograms are always of all."""
    megabytes: float = 16.0
    """Most room for pictures in the page; when it is used up, the rest is shown without."""
    panels: int = 12
    """Pictures shown with what the captioner looked at for each word, of training runs, and of
    tables made with --attention."""
    model: str = ""
    """The captioner that wrote those tables; empty: the one named in facts.json beside them."""

    def __post_init__(self) -> None:
        if self.only:
            parse(self.only)  # refuses what is no expression
        if not self.out.endswith((".html", ".htm")):
            raise UserError(
                f"out is {self.out!r}: the report is a page, so give a name that ends in .html"
            )
        if has_scheme(self.out):
            raise UserError(f"out is {self.out}: the report is written to a disk, so give a path")
        if self.pictures < 1:
            raise UserError(f"pictures is {self.pictures}: give at least 1")
        if self.panels < 0:
            raise UserError(f"panels is {self.panels}: give 0 for none, or more")
        if not self.megabytes >= 0:
            raise UserError(f"megabytes is {self.megabytes}: give 0 (no pictures) or more")
