"""Ray Tune, set up as a sweep's options say: where trials are placed, what ends them, what is told of them."""

import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle, tune
from ray.tune.experiment import Trial as TunesTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from raycap.config import Config
from raycap.stages.session import innermost, refusal_within
from raycap.stages.tune.orphans import give_back
from raycap.stages.tune.trial import Plan, TrialRun
from raycap.terminal import write_out
from raycap.training import Measure
from raycap.tuning import Tune
from raycap.tuning.reading import config_of
from raycap.tuning.space import Parameters, Range, Space
from raycap.tuning.telling import line_of
from raycap.tuning.trials import BEGUN, TRIALS, Trial, begin, end, read_trials, write_table

RAYS_OWN = "_ray"  # Tune's folder in the sweep's; gone when the sweep ends
SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial's folder is the driver's: paths in the config stay what they are
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, the only way to silence Tune
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journals hold it all
}
# PBT's copies that are kept of each trial: others may still have to go on from one.
COPIES = 4
SECONDS_BETWEEN_TIDYING = 2.0


def searched(plan: Plan, config: Config, space: Space) -> int:
    """Run the trials that are left until all have ended, or until Ctrl-C; how many trials the sweep has."""
    os.environ.update(SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it logs each error that the table also holds
    how, place = config.tune, Path(plan.sweep) / RAYS_OWN
    known = {int(trial.name): trial for trial in read_trials(Path(plan.sweep), plan.measure)}
    begun = {number: trial.parameters for number, trial in known.items()}
    points = [begun.get(number, point) for number, point in enumerate(_points(config, space))]
    count = len(points) or how.trials
    # One byte of memory: Tune wants a trial to hold something. Its workers, or it where it has none, hold the rest.
    own = {"memory": 1.0}
    if not plan.workers.count:
        own = {"CPU": how.cpus, **({"GPU": plan.workers.gpus} if plan.workers.gpu else {})}
    # Not with Tune's own restore: its snapshots are seconds old, and may be torn. The trials' folders are neither.
    shutil.rmtree(place, ignore_errors=True)
    tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialRun, plan=plan), tune.PlacementGroupFactory([own])),
        param_space={"parameters": tune.grid_search(points)} if points else {},
        tune_config=tune.TuneConfig(
            metric="score" if how.scheduler == "pbt" else "best",
            mode="max",
            search_alg=None if points else _optuna(how, space, begun),
            scheduler=_scheduler(how, space, _longest(config, space), max(map(_epochs, known.values()), default=0)),
            num_samples=1 if points else how.trials,
            max_concurrent_trials=plan.concurrent,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(place),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=how.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=COPIES, checkpoint_at_end=False),
            callbacks=[Teller(plan.sweep, count, plan.measure)],
        ),
    ).fit()
    return count


def _points(config: Config, space: Space) -> list[Parameters]:
    """The trials' parameters, where they do not depend on how others end; none where they do."""
    how = config.tune
    if how.searcher == "optuna":
        return []
    points = space.grid() if how.searcher == "grid" else space.drawn(how.trials, how.seed)
    for point in points:
        config_of(config, point)  # refused now, and not when its turn comes
    return points


def _epochs(trial: Trial) -> int:
    return len(trial.curve)


def _longest(config: Config, space: Space) -> int:
    """No trial has more epochs."""
    trains = [config.train, *(config_of(config, corner).train for corner in space.corners())]
    return max(train.epochs for train in trains) + max(train.self_critical.epochs for train in trains)


def _scheduler(how: Tune, space: Space, epochs: int, done: int) -> TrialScheduler:
    """What ends trials; an earlier start has come as far as epoch `done`, and is told again."""
    epoch = "training_iteration"
    if how.scheduler == "asha":
        grace = min(how.grace, epochs)
        return ASHAScheduler(epoch, max_t=epochs, grace_period=grace, reduction_factor=how.reduction)
    if how.scheduler == "median":
        return MedianStoppingRule(epoch, grace_period=how.grace)
    if how.scheduler == "pbt":
        move = functools.partial(_moved, space)
        return PopulationBasedTraining(
            epoch,
            perturbation_interval=how.grace,
            burn_in_period=done,  # what was changed then is not changed again
            custom_explore_fn=move,
            log_config=False,
        )
    return FIFOScheduler()  # type: ignore[no-untyped-call]


