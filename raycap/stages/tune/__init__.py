"""`raycap tune`: many captioners over a space of options on Ray Tune, the best of which is kept; resumable."""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import ray
import torch

from raycap import __version__
from raycap.config import Config, dumps, part_to_plain
from raycap.refusal import Refusal
from raycap.runs import Lease, RunFolder, differences, output_folder
from raycap.search import Beam
from raycap.stages.needs import Need, provide
from raycap.stages.nodes import capacity, selector
from raycap.stages.session import session
from raycap.stages.train import list_pictures, made_pictures
from raycap.stages.tune.search import RAYS_OWN, searched
from raycap.stages.tune.trial import Plan
from raycap.training.keeping import CAPTIONER
from raycap.training.material import FACTS, check, first_encoder, identity, table_in
from raycap.training.store import Pictures
from raycap.tuning.reading import config_of, read_space
from raycap.tuning.space import Space
from raycap.tuning.telling import told
from raycap.tuning.trials import FAILED, TABLE, TRIALS, UNFINISHED, Trial, ranked, read_trials, write_table

RUN, BEST, LISTINGS = "run.json", "best.yaml", "pictures"
# What may change between two starts of one sweep.
FREE = ("out", "fresh", "space", "concurrent", "cpus", "gpus", "retries")


def tune(config: Config) -> int:
    """Exit code 0 when all trials went well, 1 when some failed, 130 when the sweep was stopped before its end."""
    # Each trial trains into a folder of its own: where the config would is not asked.
    train = dataclasses.replace(config.train, out=config.tune.out)
    config = dataclasses.replace(config, train=train, search=config.search or Beam())
    out = Path(config.tune.out).expanduser().absolute()
    space = read_space(config.tune.space, config)
    _check(config, space)
    folder = output_folder(str(out))
    measure = config.train.validation.best_by
    with Lease(folder):
        if config.tune.fresh:
            for name in (RUN, FACTS, TABLE, TRIALS, BEST, CAPTIONER, LISTINGS, RAYS_OWN):
                folder.remove(name)
        _check_same(folder, config, space)
        if folder.exists(FACTS):
            sys.stdout.write(f"{out} holds this sweep, finished; nothing to do (--fresh starts over)\n")
            trials = read_trials(out, measure)
        else:
            trials = _sweep(folder, out, config, space)
    sys.stdout.write(told(trials, measure))
    if not folder.exists(FACTS):
        sys.stdout.write(f"stopped and saved; the same command goes on: {out}\n")
        return 130
    sys.stdout.write(
        f"written: {out / CAPTIONER}, {out / BEST}, {out / TABLE}; a page of it: raycap report {config.tune.out}\n"
    )
    return 1 if any(trial.status == FAILED for trial in trials) else 0


def _sweep(folder: RunFolder, out: Path, config: Config, space: Space) -> list[Trial]:
    """Run what is left of it; the facts are written when nothing is."""
    measure = config.train.validation.best_by
    for encoding in space.encodings():
        one = config_of(config, encoding)
        list_pictures(one, _listing(out, one), goes_on=folder.exists(RUN))
    with session(config.cluster, workers_heard=False):
        plan = _plan(out, config, space)
        folder.write_json(RUN, {"raycap": __version__, "act": "tune", "identity": _identity(config, space)})
        count = searched(plan, config, space)
    trials = read_trials(out, measure)
    write_table(out, trials, measure)
    if len([trial for trial in trials if trial.status != UNFINISHED]) < count:
        return trials
    best = next(iter(ranked(trials, measure)), None)
    if best is None:
        reasons = "; ".join(dict.fromkeys(trial.reason for trial in trials))
        raise Refusal(f"all {count} trials failed ({reasons}): mend that, and give the same command again")
    _publish(folder, out, config, best)
    folder.write_json(
        FACTS,
        {
            "raycap": __version__,
            "act": "tune",
            "trials": dict(Counter(trial.status for trial in trials)),
            "best": {"trial": best.name, measure: best.score, "epoch": best.best_epoch, **best.parameters},
            "seconds": round(sum(trial.seconds for trial in trials), 1),
            "identity": _identity(config, space),
            "config": dumps(config),
            "versions": {"ray": ray.__version__, "torch": torch.__version__},
        },
    )
    folder.remove(RAYS_OWN)
    return trials


def _publish(folder: RunFolder, out: Path, config: Config, best: Trial) -> None:
    """The best captioner, and the config that trains it."""
    beside = out / f".{CAPTIONER}.part"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(best.folder / CAPTIONER, beside)
    shutil.rmtree(out / CAPTIONER, ignore_errors=True)
    beside.rename(out / CAPTIONER)
    chosen = config_of(config, best.parameters)
    train = dataclasses.replace(chosen.train, out=f"{config.tune.out.rstrip('/')}/best", fresh=False)
    folder.write(BEST, dumps(dataclasses.replace(chosen, train=train)).encode())


