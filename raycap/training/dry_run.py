"""`--train.dry-run`: what a run would be, from the listing of its source and some steps with
made-up pictures on this machine."""

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raycap.captioners.trained import CaptionerPlan
from raycap.captioners.trained.folder import words_of
from raycap.device import Precision, PrecisionName, choose_precision
from raycap.encoders.encoder import Encoder
from raycap.training.captions import CaptionWriter
from raycap.training.checkpoint import TrainState
from raycap.training.dataset import CaptionDataset
from raycap.training.display import duration
from raycap.training.distillation import read_teacher
from raycap.training.distributed import WorkerGroup
from raycap.training.loop import build_network, phases_of
from raycap.training.network import Network
from raycap.training.options import Train
from raycap.training.run_facts import data_facts, facts_as_text, network_facts
from raycap.training.self_critical import CaptionReward, count_frequencies
from raycap.training.setup import (
    DataFacts,
    TrainingSetup,
    caption_splitter,
    encoder_of_features,
    trains_encoder,
)
from raycap.training.step import Learner, Phase, train_step
from raycap.training.store import PictureStore, PictureTables
from raycap.training.validation import validate
from raycap.vocabulary import Vocabulary, VocabularyOptions, load_glove

TIMED_STEPS = 3  # after one that is not timed
ENCODED = 16  # pictures in the batch that is timed
# Of four bytes for each trained weight: itself, its gradient, two means of Adam.
NUMBERS_OF_WEIGHT = 4
MB = 1e6


def dry_run(
    plan: CaptionerPlan,
    words: VocabularyOptions,
    options: Train,
    encoder: Encoder,
    listing: Path,
    reads_pixels: bool,
    encoding_precision: PrecisionName,
) -> str:
    """The text. `reads_pixels` says that the encoder would run at every step."""
    listed = pa.ipc.open_file(pa.memory_map(str(listing))).read_all()
    setup = _setup(plan, words, options, encoder, listed)
    device = {True: "cuda", False: "cpu", None: "auto"}[options.workers.gpu]
    precision = choose_precision(device, options.precision)
    runs_encoder = reads_pixels or trains_encoder(plan.encoder)
    without_pictures = PictureStore(np.zeros((len(listed), 0)), listed)
    training, validation = (
        CaptionDataset(without_pictures, without_pictures.rows_of(*splits), setup.vocabulary)
        for splits in (options.training_splits, (options.validation_split,))
    )
    workers = options.workers.count or 1
    steps_per_epoch = training.steps_per_epoch(options.batch)
    phases = phases_of(options)
    all_steps = sum(phase.epochs for phase in phases) * steps_per_epoch
    steps = min(all_steps, options.max_steps or all_steps)

    # Time some steps of each phase, a validation, and the encoding of some pictures.
    made_with = None if reads_pixels else encoder_of_features(encoder, plan.encoder, options)
    network = build_network(setup, runs_encoder, precision).train()
    share = _made_up(training, math.ceil(options.batch / workers), made_with, encoder)
    train_seconds, left = 0.0, steps
    for phase in phases:
        own_steps = min(left, phase.epochs * steps_per_epoch)
        each = _seconds_of_step(share, network, setup, phase, steps_per_epoch, precision)
        train_seconds, left = train_seconds + own_steps * each, left - own_steps
    judged = _made_up(validation, options.validation.batch, made_with, encoder)
    each = _seconds_of_validation(judged, network, setup, precision)
    rounds = math.ceil(steps / steps_per_epoch) * len(validation) / workers
    validation_seconds = each * rounds
    encoding_seconds = 0.0
    looks = len(listed) * (1 + options.augmentation.views)
    if made_with is not None and not options.features:
        encoding = choose_precision(device, encoding_precision)
        encoding_seconds = _seconds_to_encode(made_with, encoding) * looks

    facts = network_facts(setup, network, precision, workers)
    facts |= data_facts(setup, training, validation)
    facts |= {"steps_per_epoch": steps_per_epoch, "steps": steps}
    pictures, captions, length = share.batch(share.rows).words.shape
    trained = facts["parameters_trained"]
    weights = 4 * (facts["parameters_frozen"] * runs_encoder + trained * NUMBERS_OF_WEIGHT)
    weights += 4 * trained * (options.optimiser.averaging > 0)
    total = encoding_seconds + train_seconds + validation_seconds
    lines = [
        f"shapes: pictures {encoder.size} x {encoder.size}, grid {encoder.positions} x "
        f"{encoder.width}; a step of a worker: {pictures} pictures x {captions} captions x "
        f"{length} words",
        *facts_as_text(facts),
        _data_on_disk(encoder, made_with, listed, looks, bool(options.features)),
        f"memory: {weights / MB:,.0f} MB for weights, gradients and the optimiser; "
        f"{peak_memory(precision) / MB:,.0f} MB at the peak of this trial",
        f"time: about {duration(total)} ({duration(encoding_seconds)} to encode, "
        f"{duration(train_seconds)} to train, {duration(validation_seconds)} to validate), by "
        "this machine as busy as it is now",
    ]
    return "\n".join(lines) + "\n"


