"""What `raycap evaluate` is asked for, and the options of each metric."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raycap.errors import UserError
from raycap.metrics import METRICS
from raycap.options import nearest

Match = Literal["auto", "key", "name", "stem", "number"]

if TYPE_CHECKING:
    MetricOptions = Any
else:
    # One field for each metric, so that an option of a metric is a flag and a key of the config by itself.
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
    """How captions are judged, and where the scores go."""

    tables: tuple[str, ...] = ()
    """Caption tables: raycap's own (a folder, file or glob of Parquet), COCO results (.json), CSV, JSON lines; or
    folders of captioners, which caption the pictures first. NAME=PATH gives one a name of its own."""
    out: str = "scores.json"
    """The scores, a JSON file; each picture's scores and what became of each row go beside it, in
    *.pictures.parquet."""
    metrics: tuple[str, ...] = ("bleu", "rouge_l", "cider_d", "health")
    """Which metrics: bleu, rouge_l, cider, cider_d, bleu_nltk, glove_similarity, health; meteor and
    spice (Java programs: the extra coco-metrics), meteor_nltk (another METEOR)."""
    split: str = ""
    """Judge the pictures of this split of the references only (train, dev, test), and let captioners caption no
    others; empty: of every split."""
    cache: str = ""
    """Folder for what captioners say, which later runs find again; empty: ~/.cache/raycap."""
    match: Match = "auto"
    """What a row and a picture have to share: the key, its file name, that without its ending, or its number
    (COCO's image_id). auto: the first of these that finds any."""
    key_column: str = ""
    """The column of keys, where a table calls it by an unusual name."""
    caption_column: str = ""
    """The column of captions, where a table calls it by an unusual name."""
    absent_as_empty: bool = False
    """Judge failed and missing pictures as if their caption were empty, instead of leaving them out."""
    samples: int = 1000
    """Resamples of the pictures (bootstrap) behind intervals and comparisons; 0: none."""
    level: float = 0.95
    """How often an interval is to hold the true score."""
    seed: int = 0
    """Of the resamples."""

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in METRICS:
                raise UserError(f"there is no metric '{name}'{nearest(name, METRICS)}")
        if not self.metrics:
            raise UserError(f"metrics is empty: name some of {', '.join(METRICS)}")
        if not self.out.endswith(".json"):
            raise UserError(
                f"out is {self.out!r}: the scores are a JSON file, so give a name that ends in .json"
            )
        if self.samples < 0 or 0 < self.samples < 100:
            raise UserError(
                f"samples is {self.samples}: an interval takes at least 100; 0 leaves intervals out"
            )
        if not 0 < self.level < 1:
            raise UserError(f"level is {self.level}: give a share between 0 and 1, such as 0.95")
