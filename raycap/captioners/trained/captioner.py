"""The trained captioner in one process: encode the pictures, search for captions, turn numbers
into words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.captioners.generation import picture_seed
from raycap.captioners.protocol import (
    Alternative,
    AnyPicture,
    Caption,
    Captioner,
    Prediction,
)
from raycap.captioners.trained.batches import FittingBatch
from raycap.captioners.trained.consensus import find_candidates, rank_by_consensus
from raycap.captioners.trained.folder import check_consensus, load_folder, save_folder
from raycap.captioners.trained.neighbours import Neighbours
from raycap.captioners.trained.plan import CaptionerPlan
from raycap.captioners.trained.weights import Numbers
from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import loss_by_picture, pad_captions
from raycap.device import PrecisionName, choose_precision
from raycap.encoders.encoder import Encoder, Features
from raycap.errors import UserError
from raycap.schema import ATTEMPT, CUT_OFF, NOT_SURE, UNFAMILIAR
from raycap.search import Beam, Hypothesis, Sample, SearchChoice, SearchOptions
from raycap.shipped import NAME as SHIPPED
from raycap.vocabulary import Vocabulary

# From this share of validation pictures that are more familiar, a picture has the flag.
MOST_UNFAMILIAR = 0.95
# In float32 on a processor, batches of all multiples of this round alike, to the last bit.
ROUND_ALIKE = 16
# Captions that are drawn when a picture is tried again. The surest of them is the answer.
DRAWN_AGAIN = 4


@dataclass(frozen=True)
class Nearest:
    """The training photos most similar to the pictures of a batch."""

    rows: NDArray[np.intp]  # [B, K]
    likeness: NDArray[np.floating]  # [B, K]
    familiar: NDArray[np.floating]  # [B]
    unfamiliar: list[float]  # [B]


@dataclass(frozen=True)
class TrueWords:
    """How well a captioner predicts a picture's own captions, word by word, given the true words
    before."""

    surprise: float
    """Cross-entropy in nats, summed over the words."""
    right: int
    """Words that it thought the likeliest."""
    count: int
    """True words, with the `<end>` of each caption."""


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
        is_exact = self.precision.name == "fp32" and self.precision.device.type == "cpu"
        if is_exact and batch % ROUND_ALIKE == 0:
            self._round_to = ROUND_ALIKE
        self._encode = encoder.for_inference(self.precision)
        self._decode = decoder.to(self.precision.device).eval()

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
        search = search or self.plan.search
        check_consensus(search, self.neighbours)
        if not len(pictures):
            return []
        references = [row["references"] for row in rows] if self.true_words else None
        usual = search
        if any(row.get(ATTEMPT) for row in rows):
            search = _sampling_like(usual)  # a beam search would give the same caption again
        seeds = [
            picture_seed(row.get(ATTEMPT) or 0, str(row.get("sha256") or ""), 0) for row in rows
        ]
        squares = list(pictures)
        if self.fixed_batch:
            # Arithmetic rounds by the size of the batch. With one size, a caption does not depend
            # on its neighbours.
            missing = -len(squares) % self._round_to
            squares += [np.zeros_like(squares[0])] * missing
            references = None if references is None else references + [()] * missing
            seeds += [0] * missing
        attention = self.attention if attention is None else attention
        draws_again = search is not usual
        answers = self._search_in_batches(
            squares, search, seeds, draws_again, attention, references
        )
        if self.fixed_batch and self.precision.name != "fp32" and self._fitting.size < self.batch:
            raise UserError(
                f"the device's memory is too small for batches of {self.batch}, and in "
                f"{self.precision.name} captions depend on the size of the batch: give a smaller "
                f"one, such as --batch {self._fitting.size}, or --precision fp32"
            )
        if draws_again and not isinstance(usual, Sample):
            others = usual.best - 1 if isinstance(usual, Beam) else 0
            answers = [replace(each, alternatives=each.alternatives[:others]) for each in answers]
        return answers[: len(pictures)]

    def _search_in_batches(
        self,
        squares: Sequence[NDArray[np.uint8]],
        search: SearchChoice,
        seeds: Sequence[int],
        draws_again: bool,
        attention: bool,
        references: Sequence[Sequence[str]] | None,
    ) -> list[Prediction]:
        def predict_batch(numbers: Sequence[int]) -> list[Prediction]:
            with torch.inference_mode():
                pixels = torch.from_numpy(np.stack([squares[number] for number in numbers]))
                features = self._features(pixels.permute(0, 3, 1, 2), search.mirror)
                memory = self._decode.prepare(*features)
                nearest = self._nearest(features.vector)
                own_seeds = [seeds[number] for number in numbers]
                found = self._find(search, memory, nearest, own_seeds, draws_again, attention)
                true_words: Sequence[TrueWords | None] = [None] * len(numbers)
                if references is not None:
                    own = [references[number] for number in numbers]
                    true_words = self._score_true_words(memory, own)
            unfamiliar = [None] * len(numbers) if nearest is None else nearest.unfamiliar
            return [
                self._in_words(*each) for each in zip(found, true_words, unfamiliar, strict=True)
            ]

        answers = self._fitting.run(range(len(squares)), predict_batch)
        return [
            Prediction(error=str(answer)) if isinstance(answer, MemoryError) else answer
            for answer in answers
        ]

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

    def _nearest(self, vectors: Tensor) -> "Nearest | None":
        if self.neighbours is None:
            return None
        features = vectors.float().cpu().numpy()
        familiar = self.neighbours.familiar(features)
        unfamiliar = self.neighbours.unfamiliar(familiar).tolist()
        return Nearest(*self.neighbours.nearest(features), familiar, unfamiliar)

    def _find(
        self,
        search: SearchChoice,
        memory: Tensors,
        nearest: "Nearest | None",
        seeds: Sequence[int],
        draws_again: bool,
        attention: bool,
    ) -> "list[tuple[list[Hypothesis], dict[str, float]]]":
        """The captions of each picture, best first, and the values of columns that say how well
        the first one agrees with similar photos, where it was chosen by consensus."""
        if not (isinstance(search, Beam) and search.consensus):
            own_seeds = seeds if draws_again else None
            found = search.search(self._decode, memory, seeds=own_seeds, attention=attention)
            return [(captions, {}) for captions in found.hypotheses()]
        assert nearest is not None and self.neighbours is not None
        bonus = None
        if search.fusion:
            words = len(self.vocabulary)
            bonus = self.neighbours.word_bonus(nearest.rows, nearest.likeness, words)
        candidates = find_candidates(search, self._decode, memory, seeds, attention, bonus)
        return [
            rank_by_consensus(search, each, self.neighbours, *near)
            for each, *near in zip(
                candidates, nearest.rows, nearest.likeness, nearest.familiar, strict=True
            )
        ]

    def _in_words(
        self,
        found: tuple[Sequence[Hypothesis], Mapping[str, float]],
        true_words: TrueWords | None,
        unfamiliar: float | None,
    ) -> Prediction:
        hypotheses, agreement = found
        extras: dict[str, Any] = dict(agreement)
        if unfamiliar is not None:
            extras["unfamiliar"] = unfamiliar
        if true_words is not None:
            extras["true_surprise"] = true_words.surprise
            extras["true_right"] = true_words.right
            extras["true_count"] = true_words.count
        # Weights that overflow make captions without a score, which mean nothing.
        good = [one for one in hypotheses if math.isfinite(one.score)]
        if not good:
            return Prediction(error="the search found no caption", extras=extras)
        best, *others = good
        extras["words"] = [self.vocabulary.words[word] for word in best.words]
        if best.attention is not None:
            extras["attention"] = best.attention.float().numpy()  # [T, P]
        decode = self.vocabulary.decode
        return Prediction(
            caption=decode(best.words),
            score=best.score,
            alternatives=tuple(Alternative(decode(other.words), other.score) for other in others),
            extras=extras,
            flags=(
                *(() if best.finished else (CUT_OFF,)),
                *((UNFAMILIAR,) if (unfamiliar or 0.0) >= MOST_UNFAMILIAR else ()),
                *((NOT_SURE,) if self._is_doubtful(extras) else ()),
            ),
        )

    def _is_doubtful(self, extras: Mapping[str, Any]) -> bool:
        doubt = None if self.neighbours is None else self.neighbours.doubt
        if doubt is None or "doubt" not in extras:
            return False
        return bool(extras["doubt"] >= doubt.threshold or extras["unfamiliar"] >= MOST_UNFAMILIAR)

    def _score_true_words(
        self, memory: Tensors, references: Sequence[Sequence[str]]
    ) -> list[TrueWords]:
        if not any(references):
            return [TrueWords(0.0, 0, 0)] * len(references)
        captions = [[self.vocabulary.encode(text) for text in own] for own in references]
        words = pad_captions(captions).to(self.precision.device)
        sums = loss_by_picture(self._decode, memory, words).tolist()
        return [TrueWords(surprise, int(right), int(count)) for surprise, right, count in sums]

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


def _sampling_like(search: SearchChoice) -> Sample:
    """A search that draws other captions for each seed, as long as those of this search."""
    if isinstance(search, Sample):
        return dataclasses.replace(search)
    names = [option.name for option in dataclasses.fields(SearchOptions)]
    given: dict[str, Any] = {name: getattr(search, name) for name in names}
    best = search.best if isinstance(search, Beam) else 1
    return Sample(**given, samples=max(DRAWN_AGAIN, best), temperature=0.7, top_p=0.9)


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
