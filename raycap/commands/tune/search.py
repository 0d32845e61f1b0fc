"""Ray Tune, set up as a sweep's options say: the parameters of each trial, what ends trials, what
is recorded."""

import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import ActorID, PlacementGroupID, cloudpickle, tune
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.tune.experiment import Trial as RayTrial
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raycap.cluster.session import find_user_error, root_cause
from raycap.commands.tune.trial import SweepPlan, TrialRun
from raycap.config import Config, with_parameters
from raycap.errors import UserError
from raycap.terminal import write_out
from raycap.training import Measure
from raycap.tuning import SCHEDULERS, Tune
from raycap.tuning.space import Parameters, Range, Space
from raycap.tuning.trials import (
    BEGUN,
    TRIALS,
    begin_trial,
    end_trial,
    read_trials,
    trial_line,
    write_table,
)

RAYS_OWN = "_ray"  # Tune's folder in the sweep's; deleted when the sweep ends
SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial keeps the driver's folder, for paths in its config
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0, the only way to silence Tune
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the logs of the runs have everything
}
SECONDS_BETWEEN_CLEANUPS = 2.0


def check_searcher(options: Tune, space: Space) -> None:
    """Refuse a searcher that does not fit the space or is not installed."""
    if options.searcher == "grid":
        space.grid()
    if options.searcher == "optuna":
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise UserError(
                "the searcher optuna needs a package: pip install 'raycap[optuna]'"
            ) from error


def run_trials(plan: SweepPlan, options: Tune, space: Space) -> int:
    """Run the trials that are left until all have ended, or until Ctrl-C; returns how many trials
    the sweep has."""
    os.environ.update(SETTINGS)
    # It logs errors that the table of trials has too.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    out = Path(plan.out)
    begun = {int(trial.name): trial.parameters for trial in read_trials(out, plan.measure)}

    # The parameters of all trials, unless the searcher decides by how others end. Those that an
    # earlier start has begun keep theirs.
    points: list[Parameters] = []
    if options.searcher != "optuna":
        points = (
            space.grid()
            if options.searcher == "grid"
            else space.drawn(options.trials, options.seed)
        )
        for point in points:
            with_parameters(plan.config, point)  # refused now, not by the trial
        points = [begun.get(number, point) for number, point in enumerate(points)]
    count = len(points) or options.trials

    # Tune wants a trial to reserve something: one byte of memory. Its workers reserve the rest,
    # or, where it has none, the trial itself.
    reserved = {"memory": 1.0}
    if not plan.workers.count:
        reserved = {"CPU": options.cpus}
        if plan.workers.gpu:
            reserved["GPU"] = plan.workers.gpus
    # Not Tune's own restore: its snapshots are seconds old and may be torn. The trials' folders
    # are neither.
    shutil.rmtree(out / RAYS_OWN, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialRun, plan=plan), tune.PlacementGroupFactory([reserved])
        ),
        param_space={"parameters": tune.grid_search(points)} if points else {},
        tune_config=tune.TuneConfig(
            metric="best",
            mode="max",
            search_alg=None if points else optuna_search(options, space, begun),
            scheduler=SCHEDULERS[options.scheduler].build(
                options, longest_trial(plan.config, space)
            ),
            num_samples=1 if points else options.trials,
            max_concurrent_trials=plan.concurrent,
            reuse_actors=True,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(out / RAYS_OWN),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=options.retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[RecordTrials(plan.out, count, plan.measure)],
        ),
    )
    tuner.fit()
    return count


def longest_trial(config: Config, space: Space) -> int:
    """The most epochs that a trial may have."""
    options = [config.train]
    options += [with_parameters(config, corner).train for corner in space.corners()]
    return max(each.epochs for each in options) + max(
        each.self_critical.epochs for each in options
    )


def trial_name(trial: RayTrial) -> str:
    """A trial's number, which also names its folder."""
    return f"{int(trial.experiment_tag.split('_')[0]):04}"


