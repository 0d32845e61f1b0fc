"""The trained captioner in one process: encode the pictures, search for captions, turn numbers
into words."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.captioners.protocol import (
    AnyPicture,
    Caption,
    Captioner,
    FindPredictions,
    GivePredictions,
    Prediction,
)
from raycap.captioners.trained.batch_work import BatchRequest, EncodedBatch, FoundBatch, Nearest
from raycap.captioners.trained.batches import FittingBatch, ran_out_of_memory
from raycap.captioners.trained.consensus import fusion_bonus, search_candidates
from raycap.captioners.trained.device_jpegs import decode_jpegs
from raycap.captioners.trained.folder import check_consensus, load_folder, save_folder
from raycap.captioners.trained.lanes import SquarePixels, lanes_of
from raycap.captioners.trained.neighbours import Neighbours
from raycap.captioners.trained.plan import CaptionerPlan
from raycap.captioners.trained.weights import Numbers
from raycap.captioners.trained.wording import predictions_of
from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import loss_by_picture, pad_captions
from raycap.device import ROUNDED_BY_BATCH, PrecisionName, choose_precision
from raycap.encoders.encoder import Encoder, Features
from raycap.errors import UserError
from raycap.schema import FAILED_TO_DECODE
from raycap.search import Beam, SearchChoice
from raycap.search.captions import SearchResult
from raycap.shipped import NAME as SHIPPED
from raycap.vocabulary import Vocabulary

# On a processor, decoders in float32 round alike, to the last bit, in batches of all multiples of
# this.
ROUND_ALIKE = 16


class TrainedCaptioner(Captioner):
    """An encoder, a decoder, a vocabulary and a search."""

    def __init__(
        self,
        plan: CaptionerPlan,
        vocabulary: Vocabulary,
        encoder: Encoder,
        decoder: Decoder,
        facts: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: PrecisionName = "auto",
        batch: int = 64,
        fixed_batch: bool = False,
        attention: bool = False,
        true_words: bool = False,
        neighbours: Neighbours | None = None,
    ) -> None:
        """With `fixed_batch` every batch has this size: black pictures fill it up.

        `attention` and `true_words` are what `predict` also answers by default.
        """
        super().__init__(encoder.preprocessing, plan.reading)
        self.plan, self.vocabulary, self.facts = plan, vocabulary, dict(facts or {})
        self.encoder, self.decoder, self.neighbours = encoder, decoder, neighbours
        self.precision = choose_precision(device, precision)
        self.batch, self.fixed_batch = batch, fixed_batch
        self.attention, self.true_words = attention, true_words
        self._fitting = FittingBatch(batch)
        self._round_to = batch  # the number of pictures, with `fixed_batch`
        is_exact = self.precision.name in ("fp32", "int8") and self.precision.device.type == "cpu"
        if is_exact and batch % ROUND_ALIKE == 0:
            self._round_to = ROUND_ALIKE
        self._encode = encoder.for_inference(self.precision)
        self._decode = decoder.to(self.precision.device).eval()
        self._lanes = lanes_of(self.precision.device, batch)

    @staticmethod
    def read(
        path: str | Path = SHIPPED,
        device: str = "auto",
        precision: PrecisionName = "auto",
        encoder_weights: str = "",
        batch: int = 64,
    ) -> "TrainedCaptioner":
        """The captioner in the folder at `path` (or URI), or the one that ships. Nothing in it is
        executed.

        `encoder_weights` says where the encoder's weights are, for a folder that does not hold
        them.
        """
        parts = load_folder(str(path), encoder_weights)
        return TrainedCaptioner(
            *parts[:-1],
            neighbours=parts.neighbours,
            device=device,
            precision=precision,
            batch=batch,
        )

    def save(
        self, path: str | Path, include_encoder: bool = False, numbers: Numbers = "float32"
    ) -> None:
        """Write the folder. An encoder with weights of its own is always in it, another one if
        asked for. `numbers` says how weights are stored."""
        save_folder(
            Path(path),
            self.plan,
            self.vocabulary,
            self.encoder,
            self.decoder,
            self.facts,
            include_encoder,
            numbers,
            self.neighbours,
        )

    def caption(
        self,
        pictures: Sequence[AnyPicture],
        trust: Sequence[str] = (),
        beam: int | None = None,
        search: SearchChoice | None = None,
        attention: bool = False,
        *,
        values: Sequence[Mapping[str, Any]] = (),
    ) -> list[Caption]:
        """As `Captioner.caption`; with another search or beam width for this call, or with
        attention maps."""
        loaded = self.load_pictures(pictures, trust)
        return self.caption_loaded(
            loaded, values, search=self._search(beam, search), attention=attention or None
        )

    def predict(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        rows: Sequence[Mapping[str, Any]],
        search: SearchChoice | None = None,
        attention: bool | None = None,
    ) -> list[Prediction]:
        if not len(pictures):
            check_consensus(search or self.plan.search, self.neighbours)
            return []
        request = self._request(pictures, rows, search, attention)

        def predict_batch(numbers: Sequence[int]) -> list[Prediction]:
            part = request.part(numbers[0], numbers[-1] + 1)
            missing = len(numbers) - len(part.pictures)
            if missing == len(numbers):
                return [Prediction()] * missing  # only black pictures
            found = self._search_batch(self._encode_batch(part, len(numbers)))
            return [*self._predictions(found), *[Prediction()] * missing]

        answers = self._fitting.run(range(self._padded(len(pictures))), predict_batch)
        depends = self.fixed_batch and self.precision.name in ROUNDED_BY_BATCH
        if depends and self._fitting.size < self.batch:
            raise UserError(
                f"the device's memory is too small for batches of {self.batch}, and in "
                f"{self.precision.name} captions depend on the size of the batch: give a smaller "
                f"one, such as --batch {self._fitting.size}, or --precision fp32"
            )
        return [
            Prediction(error=str(answer)) if isinstance(answer, MemoryError) else answer
            for answer in answers[: len(pictures)]
        ]

    @property
    def batches_ahead(self) -> int:
        return self._lanes.ahead

    def begin(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> FindPredictions:
        encoded: EncodedBatch | None = None
        if 0 < len(pictures) <= self._fitting.size:
            request = self._request(pictures, rows, None, None)
            try:
                encoded = self._encode_batch(request, self._padded(len(pictures)))
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise

        def find() -> GivePredictions:
            nonlocal encoded
            if encoded is not None:
                try:
                    found = self._search_batch(encoded)
                    return lambda: self._predictions(found)
                except (RuntimeError, MemoryError) as error:
                    if not ran_out_of_memory(error):
                        raise
                    encoded = None
            # Outside the handlers, whose errors hold the tensors that filled the memory.
            answers = self.predict(pictures, rows)
            return lambda: answers

        return find

    def try_batch(self) -> None:
        """Compute batches of the full size, as many at a time as a run has under way. Raises
        torch.OutOfMemoryError if they do not fit."""
        side = self.encoder.size
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        rows = [{"sha256": str(number), "references": ()} for number in range(self.batch)]
        request = self._request([noise] * self.batch, rows, None, None)
        begun = [self._encode_batch(request, self.batch) for _ in range(self.batches_ahead + 1)]
        found = [self._search_batch(batch) for batch in begun]
        for each in found:
            each.is_done.wait()

    def _request(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        rows: Sequence[Mapping[str, Any]],
        search: SearchChoice | None,
        attention: bool | None,
    ) -> BatchRequest:
        search = search or self.plan.search
        check_consensus(search, self.neighbours)
        attention = self.attention if attention is None else attention
        squares, faults = self._squares(pictures)
        return BatchRequest.of(squares, faults, rows, search, attention, self.true_words)

    def _squares(
        self, pictures: Sequence[NDArray[np.uint8]]
    ) -> tuple[list[SquarePixels], dict[int, Prediction]]:
        """The pictures with JPEGs decoded, and what is answered for those that are broken."""
        squares: list[SquarePixels] = list(pictures)
        places = [place for place, picture in enumerate(pictures) if picture.ndim == 1]
        if not places:
            return squares, {}
        faults: dict[int, Prediction] = {}
        wanted = self.encoder.preprocessing
        files = [pictures[place] for place in places]
        decoded = decode_jpegs(files, self.reading, wanted, self.precision.device)
        for place, found in zip(places, decoded, strict=True):
            if isinstance(found, Tensor):
                squares[place] = found
            elif found.pixels is not None:
                squares[place] = found.pixels
            else:
                squares[place] = np.zeros((wanted.size, wanted.size, 3), np.uint8)
                faults[place] = Prediction(error=found.error, status=FAILED_TO_DECODE)
        return squares, faults

    def _padded(self, count: int) -> int:
        """The size of the batch for so many pictures. Arithmetic rounds by the size of the batch:
        with one size, a caption does not depend on its neighbours."""
        return count + (-count % self._round_to if self.fixed_batch else 0)

    def _encode_batch(self, request: BatchRequest, count: int) -> EncodedBatch:
        """The first step. It only launches what a GPU has to do."""
        lanes, vectors = self._lanes, None
        with torch.inference_mode(), lanes.encoding(request.pictures, count) as pixels:
            features = self._features(pixels, request.search.mirror)
            memory = self._decode.prepare(*features)
            if self.neighbours is not None:
                vectors = lanes.to_host(features.vector.float())
            return EncodedBatch(request, count, memory, vectors, lanes.mark())

    def _search_batch(self, batch: EncodedBatch) -> FoundBatch:
        """The second step, in the same thread."""
        request, lanes = batch.request, self._lanes
        nearest = self._nearest(batch)
        with torch.inference_mode(), lanes.searching(batch.is_done):
            results = [self._to_host(result) for result in self._results(batch, nearest)]
            true_words = None
            if request.references is not None:
                true_words = lanes.to_host(self._score_true_words(batch.memory, request))
            return FoundBatch(batch, results, nearest, true_words, lanes.mark())

    def _to_host(self, result: SearchResult) -> SearchResult:
        if result.on_host is not None:  # on its way
            return result
        copy = self._lanes.to_host
        return SearchResult(
            words=copy(result.words),
            log_probability=copy(result.log_probability),
            score=copy(result.score),
            finished=copy(result.finished),
            attention=None if result.attention is None else copy(result.attention),
        )

    def _predictions(self, found: FoundBatch) -> list[Prediction]:
        """The last step, in any thread."""
        found.is_done.wait()
        return predictions_of(found, self.vocabulary, self.neighbours)

    def _features(self, pixels: Tensor, mirror: bool) -> Features:
        """Of pixels [B, 3, S, S]; with `mirror` the mean of theirs and their mirror images'."""
        features: Features = self._encode(pixels)
        if not mirror:
            return features
        mirrored: Features = self._encode(pixels.flip(3))
        side = self.encoder.side
        rows = mirrored.grid.reshape(len(pixels), side, side, -1)
        turned = rows.flip(2).flatten(1, 2)
        return Features((features.grid + turned) / 2, (features.vector + mirrored.vector) / 2)

    def _nearest(self, batch: EncodedBatch) -> Nearest | None:
        if self.neighbours is None or batch.vectors is None:
            return None
        batch.is_done.wait()
        vectors = batch.vectors.numpy()
        familiar = self.neighbours.familiar(vectors)
        unfamiliar = self.neighbours.unfamiliar(familiar).tolist()
        return Nearest(*self.neighbours.nearest(vectors), familiar, unfamiliar)

    def _results(self, batch: EncodedBatch, nearest: Nearest | None) -> list[SearchResult]:
        """What the search finds, and what is drawn at random besides it."""
        request, search = batch.request, batch.request.search
        seeds = [*request.seeds, *[0] * (batch.count - len(request.seeds))]
        if not (isinstance(search, Beam) and search.consensus):
            own = seeds if request.draws_again else None
            attention = request.attention
            return [search.search(self._decode, batch.memory, seeds=own, attention=attention)]
        assert nearest is not None and self.neighbours is not None
        bonus = None
        if search.fusion:
            words = len(self.vocabulary)
            word_bonus = self.neighbours.word_bonus(nearest.rows, nearest.likeness, words)
            bonus = self._lanes.to_device(fusion_bonus(search, word_bonus))
        return search_candidates(
            search, self._decode, batch.memory, seeds, request.attention, bonus
        )

    def _score_true_words(self, memory: Tensors, request: BatchRequest) -> Tensor:
        """[B, 3]: see `wording.TrueWords`."""
        device = self.precision.device
        some = next(iter(memory.values()))
        references = [*(request.references or ())]
        if not any(references):
            return torch.zeros(len(some), 3, device=device)
        references += [()] * (len(some) - len(references))
        captions = [[self.vocabulary.encode(text) for text in own] for own in references]
        return loss_by_picture(self._decode, memory, pad_captions(captions).to(device))

    def explain(
        self, picture: AnyPicture, beam: int | None = None, trust: Sequence[str] = ()
    ) -> "Explanation":
        """The caption of one picture, with a map of where the captioner looked for each word."""
        [loaded] = self.load_pictures([picture], trust)
        if loaded.pixels is None:
            raise UserError(f"cannot explain this picture: {loaded.status}: {loaded.error}")
        search = self._search(beam, None)
        [caption] = self.caption_loaded([loaded], search=search, attention=True)
        if caption.succeeded and caption.attention is None:
            raise UserError(
                "this captioner has no attention to show: its decoder sees the picture as a whole"
            )
        is_squashed = self.encoder.preprocessing.resize == "squash"
        aspect = loaded.height / loaded.width if is_squashed else 1.0
        return Explanation(caption, loaded.pixels, aspect)

    def _search(self, beam: int | None, search: SearchChoice | None) -> SearchChoice:
        chosen = search or self.plan.search
        if beam is None:
            return chosen
        if isinstance(chosen, Beam):
            return dataclasses.replace(chosen, width=beam, best=min(beam, chosen.best))
        return Beam(width=beam, max_length=chosen.max_length)


@dataclass(frozen=True)
class Explanation:
    """A caption and the picture as the encoder saw it, with an attention map for each word."""

    caption: Caption
    pixels: NDArray[np.uint8]  # [S, S, 3]
    aspect: float
    """Height by width to show the pixels at: a squashed picture gets its own shape back."""

    def save(self, path: str | Path, notes: Mapping[str, str] | None = None) -> None:
        """Draw one tile for each word into a PNG file, which holds the notes too."""
        from raycap import plots  # matplotlib takes a while, and few callers draw

        assert self.caption.attention is not None
        panel = plots.attention_panel(
            self.pixels, self.caption.words, self.caption.attention, self.aspect
        )
        plots.save(panel, Path(path), notes)
