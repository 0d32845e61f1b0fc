"""`--dry-run` with `--model`: what a run would be, from the listing of its source and some steps
with made-up pictures on this machine."""

import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from raycap.captioners.huggingface.options import HuggingFaceOptions
from raycap.device import choose_precision
from raycap.images import Square
from raycap.images.intake import Fit
from raycap.training.checkpoint import TrainState
from raycap.training.display import duration
from raycap.training.distributed import WorkerGroup
from raycap.training.dry_run import MB, peak_memory
from raycap.training.fine_tuning.adapter import AdaptedModel
from raycap.training.fine_tuning.loop import facts_of_run
from raycap.training.fine_tuning.pictures import CaptionedPicture, Examples, FittedPictures
from raycap.training.fine_tuning.setup import FineTuningSetup
from raycap.training.fine_tuning.step import AdapterLearner, tune_step
from raycap.training.options import Train
from raycap.training.run_facts import facts_as_text
from raycap.training.store import PictureTables

TIMED_STEPS = 2  # after one that is not timed
# Of four bytes for each trained weight: itself, its gradient, two means of Adam.
NUMBERS_OF_WEIGHT = 4
SHAPE = (640, 480)  # of a made-up picture


def dry_run(options: Train, captioner: HuggingFaceOptions, listing: Path) -> str:
    """The text."""
    listed = pa.ipc.open_file(pa.memory_map(str(listing))).read_all()
    device = {True: "cuda", False: "cpu", None: "auto"}[options.workers.gpu]
    precision = choose_precision(device, options.precision)
    setup = FineTuningSetup(options, captioner, PictureTables((), str(listing)))
    model = AdaptedModel(captioner, options.lora, precision, options.seed)
    store = FittedPictures(pa.table({}), listed)
    training = Examples(store, store.rows_of(*options.training_splits), options.seed)
    validation_rows = store.rows_of(options.validation_split)
    workers = options.workers.count or 1
    steps_per_epoch = training.steps_per_epoch(options.batch)
    all_steps = options.epochs * steps_per_epoch
    steps = min(all_steps, options.max_steps or all_steps)

    # Time some steps of one worker with made-up pictures.
    intake = captioner.intake()
    wide, high = SHAPE
    if isinstance(intake, Square):
        wide = high = intake.size
    elif isinstance(intake, Fit):
        wide, high = intake.size_of(*SHAPE)
    chance = np.random.default_rng(0)
    picture = chance.integers(256, size=(high, wide, 3), dtype=np.uint8)
    count = math.ceil(min(options.batch, len(training)) / workers)
    share = [
        CaptionedPicture(picture, store.references(row)[0])
        for row in training.rows[:count].tolist()
    ]
    parts = np.array_split(np.arange(count), options.optimiser.accumulate)
    batches = [[share[place] for place in part.tolist()] for part in parts if len(part)]
    learner = AdapterLearner(model, options, steps_per_epoch, precision, WorkerGroup())
    started = 0.0
    for step in range(1 + TIMED_STEPS):
        if step == 1:
            started = time.perf_counter()
        tune_step(learner, batches, TrainState(step=step)).tolist()  # waits for the device
    seconds = (time.perf_counter() - started) / TIMED_STEPS * steps

    facts = facts_of_run(setup, model, precision, training, validation_rows, workers)
    facts |= {"steps_per_epoch": steps_per_epoch, "steps": steps}
    trained, frozen = model.counts()
    weights = 4 * trained * NUMBERS_OF_WEIGHT + precision.dtype.itemsize * frozen
    pixels = len(listed) * picture.nbytes
    lines = [
        f"shapes: a picture of {SHAPE[0]} x {SHAPE[1]} becomes {wide} x {high}; a step of a "
        f"worker: {count} pictures with a caption each",
        *facts_as_text(facts),
        f"pictures: {len(listed):,}, at most some {pixels / MB:,.0f} MB when they are unpacked "
        "(--captioner.max-pixels makes them smaller)",
        f"memory: {weights / MB:,.0f} MB for weights, gradients and the optimiser; "
        f"{peak_memory(precision) / MB:,.0f} MB at the peak of this trial",
        f"time: about {duration(seconds)} to train, without validation, by this machine as busy "
        "as it is now",
    ]
    return "\n".join(lines) + "\n"
