"""What a captioner is: options that travel to the workers, and an object there that writes
captions.

    @dataclass(frozen=True)
    class SizeOptions(CaptionerOptions):
        def identity(self):
            return {"captioner": "size"}

        def open(self, device, threads):
            return SizeCaptioner(self.intake())

    class SizeCaptioner(Captioner):
        def predict(self, pictures, rows):
            return [Prediction(f"{row['width']} by {row['height']} pixels") for row in rows]

The command for single photos, Python programs and the table job use every captioner in this one
way.
"""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetcher
from raycap.fetch.trust import PROGRAM, of_prefixes
from raycap.finishing import Finish, Finishing
from raycap.flags import Flags
from raycap.images import Intake, Reading, Square
from raycap.images.loading import LoadedPicture, load_in_order
from raycap.schema import FAILED_TO_CAPTION, SUCCESS
from raycap.shipped import NAME as SHIPPED

if TYPE_CHECKING:
    from raycap.device import PrecisionName

# A path or URI, a picture's bytes, a PIL picture, or an array [H, W], [H, W, 3] or [H, W, 4] of
# uint8.
AnyPicture = str | Path | bytes | Image.Image | NDArray[np.uint8]

# The steps of a batch after it was begun: see `Captioner.begin`.
GivePredictions = Callable[[], list["Prediction"]]
FindPredictions = Callable[[], GivePredictions]

# A column that a row may have besides those of its table: its chunk.
CHUNK = "raycap.chunk"

# The modes of PIL pictures that PNG and TIFF files hold as they are.
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
TIFF_MODES = {"CMYK", "YCbCr", "LAB", "I", "F"}


@dataclass(frozen=True)
class Alternative:
    """One more caption of a picture, less likely than the first."""

    caption: str
    score: float | None
    """Mean log-probability of its words: higher is surer; None where there is none."""


@dataclass(frozen=True)
class Prediction:
    """What a captioner answers for one picture. It holds words, never token numbers."""

    caption: str = ""
    score: float | None = None
    """Mean log-probability of the caption's words: higher is surer."""
    alternatives: tuple[Alternative, ...] = ()
    """The next best captions, where more than one was asked for."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Values of the captioner's own columns (see `CaptionerOptions.columns`). A "finish_reason"
    of "length" says that the caption was cut off."""
    error: str = ""
    """Why this picture has no caption; "" if it has one."""
    flags: tuple[str, ...] = ()
    """What the captioner itself doubts about the caption, such as `unfamiliar`: words for the
    column `flags`."""
    status: str = FAILED_TO_CAPTION
    """The status of its row, if there is an error."""


@dataclass(frozen=True)
class Caption:
    """One picture's row. If `status` is not success, `error_message` says why and the caption is
    empty."""

    caption: str
    score: float
    """Mean log-probability of the caption's words: higher is surer; NaN where there is none."""
    alternatives: tuple[Alternative, ...]
    status: str
    error_message: str
    width: int
    """Of the picture as a viewer shows it; 0 if it could not be read."""
    height: int
    words: tuple[str, ...] = ()
    attention: NDArray[np.float32] | None = None
    """Where the captioner looked for each word [T, P], if asked for and if the captioner has
    attention."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """The answer to each prompt by its name, the last one `caption`. Empty if it failed."""
    parsed: Mapping[str, Any] = field(default_factory=dict)
    """By prompt, the values of answers that have a schema or tags."""
    flags: tuple[str, ...] = ()
    """What may be wrong with the caption: see `raycap.flags`."""
    raw_caption: str = ""
    """What the captioner wrote, before it was finished."""

    @property
    def succeeded(self) -> bool:
        return self.status == SUCCESS

    def __str__(self) -> str:
        return self.caption if self.succeeded else f"({self.status}: {self.error_message})"


def caption_row(
    status: str, error: str, prediction: Prediction | None, finishing: Finishing | None = None
) -> dict[str, Any]:
    """The columns of one row that the captioner decides: a picture's status so far, and its
    prediction, finished and judged.

    The prediction is None for a picture that could not be loaded.
    """
    if prediction is not None and prediction.error:
        status, error, prediction = prediction.status, prediction.error, None
    if prediction is None:
        return {
            "caption": "",
            "score": None,
            "alternatives": [],
            "status": status,
            "error_message": error,
            "raw_caption": None,
            "flags": [],
        }
    finished = (finishing or Finishing()).complete(
        prediction.caption,
        prediction.score,
        str(prediction.extras.get("finish_reason") or ""),
        prediction.flags,
    )
    return {
        "caption": finished.caption,
        "raw_caption": finished.raw_caption,
        "flags": finished.flags,
        "score": prediction.score,
        "alternatives": [dataclasses.asdict(other) for other in prediction.alternatives],
        "status": status,
        "error_message": error,
        **prediction.extras,
    }


@dataclass(frozen=True)
class Placement:
    """What a worker that holds the captioner needs, where the command does not say."""

    gpus: float | None = None
    """GPUs of each worker; None: one if the cluster has any; 0: never."""
    workers: int | None = None
    """How many workers; None: as many as the cluster's GPUs or processors carry."""
    precision: PrecisionName | None = None
    """In which numbers the model computes; "auto" is decided once for the whole run. None: this
    captioner has no such choice."""
    pictures_per_second: float = 30.0
    """About how many one worker captions. The run is cut into pieces of about half a minute."""
    holds_model: bool = False
    """Whether the options hold the weights. Then the command can caption before Ray has
    started."""


