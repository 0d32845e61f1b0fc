"""`raycap tune`: many captioners over a space of options on Ray Tune, the best of which is kept;
resumable."""

import dataclasses
import functools
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch

from raycap import __version__
from raycap.captioners.trained import CaptionerPlan
from raycap.cluster import Cluster
from raycap.cluster.needs import Need, wait_for_nodes
from raycap.cluster.nodes import capacity, selector
from raycap.cluster.session import session
from raycap.commands.train import make_tables
from raycap.commands.training_run import list_pictures
from raycap.commands.tune.search import RAYS_OWN, check_searcher, run_trials
from raycap.commands.tune.trial import SweepPlan
from raycap.config import Config, dumps, with_parameters
from raycap.errors import UserError
from raycap.options import to_plain
from raycap.search import Beam
from raycap.sources import SOURCES
from raycap.storage import Lease, RunFolder, output_folder, whole_path
from raycap.terminal import write_out
from raycap.training import Workers
from raycap.training.run_files import CAPTIONER
from raycap.training.setup import (
    FACTS,
    build_encoder,
    check_options,
    check_same,
    given_features,
    run_identity,
)
from raycap.tuning import Tune
from raycap.tuning.space import read_space
from raycap.tuning.trials import (
    FAILED,
    TABLE,
    TRIALS,
    UNFINISHED,
    Trial,
    ranked,
    read_trials,
    summary,
    write_table,
)

RUN, BEST, LISTINGS = "run.json", "best.yaml", "pictures"
# What a sweep writes into its folder.
FILES = (RUN, FACTS, TABLE, TRIALS, BEST, CAPTIONER, LISTINGS, RAYS_OWN)
# Options that may change between two starts of one sweep, because the result does not depend on
# them.
MAY_CHANGE = ("out", "fresh", "space", "concurrent", "cpus", "gpus", "retries")


def tune(config: Config) -> int:
    """Exit code 0 when all trials succeeded, 1 when some failed, 130 when the sweep was stopped
    before its end."""
    # Each trial trains into a folder of its own: train.out is not used.
    train = dataclasses.replace(config.train, out=config.tune.out)
    config = dataclasses.replace(config, train=train, search=config.search or Beam())
    options, measure = config.tune, config.train.validation.best_by
    out = Path(options.out).expanduser().absolute()
    folder = output_folder(str(out))

    if train.dry_run:
        raise UserError("--train.dry-run is about one run: give it to `raycap train`")
    if train.model:
        raise UserError(
            f"train.model is {train.model}, and a sweep trains captioners from their parts: leave "
            "it out, or fine-tune with `raycap train`"
        )
    # What is searched? What cannot work is refused before anything is started.
    space = read_space(options.space, functools.partial(with_parameters, config))
    check_options(plan_of(config), config.train)
    if not folder.is_local:
        raise UserError(
            f"tune.out is {options.out}: sweep into a folder that all machines share, then copy it"
        )
    check_searcher(options, space)
    identity = {
        **run_identity(plan_of(config), config.vocabulary, config.train, config.source),
        "tune": {
            name: value
            for name, value in dataclasses.asdict(options).items()
            if name not in MAY_CHANGE
        },
        "space": space.to_plain(),
    }

    with Lease(folder):
        # Is there a sweep in the folder already, and is it this one?
        if options.fresh:
            for name in FILES:
                folder.remove(name)
        check_same(folder, folder.read_json(RUN), identity, "sweep")
        is_finished = folder.exists(FACTS)
        if is_finished:
            write_out(f"{out} holds this sweep, finished; nothing to do (--fresh starts over)\n")
            trials = read_trials(out, measure)
        else:
            # List the pictures of each source in the space, and make the features of each
            # encoding: trials share them.
            configs = [with_parameters(config, point) for point in space.feature_points()]
            for one in configs:
                list_pictures(one, listing_of(out, one), is_resumed=folder.exists(RUN))
            with session(config.cluster, workers_heard=False):
                plan = SweepPlan(
                    str(out),
                    config,
                    *room_for_trials(options, config.train.workers, config.cluster),
                )
                for one in configs:
                    encoder = build_encoder(plan_of(one), one.train.start_from)
                    plan.tables[plan.tables_key(one)] = (
                        given_features(one.train.features, str(listing_of(out, one)), encoder)
                        if one.train.features
                        else make_tables(one, encoder, listing_of(out, one))
                    )
                folder.write_json(
                    RUN, {"raycap": __version__, "act": "tune", "identity": identity}
                )

                # Run the trials that are left, until all have ended or until Ctrl-C.
                count = run_trials(plan, options, space)
            trials = read_trials(out, measure)
            write_table(out, trials, measure)

            ended = [trial for trial in trials if trial.status != UNFINISHED]
            is_finished = len(ended) >= count
            if is_finished:
                publish_best(folder, out, config, trials, identity)
                folder.remove(RAYS_OWN)

    write_out(summary(trials, measure))
    if not is_finished:
        write_out(f"stopped and saved; the same command continues it: {out}\n")
        return 130
    written = f"{out / CAPTIONER}, {out / BEST}, {out / TABLE}"
    write_out(f"written: {written}; a page of it: raycap report {options.out}\n")
    return 1 if any(trial.status == FAILED for trial in trials) else 0