def _setup(
    plan: CaptionerPlan,
    words: VocabularyOptions,
    options: Train,
    encoder: Encoder,
    listed: pa.Table,
) -> TrainingSetup:
    """As `gather_setup`, of the listing alone."""
    known = options.start_from or options.distillation.teacher
    vocabulary = words_of(known) if known else None
    facts = DataFacts()
    split_caption = caption_splitter(vocabulary, words)
    for rows in listed.to_batches():
        facts.add(rows, options.training_splits, split_caption)
    if vocabulary is None:
        vocabulary = Vocabulary.of_counts(facts.words, words)
    embeddings = load_glove(words.glove, vocabulary, options.seed).matrix if words.glove else None
    coverage = vocabulary.coverage(facts.words)
    no_tables = PictureTables((), "")
    return TrainingSetup(plan, options, vocabulary, encoder, no_tables, embeddings, coverage)


def _made_up(
    dataset: CaptionDataset, most: int, made_with: Encoder | None, encoder: Encoder
) -> CaptionDataset:
    """Some pictures of the data set with their captions, and with made-up features, as `made_with`
    makes them, or pixels."""
    count = min(most, len(dataset))
    rows = dataset.rows[np.linspace(0, len(dataset) - 1, count).astype(int)]
    chance = np.random.default_rng(0)
    made: np.ndarray[Any, Any]
    if made_with is not None:
        shape = (count, made_with.positions + 1, made_with.width)
        made = np.maximum(chance.standard_normal(shape, np.float32), 0).astype(np.float16)
    else:
        made = chance.integers(256, size=(count, encoder.size, encoder.size, 3), dtype=np.uint8)
    store = PictureStore(made, dataset.store.captions.take(rows))
    return CaptionDataset(store, np.arange(count), dataset.vocabulary)


def _seconds_of_step(
    share: CaptionDataset,
    network: Network,
    setup: TrainingSetup,
    phase: Phase,
    steps_per_epoch: int,
    precision: Precision,
) -> float:
    options, group = setup.options, WorkerGroup()
    reward = None
    if phase.is_self_critical:
        reward = CaptionReward(count_frequencies(share), options.self_critical)
    teacher = None
    if options.distillation.teacher and not phase.is_self_critical:
        teacher = read_teacher(options.distillation, precision.device)
    learner = Learner(network, options, phase, steps_per_epoch, reward, precision, group, teacher)
    pieces = np.array_split(share.rows, options.optimiser.accumulate)
    started = 0.0
    for step in range(1 + TIMED_STEPS):
        if step == 1:
            started = time.perf_counter()
        batches = [share.batch(piece) for piece in pieces if len(piece)]
        # .tolist() waits for the device.
        train_step(learner, batches, TrainState(step=step), 0.0).tolist()
    return (time.perf_counter() - started) / TIMED_STEPS


def _seconds_of_validation(
    judged: CaptionDataset, network: Network, setup: TrainingSetup, precision: Precision
) -> float:
    """For one picture."""
    started = time.perf_counter()
    writer = CaptionWriter(network, setup.vocabulary, setup.search, precision)
    validate(writer, judged, setup.options.validation, WorkerGroup())
    return (time.perf_counter() - started) / len(judged)


def _seconds_to_encode(encoder: Encoder, precision: Precision) -> float:
    """For one picture, without reading it."""
    inference = encoder.for_inference(precision)
    pixels = torch.zeros(ENCODED, 3, encoder.size, encoder.size, dtype=torch.uint8)
    started = 0.0
    with torch.inference_mode():
        for number in range(2):
            if number == 1:
                started = time.perf_counter()
            inference(pixels).vector.cpu()
    return (time.perf_counter() - started) / ENCODED


def _data_on_disk(
    encoder: Encoder, made_with: Encoder | None, listed: pa.Table, looks: int, has_features: bool
) -> str:
    if has_features:
        return "features: those of train.features"
    if made_with is None:
        size = len(listed) * encoder.size**2 * 3
        return f"pixels: {len(listed):,} pictures, {size / MB:,.0f} MB when they are unpacked"
    size = looks * (made_with.positions + 1) * made_with.width * 2
    return (
        f"features: {looks:,} pictures and views to encode, unless an earlier run has done so; "
        f"{size / MB:,.0f} MB when they are unpacked"
    )


def peak_memory(precision: Precision) -> float:
    """In bytes: of the device, or of this process."""
    if precision.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(precision.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) * (1 if sys.platform == "darwin" else 1024)
