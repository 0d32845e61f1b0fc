"""`raycap train DATA --model MODEL`: a Hugging Face captioner is fine-tuned on pictures that
people have described, on one process or many, resumable."""

import contextlib
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import ray

from raycap import __version__
from raycap.bulk.fitted_pictures import fitted_pictures_job
from raycap.bulk.job import in_cache
from raycap.bulk.run import run_job
from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions
from raycap.cluster.nodes import check_visible
from raycap.cluster.session import session
from raycap.cluster.train_workers import train_here, train_on_workers
from raycap.commands.source import checked_source
from raycap.commands.training_run import (
    CONFIG,
    RUN,
    is_finished,
    list_pictures,
    run_and_display,
    run_folder,
    write_facts,
    write_pictures_of_source,
)
from raycap.config import Config, dumps
from raycap.evaluation.references import with_captions
from raycap.search import Beam
from raycap.storage import Lease
from raycap.storage.lease import LEASE
from raycap.training.display import RunDisplay
from raycap.training.fine_tuning.adapter import check_lora
from raycap.training.fine_tuning.dry_run import dry_run
from raycap.training.fine_tuning.setup import (
    FineTuningSetup,
    check_applies,
    resolve_captioner,
    tuning_identity,
)
from raycap.training.limited import limited
from raycap.training.run_files import StopRequest
from raycap.training.store import LISTING, PictureTables


def run_tuning(config: Config) -> bool:
    """One run from beginning to end; False when it was stopped before, with everything saved."""
    options = config.train
    captioner = resolve_captioner(options, checked_model(config))
    check_lora(captioner, options.lora)
    reading = captioner.reading(config.reading)
    identity = tuning_identity(captioner, options, reading, config.source)
    folder = run_folder(options.out)
    stop = StopRequest(folder)

    with Lease(folder) as lease:
        if is_finished(folder, identity, options.fresh):
            return True
        write_pictures_of_source(config, folder, is_resumed=folder.exists(RUN))
        listing = str(folder / LISTING)

        is_here = options.workers.count == 0
        with contextlib.nullcontext() if is_here else session(config.cluster, workers_heard=False):
            if ray.is_initialized() and folder.is_local:
                check_visible({folder.path(LEASE): "train.out"})
            pictures = make_table(config, captioner, listing)
            setup = FineTuningSetup(options, captioner, pictures)

            # Written only now, so that a run that was refused does not claim the folder.
            record: dict[str, Any] = {"raycap": __version__, "act": "train", "identity": identity}
            folder.write_json(RUN, record)
            folder.write(CONFIG, dumps(config).encode())
            stop.remove()

            if is_here:
                work = functools.partial(train_here, setup, folder, lease.run)
            else:
                work = functools.partial(
                    train_on_workers, setup, folder, lease.run, "", config.cluster
                )
            with RunDisplay(folder, options.trackers) as display:
                run_and_display(work, stop, display)

    if stop.remove():
        return False
    write_facts(folder, identity, config)
    return True


def dry_run_of_tuning(config: Config) -> str:
    """The text of --dry-run. Nothing is written."""
    captioner = resolve_captioner(config.train, checked_model(config))
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / LISTING
        list_pictures(config, listing, is_resumed=False)
        return dry_run(config.train, captioner, listing)


def checked_model(config: Config) -> HuggingFaceModel:
    """The options of the model. Raises UserError for options that do not apply to it."""
    default = Config()
    names = ("vocabulary", "encoder", "decoder")
    sections = {name: (getattr(config, name), getattr(default, name)) for name in names}
    sections["search"] = (config.search or Beam(), Beam())
    return check_applies(config.train, config.captioner, sections)


def make_table(config: Config, captioner: HuggingFaceOptions, listing: str) -> PictureTables:
    """The table of the pictures, made from the source, or found where an earlier run has made
    it."""
    source = with_captions(checked_source(config.source, "train"))
    reading = captioner.reading(config.reading)
    job = fitted_pictures_job(
        captioner.intake(), source, config.extract, config.fetch, reading, config.cluster
    )
    job = dataclasses.replace(job, config=dumps(config))
    job = in_cache(job, config.train.cache, "train.cache")
    # The table in the cache is that of the whole source: a later run adds the other rows.
    job = dataclasses.replace(job, source=limited(source, config.train))
    run_job(job, {})
    return PictureTables((f"{job.options.out}/{job.table}",), listing)