def plan_of(config: Config) -> CaptionerPlan:
    return CaptionerPlan(config.encoder, config.decoder, config.reading, config.search or Beam())


def listing_of(out: Path, config: Config) -> Path:
    """The file of what this config's source says of its pictures: a space may have several
    sources."""
    source: Any = config.source and to_plain(config.source, SOURCES)
    if config.train.limit is not None:
        source = [source, config.train.limit]
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return out / LISTINGS / f"{digest[:16]}.arrow"


def resources_for_trials(
    options: Tune, workers: Workers, cluster: Cluster, processes: int
) -> dict[str, float]:
    """What the cluster has for trials. If an autoscaler has to bring the nodes, this waits for
    them."""
    # Without workers, a trial runs wherever there is room.
    label = cluster.model_on if workers.count != 0 else ""
    each = {"CPU": options.cpus / processes}
    pieces = (options.concurrent or options.trials) * processes
    need = Need("to run a trial", label, each, pieces, processes)
    if options.gpus:
        need = dataclasses.replace(need, resources={**each, "GPU": options.gpus / processes})
    wait_for_nodes([need], cluster.wait)
    if options.gpus is None and workers.gpu is not False and capacity(label).get("GPU"):
        wait_for_nodes([dataclasses.replace(need, resources={**each, "GPU": 1.0})], cluster.wait)
    selector(label)  # refuses a label that no node has
    return capacity(label)


def room_for_trials(options: Tune, workers: Workers, cluster: Cluster) -> tuple[Workers, int]:
    """The workers of each trial, and how many trials run at the same time."""
    count = 1 if workers.count is None else workers.count
    processes = max(count, 1)  # with 0 workers a trial trains in its own process
    there = resources_for_trials(options, workers, cluster, processes)
    if options.gpus is not None:
        gpus = options.gpus
    else:
        gpus = float(processes) if there.get("GPU") and workers.gpu is not False else 0.0
    if gpus > processes:
        raise UserError(
            f"tune.gpus is {gpus:g}, and each worker trains on one: set train.workers.count to "
            f"{gpus:g}"
        )
    room = there.get("CPU", 0) / options.cpus
    if gpus:
        room = min(room, there.get("GPU", 0) / gpus)
    room = int(room + 1e-9)
    if not room:
        raise UserError(
            f"a trial needs {options.cpus:g} CPUs and {gpus:g} GPUs (tune.cpus, tune.gpus), and "
            "Ray has no room for one: give it less"
        )
    concurrent = options.concurrent or room
    threads = workers.threads or max(1, int(there.get("CPU", 1) / (concurrent * processes)))
    shared = dataclasses.replace(
        workers,
        count=count,
        gpu=gpus > 0,
        cpus=options.cpus / processes,
        gpus=gpus / processes if gpus else 1.0,
        threads=threads,
    )
    return shared, concurrent


def publish_best(
    folder: RunFolder, out: Path, config: Config, trials: list[Trial], identity: dict[str, Any]
) -> None:
    """Copy the best captioner, write the config that trains it, then the facts of the sweep."""
    measure = config.train.validation.best_by
    found = ranked(trials, measure)
    if not found:
        reasons = "; ".join(dict.fromkeys(trial.reason for trial in trials))
        raise UserError(
            f"all {len(trials)} trials failed ({reasons}): fix that, and give the same command "
            "again"
        )
    best = found[0]
    with whole_path(out / CAPTIONER) as part:
        shutil.copytree(best.folder / CAPTIONER, part)
    chosen = with_parameters(config, best.parameters)
    best_out = f"{config.tune.out.rstrip('/')}/best"
    train = dataclasses.replace(chosen.train, out=best_out, fresh=False)
    folder.write(BEST, dumps(dataclasses.replace(chosen, train=train)).encode())
    folder.write_json(
        FACTS,
        {
            "raycap": __version__,
            "act": "tune",
            "trials": dict(Counter(trial.status for trial in trials)),
            "best": {
                "trial": best.name,
                measure: best.score,
                "epoch": best.best_epoch,
                **best.parameters,
            },
            "seconds": round(sum(trial.seconds for trial in trials), 1),
            "identity": identity,
            "config": dumps(config),
            "versions": {"ray": ray.__version__, "torch": torch.__version__},
        },
    )
