"""The trained captioner as it travels to the workers: its folder, read once, and how it is
asked."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import torch

from raycap.captioners.protocol import CaptionerOptions, Placement
from raycap.captioners.trained.batches import largest_batch
from raycap.captioners.trained.captioner import TrainedCaptioner
from raycap.captioners.trained.folder import (
    CaptionerParts,
    check_consensus,
    load_folder,
    read_digests,
)
from raycap.captioners.trained.lanes import memory_share
from raycap.device import PrecisionName, choose_precision
from raycap.images import Reading, Square, SquareOrJpeg
from raycap.schema import TRUE_WORDS
from raycap.search import SearchChoice, search_identity

ATTENTION = pa.schema(
    [
        ("words", pa.list_(pa.string())),
        ("attention", pa.list_(pa.list_(pa.float32()))),  # [T, P]
    ]
)
FAMILIARITY = pa.schema([("unfamiliar", pa.float32())])
AGREEMENT = pa.schema([("agreement", pa.float32())])
DOUBT = pa.schema([("doubt", pa.float32())])


@dataclass(frozen=True, eq=False)
class TrainedOptions(CaptionerOptions):
    """A trained captioner with its weights. They travel with it: workers need not see its
    folder."""

    parts: CaptionerParts
    digest: str  # of the folder's config.json, which holds the digests of its other files
    vocabulary: str  # digest
    search: SearchChoice
    batch: int
    attention: bool = False
    true_words: bool = False
    precision: PrecisionName = "auto"
    fixed_batch: bool = True
    jpegs_on_device: bool = False

    @classmethod
    def read(
        cls, path: str, encoder_weights: str, search: SearchChoice | None, **how: Any
    ) -> Self:
        """The captioner in a folder. Without `search`, it searches as it was made to."""
        parts = load_folder(path, encoder_weights)
        parts.encoder.check_precision(how.get("precision", "auto"))
        digest, vocabulary = read_digests(path)
        if search is not None:
            check_consensus(search, parts.neighbours, path)
        return cls(parts, digest, vocabulary, search or parts.plan.search, **how)

    def identity(self) -> dict[str, Any]:
        # Rows of earlier versions know true_words only where it was asked for.
        true_words = {"true_words": True} if self.true_words else {}
        return {
            "captioner": self.digest,
            "search": search_identity(self.search),
            "attention": self.attention,
            **true_words,
            # Another decoder and another filter make slightly other pixels.
            **({"jpegs_on_device": True} if self.jpegs_on_device else {}),
        }

    def intake(self) -> Square:
        wanted = self.parts.encoder.preprocessing
        kind = SquareOrJpeg if self.jpegs_on_device else Square
        return kind(wanted.size, wanted.resize, wanted.interpolation)

    def reading(self, asked: Reading) -> Reading:
        # How pictures are shown is a part of what was learned. Which ones are accepted is for the
        # user to say.
        return dataclasses.replace(asked, background=self.parts.plan.reading.background)

    def columns(self) -> pa.Schema:
        neighbours = self.parts.neighbours
        has_consensus = bool(getattr(self.search, "consensus", 0.0))
        return pa.schema(
            [
                *(ATTENTION if self.attention else ()),
                *(TRUE_WORDS if self.true_words else ()),
                *(FAMILIARITY if neighbours is not None else ()),
                *(AGREEMENT if has_consensus else ()),
                *(DOUBT if has_consensus and neighbours and neighbours.doubt else ()),
            ]
        )

    def metadata(self) -> dict[str, str]:
        return {"captioner": self.digest, "vocabulary": self.vocabulary}

    def placement(self) -> Placement:
        return Placement(precision=self.precision, holds_model=True)

    def in_precision(self, precision: PrecisionName) -> Self:
        return dataclasses.replace(self, precision=precision)

    def in_batch(self, batch: int) -> Self:
        return dataclasses.replace(self, batch=batch)

    def largest_batch(self, device: str, gpus: float) -> int | None:
        chosen = choose_precision(device, self.precision).device
        if chosen.type != "cuda":
            return None
        with memory_share(chosen, gpus):
            return largest_batch(lambda size: self.in_batch(size).open(device, None).try_batch())

    def open(self, device: str, threads: int | None) -> TrainedCaptioner:
        if threads:
            torch.set_num_threads(threads)
        plan = dataclasses.replace(self.parts.plan, search=self.search)
        return TrainedCaptioner(
            *self.parts._replace(plan=plan)[:-1],
            neighbours=self.parts.neighbours,
            device=device,
            precision=self.precision,
            batch=self.batch,
            fixed_batch=self.fixed_batch,
            attention=self.attention,
            true_words=self.true_words,
        )
