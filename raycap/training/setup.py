"""Collects and checks what a training run needs (encoder, decoder, vocabulary, weights, pictures)
before any worker is started."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raycap.captioners.trained import CaptionerPlan
from raycap.captioners.trained.folder import digest_of, encoder_of, plan_of, words_of
from raycap.decoders import DECODERS, Ensemble
from raycap.encoders import ENCODERS, EncoderOptions, Torchvision, ViTB16
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.images.reading import LIMITS
from raycap.options import to_plain, without_removed
from raycap.search import Beam, SearchChoice, search_identity
from raycap.sources import SOURCES, Source
from raycap.storage import RunFolder, differences, memory
from raycap.training.distillation import check_teacher
from raycap.training.options import Train
from raycap.training.row_groups import open_row_groups
from raycap.training.store import PictureTables, read_captions, row_shapes
from raycap.vocabulary import (
    Coverage,
    Vocabulary,
    VocabularyOptions,
    load_glove,
    word_splitter,
)

TABLE, FACTS = "features", "facts.json"
# Options that may differ when a run is continued: the result does not depend on them.
MAY_CHANGE = (
    "out",
    "fresh",
    "dry_run",
    "cache",
    "data",
    "workers",
    "compile",
    "log_steps",
    "checkpoint_minutes",
    "neighbours",
    "trackers",
    "data_name",
    "data_licence",
)
# Options of encoders and decoders that do not change the shapes of weights. Dropout is another.
WITHOUT_EFFECT_ON_WEIGHTS = ("weights", "trainable", "embedding_trainable")


@dataclass
class DataFacts:
    """What a run learns from: pictures and captions of each split, and how often each word occurs
    in the training captions."""

    pictures: Counter[str] = field(default_factory=Counter)  # with captions, by split
    captions: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        rows: pa.Table | pa.RecordBatch,
        splits: Sequence[str],
        split_caption: Callable[[str], list[str]],
    ) -> None:
        """Count rows of CAPTION_COLUMNS. Words are those of the captions of these splits."""
        both = rows["split"].to_pylist(), rows["references"].to_pylist()
        for split, of_picture in zip(*both, strict=True):
            self.pictures[split or ""] += bool(of_picture)
            self.captions[split or ""] += len(of_picture or ())
            if split in splits:
                for caption in of_picture:
                    self.words.update(split_caption(caption))


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a worker needs, except the pictures themselves."""

    plan: CaptionerPlan
    options: Train
    vocabulary: Vocabulary
    encoder: Encoder
    pictures: PictureTables
    embeddings: np.ndarray | None = None  # [V, E] initial word embeddings
    coverage: Coverage | None = None  # of the training captions

    @property
    def search(self) -> SearchChoice:
        """The search that is used in validation."""
        return self.plan.search


def trains_encoder(encoder: EncoderOptions) -> bool:
    """Whether the encoder runs at every step, because training changes some of its layers."""
    return getattr(encoder, "trainable", "none") != "none"


def caches_stem(encoder: EncoderOptions, options: Train) -> bool:
    """Whether the frozen stages of an encoder whose last stage is trained are run once, and the
    last stage at every step."""
    can_be_cut = isinstance(encoder, Torchvision) and not isinstance(encoder, ViTB16)
    is_cut = can_be_cut and getattr(encoder, "trainable", "none") == "last"
    return is_cut and options.cache_frozen_stages and not augments_steps(options)


def augments_steps(options: Train) -> bool:
    """Whether pictures are changed at every step."""
    return options.augmentation.on and not options.augmentation.views


def needs_pixels(encoder: EncoderOptions, options: Train) -> bool:
    """Whether training reads pixels."""
    is_trained = trains_encoder(encoder) and not caches_stem(encoder, options)
    return is_trained or augments_steps(options)


def encoder_of_features(encoder: Encoder, options: EncoderOptions, train: Train) -> Encoder:
    """What the features of a run are made with: the encoder, or its frozen stages."""
    stem = encoder.stem() if caches_stem(options, train) else None
    return encoder if stem is None else stem


