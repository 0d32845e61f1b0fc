"""What `raycap report` is asked for."""

from dataclasses import dataclass

from raycap.errors import UserError
from raycap.uris import has_scheme


@dataclass(frozen=True)
class Report:
    """What the page shows, and how large it may become."""

    tables: tuple[str, ...] = ()
    """Caption tables, as `raycap evaluate` takes them, or the folders of training runs and sweeps."""
    out: str = "report.html"
    """The page, one HTML file that needs nothing else."""
    title: str = ""
    """Its heading; empty: the names of what it shows."""
    pictures: int = 300
    """Pictures shown: failed ones, the best, the worst, the most disputed, and others drawn by chance. Counts,
    scores and histograms are always of all."""
    extremes: int = 8
    """Validation pictures of a training run that are shown with the best captions, and as many with the worst."""
    thumbnail: int = 320
    """The longer side of a picture on the page, in pixels."""
    megabytes: float = 16.0
    """Most room for pictures in the page; where it is used up, the rest is shown without."""
    panels: int = 12
    """Pictures shown with what the captioner looked at for each word, of training runs, and of tables made with
    --attention."""
    model: str = ""
    """The captioner that wrote those tables; empty: the one named in facts.json beside them."""
    seed: int = 0
    """Of the pictures drawn by chance."""

    def __post_init__(self) -> None:
        if not self.out.endswith((".html", ".htm")):
            raise UserError(
                f"out is {self.out!r}: the report is a page, so give a name that ends in .html"
            )
        if has_scheme(self.out):
            raise UserError(f"out is {self.out}: the report goes to a disc, so give a path")
        if self.pictures < 1:
            raise UserError(f"pictures is {self.pictures}: give at least 1")
        for name in ("panels", "extremes"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: give 0 for none, or more")
        if not 32 <= self.thumbnail <= 1024:
            raise UserError(f"thumbnail is {self.thumbnail}: give a side of 32 to 1024 pixels")
        if not self.megabytes >= 0:
            raise UserError(f"megabytes is {self.megabytes}: give 0 (no pictures) or more")