class CaptionerOptions(ABC):
    """A captioner before it is opened: a frozen dataclass that can be pickled and sent to the
    workers."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the captions, as JSON: digest of the model, prompts, search. Another
        identity is another run, whose rows never mix with those of this one."""

    @abstractmethod
    def open(self, device: str, threads: int | None) -> Captioner:
        """The captioner itself, on a device (auto, cpu, cuda) and with so many threads; None: as
        they are."""

    def intake(self) -> Intake:
        """The form in which it wants pictures."""
        return Square()

    def reading(self, asked: Reading) -> Reading:
        """How pictures are read for it, given what the user asked for."""
        return asked

    def columns(self) -> pa.Schema:
        """Columns of its own, behind those of every caption table. Values come from
        `Prediction.extras`."""
        return pa.schema([])

    def columns_read(self) -> tuple[str, ...]:
        """Columns of rows on which the captions depend, besides the picture: of the source's own
        table, and `key` and `references`."""
        return ()

    def prompt_texts(self) -> tuple[str, ...]:
        """The texts that it asks with, without values of rows. An answer that repeats one of them
        gets the flag echo."""
        return ()

    def metadata(self) -> dict[str, str]:
        """What is written into the metadata of each Parquet file."""
        return {}

    def placement(self) -> Placement:
        return Placement()

    def in_run(self, folder: str) -> Self:
        """The same captioner in a table job. What it writes for a chunk into `folder`/CHUNK, a
        path or URI that all workers see, stays until the rows of the chunk are in the table. Rows
        name their chunk in the column "raycap.chunk"."""
        return self

    def in_precision(self, precision: PrecisionName) -> Self:
        """The same captioner in the precision of the run. Called only where `placement` names a
        precision."""
        raise NotImplementedError

    def in_batch(self, batch: int) -> Self:
        """The same captioner, which gets at most so many pictures at a time."""
        return self

    def largest_batch(self, device: str, gpus: float) -> int | None:
        """The largest batch that fits into the memory of a GPU, of which a worker has this share.
        None: any batch does, or there is no GPU. It may take some seconds."""
        return None