def check_options(plan: CaptionerPlan, options: Train) -> None:
    """Raise UserError for options that contradict each other. Reads nothing."""
    encoder, search = plan.encoder, plan.search
    if isinstance(search, Beam) and search.consensus and not options.neighbours:
        raise UserError(
            f"search.consensus is {search.consensus:g}, and train.neighbours is 0: a captioner "
            "needs remembered photos for it, so leave out one of the two"
        )
    RunFolder(options.out)  # raises UserError if there is no such store
    views = options.augmentation.views
    if views and (options.data == "stream" or options.window is not None):
        raise UserError(
            "augmentation.views need the whole tables on each machine: leave out train.data "
            "stream and train.window, or set views to 0"
        )
    if views and trains_encoder(encoder) and not caches_stem(encoder, options):
        raise UserError(
            "augmentation.views are encoded once, and this encoder is trained: set views to 0, or "
            "encoder.trainable to none"
        )
    if options.distillation.teacher and trains_encoder(encoder):
        raise UserError(
            "train.distillation needs the encoder of its teacher, and this run trains its own: "
            "set encoder.trainable to none, or leave out distillation.teacher"
        )
    if views and options.features:
        raise UserError(
            "augmentation.views are made from the pictures: leave out train.features, or set "
            "views to 0"
        )
    if options.features and (trains_encoder(encoder) or augments_steps(options)):
        raise UserError(
            "a trainable encoder, or augmentation, needs the pictures at every step, and "
            "train.features were made with a frozen encoder: leave out train.features, or turn "
            "both off"
        )


def run_identity(
    plan: CaptionerPlan, words: VocabularyOptions, options: Train, source: Source | None
) -> dict[str, Any]:
    """The options that determine the result of a run."""
    train = to_plain(options)
    left_out = (*MAY_CHANGE, "model", "lora")  # of runs that fine-tune a model
    reading = to_plain(plan.reading)
    identity = {
        "reading": {name: value for name, value in reading.items() if name not in LIMITS},
        "vocabulary": to_plain(words),
        "encoder": to_plain(plan.encoder, ENCODERS),
        "decoder": to_plain(plan.decoder, DECODERS),
        "search": search_identity(plan.search),
        "train": {name: value for name, value in train.items() if name not in left_out},
    }
    if source is not None:
        identity["source"] = to_plain(source, SOURCES)
    return identity


def check_same(
    folder: RunFolder, record: Mapping[str, Any] | None, identity: Mapping[str, Any], what: str
) -> None:
    """Raise UserError if the folder holds a run with another identity.

    `record` is the content of its run.json, None for a new folder. `what` is "run" or "sweep", for
    the message.
    """
    if record is None:
        return
    earlier = dict(record.get("identity", {}))
    for section, options in earlier.items():
        now = identity.get(section)
        if isinstance(options, Mapping):
            options = without_removed(section, options)
            if isinstance(now, Mapping):
                options = _with_added(options, now, _defaults_of(section, options))
            earlier[section] = options
    if different := differences(earlier, identity):
        raise UserError(
            f"{folder} holds another {what} ({'; '.join(different)}): give another --out, or "
            "--fresh to start over there"
        )


