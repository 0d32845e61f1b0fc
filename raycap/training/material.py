"""What a run is made of, gathered and checked before anything is started: parts, words, weights, pictures."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from raycap.captioner import Plan
from raycap.captioner.folder import digest_of, encoder_of, plan_of, words_of
from raycap.config import Config, part_to_plain
from raycap.encoders.encoder import Encoder
from raycap.images.reading import LIMITS
from raycap.refusal import Refusal
from raycap.runs import RunFolder, differences
from raycap.search import Beam
from raycap.training import Train
from raycap.training.store import ROWS_AT_ONCE, Pictures, described, table_form
from raycap.vocabulary import Vocabulary, load_glove

TABLE, FACTS = "features", "facts.json"
# What may change between two starts of one run, because the result does not depend on it.
FREE = (
    "out",
    "fresh",
    "cache",
    "workers",
    "log_steps",
    "checkpoint_minutes",
    "trackers",
    "data_name",
    "data_licence",
)
# Options of an encoder or a decoder that any weights go with.
FORMLESS = ("weights", "trainable", "embedding_trainable")


@dataclass(frozen=True)
class Material:
    """Everything but the pictures."""

    plan: Plan
    options: Train
    vocabulary: Vocabulary
    encoder: Encoder
    pictures: Pictures
    embeddings: np.ndarray | None = None  # [V, E] to start the words' vectors from


def wants_pixels(config: Config) -> bool:
    """Whether the encoder must see the pictures at every step."""
    changing = config.train.augmentation
    return getattr(config.encoder, "trainable", "none") != "none" or (changing.on and not changing.views)


def check(config: Config) -> None:
    """Refuse what does not go together, before anything is read."""
    if not RunFolder(config.train.out).is_local:
        raise Refusal(f"train.out is {config.train.out}: train into a folder that all machines share, then copy it")
    if config.vocabulary.glove and config.decoder.scaled_words:
        raise Refusal(
            "decoder.scaled_words is for vectors that begin small, and vocabulary.glove gives large ones: "
            "set decoder.scaled_words to false"
        )
    views = config.train.augmentation.views
    if views and getattr(config.encoder, "trainable", "none") != "none":
        raise Refusal(
            "augmentation.views are encoded once, and this encoder changes: give views 0, or trainable none"
        )
    if views and config.train.features:
        raise Refusal("augmentation.views are made from the pictures: give a source instead of train.features")
    if wants_pixels(config) and config.train.features:
        raise Refusal(
            "a trainable encoder, or augmentation, needs the pictures at every step, and train.features are of a "
            "frozen one: give a source instead of train.features"
        )


def identity(config: Config) -> dict[str, Any]:
    """The choices that decide what a run becomes."""
    sections = ("reading", "vocabulary", "encoder", "decoder", "search", "train")
    told = {section: part_to_plain(section, getattr(config, section)) for section in sections}
    told["reading"] = {name: value for name, value in told["reading"].items() if name not in LIMITS}
    told["train"] = {name: value for name, value in told["train"].items() if name not in FREE}
    if not config.train.features and config.source is not None:
        told["source"] = part_to_plain("source", config.source)
    return told


def table_in(given: str, encoder: Encoder) -> str:
    """The feature table that the user gave, as a folder that `raycap extract` made or the table itself."""
    folder = RunFolder(given)
    facts = folder.read_json(FACTS)
    if facts is None:
        if folder.names(TABLE):
            raise Refusal(f"the features in {given} are not finished: run the same `raycap extract` again")
        if not any(name.endswith(".parquet") for name in folder.names()):
            raise Refusal(f"there are no features in {given}: make them with `raycap extract SOURCE --out {given}`")
        return given
    made_with = facts.get("identity", {}).get("encoder_sha256")
    if made_with != digest_of(encoder):
        raise Refusal(
            f"the features in {given} were made with another encoder, or with other weights, than this run's: say "
            "the encoder and its weights as they were, or make the features anew with `raycap extract`"
        )
    return str(folder / TABLE)


def first_encoder(config: Config) -> Encoder:
    """What looks at the pictures: new, or of the captioner that the run starts from."""
    start = config.train.start_from
    if not start:
        return config.encoder.build()
    plan = plan_of(start)
    was, now = (
        {section: _form(section, getattr(parts, section)) for section in ("encoder", "decoder")}
        for parts in (plan, config)
    )
    if wrong := differences(was, now):
        raise Refusal(
            f"{start} is made otherwise than this run ({'; '.join(wrong)}): give the same options, or another "
            "train.start_from"
        )
    return encoder_of(start, config.encoder)


def _form(section: str, part: Any) -> dict[str, Any]:
    """The options of a part that its weights depend on."""
    told = part_to_plain(section, part)
    return {name: value for name, value in told.items() if name not in FORMLESS and not name.endswith("dropout")}


def gather(config: Config, pictures: Pictures, encoder: Encoder, words: Vocabulary | None) -> Material:
    """Read the captions, and refuse what could not be learned. `words` are of a run that goes on."""
    options, table = config.train, pictures.tables[0]
    columns = table_form(table)
    if "grid" in columns and columns["grid"] != (encoder.positions, encoder.width):
        raise Refusal(
            f"{table} holds grids of {columns['grid']} (positions, width), the encoder makes "
            f"{(encoder.positions, encoder.width)}: they were made with another encoder"
        )
    count: Counter[str] = Counter()
    captions: list[str] = []
    for piece in described(pictures).to_batches(max_chunksize=ROWS_AT_ONCE):
        for split, references in zip(piece["split"].to_pylist(), piece["references"].to_pylist(), strict=True):
            count[split or ""] += bool(references)
            captions += references if split in options.training_splits else ()
    check_splits(table, options, count)
    if words is None and options.start_from:
        words = words_of(options.start_from)
    if words is None:
        words = Vocabulary.build(captions, config.vocabulary)
    plan = Plan(config.encoder, config.decoder, config.reading, config.search or Beam())
    glove = config.vocabulary.glove
    embeddings = load_glove(glove, words, options.seed).matrix if glove else None
    # Built once here, so that what does not fit is refused before any process is started.
    config.decoder.build(len(words), encoder.positions, encoder.width, embeddings)
    return Material(plan, options, words, encoder, pictures, embeddings)


def check_splits(table: str, options: Train, pictures: Counter[str]) -> None:
    """Refuse a table or a source that has no described picture for a split; `pictures` counts those that it has."""
    if not sum(pictures.values()):
        raise Refusal(f"no picture of {table} has a caption: training needs pictures that people have described")
    known = ", ".join(f"{split or '(none)'}: {count:,}" for split, count in pictures.items())
    if set(pictures) == {""}:
        known += ": --source.fractions 0.9 0.1 0 draws a tenth of the pictures to validate on, by their names"
    for name, wanted in (
        ("training_splits", options.training_splits),
        ("validation_split", (options.validation_split,)),
    ):
        for split in wanted:
            if not pictures[split]:
                raise Refusal(
                    f"train.{name} names {split!r}, which has no picture with a caption; there are {known}"
                )
    learned = sum(pictures[split] for split in options.training_splits)
    if options.workers.count and learned < options.workers.count:
        raise Refusal(f"{options.workers.count} workers, but only {learned} pictures to learn from: take fewer")