def _check(config: Config, space: Space) -> None:
    """Refuse what does not go together, before anything is started."""
    check(config)
    if not RunFolder(config.tune.out).is_local:
        raise Refusal(f"tune.out is {config.tune.out}: sweep into a folder that all machines share, then copy it")
    if config.tune.scheduler == "pbt" and not space.movable:
        raise Refusal("pbt changes rates of runs under way: search one, as 'train.lr: {log_uniform: [1e-4, 1e-2]}'")
    if config.tune.searcher == "grid":
        space.grid()
    if config.tune.searcher == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise Refusal("the searcher optuna needs a package: pip install 'raycap[optuna]'") from error


def _identity(config: Config, space: Space) -> dict[str, Any]:
    """What makes a sweep this sweep."""
    how = dataclasses.asdict(config.tune)
    kept = {name: value for name, value in how.items() if name not in FREE}
    return {**identity(config), "tune": kept, "space": space.to_plain()}


def _check_same(folder: RunFolder, config: Config, space: Space) -> None:
    """Refuse a folder that holds another sweep."""
    found = folder.read_json(RUN)
    if found is None:
        return
    if wrong := differences(found.get("identity", {}), _identity(config, space)):
        raise Refusal(
            f"{folder} holds another sweep ({'; '.join(wrong)}): give another --out, or --fresh to start over there"
        )


def _plan(out: Path, config: Config, space: Space) -> Plan:
    """What all trials share; the features are made here, once."""
    how, workers = config.tune, config.train.workers
    count = 1 if workers.count is None else workers.count
    processes = max(count, 1)
    there = _there(config, processes)
    wanted = float(processes) if there.get("GPU") and workers.gpu is not False else 0.0
    gpus = wanted if how.gpus is None else how.gpus
    if gpus > processes:
        raise Refusal(f"tune.gpus is {gpus:g}, and each worker trains on one: set train.workers.count to {gpus:g}")
    rooms = [there.get("CPU", 0) / how.cpus, *([there.get("GPU", 0) / gpus] if gpus else [])]
    room = int(min(rooms) + 1e-9)
    if not room:
        needs = f"{how.cpus:g} processors and {gpus:g} GPUs"
        raise Refusal(f"a trial needs {needs} (tune.cpus, tune.gpus), and Ray has no room for one: give it less")
    concurrent = how.concurrent or room
    if how.scheduler == "pbt" and concurrent < how.trials:
        raise Refusal(
            f"pbt runs its {how.trials} trials side by side, and there is room for {concurrent}: "
            "take fewer (tune.trials), or give each less (tune.cpus, tune.gpus)"
        )
    shared = dataclasses.replace(
        workers,
        count=count,
        gpu=gpus > 0,
        cpus=how.cpus / processes,
        gpus=gpus / processes if gpus else 1.0,
        threads=workers.threads or max(1, int(there.get("CPU", 1) / (concurrent * processes))),
    )
    plan = Plan(str(out), config, shared, concurrent, {})
    for encoding in space.encodings():
        one = config_of(config, encoding)
        encoder = first_encoder(one)
        given = one.train.features
        plan.pictures[plan.encoding_of(one)] = (
            Pictures((table_in(given, encoder),)) if given else made_pictures(one, encoder, _listing(out, one))
        )
    return plan


def _there(config: Config, processes: int) -> dict[str, float]:
    """What the cluster has for trials. Where an autoscaler has to bring the nodes, this waits for them."""
    how, workers, cluster = config.tune, config.train.workers, config.cluster
    label = cluster.model_on if workers.count != 0 else ""  # without workers, a trial runs wherever there is room
    each = {"CPU": how.cpus / processes}
    many = (how.concurrent or how.trials) * processes
    need = Need("to run a trial", label, each, many, processes)
    if how.gpus:
        need = dataclasses.replace(need, resources={**each, "GPU": how.gpus / processes})
    provide([need], cluster.wait)
    if how.gpus is None and workers.gpu is not False and capacity(label).get("GPU"):
        provide([dataclasses.replace(need, resources={**each, "GPU": 1.0})], cluster.wait)
    selector(label)  # which may be refused
    return capacity(label)


def _listing(out: Path, config: Config) -> Path:
    """Where it stands what this config's source says of its pictures: a space may have several sources."""
    told = json.dumps(config.source and part_to_plain("source", config.source), sort_keys=True)
    return out / LISTINGS / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.arrow"