def _moved(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    return {"parameters": space.moved(config["parameters"], np.random.default_rng())}


def _optuna(how: Tune, space: Space, begun: Mapping[int, Parameters]) -> Any:
    """Optuna, which first places the trials where an earlier start has placed them, and hears how they end."""
    from ray.tune.search.optuna import OptunaSearch

    placed = [_as_suggested(space, begun.get(number, {})) for number in range(1, max(begun, default=0) + 1)]
    return OptunaSearch(
        functools.partial(_suggested, space),
        metric="best",
        mode="max",
        points_to_evaluate=placed or None,
        seed=how.seed + len(placed),  # else what was drawn for the first would be drawn again
    )


def _suggested(space: Space, trial: Any) -> dict[str, Any]:
    """A point where Optuna wants it."""

    def value(one: Range) -> Any:
        name = _suggestion(space, one)
        if one.kind == "choice":
            return one.values[trial.suggest_categorical(name, list(range(len(one.values))))]
        low, high = one.values
        if one.kind == "integer":
            return trial.suggest_int(name, low, high)
        return one.near(trial.suggest_float(name, low, high, log=one.kind == "log_uniform"))

    return {"parameters": space.sample(value)}


def _as_suggested(space: Space, parameters: Parameters) -> dict[str, Any]:
    """What Optuna must suggest for `_suggested` to come to this point."""
    told: dict[str, Any] = {}

    def value(one: Range) -> Any:
        known = parameters[one.key]
        told[_suggestion(space, one)] = one.values.index(known) if one.kind == "choice" else known
        return known

    if parameters:
        space.sample(value)
    return told


def _suggestion(space: Space, one: Range) -> str:
    """A name of its own for each range, for one option may have several."""
    return f"{one.key} {space.ranges.index(one)}"


def _name(trial: TunesTrial) -> str:
    """A trial's number, which also names its folder."""
    return f"{int(trial.experiment_tag.split('_')[0]):04}"


def _reason(trial: TunesTrial) -> str:
    """Why it failed, from what Tune has left of its last error."""
    left = Path(trial.pickled_error_file or "")
    if not left.is_file():
        return "Ray Tune gave up on it"
    error = cloudpickle.loads(left.read_bytes())
    return str(refusal_within(error) or innermost(error))


class Teller(tune.Callback):
    """Puts down how each trial ended, says so, and tidies up after those that were killed."""

    def __init__(self, sweep: str, count: int, measure: Measure) -> None:
        self._sweep, self._count, self._measure = Path(sweep), count, measure
        self._tidied = 0.0

    def on_step_end(self, iteration: int, trials: list[TunesTrial], **info: Any) -> None:
        if time.monotonic() - self._tidied > SECONDS_BETWEEN_TIDYING:
            give_back()
            self._tidied = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[TunesTrial], trial: TunesTrial, **info: Any) -> None:
        self._end(trial, "")

    def on_trial_error(self, iteration: int, trials: list[TunesTrial], trial: TunesTrial, **info: Any) -> None:
        self._end(trial, _reason(trial))

    def _end(self, trial: TunesTrial, reason: str) -> None:
        folder = self._sweep / TRIALS / str(trial)
        if not (folder / BEGUN).exists():  # it died before its first step
            begin(folder, trial.config["parameters"], [])
        end(folder, reason)
        known = read_trials(self._sweep, self._measure)
        write_table(self._sweep, known, self._measure)
        write_out(line_of(known, folder.name, self._count, self._measure))
        sys.stdout.flush()