def _defaults_of(section: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The default options of a section of a run's identity, of the kind that it names."""
    sections: dict[str, Any] = {"train": Train, "vocabulary": VocabularyOptions}
    kinds: dict[str, Mapping[str, Any]] = {"encoder": ENCODERS, "decoder": DECODERS}
    part = sections.get(section) or kinds.get(section, {}).get(str(options.get("kind")))
    return {} if part is None else to_plain(part())


def _with_added(
    earlier: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of an earlier run, with those that its version did not have: they had the values
    that change nothing, which are the defaults."""
    filled = dict(earlier)
    for name, value in now.items():
        if name not in filled:
            filled[name] = defaults.get(name)
        elif isinstance(value, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _with_added(filled[name], value, defaults.get(name, {}))
    return filled


def given_features(features: str, listing: str, encoder: Encoder) -> PictureTables:
    """The feature table in `features`: the output folder of `raycap extract`, or the table in
    it."""
    folder = RunFolder(features)
    facts = folder.read_json(FACTS)
    if facts is None:
        if folder.names(TABLE) or folder.folders(TABLE):
            raise UserError(
                f"the features in {features} are not finished: run the same `raycap extract` again"
            )
        if not any(name.endswith(".parquet") for name in folder.names()):
            raise UserError(
                f"there are no features in {features}: make them with `raycap extract SOURCE "
                f"--out {features}`"
            )
        return PictureTables((features,), listing)
    if facts.get("identity", {}).get("encoder_sha256") != digest_of(encoder):
        raise UserError(
            f"the features in {features} were made with another encoder, or with other weights, "
            "than this run's: give the same encoder and weights, or make the features again with "
            "`raycap extract`"
        )
    return PictureTables((str(folder / TABLE),), listing)


def build_encoder(plan: CaptionerPlan, start_from: str) -> Encoder:
    """A new encoder, or the encoder of the captioner `start_from`."""
    if not start_from:
        return plan.encoder.build()
    earlier = plan_of(start_from)
    if isinstance(earlier.decoder, Ensemble):
        raise UserError(
            f"{start_from} is an ensemble, which cannot be trained: give one of the captioners "
            "that it was made of"
        )
    wrong = differences(
        {
            "encoder": _options_of_weights(earlier.encoder, ENCODERS),
            "decoder": _options_of_weights(earlier.decoder, DECODERS),
        },
        {
            "encoder": _options_of_weights(plan.encoder, ENCODERS),
            "decoder": _options_of_weights(plan.decoder, DECODERS),
        },
    )
    if wrong:
        raise UserError(
            f"{start_from} has other options than this run ({'; '.join(wrong)}): give the same "
            "ones, or another train.start_from"
        )
    return encoder_of(start_from, plan.encoder)


def _options_of_weights(part: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an encoder or a decoder that its weights depend on."""
    plain = to_plain(part, kinds)
    return {
        name: value
        for name, value in plain.items()
        if name not in WITHOUT_EFFECT_ON_WEIGHTS and not name.endswith("dropout")
    }


def gather_setup(
    plan: CaptionerPlan,
    words: VocabularyOptions,
    options: Train,
    encoder: Encoder,
    pictures: PictureTables,
    vocabulary: Vocabulary | None,
) -> TrainingSetup:
    """Read the captions, build the vocabulary, and check everything. Raises UserError if the run
    could not be trained. `vocabulary` is given if the run is continued."""
    table = pictures.tables[0]
    shapes = row_shapes(table)
    made_with = encoder_of_features(encoder, plan.encoder, options)
    if "grid" in shapes and shapes["grid"] != (made_with.positions, made_with.width):
        raise UserError(
            f"{table} holds grids of {shapes['grid']} (positions, width), the encoder makes "
            f"{(made_with.positions, made_with.width)}: they were made with another encoder"
        )
    teacher = options.distillation.teacher
    if vocabulary is None and (options.start_from or teacher):
        vocabulary = words_of(options.start_from or teacher)
    if vocabulary is not None and teacher:
        check_teacher(options.distillation, plan, encoder, vocabulary)
    facts, split_caption = DataFacts(), caption_splitter(vocabulary, words)
    with memory.held_briefly():
        for rows in caption_batches(pictures):
            facts.add(rows, options.training_splits, split_caption)
    check_splits(table, options, facts.pictures)
    if vocabulary is None:
        vocabulary = Vocabulary.of_counts(facts.words, words)
    embeddings = None
    if words.glove:
        embeddings = load_glove(words.glove, vocabulary, options.seed).matrix
    # Built once here, so that wrong options are refused before any worker is started.
    plan.decoder.build(len(vocabulary), encoder.positions, encoder.width, embeddings)
    coverage = vocabulary.coverage(facts.words)
    return TrainingSetup(plan, options, vocabulary, encoder, pictures, embeddings, coverage)


def caption_splitter(
    vocabulary: Vocabulary | None, words: VocabularyOptions
) -> Callable[[str], list[str]]:
    """Splits captions as the vocabulary does or, if there is none yet, as the options say."""
    if vocabulary is not None:
        return vocabulary.split
    return word_splitter(words.tokeniser, words.cleaning)


def caption_batches(pictures: PictureTables) -> Iterator[pa.Table]:
    """CAPTION_COLUMNS of the rows of the first table, some at a time."""
    if pictures.rows:
        yield from open_row_groups(pictures.tables[0], RunFolder(pictures.rows)).captions()
    else:
        yield from read_captions(pictures)


def check_splits(table: str, options: Train, captioned: Counter[str]) -> None:
    """Raise UserError if a split has no pictures with captions. `captioned` counts such pictures
    by split. `table` is the name of the table or source, for messages."""
    if not sum(captioned.values()):
        raise UserError(
            f"no picture of {table} has a caption: training needs pictures that people have "
            "described"
        )
    known = ", ".join(f"{split or '(none)'}: {count:,}" for split, count in captioned.items())
    if set(captioned) == {""}:
        known += (
            ": --source.fractions 0.9 0.1 0 draws a tenth of the pictures to validate on, by "
            "their names"
        )
    named = [("training_splits", split) for split in options.training_splits]
    named.append(("validation_split", options.validation_split))
    for option, split in named:
        if not captioned[split]:
            raise UserError(
                f"train.{option} names {split!r}, which has no picture with a caption; there are "
                f"{known}"
            )
    count = sum(captioned[split] for split in options.training_splits)
    if options.workers.count and count < options.workers.count:
        raise UserError(
            f"{options.workers.count} workers, but only {count} pictures to learn from: take "
            "fewer (--train.workers.count)"
        )