def optuna_search(options: Tune, space: Space, begun: Mapping[int, Parameters]) -> Any:
    """Optuna, which first gets the trials that an earlier start has begun, and learns how they
    end."""
    from ray.tune.search.optuna import OptunaSearch

    earlier = [
        _suggestions_for(space, begun.get(number, {}))
        for number in range(1, max(begun, default=0) + 1)
    ]
    return OptunaSearch(
        functools.partial(_suggested_point, space),
        metric="best",
        mode="max",
        points_to_evaluate=earlier or None,
        seed=options.seed + len(earlier),  # otherwise the first draws would come again
    )


def _suggested_point(space: Space, trial: Any) -> dict[str, Any]:
    """The point that Optuna suggests for its trial."""

    def value(one: Range) -> Any:
        name = _suggestion_name(space, one)
        if one.kind == "choice":
            return one.values[trial.suggest_categorical(name, list(range(len(one.values))))]
        low, high = one.values
        if one.kind == "integer":
            return trial.suggest_int(name, low, high)
        return one.rounded(trial.suggest_float(name, low, high, log=one.kind == "log_uniform"))

    return {"parameters": space.point(value)}


def _suggestions_for(space: Space, parameters: Parameters) -> dict[str, Any]:
    """What Optuna must suggest so that `_suggested_point` gives this point."""
    suggestions: dict[str, Any] = {}

    def value(one: Range) -> Any:
        known = parameters[one.key]
        name = _suggestion_name(space, one)
        suggestions[name] = one.values.index(known) if one.kind == "choice" else known
        return known

    if parameters:
        space.point(value)
    return suggestions


def _suggestion_name(space: Space, one: Range) -> str:
    """Each range has a name of its own, for an option may have several ranges."""
    return f"{one.key} {space.ranges.index(one)}"


class RecordTrials(tune.Callback):
    """Records and prints how each trial ended, and cleans up after trials that were killed."""

    def __init__(self, out: str, count: int, measure: Measure) -> None:
        self._out, self._count, self._measure = Path(out), count, measure
        self._cleaned_up = 0.0

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        if time.monotonic() - self._cleaned_up > SECONDS_BETWEEN_CLEANUPS:
            remove_orphaned_groups()
            self._cleaned_up = time.monotonic()

    def on_trial_complete(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        self._record(trial, "")

    def on_trial_error(
        self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any
    ) -> None:
        # Tune has left the trial's last error in a file.
        reason, file = "Ray Tune gave up on it", Path(trial.pickled_error_file or "")
        if file.is_file():
            error = cloudpickle.loads(file.read_bytes())
            reason = str(find_user_error(error) or root_cause(error))
        self._record(trial, reason)

    def _record(self, trial: RayTrial, reason: str) -> None:
        folder = self._out / TRIALS / str(trial)
        if not (folder / BEGUN).exists():  # it died before its first step
            begin_trial(folder, trial.config["parameters"])
        end_trial(folder, reason)
        known = read_trials(self._out, self._measure)
        write_table(self._out, known, self._measure)
        write_out(trial_line(known, folder.name, self._count, self._measure))
        sys.stdout.flush()


def remove_orphaned_groups() -> None:
    """Remove the placement groups of this job whose makers are dead.

    A trial's workers are in a placement group that Ray Train makes and, when it ends in order,
    removes. After a kill Ray keeps the group, and what it reserves, until the whole job ends.
    Train has a cleaner for this, but it asks the dashboard, and fails where several Rays run on
    one machine. Ray itself knows at once that the maker is dead.
    """
    job = ray.get_runtime_context().get_job_id()
    made_at_run_time: Any = gcs_pb2  # mypy cannot see what is in it
    for data in state._connect_and_get_accessor().get_placement_group_table():
        group = made_at_run_time.PlacementGroupTableData.FromString(data)
        # The group of a driver counts as made by a dead actor.
        made_by_actor = ActorID(group.creator_actor_id) != ActorID.nil()
        is_ours = group.creator_job_id.hex() == job
        is_removed = group.state == made_at_run_time.PlacementGroupTableData.REMOVED
        if made_by_actor and group.creator_actor_dead and is_ours and not is_removed:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
