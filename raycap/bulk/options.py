"""The options of table jobs: which rows, where to, on how much of the cluster."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from raycap.device import PrecisionName
from raycap.errors import UserError
from raycap.expressions import parse
from raycap.options import nearest
from raycap.schema import ANY_FLAG, FAILURES
from raycap.search import Beam, SearchChoice, SearchOptions
from raycap.sinks import SinkName, TextMode

USUAL_BATCH = 64


@dataclass(frozen=True)
class BulkOptions:
    """The options that `raycap caption` and `raycap extract` share."""

    out: str = ""
    """Folder of the run, local or in an object store (s3://...). The same command resumes it."""
    split: str = ""
    """Only the rows of this split of the source: train, dev or test. Empty: all splits."""
    only: str = ""
    """Only the rows whose columns fit, such as 'width > 500 and not (title is empty)': columns of
    the source's table, or key, uri, split and references. With --retry: only these rows of the
    output table."""
    limit: int | None = None
    """Only the first N rows of the source."""
    sample: float = 1.0
    """Only this share of the rows, drawn by their keys: the same ones each time."""
    dry_run: bool = False
    """Print how many rows would be made, and make none. If an earlier run with the same captioner
    is there, also what they will take."""
    overwrite: bool = False
    """Make the whole table again. The old one stays until the new one is complete."""
    retry: str = ""
    """Make failed rows again, all of them (failed) or those of one status (failed_to_fetch), and
    replace them; of captions also flagged ones, all of them (flagged) or those with one flag
    (flagged:repeats)."""
    max_failed: str = ""
    """Stop when more rows than this fail: a count such as 500, or a share such as 10%."""
    batch: int | None = None
    """Pictures in one batch of the model. None: for a trained captioner on a GPU the largest batch
    that fits, found when the run starts and then kept; otherwise 64."""
    actors: int | None = None
    """Worker processes that hold the model. None: as many as the cluster's GPUs or processors
    carry."""
    threads: int | None = None
    """Threads of each worker. None: the processors, divided among the workers."""
    gpus: float | None = None
    """GPUs of each worker, or a share such as 0.5. None: one, if there is any."""
    device: str = "auto"
    """Where the model computes: auto, cpu, cuda."""
    precision: PrecisionName = "auto"
    """Number format of the model: auto (fp32, or bf16 or fp16 where the device is faster in it),
    fp32, bf16, fp16 or int8 (on processors, for encoders that are ResNet or MobileNetV2)."""
    part_rows: int = 10_000
    """Rows in one Parquet file of the finished table."""
    commit: Literal["safe", "unsafe-single-driver"] = "safe"
    """How the table is changed. safe: with conditional writes, so that any number of runs may
    write to one output. unsafe-single-driver: for stores without them; you make sure that never
    more than one run writes to --out, or rows may be lost or doubled."""

    @property
    def has_one_writer(self) -> bool:
        return self.commit == "unsafe-single-driver"

    has_flags: ClassVar[bool] = False  # whether the rows have a column of flags

    @property
    def batch_size(self) -> int:
        """Pictures in one batch, once it is decided: see `bulk.precision`."""
        return self.batch or USUAL_BATCH

    def __post_init__(self) -> None:
        for name in ("batch", "part_rows", "actors", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give at least 1")
        if self.gpus is not None and self.gpus < 0:
            raise UserError(
                f"--gpus is {self.gpus}: give 0 for none, a share such as 0.5, or a number"
            )
        if not 0 < self.sample <= 1:
            raise UserError(
                f"--sample is {self.sample}: give a share of the rows, above 0 and at most 1"
            )
        if self.only:
            parse(self.only)  # refuses what is no expression
        self.failures_allowed(0)
        self.to_retry()

    def to_retry(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The statuses and the flags of the rows that --retry makes again."""
        if self.retry in ("", "failed"):
            return (FAILURES if self.retry else ()), ()
        if self.retry in FAILURES:
            return (self.retry,), ()
        kind, colon, flag = self.retry.partition(":")
        is_flag = kind == "flagged" and bool(flag or not colon)
        if not is_flag or not self.has_flags:
            known = ["failed", *FAILURES, *(["flagged"] if self.has_flags else [])]
            raise UserError(
                f"--retry is {self.retry!r}{nearest(self.retry, known)}: give one of "
                f"{', '.join(known)}" + (" or flagged:NAME" if self.has_flags else "")
            )
        return (), (flag or ANY_FLAG,)

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
                f"--max-failed is {self.max_failed!r}: give a count such as 500 or a share like "
                "10%"
            ) from None
        return number / 100 * done if share else number


@dataclass(frozen=True)
class ExtractOptions(BulkOptions):
    """What `raycap extract` writes: OUT/features, a table of encoded pictures, for training."""

    part_rows: int = 1000
    """Rows in one Parquet file. A row of ResNet-50 takes about 200 KB before compression."""
    int8: bool = False
    """Store grids in 8 bits, with a scale for each channel: about two thirds of the disk space for
    ResNet-50."""


@dataclass(frozen=True)
class CaptionOptions(BulkOptions):
    """What `raycap caption` writes: OUT/captions, a table with one row for each picture. Captions
    of single photos are printed, without a table."""

    out: str = ""
    """Folder of the run, local or in an object store (s3://...). The same command resumes it.
    Empty: ./captions/NAME, where NAME is that of the source."""
    model: str = "shipped"
    """The captioner: a folder or URI that `raycap train` wrote, the one that ships, a Hugging Face
    model (a folder, a name such as Qwen/Qwen2.5-VL-3B-Instruct, or a short name such as smolvlm),
    or the URL of an OpenAI-compatible server."""
    encoder_weights: str = ""
    """Where the encoder's weights are, for a captioner folder that does not hold them."""
    beam: int | None = None
    """Width of the beam search. None: as the captioner was trained."""
    num_captions: int | None = None
    """Captions of each picture: the best one, and the next best as alternatives."""
    attention: bool = False
    """Store where the captioner looked for each word, in the columns words and attention. For
    single photos, draw it: NAME.attention.png."""
    true_words: bool = False
    """Also measure how well the captioner predicts the source's own captions, word by word:
    columns true_surprise (nats), true_right (words that it ranked first) and true_count (words,
    with the end of each caption). `raycap evaluate` computes loss, token accuracy and perplexity
    from them."""
    show: bool = False
    """Draw each photo with its caption below it: NAME.captioned.png; of a table the first
    --show-most ones, into OUT/drawn."""
    show_most: int = 50
    """For --show of a table: how many photos are drawn."""
    photos: tuple[str, ...] = ()
    """Single photos instead of a source: paths or URLs."""
    columns: tuple[str, ...] = ()
    """Columns of the source's own table to carry through."""
    also: tuple[SinkName, ...] = ()
    """Write these forms too: a text file for each picture (OUT/txt/KEY.txt), JSON lines, tars for
    WebDataset, a metadata.jsonl. Later runs keep them up with the table."""
    also_only: str = ""
    """Write only these rows of the finished table into the forms of --also, such as
    'not (flags has refusal)'."""
    txt_beside: bool = False
    """Put text files beside the pictures, not into OUT/txt: a.txt beside a.jpg; a.jpg.txt if there
    is an a.png too."""
    txt_mode: TextMode = "skip"
    """What to do where a text file of your own, or one that you changed, is there already."""
    estimate: bool = False
    """Caption 200 pictures of the whole source, write nothing, and say what all of them will take:
    hours, tokens, money and failures, with intervals."""
    price_in: float | None = None
    """For --estimate and --dry-run: the price of a million tokens of pictures and prompts."""
    price_out: float | None = None
    """The price of a million tokens of captions."""
    price_hour: float | None = None
    """The price of a GPU for an hour; without GPUs, of a machine."""
    jpegs_on_device: bool = False
    """Decode plain JPEGs (upright, sRGB, one scan, up to 8 megapixels) on the device that runs a
    trained captioner: on an NVIDIA GPU with nvJPEG. All others are decoded by processors as
    before. Pixels differ slightly, so it is another run."""
    dedup: bool = False
    """Caption pictures with the same bytes only once in each worker, which remembers its last
    captions. Each of them still has its row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beam", "num_captions", "show_most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}: give at least 1")
        for name in ("price_in", "price_out", "price_hour"):
            price = getattr(self, name)
            if price is not None and not 0 <= price < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is {price}: give a number such as 0.15")
        if self.also_only:
            parse(self.also_only, "--also-only")
            if not self.also:
                raise UserError("--also-only narrows what --also writes: give --also too")
        if self.true_words and self.dedup:
            raise UserError(
                "--true-words and --dedup do not go together: equal pictures may have different "
                "captions"
            )

    has_flags: ClassVar[bool] = True

    @property
    def has_prices(self) -> bool:
        return not (self.price_in is None and self.price_out is None and self.price_hour is None)

    def search(self, given: SearchChoice | None, trained: SearchChoice) -> SearchChoice:
        """The search to use: the one in the config, else the captioner's own, changed by --beam
        and --num-captions."""
        chosen = given or trained
        if self.beam is None and self.num_captions is None:
            return chosen
        if isinstance(chosen, Beam):
            beam = chosen
        else:
            # A beam search in place of another one keeps the rules that all searches have.
            shared = {field.name for field in dataclasses.fields(SearchOptions)}
            rules = {name: getattr(chosen, name) for name in shared}
            beam = Beam(**rules)
        best = self.num_captions or min(beam.best, self.beam or beam.width)
        return dataclasses.replace(beam, width=self.beam or max(beam.width, best), best=best)
