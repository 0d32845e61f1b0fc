"""One trial of a sweep, as Ray Tune runs it: a training run in its own folder, an epoch for each
of Tune's steps.

The folder is the trial's memory, Tune saves nothing. A trial that is started again (after its
process died, or the driver) first reports the epochs that are in its log, then continues from its
checkpoint.
"""

import dataclasses
import json
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune

from raycap.commands.train import run_training
from raycap.config import Config, with_parameters
from raycap.encoders import ENCODERS
from raycap.metrics import facts_of
from raycap.options import to_plain
from raycap.sources import SOURCES
from raycap.storage.lease import LEASE
from raycap.storage.training_log import METRICS, read_epochs
from raycap.training import Measure, Workers, checkpoint
from raycap.training.run_files import SECONDS_BETWEEN_LOOKS, STOP, EpochLimit
from raycap.training.setup import needs_pixels
from raycap.training.store import PictureTables
from raycap.tuning.space import Parameters
from raycap.tuning.trials import BEGUN, ENDED, FACTS, FAILED, TRIALS, begin_trial, score_of


@dataclass(frozen=True)
class SweepPlan:
    """What all trials of a sweep share."""

    out: str
    config: Config
    workers: Workers  # of each trial
    concurrent: int
    tables: dict[str, PictureTables] = field(default_factory=dict)  # by `tables_key`

    @property
    def measure(self) -> Measure:
        return self.config.train.validation.best_by

    def tables_key(self, config: Config) -> str:
        """Equal for trials that learn from the same tables."""
        augmentation = config.train.augmentation
        parts = [
            {
                "reading": to_plain(config.reading),
                "encoder": to_plain(config.encoder, ENCODERS),
            },
            config.source and to_plain(config.source, SOURCES),
            needs_pixels(config.encoder, config.train),
            dataclasses.asdict(augmentation) if augmentation.views else None,
            config.train.start_from,
            config.train.limit,
        ]
        return json.dumps(parts, sort_keys=True)


class TrialRun(tune.Trainable):
    """A step returns the best score so far after one more epoch, higher is better; the run trains
    no epoch ahead."""

    def setup(self, config: Mapping[str, Any], plan: SweepPlan) -> None:  # type: ignore[override]
        self._plan = plan
        self._begin_trial(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process, which has everything loaded."""
        self.cleanup()
        self._begin_trial(new_config)  # not `setup`, which Ray wraps to pass the plan
        return True

    def _begin_trial(self, config: Mapping[str, Any]) -> None:
        self._parameters: Parameters = config["parameters"]
        self._out = Path(self._plan.out) / TRIALS / self.trial_name
        self._training: Future[bool] | None = None
        self._limit = EpochLimit(self._out, uuid.uuid4().hex[:8])

    def step(self) -> dict[str, Any]:
        """Train one more epoch, unless the log has it already."""
        if self._training is None:
            self._open_folder()
        wanted = self.iteration + 1
        if wanted > len(read_epochs(self._out / METRICS)) and not self._is_over():
            self._train_to(wanted)
        measure = self._plan.measure
        sort_key = facts_of(measure).sort_key  # the lower the better; Tune gets the opposite
        lines = read_epochs(self._out / METRICS)
        scores = [-sort_key(score_of(line, measure)) for line in lines]
        reported = min(wanted, len(scores))
        is_done = reported == len(scores) and self._is_over()
        return {"best": max(scores[:reported]), "done": is_done}

    def cleanup(self) -> None:
        """Let the run save and end by itself: only then are the workers that it started given back
        to Ray."""
        while self._training is not None and not self._training.done():
            (self._out / STOP).touch()
            wait([self._training], 1)
        self._limit.remove()
        if (self._out / ENDED).exists():
            shutil.rmtree(self._out / checkpoint.FOLDER, ignore_errors=True)

    def _open_folder(self) -> None:
        """Continue in the trial's folder if it has these parameters, or begin it."""
        begun = self._out / BEGUN
        known = (
            json.loads(begun.read_text(encoding="utf-8"))["parameters"] if begun.exists() else None
        )
        if known != self._parameters:
            shutil.rmtree(self._out, ignore_errors=True)
            begin_trial(self._out, self._parameters)
        # Tune runs a trial in one process at a time: the lease of a lost machine is not waited
        # for.
        (self._out / LEASE).unlink(missing_ok=True)
        if self._ended() == FAILED:
            (self._out / ENDED).unlink()

    def _ended(self) -> str:
        """How the trial ended, "" if it has not."""
        file = self._out / ENDED
        return str(json.loads(file.read_text(encoding="utf-8"))["status"]) if file.exists() else ""

    def _is_over(self) -> bool:
        """Whether the run has come to its end, or was ended by the scheduler before the driver was
        killed."""
        return (self._out / FACTS).exists() or self._ended() not in ("", FAILED)

    def _train_to(self, epoch: int) -> None:
        """Return when the run has done this many epochs, or has come to its end."""
        self._limit.allow(epoch)
        if self._training is None:
            config = with_parameters(self._plan.config, self._parameters)
            tables = self._plan.tables[self._plan.tables_key(config)]
            train = dataclasses.replace(
                config.train, out=str(self._out), fresh=False, workers=self._plan.workers
            )
            config = dataclasses.replace(config, train=train)
            pool = ThreadPoolExecutor(1, "trial")
            self._training = pool.submit(run_training, config, tables, self._limit.token)
            pool.shutdown(wait=False)
        while not self._limit.is_reached() and not self._training.done():
            wait([self._training], SECONDS_BETWEEN_LOOKS)
        if self._training.done():
            self._training.result()