class Captioner(ABC):
    """An open captioner: in a worker, in the command for single photos, or in a Python program."""

    prompts: tuple[str, ...] = ("caption",)
    """The names of its prompts, in order."""

    def __init__(self, intake: Intake, reading: Reading | None = None) -> None:
        self.intake, self.reading = intake, reading or Reading()
        # How `caption` finishes and judges what `predict` answers.
        self.finishing = Finishing()

    @staticmethod
    def load(
        model: str | Path = SHIPPED,
        kind: str = "",
        device: str = "auto",
        precision: PrecisionName = "auto",
        finish: Finish | None = None,
        flags: Flags | None = None,
        **options: Any,
    ) -> Captioner:
        """The captioner that `model` names: a folder or URI of raycap's, the one that ships, a
        Hugging Face model or the URL of a server. `kind` says which kind it is, where that cannot
        be seen. `finish` and `flags` say what becomes of the answers. The other options are those
        of its kind, such as `prompt="..."`.
        """
        from raycap.captioners.kinds import load_captioner

        captioner = load_captioner(str(model), kind, device, precision, options)
        captioner.finishing = replace(
            captioner.finishing, finish=finish or Finish(), flags=flags or Flags()
        )
        return captioner

    @abstractmethod
    def predict(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Prediction]:
        """One answer for each picture, in their order. A picture has the form of `intake`: pixels
        [H, W, 3], or the bytes of a file.

        A row holds what is known about the picture besides its pixels: width, height and sha256,
        and in a table job also key, uri, references and the user's own columns.
        """

    @property
    def batches_ahead(self) -> int:
        """How many batches are begun before the first of them is finished."""
        return 0

    def begin(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> FindPredictions:
        """As `predict` in three steps, so that batches overlap: this one launches work. The
        function that is returned is called by the same thread, after other batches were begun.
        What that returns is called by any thread, and gives the predictions."""

        def find() -> GivePredictions:
            predictions = self.predict(pictures, rows)
            return lambda: predictions

        return find

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Release what it holds, such as connections. `with` calls it too."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def caption(
        self,
        pictures: Sequence[AnyPicture],
        trust: Sequence[str] = (),
        *,
        values: Sequence[Mapping[str, Any]] = (),
    ) -> list[Caption]:
        """One caption for each picture, in their order. If a picture cannot be read or captioned,
        its caption says why.

        `values` are what prompts say about each picture: {"title": "A blue mug"} for {title}.

        Strings often come from data. So they may be local paths, http(s) URLs of public addresses
        and object stores (s3://, gs://, ...). URIs of other kinds and chains
        (zip://a.jpg::s3://b/c.zip) are opened only if every link begins with one of the prefixes
        in `trust`.
        """
        return self.caption_loaded(self.load_pictures(pictures, trust), values)

    def caption_loaded(
        self,
        loaded: Sequence[LoadedPicture],
        values: Sequence[Mapping[str, Any]] = (),
        **how: Any,
    ) -> list[Caption]:
        """One caption for each loaded picture. `values` is as in `caption`, `how` goes to
        `predict`."""
        if values and len(values) != len(loaded):
            raise UserError(
                f"{len(values)} values for {len(loaded)} pictures: give a mapping for each"
            )
        own = values or [{} for _ in loaded]
        readable = [each for each in zip(loaded, own, strict=True) if each[0].pixels is not None]
        pictures = [picture.pixels for picture, _ in readable if picture.pixels is not None]
        rows = [
            {
                **value,
                "width": picture.width,
                "height": picture.height,
                "sha256": picture.sha256,
            }
            for picture, value in readable
        ]
        predictions = iter(self.predict(pictures, rows, **how))
        captions = []
        for picture in loaded:
            prediction = None if picture.pixels is None else next(predictions)
            row = caption_row(picture.status, picture.error, prediction, self.finishing)
            raw = row["caption"] if row["raw_caption"] is None else row["raw_caption"]
            captions.append(
                Caption(
                    caption=row["caption"],
                    score=float("nan") if row["score"] is None else row["score"],
                    alternatives=tuple(Alternative(**other) for other in row["alternatives"]),
                    status=row["status"],
                    error_message=row["error_message"],
                    width=picture.width,
                    height=picture.height,
                    words=tuple(row.get("words", ())),
                    attention=row.get("attention"),
                    answers={name: row.get(name) or "" for name in self.prompts},
                    parsed={
                        name: row[f"{name}_parsed"]
                        for name in self.prompts
                        if f"{name}_parsed" in row
                    },
                    flags=tuple(row["flags"]),
                    raw_caption=raw,
                )
            )
        return captions

    def load_pictures(
        self, pictures: Sequence[AnyPicture], trust: Sequence[str] = ()
    ) -> list[LoadedPicture]:
        """The pictures as this captioner wants them, in their order. `trust` is as in
        `caption`."""
        if isinstance(pictures, str | bytes | Path):
            raise UserError("caption takes a list of pictures: put the one in brackets")
        if isinstance(trust, str):
            raise UserError("trust takes a list of prefixes: put the one in brackets")
        items = [
            str(picture) if isinstance(picture, str | Path) else _encoded(picture)
            for picture in pictures
        ]
        with Fetcher(Fetch(), PROGRAM.also(of_prefixes(trust, "trust"))) as fetcher:
            return load_in_order(items, fetcher, self.reading, self.intake)


def _encoded(picture: bytes | Image.Image | NDArray[np.uint8]) -> bytes:
    """The bytes of a file. Every picture goes the one way, so that a PIL picture and its file get
    the same caption."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise UserError(
                f"an array picture is uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}"
            )
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    if picture.mode in TIFF_MODES:
        picture.save(file, format="tiff")
    else:
        picture = picture if picture.mode in PNG_MODES else picture.convert("RGB")
        picture.save(file, format="png", compress_level=1)
    return file.getvalue()
