"""What the acts that go through a whole pile of pictures can be told: which rows, where to, on how much machine."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from raycap.device import PrecisionName
from raycap.errors import UserError
from raycap.search import Beam, SearchChoice
from raycap.sinks import SinkName, TextMode


@dataclass(frozen=True)
class Bulk:
    """The options that such acts share."""

    out: str = ""
    """Folder of the run, local or in an object store (s3://...); the same command again goes on where it was."""
    split: str = ""
    """Take the rows of this split of the source only (train, dev, test); empty: of every split."""
    limit: int | None = None
    """Take the first so many rows of the source only."""
    sample: float = 1.0
    """Take this share of the rows, drawn by their keys: the same ones each time."""
    shuffle_seed: int | None = None
    """Take the rows in random order (among 10,000 neighbours), so that what is done first is typical."""
    dry_run: bool = False
    """Count what would be made and what would be passed over; make nothing."""
    overwrite: bool = False
    """Make the table anew; the old one stays until the new one is whole."""
    retry: Literal["", "failed", "failed_to_fetch", "failed_to_decode", "failed_to_caption"] = ""
    """Make failed rows again, all or those of one status, and replace them."""
    max_failed: str = ""
    """Give up when more rows than this fail: a count such as 500, or a share such as 10%."""
    batch: int = 64
    """Pictures in one batch of the model."""
    actors: int | None = None
    """Processes that hold the model; none: as many as the cluster's GPUs or processors carry."""
    threads: int | None = None
    """Threads of each such process; none: the processors shared out among these processes."""
    gpus: float | None = None
    """GPUs, or the share of one, for each such process; none: one if there is any."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda."""
    precision: PrecisionName = "auto"
    """In which numbers: auto (the fastest that the device has), fp32, bf16, fp16."""
    part_rows: int = 10_000
    """Rows in one Parquet file."""
    part_seconds: float = 30.0
    """Write a smaller file when this much work waits: what a crash can cost."""

    def __post_init__(self) -> None:
        for name in ("batch", "part_rows", "actors", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give at least 1")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(
                f"gpus is {self.gpus}: give 0 for none, a share such as 0.5, or a number"
            )
        if not self.part_seconds > 0:
            raise UserError(f"part_seconds is {self.part_seconds}: give more than 0")
        if not 0 < self.sample <= 1:
            raise UserError(
                f"sample is {self.sample}: give a share of the rows, above 0 and at most 1"
            )
        self.failures_allowed(0)

    def failures_allowed(self, done: int) -> float:
        """How many of so many rows may have failed."""
        if not self.max_failed:
            return float("inf")
        try:
            share = self.max_failed.endswith("%")
            number = float(self.max_failed.removesuffix("%"))
            if number < 0 or (share and number > 100):
                raise ValueError
        except ValueError:
            raise UserError(
                f"max_failed is {self.max_failed!r}: give a count such as 500 or a share like 10%"
            ) from None
        return number / 100 * done if share else number


@dataclass(frozen=True)
class Extract(Bulk):
    """What `raycap extract` writes: OUT/features, a table of encoded pictures, for training."""

    part_rows: int = 1000
    """Rows in one Parquet file; a row of ResNet-50 takes about 200 KB before compression."""
    int8: bool = False
    """Keep grids in 8 bits, each channel with a scale of its own: about two thirds of the disc for ResNet-50."""


@dataclass(frozen=True)
class Caption(Bulk):
    """What `raycap caption` writes: OUT/captions, a table with a row for every picture. Single photos are
    captioned at once and printed, without a table."""

    out: str = ""
    """Folder of the run, local or in an object store (s3://...); the same command again goes on where it was.
    Empty: ./captions/NAME, for a pile of pictures of that name."""
    model: str = "shipped"
    """The captioner: a folder or URI that `raycap train` or Captioner.save wrote, or the one that ships."""
    encoder_weights: str = ""
    """Where the encoder's weights are now, for a captioner that does not hold them."""
    beam: int | None = None
    """Captions that grow side by side in the search; none: as the captioner was made."""
    num_captions: int | None = None
    """Captions of each picture: the best one and the next best as alternatives."""
    min_score: float | None = None
    """Mark rows whose caption scores less, in a column low_score; they stay."""
    attention: bool = False
    """Keep the words and where the captioner looked for each, in columns of their own; of single photos, draw it:
    NAME.attention.png."""
    true_words: bool = False
    """Also say how well the captioner foretells the source's own captions, word by word: columns true_surprise
    (nats), true_right (words it would have said) and true_count (words, with the ends), of which `raycap evaluate`
    makes loss, token accuracy and perplexity."""
    show: bool = False
    """Of single photos: draw each with its caption under it, NAME.captioned.png."""
    photos: tuple[str, ...] = ()
    """Photos, when several are named instead of a source: paths or URLs."""
    columns: tuple[str, ...] = ()
    """Columns of the source's own table to carry through."""
    also: tuple[SinkName, ...] = ()
    """Write these forms too: a text file for each picture, JSON lines, tars for WebDataset, a
    metadata.jsonl."""
    txt_beside: bool = False
    """Put text files beside the pictures, not into OUT/txt."""
    txt_mode: TextMode = "skip"
    """What to do where a text file with another text is there already."""
    dedup: bool = False
    """Caption pictures with the same bytes once; every one of them has its row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beam", "num_captions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: give at least 1")
        if self.true_words and self.dedup:
            raise UserError(
                "true_words and dedup do not go together: equal pictures may have other captions"
            )

    def search(self, given: SearchChoice | None, trained: SearchChoice) -> SearchChoice:
        """The captioner's own search, unless the config gives another; then the flags of this act."""
        chosen = given or trained
        if self.beam is None and self.num_captions is None:
            return chosen
        beam = (
            chosen
            if isinstance(chosen, Beam)
            else Beam(max_length=chosen.max_length, min_length=chosen.min_length)
        )
        best = self.num_captions or min(beam.best, self.beam or beam.width)
        return dataclasses.replace(beam, width=self.beam or max(beam.width, best), best=best)
