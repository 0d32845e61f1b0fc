"""`raycap train`: a captioner from pictures that people have described, on one process or many,
resumable."""

import contextlib
import dataclasses
import functools
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from raycap import __version__
from raycap.bulk.features import AugmentedView, features_job, pixels_job
from raycap.bulk.job import in_cache
from raycap.bulk.machines import Machines
from raycap.bulk.precision import with_precision
from raycap.bulk.run import run_job
from raycap.captioners.trained import CaptionerPlan
from raycap.captioners.trained.checks import read_config
from raycap.cluster.nodes import check_visible
from raycap.cluster.session import session
from raycap.cluster.train_workers import train_here, train_on_workers
from raycap.commands.fine_tune import dry_run_of_tuning, run_tuning
from raycap.commands.source import checked_source
from raycap.commands.training_run import (
    CONFIG,
    RUN,
    WORDS,
    is_finished,
    list_pictures,
    run_and_display,
    run_folder,
    write_facts,
    write_pictures_of_source,
)
from raycap.config import Config, dumps
from raycap.device import PrecisionName
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.evaluation.references import with_captions
from raycap.metrics import headline_scores
from raycap.search import Beam
from raycap.storage import Lease, RunFolder
from raycap.storage.lease import LEASE
from raycap.storage.training_log import METRICS, read_epochs
from raycap.terminal import write_out
from raycap.training import Train
from raycap.training.data import data_mode
from raycap.training.display import CURVE, RunDisplay
from raycap.training.dry_run import dry_run
from raycap.training.limited import limited
from raycap.training.row_groups import ROWS, join_captions
from raycap.training.run_files import CAPTIONER, StopRequest
from raycap.training.setup import (
    build_encoder,
    check_options,
    encoder_of_features,
    gather_setup,
    given_features,
    needs_pixels,
    run_identity,
)
from raycap.training.store import LISTING, PictureTables, local_copy
from raycap.vocabulary import Vocabulary

PRECISION, DATA = "features_precision", "data"  # in run.json


def train(config: Config) -> int:
    """Exit code 0 when the run is finished, 130 when it was stopped before."""
    is_tuned = bool(config.train.model)
    if config.train.dry_run:
        write_out(dry_run_of_tuning(config) if is_tuned else _dry_run(config))
        return 0
    out = run_folder(config.train.out)
    if not (run_tuning(config) if is_tuned else run_training(config)):
        write_out(f"stopped and saved; the same command continues it: {out}\n")
        return 130
    best = [line for line in read_epochs(out / METRICS) if line["best"]][-1]
    names = (*headline_scores(best), "validation_loss", "accuracy")
    scores = ", ".join(f"{name} {best[name]:.4f}" for name in names)
    if "vocabulary" in best:
        scores += (
            f"; distinct captions {best['distinct']:.0%}, words used {best['vocabulary']:,.0f}"
        )
    captioner = f"{config.train.out.rstrip('/')}/{CAPTIONER}"
    write_out(
        f"kept: epoch {best['epoch']} ({scores})\n"
        f"written: {out / CAPTIONER}; the curve: {out / CURVE}\n"
        f"caption pictures with it: raycap caption photos/ --model {captioner}"
        f"{_weights_option(config, str(out / CAPTIONER))} --out captions\n"
    )
    return 0


def run_training(
    config: Config, pictures: PictureTables | None = None, epoch_token: str = ""
) -> bool:
    """One training run from beginning to end; False when it was stopped before, with everything
    saved.

    `pictures` are the tables to learn from, if they exist already. With `epoch_token`, the token
    of an EpochLimit, the run waits before each epoch until it may train it.
    """
    config = dataclasses.replace(config, search=config.search or Beam())
    options, words, plan = config.train, config.vocabulary, captioner_plan(config)
    check_options(plan, options)
    identity = run_identity(plan, words, options, config.source)
    folder = run_folder(options.out)
    stop = StopRequest(folder)

    with Lease(folder) as lease:
        if is_finished(folder, identity, options.fresh):
            return True

        # What can be refused without Ray is refused before it starts.
        record = folder.read_json(RUN) or {}
        if pictures is None:
            write_pictures_of_source(config, folder, is_resumed=bool(record))
        listing = str(folder / LISTING)
        encoder = build_encoder(plan, options.start_from)
        if pictures is None and options.features:
            pictures = given_features(options.features, listing, encoder)

        is_here = options.workers.count == 0
        with contextlib.nullcontext() if is_here else session(config.cluster, workers_heard=False):
            if ray.is_initialized() and folder.is_local:
                check_visible({folder.path(LEASE): "train.out"})
            if pictures is None:
                pictures = make_tables(config, encoder, listing, record)
            # Runs of earlier versions had local data.
            mode = data_mode(pictures, options, record.get(DATA, "local" if record else ""))
            if mode == "stream":
                if not record:  # of a start that was killed or refused; its captions may be old
                    folder.remove(ROWS)
                pictures = join_with_captions(pictures, folder, options)
            known = folder.read(WORDS)
            vocabulary = None if known is None else Vocabulary.from_json(known.decode())
            setup = gather_setup(plan, words, options, encoder, pictures, vocabulary)

            # Written only now, so that a run that was refused does not claim the folder.
            record = {"raycap": __version__, "act": "train", "identity": identity, DATA: mode}
            if pictures.precision:
                record[PRECISION] = pictures.precision
            folder.write_json(RUN, record)
            folder.write(CONFIG, dumps(config).encode())
            folder.write(WORDS, setup.vocabulary.to_json().encode())
            stop.remove()

            if is_here:
                work = functools.partial(train_here, setup, folder, lease.run, epoch_token)
            else:
                work = functools.partial(
                    train_on_workers, setup, folder, lease.run, epoch_token, config.cluster
                )
            with RunDisplay(folder, options.trackers) as display:
                run_and_display(work, stop, display)

    if stop.remove():
        return False
    write_facts(folder, identity, config)
    return True


