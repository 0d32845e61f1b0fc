"""Pictures to captions with one trained model, in this process: read, encode, search, in batches that fit."""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raycap import shipped
from raycap.captioners.trained import folder
from raycap.captioners.trained.caption import Alternative, Caption, Explanation, Foretold, Seen
from raycap.captioners.trained.plan import Plan
from raycap.captioners.trained.room import Room
from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import loss_by_picture, pad_captions
from raycap.device import PrecisionName, choose_precision
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.fetch import Fetch, Fetched, Fetcher
from raycap.fetch.trust import PROGRAM, of_prefixes
from raycap.images import Picture
from raycap.images.guard import read_guarded
from raycap.schema import FAILED_TO_CAPTION, FAILED_TO_DECODE, FAILED_TO_FETCH, SUCCESS
from raycap.search import Beam, SearchChoice
from raycap.vocabulary import Vocabulary

# A path or URI, a picture's bytes, a PIL picture, or an array [H, W], [H, W, 3] or [H, W, 4] of uint8.
AnyPicture = str | Path | bytes | Image.Image | NDArray[np.uint8]

# Files that hold a picture of these modes as it is.
PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
TIFF_MODES = {"CMYK", "YCbCr", "LAB", "I", "F"}


class Captioner:
    """An encoder, a decoder, the words, and how to search."""

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary,
        encoder: Encoder,
        decoder: Decoder,
        facts: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: PrecisionName = "auto",
        batch: int = 64,
    ) -> None:
        self.plan, self.vocabulary, self.facts = plan, vocabulary, dict(facts or {})
        self.encoder, self.decoder = encoder, decoder
        self.precision = choose_precision(device, precision)
        self.room = Room(batch)
        self._encode = encoder.for_inference(self.precision)
        self._decode = decoder.to(self.precision.device).eval()

    @classmethod
    def load(
        cls,
        path: str | Path = shipped.NAME,
        device: str = "auto",
        precision: PrecisionName = "auto",
        encoder_weights: str = "",
        batch: int = 64,
    ) -> Self:
        """The captioner in the folder at `path` (or URI), or the one that ships. Nothing in it is executed.

        `encoder_weights` says where the encoder's weights are now, for a folder that does not hold them.
        """
        parts = folder.load(str(path), encoder_weights)
        return cls(*parts, device=device, precision=precision, batch=batch)

    def save(self, path: str | Path, include_encoder: bool = False, half: bool = False) -> None:
        """Write the folder; an encoder with weights of its own is always in it, another if asked for."""
        folder.save(
            Path(path),
            self.plan,
            self.vocabulary,
            self.encoder,
            self.decoder,
            self.facts,
            include_encoder,
            half,
        )

    def caption(
        self,
        pictures: Sequence[AnyPicture],
        beam: int | None = None,
        search: SearchChoice | None = None,
        attention: bool = False,
        trust: Sequence[str] = (),
    ) -> list[Caption]:
        """One answer for each picture, in their order; one that cannot be read or captioned says why.

        Strings often come from data. So they may be local paths, http(s) URLs of public addresses and object stores
        (s3://, gs://, ...). URIs of other kinds and chains (zip://a.jpg::s3://b/c.zip) are opened only where every
        link begins with one of the prefixes in `trust`.
        """
        if isinstance(pictures, str | bytes | Path):
            raise UserError("caption takes a list of pictures: put the one in brackets")
        search = self._search(beam, search)
        opened = self._open(pictures, trust)
        readable = [picture.pixels for _, picture in opened if picture.pixels is not None]
        found = iter(self.look(readable, search, attention))
        return [
            Caption.failed(status, picture.error, picture.width, picture.height)
            if picture.pixels is None
            else self._caption(next(found), picture.width, picture.height)
            for status, picture in opened
        ]

    def look(
        self,
        pixels: Sequence[NDArray[np.uint8]],
        search: SearchChoice | None = None,
        attention: bool = False,
        references: Sequence[Sequence[str]] | None = None,
    ) -> list[Seen | MemoryError]:
        """For each square of pixels [S, S, 3] what the search found, or why it found nothing; with `references`
        also how well each picture's own captions are foretold."""
        chosen = search or self.plan.search

        def act(places: Sequence[int]) -> list[Seen]:
            with torch.inference_mode():
                stacked = torch.from_numpy(np.stack([pixels[place] for place in places])).permute(
                    0, 3, 1, 2
                )
                memory = self._decode.prepare(*self._encode(stacked))  # of [B, 3, S, S]
                found = chosen.search(self._decode, memory, attention=attention).hypotheses()
                # Weights that overflow make captions without a score, which mean nothing.
                found = [[one for one in each if math.isfinite(one.score)] for each in found]
                if references is None:
                    return [Seen(each) for each in found]
                foretold = self._foretell(memory, [references[place] for place in places])
                return [Seen(*each) for each in zip(found, foretold, strict=True)]

        return self.room.each(range(len(pixels)), act)

    def _foretell(self, memory: Tensors, references: Sequence[Sequence[str]]) -> list[Foretold]:
        if not any(references):
            return [Foretold(0.0, 0, 0)] * len(references)
        words = pad_captions(
            [[self.vocabulary.encode(text) for text in own] for own in references]
        )
        sums = loss_by_picture(self._decode, memory, words.to(self.precision.device)).tolist()
        return [Foretold(surprise, int(right), int(count)) for surprise, right, count in sums]

    def explain(
        self, picture: AnyPicture, beam: int | None = None, trust: Sequence[str] = ()
    ) -> Explanation:
        """The caption of one picture with a map of where the captioner looked for each word.

        `trust` is as in `caption`.
        """
        [(status, opened)] = self._open([picture], trust)
        if opened.pixels is None:
            raise UserError(f"cannot explain this picture: {status}: {opened.error}")
        found = self.look([opened.pixels], self._search(beam, None), attention=True)
        caption = self._caption(found[0], opened.width, opened.height)
        if caption.succeeded and caption.attention is None:
            raise UserError(
                "this captioner has no attention to show: its decoder sees the picture as a whole"
            )
        aspect = (
            opened.height / opened.width if self.encoder.preprocessing.resize == "squash" else 1.0
        )
        return Explanation(caption, opened.pixels, aspect)

    def _search(self, beam: int | None, search: SearchChoice | None) -> SearchChoice:
        chosen = search or self.plan.search
        if beam is None:
            return chosen
        if isinstance(chosen, Beam):
            return dataclasses.replace(chosen, width=beam, best=min(beam, chosen.best))
        return Beam(width=beam, max_length=chosen.max_length)

    def _open(
        self, pictures: Sequence[AnyPicture], trust: Sequence[str]
    ) -> list[tuple[str, Picture]]:
        """For each picture its status so far, and its pixels or what is wrong with it. Bodies are read as they
        arrive, and not kept."""
        if isinstance(trust, str):
            raise UserError("trust takes a list of prefixes: put the one in brackets")
        opened: dict[int, tuple[str, Picture]] = {}
        named = [
            place for place, picture in enumerate(pictures) if isinstance(picture, str | Path)
        ]
        with Fetcher(Fetch(), PROGRAM.also(of_prefixes(trust, "trust"))) as fetcher:
            for number, fetched in fetcher.fetch_each([str(pictures[place]) for place in named]):
                opened[named[number]] = self._read(fetched)
                del fetched
        for place, picture in enumerate(pictures):
            if not isinstance(picture, str | Path):
                opened[place] = self._read(Fetched(_bytes(picture), ""))
        return [opened[place] for place in range(len(pictures))]

    def _read(self, fetched: Fetched) -> tuple[str, Picture]:
        if fetched.error:
            return FAILED_TO_FETCH, Picture(None, "", 0, 0, fetched.error)
        picture = read_guarded(fetched.data, self.plan.reading, self.encoder.preprocessing)
        return FAILED_TO_DECODE if picture.error else SUCCESS, picture

    def _caption(self, seen: Seen | MemoryError, width: int, height: int) -> Caption:
        if isinstance(seen, MemoryError):
            return Caption.failed(FAILED_TO_CAPTION, str(seen), width, height)
        if not seen.hypotheses:
            return Caption.failed(FAILED_TO_CAPTION, "the search found no caption", width, height)
        best, *others = seen.hypotheses
        return Caption(
            caption=self.vocabulary.decode(best.words),
            score=best.score,
            alternatives=tuple(
                Alternative(self.vocabulary.decode(other.words), other.score) for other in others
            ),
            status=SUCCESS,
            error_message="",
            width=width,
            height=height,
            words=tuple(self.vocabulary.words[word] for word in best.words),
            attention=None if best.attention is None else best.attention.float().numpy(),
        )


def _bytes(picture: bytes | Image.Image | NDArray[np.uint8]) -> bytes:
    """Everything goes the one way in, so that a PIL picture and its file get the same caption."""
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
