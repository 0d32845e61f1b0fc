"""A training run on one worker, from its first step or its last checkpoint to its end.

All workers of a run call `train_captioner` at the same time. Each gets its share of the pictures
of every step. The leader, worker 0, writes the files.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from raycap.captioners.trained.folder import save_folder
from raycap.captioners.trained.neighbours import Neighbours
from raycap.device import Precision
from raycap.storage import RunFolder
from raycap.training.captions import CaptionWriter
from raycap.training.checkpoint import TrainState
from raycap.training.data import TrainingData, datasets_of
from raycap.training.dataset import Batch, CaptionDataset, read_ahead
from raycap.training.distillation import read_teacher
from raycap.training.distributed import WorkerGroup
from raycap.training.neighbours import REMEMBERED, complete_captioner, photos_for_run
from raycap.training.network import Network, load_weights
from raycap.training.options import Train
from raycap.training.resume import Output, open_output, resume
from raycap.training.run_facts import data_facts, network_facts
from raycap.training.run_files import CAPTIONER, EpochLimit, StopRequest
from raycap.training.self_critical import CaptionReward, document_frequencies
from raycap.training.setup import TrainingSetup, trains_encoder
from raycap.training.step import COUNTED, Learner, Phase, train_step
from raycap.training.step_lines import LoggedAt, step_line
from raycap.training.store import PictureStore
from raycap.training.stream import PictureStream
from raycap.training.validation import (
    CAPTION_SCORES,
    HEALTH_SCORES,
    attention_maps,
    validate,
    write_samples,
)

# Elastic workers are started again whenever their number changes.
MINUTES_IF_ELASTIC = 5.0


@dataclass(frozen=True)
class TrainingRun:
    """What does not change during a run."""

    setup: TrainingSetup
    out: RunFolder
    training: TrainingData
    validation: CaptionDataset
    network: Network
    precision: Precision
    group: WorkerGroup
    output: Output
    stop: StopRequest
    steps_per_epoch: int
    steps: int  # of the whole run
    neighbours: Neighbours | None  # where they are known before the end

    @property
    def writer(self) -> CaptionWriter:
        """Writes the captions of validation pictures."""
        setup = self.setup
        return CaptionWriter(
            self.network, setup.vocabulary, setup.search, self.precision, self.neighbours
        )


def train_captioner(
    setup: TrainingSetup,
    store: PictureStore | PictureStream,
    out: RunFolder,
    precision: Precision,
    group: WorkerGroup,
    report: Callable[[dict[str, Any]], None] | None = None,
    epoch_limit: EpochLimit | None = None,
    lease: str = "",
) -> bool:
    """Train until the end. Returns False if the run was asked to stop earlier; then everything is
    saved.

    `report` is called with the log line of each epoch. With an `epoch_limit`, the leader waits
    before each epoch until the limit allows it. The other workers wait for the leader. `lease` is
    the one under which the workers were started.
    """
    options = setup.options
    training, validation = datasets_of(store, options, setup.vocabulary)
    phases = phases_of(options)
    steps_per_epoch = training.steps_per_epoch(options.batch)
    torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
    torch.manual_seed(options.seed)
    runs_encoder = store.holds_pixels or trains_encoder(setup.plan.encoder)
    network = build_network(setup, runs_encoder, precision).train()
    group.broadcast(network)
    neighbours = None
    if options.neighbours and not trains_encoder(setup.plan.encoder):
        most = options.neighbours
        neighbours = photos_for_run(out, network, training, validation, most, precision, group)
    steps = sum(phase.epochs for phase in phases) * steps_per_epoch
    steps = min(steps, options.max_steps or steps)
    run = TrainingRun(
        setup,
        out,
        training,
        validation,
        network,
        precision,
        group,
        open_output(out, lease),
        StopRequest(out),
        steps_per_epoch,
        steps,
        neighbours,
    )
    try:
        return train_phases(run, report, epoch_limit)
    finally:
        training.close()
        run.output.checkpoints.close()


def train_phases(
    run: TrainingRun,
    report: Callable[[dict[str, Any]], None] | None,
    epoch_limit: EpochLimit | None,
) -> bool:
    """Train from the newest checkpoint. Returns False if the run was asked to stop."""
    options, group, out, output = run.setup.options, run.group, run.out, run.output
    network, precision, training = run.network, run.precision, run.training
    phases, steps_per_epoch = phases_of(options), run.steps_per_epoch
    checkpoint = resume(out, output, group, precision.device)
    state = TrainState() if checkpoint is None else checkpoint.state
    if group.leads:
        output.log.add(start_line(run, state))

    for number in range(state.phase, len(phases)):
        if state.step >= run.steps and number > state.phase:
            break  # max_steps ended the phase before
        phase = phases[number]
        reward = caption_reward(run) if phase.is_self_critical else None
        teacher = None
        if options.distillation.teacher and not phase.is_self_critical:
            teacher = read_teacher(options.distillation, precision.device)
        learner = Learner(
            network, options, phase, steps_per_epoch, reward, precision, group, teacher
        )
        if checkpoint is not None:
            learner.restore(checkpoint.tensors, checkpoint.numbers)
            checkpoint = None
        elif number > 0:
            # A phase starts with the best captioner of the previous phase. Wait until the leader
            # has written it.
            group.wait()
            load_weights(network, str(out / CAPTIONER))
            learner.average.restart()
            state = dataclasses.replace(state, phase=number, epoch=0, step_of_epoch=0, waited=0)
            # Complete before this phase can replace that captioner.
            save(run, learner, state)
            output.checkpoints.wait()

        patience = options.validation.patience
        # A run that was killed after its last step still has to validate that epoch.
        while state.epoch < phase.epochs and (state.step < run.steps or state.step_of_epoch):
            if patience and state.waited >= patience:
                break
            if epoch_limit is not None and group.leads:
                epoch_limit.wait(state.epochs_done, run.stop.is_made)
            if not train_epoch(run, learner, phase, state):
                return False
            line = validate_epoch(run, learner, phase, state)
            save(run, learner, state)
            if report is not None:
                report({name: value for name, value in line.items() if name != "samples"})
    if group.leads and options.neighbours:
        output.leadership.check()
        most, batch = options.neighbours, options.validation.batch
        complete_captioner(str(out / CAPTIONER), run.writer, training, run.validation, most, batch)
        out.remove(REMEMBERED)
    return True


def train_epoch(run: TrainingRun, learner: Learner, phase: Phase, state: TrainState) -> bool:
    """Train the rest of an epoch, from `state.step_of_epoch`. Returns False if the run was asked
    to stop before the end of the epoch."""
    options, group = run.setup.options, run.group
    shares = run.training.shares(
        state.epochs_done,
        options.seed,
        options.batch,
        group.rank,
        group.size,
        start=state.step_of_epoch,
    )
    # Sums over this worker's steps. A checkpoint has the sums of all workers: the leader takes
    # them.
    counts = torch.zeros(len(COUNTED), device=run.precision.device)
    if state.counts and group.leads:
        counts = torch.tensor(state.counts, device=run.precision.device)
    progress = state.epoch / max(1, phase.epochs - 1)  # from 0 in the first epoch to 1 in the last
    sampling = 0.0 if phase.is_self_critical else options.objective.scheduled_sampling * progress

    def read(share: np.ndarray) -> list[Batch]:
        """The batches of one step: `accumulate` of them, so that each fits in memory."""
        pieces = np.array_split(share, options.optimiser.accumulate)
        batches = [run.training.batch(piece) for piece in pieces if len(piece)]
        on_gpu = run.precision.device.type == "cuda"
        return [batch.pinned() for batch in batches] if on_gpu else batches

    save_minutes = options.checkpoint_minutes
    if options.workers.is_elastic:
        save_minutes = save_minutes or MINUTES_IF_ELASTIC
    saved_at = time.monotonic()
    started = saved_at - state.seconds
    logged = LoggedAt(counts.clone(), state.step, saved_at)
    left = islice(shares, run.steps - state.step)
    for batches in read_ahead(left, read):
        counts += train_step(learner, batches, state, sampling)
        state.step += 1
        state.step_of_epoch += 1
        state.seconds = time.monotonic() - started

        is_last = state.step_of_epoch == run.steps_per_epoch or state.step == run.steps
        if state.step % options.log_steps == 0 or is_last:
            total = group.sum(counts.clone())
            if group.leads:
                run.output.log.add(step_line(run.steps, phase, state, learner.lr, total, logged))
            logged = LoggedAt(total, state.step, time.monotonic())

        every = options.validation.samples_every
        shows_samples = every and options.validation.samples and state.step % every == 0
        if shows_samples and group.leads:
            samples = write_samples(run.writer, run.validation, options.validation)
            run.output.log.add({"kind": "samples", "step": state.step, "samples": samples})

        # The leader decides when to stop and when to save. All workers must do so after the same
        # step.
        minutes = (time.monotonic() - saved_at) / 60
        is_save_due = group.leads and 0 < save_minutes <= minutes
        is_stop_requested = group.leads and run.stop.is_made()
        stop, is_save_due = group.any([is_stop_requested, is_save_due], run.precision.device)
        if stop or is_save_due:
            state.counts = group.sum(counts.clone()).tolist()
            save(run, learner, state)
            saved_at = time.monotonic()
        if stop:
            return False
    state.counts = group.sum(counts).tolist()
    return True


def validate_epoch(
    run: TrainingRun, learner: Learner, phase: Phase, state: TrainState
) -> dict[str, Any]:
    """Validate after an epoch, save the captioner if it is the best so far, and write the log
    line. Returns the log line."""
    options = run.setup.options
    started = time.monotonic()
    training_counts, state.counts = state.counts, []
    learner.average.swap()  # the averaged weights are validated and kept
    # The batch norm statistics of a trained encoder differ between workers: take the leader's.
    run.group.broadcast(run.network)
    result = validate(run.writer, run.validation, options.validation, run.group)

    is_best = state.end_epoch(options.validation.best_by, result.figures)
    learner.rates.epoch_validated(is_best)

    line = {
        "kind": "epoch",
        "phase": phase.name,
        "epoch": state.epochs_done,
        "step": state.step,
        **phase.figures(training_counts),
        **result.figures,
        "best": is_best,
        "seconds": round(state.seconds, 1),
        "validation_seconds": round(time.monotonic() - started, 1),
    }
    if run.group.leads:
        if is_best:
            run.output.leadership.check()
            keep_captioner(run, line)
            attention = attention_maps(run.writer, run.validation)
            run.output.log.write_pictures(result.pictures, attention)
        run.output.log.add(line)
    learner.average.swap()
    return line


def phases_of(options: Train) -> list[Phase]:
    """Cross-entropy, then self-critical training; phases without epochs are left out."""
    critical = options.self_critical
    # Self-critical training starts with a trained captioner, so it needs no warm-up.
    no_warmup = dataclasses.replace(options.schedule, warmup=0)
    phases = [
        Phase("cross_entropy", options.epochs, options.lr, options.schedule),
        Phase("self_critical", critical.epochs, critical.lr, no_warmup),
    ]
    return [phase for phase in phases if phase.epochs]


def build_network(setup: TrainingSetup, with_encoder: bool, precision: Precision) -> Network:
    """The network on its device, with new weights or with those of `start_from`."""
    encoder = setup.encoder
    decoder = setup.plan.decoder.build(
        len(setup.vocabulary), encoder.positions, encoder.width, setup.embeddings
    )
    if with_encoder:
        encoder = encoder.for_training(precision, setup.options.batch_norm)
    network = Network(decoder, encoder if with_encoder else None)
    if setup.options.start_from:
        load_weights(network, setup.options.start_from)
    return network.to(precision.device)


def start_line(run: TrainingRun, state: TrainState) -> dict[str, Any]:
    """The log line with the facts of the run, written at each start."""
    return {
        "kind": "start",
        "step": state.step,
        **network_facts(run.setup, run.network, run.precision, run.group.size),
        **data_facts(run.setup, run.training, run.validation),
        "steps_per_epoch": run.steps_per_epoch,
        "steps": run.steps,
    }


def save(run: TrainingRun, learner: Learner, state: TrainState) -> None:
    """Write a checkpoint from which the run can continue."""
    if run.group.leads:
        run.output.log.flush()
        run.output.checkpoints.save(state, learner.tensors(), learner.numbers())


def caption_reward(run: TrainingRun) -> CaptionReward:
    """The reward of self-critical training. The leader counts the document frequencies, once for
    the whole run."""
    if run.group.leads:
        document_frequencies(run.out, run.training)
    run.group.wait()
    frequencies = document_frequencies(run.out, run.training)
    return CaptionReward(frequencies, run.setup.options.self_critical)


def keep_captioner(run: TrainingRun, line: dict[str, Any]) -> None:
    """Write the captioner of the epoch with this log line. The folder contains the encoder only if
    it was trained."""
    options, training = run.setup.options, run.training
    captions = training.count_captions()
    splits = ", ".join(options.training_splits)
    about_training = {
        "phase": line["phase"].replace("_", "-"),
        "epoch": line["epoch"],
        "steps": line["step"],
        "pictures in a step": options.batch,
        "learning rate": options.lr,
        "seed": options.seed,
        "chosen by": options.validation.best_by,
    }
    if options.start_from:  # its training data and its licence apply to this captioner too
        about_training["started from"] = options.start_from
    facts = {
        "data": {
            "name": options.data_name or "not recorded",
            "learned from": f"{len(training):,} pictures, {captions:,} captions ({splits})",
            "judged by": f"{len(run.validation):,} pictures ({options.validation_split})",
        },
        "licence": options.data_licence or "of the data: not recorded",
        "training": about_training,
        "scores": {
            f"{name} on {options.validation_split}": round(line[name], 4)
            for name in (*CAPTION_SCORES, *HEALTH_SCORES, "validation_loss", "accuracy")
        },
    }
    save_folder(
        str(run.out / CAPTIONER),
        run.setup.plan,
        run.setup.vocabulary,
        run.network.encoder or run.setup.encoder,
        run.network.decoder,
        facts,
        include_encoder=False,
        neighbours=run.neighbours,
    )
