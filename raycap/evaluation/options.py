"""The options of `raycap evaluate`, and those of each metric."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raycap.errors import UserError
from raycap.expressions import parse
from raycap.metrics import METRICS
from raycap.options import nearest

Match = Literal["auto", "key", "name", "stem", "number"]

if TYPE_CHECKING:
    MetricOptions = Any
else:
    # One field for each metric, so that each option of a metric is a flag and a key of the config.
    MetricOptions = dataclasses.make_dataclass(
        "MetricOptions",
        [
            (name, metric, dataclasses.field(default_factory=metric))
            for name, metric in METRICS.items()
        ],
        frozen=True,
        namespace={"__doc__": "Options of the metrics that have any."},
    )


@dataclass(frozen=True)
class Evaluate:
    """How captions are scored, and where the scores go."""

    tables: tuple[str, ...] = ()
    """Caption tables: raycap's own (a folder, file or glob of Parquet), COCO results (.json), CSV,
    JSON lines; or captioner folders, which first caption the pictures. NAME=PATH names one."""
    out: str = "scores.json"
    """JSON file for the scores; the scores and the outcome of each picture go beside it, into
    *.pictures.parquet."""
    metrics: tuple[str, ...] = ("bleu", "rouge_l", "cider_d", "health")
    """Which metrics; the answer to an unknown name lists them all. meteor and spice are Java
    programs (the extra coco-metrics); meteor_nltk is another METEOR."""
    split: str = ""
    """Score the pictures of this split of the references only (train, dev, test), and let
    captioners caption no others; empty: all splits."""
    only: str = ""
    """Score only rows of the tables whose columns fit, such as 'caption contains dog' or
    'width > 500 and not (flags has cut_off)'. Pictures without such a row are left out."""
    cache: str = ""
    """Folder for the captions of captioners, which later evaluations use again; empty:
    ~/.cache/raycap."""
    match: Match = "auto"
    """What a row and a picture have in common: the key, the file name, the file name without its
    ending, or its number (COCO's image_id). auto: the first of these that finds any."""
    key_column: str = ""
    """The column of keys, where a table has an unusual name for it."""
    caption_column: str = ""
    """The column of captions, where a table has an unusual name for it."""
    absent_as_empty: bool = False
    """Score failed and missing pictures as if their caption were empty; otherwise they are left
    out."""
    samples: int = 1000
    """Resamples of the pictures (bootstrap) for intervals and comparisons; 0: none."""
    level: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the resamples."""

    def __post_init__(self) -> None:
        if self.only:
            parse(self.only)  # refuses what is no expression
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"there is no metric '{name}'{nearest(name, METRICS)}")
        if not self.metrics:
            raise UserError(f"metrics is empty: name some of {', '.join(METRICS)}")
        if not self.out.endswith(".json"):
            raise UserError(
                f"out is {self.out!r}: the scores are a JSON file, so give a name that ends in "
                ".json"
            )
        if self.samples < 0 or 0 < self.samples < 100:
            raise UserError(
                f"samples is {self.samples}: an interval takes at least 100; 0 means no intervals"
            )
        if not 0 < self.level < 1:
            raise UserError(f"level is {self.level}: give a share between 0 and 1, such as 0.95")
