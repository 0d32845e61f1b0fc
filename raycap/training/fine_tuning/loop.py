"""A fine-tuning run on one worker, from its first step or its last checkpoint to its end.

All workers of a run call `fine_tune` at the same time. Each gets its share of the pictures of
every step. The leader, worker 0, writes the files.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raycap.captioners.huggingface.fine_tuned import put_folder
from raycap.device import Precision
from raycap.storage import RunFolder
from raycap.training.checkpoint import TrainState
from raycap.training.dataset import read_ahead
from raycap.training.distributed import WorkerGroup
from raycap.training.fine_tuning.adapter import AdaptedModel
from raycap.training.fine_tuning.card import card_of
from raycap.training.fine_tuning.pictures import CaptionedPicture, Examples, FittedPictures
from raycap.training.fine_tuning.setup import FineTuningSetup
from raycap.training.fine_tuning.step import AdapterLearner, tune_step
from raycap.training.fine_tuning.validation import validate_captioner
from raycap.training.loop import MINUTES_IF_ELASTIC
from raycap.training.resume import Output, open_output, resume
from raycap.training.run_files import CAPTIONER, EpochLimit, StopRequest
from raycap.training.step import COUNTED, Phase
from raycap.training.step_lines import LoggedAt, step_line


@dataclass(frozen=True)
class TuningRun:
    """What does not change during a run."""

    setup: FineTuningSetup
    out: RunFolder
    store: FittedPictures
    training: Examples
    validation_rows: NDArray[np.int64]
    learner: AdapterLearner
    precision: Precision
    group: WorkerGroup
    output: Output
    stop: StopRequest
    phase: Phase
    steps_per_epoch: int
    steps: int  # of the whole run


def fine_tune(
    setup: FineTuningSetup,
    store: FittedPictures,
    out: RunFolder,
    precision: Precision,
    group: WorkerGroup,
    report: Callable[[dict[str, Any]], None] | None = None,
    epoch_limit: EpochLimit | None = None,
    lease: str = "",
) -> bool:
    """Train until the end. Returns False if the run was asked to stop earlier; then everything is
    saved. `report` is called with the log line of each epoch. `lease` is the one under which the
    workers were started."""
    options = setup.options
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    model = AdaptedModel(setup.captioner, options.lora, precision, options.seed)
    group.broadcast(nn.ParameterList(model.weights.values()))
    training = Examples(store, store.rows_of(*options.training_splits), options.seed)
    steps_per_epoch = training.steps_per_epoch(options.batch)
    steps = options.epochs * steps_per_epoch
    run = TuningRun(
        setup=setup,
        out=out,
        store=store,
        training=training,
        validation_rows=store.rows_of(options.validation_split),
        learner=AdapterLearner(model, options, steps_per_epoch, precision, group),
        precision=precision,
        group=group,
        output=open_output(out, lease),
        stop=StopRequest(out),
        phase=Phase("fine_tuning", options.epochs, options.lr, options.schedule),
        steps_per_epoch=steps_per_epoch,
        steps=min(steps, options.max_steps or steps),
    )
    try:
        return tune_epochs(run, report, epoch_limit)
    finally:
        run.output.checkpoints.close()


def tune_epochs(
    run: TuningRun,
    report: Callable[[dict[str, Any]], None] | None,
    epoch_limit: EpochLimit | None,
) -> bool:
    """Train from the newest checkpoint. Returns False if the run was asked to stop."""
    options, group = run.setup.options, run.group
    checkpoint = resume(run.out, run.output, group, run.precision.device)
    state = TrainState()
    if checkpoint is not None:
        state = checkpoint.state
        run.learner.restore(checkpoint.tensors, checkpoint.numbers)
    if group.leads:
        run.output.log.add(start_line(run, state))

    patience = options.validation.patience
    # A run that was killed after its last step still has to validate that epoch.
    while state.epoch < options.epochs and (state.step < run.steps or state.step_of_epoch):
        if patience and state.waited >= patience:
            break
        if epoch_limit is not None and group.leads:
            epoch_limit.wait(state.epochs_done, run.stop.is_made)
        if not tune_epoch(run, state):
            return False
        line = validate_epoch(run, state)
        save(run, state)
        if report is not None:
            report({name: value for name, value in line.items() if name != "samples"})
    return True


def tune_epoch(run: TuningRun, state: TrainState) -> bool:
    """Train the rest of an epoch, from `state.step_of_epoch`. Returns False if the run was asked
    to stop before the end of the epoch."""
    options, group, learner = run.setup.options, run.group, run.learner
    device = run.precision.device
    shares = run.training.shares(
        state.epoch, options.batch, group.rank, group.size, start=state.step_of_epoch
    )
    # Sums over this worker's steps. A checkpoint has the sums of all workers: the leader takes
    # them.
    counts = torch.zeros(len(COUNTED), device=device)
    if state.counts and group.leads:
        counts = torch.tensor(state.counts, device=device)
    epoch = state.epoch

    def read(share: NDArray[np.int64]) -> list[list[CaptionedPicture]]:
        """The examples of one step: `accumulate` parts, so that each fits in memory."""
        pieces = np.array_split(share, options.optimiser.accumulate)
        parts = [[run.training.example(row, epoch) for row in each.tolist()] for each in pieces]
        return [part for part in parts if part]

    save_minutes = options.checkpoint_minutes
    if options.workers.is_elastic:
        save_minutes = save_minutes or MINUTES_IF_ELASTIC
    saved_at = time.monotonic()
    started = saved_at - state.seconds
    logged = LoggedAt(counts.clone(), state.step, saved_at)
    left = islice(shares, run.steps - state.step)
    for batches in read_ahead(left, read):
        counts += tune_step(learner, batches, state)
        state.step += 1
        state.step_of_epoch += 1
        state.seconds = time.monotonic() - started

        is_last = state.step_of_epoch == run.steps_per_epoch or state.step == run.steps
        if state.step % options.log_steps == 0 or is_last:
            total = group.sum(counts.clone())
            if group.leads:
                run.output.log.add(
                    step_line(run.steps, run.phase, state, learner.lr, total, logged)
                )
            logged = LoggedAt(total, state.step, time.monotonic())

        # The leader decides when to stop and when to save. All workers must do so after the same
        # step.
        minutes = (time.monotonic() - saved_at) / 60
        is_save_due = group.leads and 0 < save_minutes <= minutes
        is_stop_requested = group.leads and run.stop.is_made()
        stop, is_save_due = group.any([is_stop_requested, is_save_due], device)
        if stop or is_save_due:
            state.counts = group.sum(counts.clone()).tolist()
            save(run, state)
            saved_at = time.monotonic()
        if stop:
            return False
    state.counts = group.sum(counts).tolist()
    return True


def validate_epoch(run: TuningRun, state: TrainState) -> dict[str, Any]:
    """Validate after an epoch, save the captioner if it is the best so far, and write the log
    line. Returns the log line."""
    options, learner = run.setup.options, run.learner
    started = time.monotonic()
    training_counts, state.counts = state.counts, []
    result = validate_captioner(
        learner.model,
        run.store,
        run.validation_rows,
        options.validation,
        run.precision,
        run.group,
    )

    is_best = state.end_epoch(options.validation.best_by, result.figures)
    learner.rates.epoch_validated(is_best)

    line = {
        "kind": "epoch",
        "phase": run.phase.name,
        "epoch": state.epochs_done,
        "step": state.step,
        **run.phase.figures(training_counts),
        **result.figures,
        "best": is_best,
        "seconds": round(state.seconds, 1),
        "validation_seconds": round(time.monotonic() - started, 1),
    }
    if run.group.leads:
        if is_best:
            run.output.leadership.check()
            keep_captioner(run, line)
            run.output.log.write_pictures(result.pictures, [])
        run.output.log.add(line)
    return line


def start_line(run: TuningRun, state: TrainState) -> dict[str, Any]:
    """The log line with the facts of the run, written at each start."""
    return {
        "kind": "start",
        "step": state.step,
        **facts_of_run(
            run.setup,
            run.learner.model,
            run.precision,
            run.training,
            run.validation_rows,
            run.group.size,
        ),
        "steps_per_epoch": run.steps_per_epoch,
        "steps": run.steps,
    }


def facts_of_run(
    setup: FineTuningSetup,
    model: AdaptedModel,
    precision: Precision,
    training: Examples,
    validation_rows: NDArray[np.int64],
    workers: int,
) -> dict[str, Any]:
    """Where, what and on how much is trained."""
    options = setup.options
    validation = Examples(training.store, validation_rows, options.seed)
    sides = {", ".join(options.training_splits): training, options.validation_split: validation}
    trained, frozen = model.counts()
    return {
        "device": str(precision.device),
        "precision": precision.name,
        "reason": precision.reason,
        "workers": workers,
        "model": setup.captioner.model,
        "family": setup.captioner.family,
        "prompt": setup.captioner.prompt,
        "parameters_trained": trained,
        "parameters_frozen": frozen,
        "pictures": {split: len(examples) for split, examples in sides.items()},
        "captions": {split: examples.count_captions() for split, examples in sides.items()},
    }


def save(run: TuningRun, state: TrainState) -> None:
    """Write a checkpoint from which the run can continue."""
    if run.group.leads:
        run.output.log.flush()
        run.output.checkpoints.save(state, run.learner.tensors(), run.learner.numbers())


def keep_captioner(run: TuningRun, line: dict[str, Any]) -> None:
    """Write the captioner of the epoch with this log line."""
    setup, training = run.setup, run.training
    learned = f"{len(training):,} pictures, {training.count_captions():,} captions"
    card = card_of(setup, line, learned, len(run.validation_rows))
    files = run.learner.model.files()
    put_folder(str(run.out / CAPTIONER), setup.captioner, files, card)
