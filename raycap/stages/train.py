"""`raycap train`: a captioner from pictures that people have described, on one process or many, resumable."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread

import ray
import torch

from raycap import __version__
from raycap.config import Config, dumps
from raycap.encoders.encoder import Encoder
from raycap.evaluation.references import with_captions
from raycap.refusal import Refusal
from raycap.runs import Lease, RunFolder, differences, output_folder
from raycap.runs.lease import LEASE
from raycap.search import Beam
from raycap.sources import Source
from raycap.stages.bulk.features import Change, features_work, pixels_work
from raycap.stages.bulk.passes import perform
from raycap.stages.bulk.work import kept, source_of
from raycap.stages.nodes import check_seen
from raycap.stages.session import session
from raycap.stages.workers import RAYS_OWN, train_here, train_on_workers
from raycap.training.journal import METRICS, PICTURES, epochs
from raycap.training.keeping import CAPTIONER
from raycap.training.material import (
    FACTS,
    check,
    check_splits,
    first_encoder,
    gather,
    identity,
    table_in,
    wants_pixels,
)
from raycap.training.run import STOP
from raycap.training.store import LISTING, Pictures, write_listing
from raycap.training.watching import CURVE, Watch
from raycap.vocabulary import Vocabulary

RUN, WORDS = "run.json", "vocabulary.json"
# What a run leaves in its folder.
OWN = (RUN, FACTS, METRICS, PICTURES, WORDS, LISTING, CAPTIONER, "checkpoints", "tensorboard", RAYS_OWN)
LOOKS_PER_SECOND = 2


def train(config: Config) -> int:
    """Exit code 0 when the run is finished, 130 when it was stopped before."""
    out = Path(config.train.out).expanduser().absolute()
    done = fit(config)
    sys.stdout.write(_ending(out, config) if done else f"stopped and saved; the same command goes on: {out}\n")
    return 0 if done else 130


def fit(config: Config, pictures: Pictures | None = None, leave: str = "") -> bool:
    """Train to the end of the run, or until Ctrl-C; True when the run is finished, also when it already was.

    `pictures` are what to look at, if made already. With `leave`, the token of a Leave, each epoch asks for it.
    """
    config = dataclasses.replace(config, search=config.search or Beam())
    check(config)
    out = Path(config.train.out).expanduser().absolute()
    folder = output_folder(str(out))
    with Lease(folder) as lease:
        if config.train.fresh:
            for name in OWN:
                folder.remove(name)
        _check_same(folder, config)
        if folder.exists(FACTS):
            sys.stdout.write(f"{out} holds this run, finished; nothing to do (--fresh starts over)\n")
            return True
        if pictures is None:
            list_pictures(config, out / LISTING, goes_on=folder.exists(RUN))
        encoder = first_encoder(config)
        if config.train.features and pictures is None:
            pictures = Pictures((table_in(config.train.features, encoder),))
        here = config.train.workers.count == 0
        with contextlib.nullcontext() if here and pictures else session(config.cluster, workers_heard=False):
            if ray.is_initialized():
                check_seen({str(out / LEASE): "train.out"})
            pictures = pictures or made_pictures(config, encoder, out / LISTING)
            material = gather(config, pictures, encoder, _words(out))
            # Only now, so that a run that was refused does not keep the folder from the mended one.
            folder.write_json(RUN, {"raycap": __version__, "act": "train", "identity": identity(config)})
            folder.write("config.yaml", dumps(config).encode())
            material.vocabulary.save(out / WORDS)
            (out / STOP).unlink(missing_ok=True)
            train_them = train_here if here else functools.partial(train_on_workers, cluster=config.cluster)
            with Watch(out, config.train.trackers) as watch:
                _until_done(lambda: train_them(material, out, lease.run, leave), out, watch)
    return _finished(folder, out, config)


def _check_same(folder: RunFolder, config: Config) -> None:
    """Refuse a folder that holds another run."""
    found = folder.read_json(RUN)
    if found is None:
        return
    if wrong := differences(found.get("identity", {}), identity(config)):
        raise Refusal(
            f"{folder} holds another run ({'; '.join(wrong)}): give another --out, or --fresh to start over there"
        )


def _words(out: Path) -> Vocabulary | None:
    return Vocabulary.load(out / WORDS) if (out / WORDS).exists() else None


def list_pictures(config: Config, listing: Path, goes_on: bool) -> None:
    """Write down what the source says of its pictures, for the whole run; one that goes on keeps to its own. Where
    that is not enough to learn from it is refused, before anything is started."""
    if config.train.features or (goes_on and listing.exists()):
        return
    source = _described(config)
    check_splits(source.path, config.train, write_listing(source, listing))


def _described(config: Config) -> Source:
    return with_captions(source_of(config, "train"))


def made_pictures(config: Config, encoder: Encoder, listing: Path) -> Pictures:
    """What to look at, made from the source, or found where an earlier run has made it of the same."""
    source, changing = _described(config), config.train.augmentation
    if wants_pixels(config):
        works = [pixels_work(config, source, encoder)]
    else:
        changes = [None, *(Change(changing, number) for number in range(1, changing.views + 1))]
        works = [features_work(config, source, encoder, change) for change in changes]
    works = [kept(work, config.train.cache, "train.cache") for work in works]
    for work in works:
        perform(work, {})
    return Pictures(tuple(f"{work.options.out}/{work.table}" for work in works), str(listing))


def _until_done(work: Callable[[], None], out: Path, watch: Watch) -> None:
    """Run `work` in a thread while this one watches. The first Ctrl-C lets it save and end, the second leaves."""
    # Not in this thread: Ray Train would take Ctrl-C for itself, and end the run without saving it. Not in a pool
    # either: Python waits for a pool's threads before it ends.
    working: Future[None] = Future()
    Thread(target=_answer, args=(working, work), daemon=True).start()
    while not working.done():
        try:
            wait([working], 1 / LOOKS_PER_SECOND)
            watch.look()
        except KeyboardInterrupt:
            if (out / STOP).exists():
                raise
            (out / STOP).touch()
            sys.stdout.write("saving after this step; Ctrl-C again does not wait for it\n")
    working.result()


def _answer(future: Future[None], work: Callable[[], None]) -> None:
    try:
        work()
        future.set_result(None)
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)


def _finished(folder: RunFolder, out: Path, config: Config) -> bool:
    """Write the facts, unless the run was asked to stop."""
    if (out / STOP).exists():
        (out / STOP).unlink()
        return False
    curve = epochs(out / METRICS)
    kept = [line for line in curve if line["best"]][-1]
    told = {name: value for name, value in kept.items() if name not in ("kind", "best", "samples")}
    folder.write_json(
        FACTS,
        {
            "raycap": __version__,
            "act": "train",
            "epochs": len(curve),
            "kept": told,
            "seconds": curve[-1]["seconds"],
            "identity": identity(config),
            "config": dumps(config),
            "versions": {"ray": ray.__version__, "torch": torch.__version__},
        },
    )
    return True


def _ending(out: Path, config: Config) -> str:
    kept = [line for line in epochs(out / METRICS) if line["best"]][-1]
    names = ("bleu_1", "bleu_4", "rouge_l", "cider_d", "validation_loss", "accuracy")
    scores = ", ".join(f"{name} {kept[name]:.4f}" for name in names)
    return (
        f"kept: epoch {kept['epoch']} ({scores})\n"
        f"written: {out / CAPTIONER}; the curve: {out / CURVE}\n"
        f"caption pictures with it: raycap caption photos/ --model {config.train.out}/{CAPTIONER} --out captions\n"
    )