def _dry_run(config: Config) -> str:
    """The text of --dry-run. Nothing is written."""
    plan = captioner_plan(config)
    options = config.train
    check_options(plan, options)
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / LISTING
        list_pictures(config, listing, is_resumed=False)
        encoder = build_encoder(plan, options.start_from)
        reads_pixels = needs_pixels(config.encoder, options)
        precision = config.extract.precision
        words = config.vocabulary
        return dry_run(plan, words, options, encoder, listing, reads_pixels, precision)


def captioner_plan(config: Config) -> CaptionerPlan:
    """The parts of the captioner that this config trains."""
    return CaptionerPlan(config.encoder, config.decoder, config.reading, config.search or Beam())


def _weights_option(config: Config, captioner: str) -> str:
    """The option that names the weights of the encoder, if the captioner's folder does not hold
    them."""
    weights = getattr(config.encoder, "weights", "random")
    if config.train.model or weights == "random" or read_config(captioner)["encoder_included"]:
        return ""
    return f" --encoder-weights {shlex.quote(weights)}"


def join_with_captions(
    pictures: PictureTables, folder: RunFolder, options: Train
) -> PictureTables:
    """The tables as they are streamed: with the captions of their rows in the run's folder."""
    rows = folder / ROWS
    with local_copy(pictures.listing) as listing:
        join_captions(pictures.tables[0], listing, rows, options)
    return dataclasses.replace(pictures, rows=str(rows))


def make_tables(
    config: Config,
    encoder: Encoder,
    listing: Path | str,
    record: Mapping[str, Any] | None = None,
) -> PictureTables:
    """The tables to learn from, made from the source, or found where an earlier run has made the
    same.

    `record` is the run.json of a run that continues: it keeps the precision of its features.
    """
    source = with_captions(checked_source(config.source, "train"))
    how = (config.extract, config.fetch, config.reading, config.cluster)
    with Machines(config.cluster) as machines:
        if needs_pixels(config.encoder, config.train):
            jobs = [pixels_job(encoder, source, *how)]
        else:
            precision = _features_precision(config, record, machines)
            augmentation = config.train.augmentation
            views = [
                AugmentedView(augmentation, number) for number in range(1, augmentation.views + 1)
            ]
            encoder = encoder_of_features(encoder, config.encoder, config.train)
            jobs = [
                features_job(config.encoder, encoder, source, *how, view)
                for view in (None, *views)
            ]
            jobs = [with_precision(job, precision) for job in jobs]
        jobs = [dataclasses.replace(job, config=dumps(config)) for job in jobs]
        jobs = [in_cache(job, config.train.cache, "train.cache") for job in jobs]
        # The table in the cache is that of the whole source: a later run adds the other rows.
        listed = limited(source, config.train)
        jobs = [dataclasses.replace(job, source=listed) for job in jobs]
        for job in jobs:
            run_job(job, {})
    tables = tuple(f"{job.options.out}/{job.table}" for job in jobs)
    return PictureTables(tables, str(listing), jobs[0].identity.get("precision", ""))


def _features_precision(
    config: Config, record: Mapping[str, Any] | None, machines: Machines
) -> PrecisionName:
    """The precision that the run has begun with, else the one asked for, else the fastest."""
    recorded, asked = (record or {}).get(PRECISION), config.extract.precision
    if recorded and asked not in ("auto", recorded):
        raise UserError(
            f"this run learns from features in {recorded}, and extract.precision is {asked}: "
            "leave it out, or give --fresh to start over"
        )
    if recorded or asked != "auto":
        return recorded or asked
    return machines.choose_precision(config.extract)
