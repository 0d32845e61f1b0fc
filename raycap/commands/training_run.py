"""What every training run has: its folder, the listing of its pictures, a display of its progress,
and the facts at its end."""

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import torch

from raycap import __version__
from raycap.cluster.train_workers import RAYS_OWN
from raycap.commands.source import checked_source
from raycap.config import Config, dumps
from raycap.errors import UserError
from raycap.evaluation.references import with_captions
from raycap.storage import RunFolder, output_folder
from raycap.storage.folder import STAGED
from raycap.storage.training_log import METRICS, PICTURES, read_epochs
from raycap.terminal import write_out
from raycap.training.checkpoint import FOLDER as CHECKPOINTS
from raycap.training.display import RunDisplay
from raycap.training.limited import limited
from raycap.training.neighbours import REMEMBERED
from raycap.training.row_groups import ROWS
from raycap.training.run_files import CAPTIONER, LEADER, StopRequest
from raycap.training.self_critical import FREQUENCIES
from raycap.training.setup import FACTS, check_same, check_splits
from raycap.training.store import LISTING, write_listing
from raycap.uris import local_path

RUN, CONFIG, WORDS = "run.json", "config.yaml", "vocabulary.json"
# What a run writes into its folder, in the order in which --fresh removes it. RUN is the last: if
# that is killed, what is left is known as this run's, and no other run goes on with it.
FILES = (
    FACTS,
    CHECKPOINTS,
    METRICS,
    PICTURES,
    WORDS,
    CAPTIONER,
    ROWS,
    LISTING,
    FREQUENCIES,
    REMEMBERED,
    LEADER,
    STAGED,
    "tensorboard",
    RAYS_OWN,
    RUN,
)
UPDATES_PER_SECOND = 2


def run_folder(out: str) -> RunFolder:
    """The folder of a run, with an absolute path if it is on a disk."""
    path = local_path(out)
    return output_folder(out if path is None else str(Path(path).expanduser().absolute()))


def is_finished(folder: RunFolder, identity: Mapping[str, Any], fresh: bool) -> bool:
    """Whether the folder holds this run, finished. Raises UserError if it holds another one. With
    `fresh` it is emptied first."""
    if fresh:
        for name in FILES:
            folder.remove(name)
    check_same(folder, folder.read_json(RUN), identity, "run")
    if folder.exists(FACTS):
        write_out(f"{folder} holds this run, finished; nothing to do (--fresh starts over)\n")
        return True
    return False


def write_pictures_of_source(config: Config, folder: RunFolder, is_resumed: bool) -> None:
    """`list_pictures` into the folder of a run, which may be in a store."""
    if folder.is_local:
        list_pictures(config, Path(folder.path(LISTING)), is_resumed)
    elif not (is_resumed and folder.exists(LISTING)):
        with tempfile.TemporaryDirectory() as scratch:
            listing = Path(scratch) / LISTING
            list_pictures(config, listing, is_resumed=False)
            folder.put(LISTING, str(listing))


def list_pictures(config: Config, listing: Path, is_resumed: bool) -> None:
    """Write what the source says of its pictures, once for the whole run, and refuse a source that
    lacks a split."""
    if is_resumed and listing.exists():
        return
    if config.train.features and config.source is None:
        raise UserError(
            "train.features holds no captions: name the source that has them, as in "
            f"raycap train SOURCE --features {config.train.features}"
        )
    source = limited(with_captions(checked_source(config.source, "train")), config.train)
    check_splits(source.path, config.train, write_listing(source, listing))


def run_and_display(work: Callable[[], object], stop: StopRequest, display: RunDisplay) -> None:
    """Run `work` in a thread and show its progress. The first Ctrl-C lets it save and stop, the
    second does not wait."""
    # Not in this thread: Ray Train would take Ctrl-C for itself, and end the run without saving
    # it. Not in a pool either: Python waits for a pool's threads before it exits.
    result: Future[None] = Future()

    def target() -> None:
        try:
            work()
            result.set_result(None)
        except BaseException as error:  # noqa: BLE001 - raised again below
            result.set_exception(error)

    Thread(target=target, daemon=True).start()
    is_stopping = False
    while not result.done():
        try:
            wait([result], 1 / UPDATES_PER_SECOND)
            display.update()
        except KeyboardInterrupt:
            if is_stopping:
                raise
            is_stopping = True
            stop.make()
            write_out("saving after this step; Ctrl-C again does not wait for it\n")
    result.result()


def write_facts(folder: RunFolder, identity: Mapping[str, Any], config: Config) -> None:
    """Say that the run is finished, and what it has made."""
    folder.remove_file(LEADER)
    log = read_epochs(folder / METRICS)
    best = [line for line in log if line["best"]][-1]
    folder.write_json(
        FACTS,
        {
            "raycap": __version__,
            "act": "train",
            "epochs": len(log),
            "kept": {
                name: value
                for name, value in best.items()
                if name not in ("kind", "best", "samples")
            },
            "seconds": log[-1]["seconds"],
            "identity": identity,
            "config": dumps(config),
            "versions": {"ray": ray.__version__, "torch": torch.__version__},
        },
    )
