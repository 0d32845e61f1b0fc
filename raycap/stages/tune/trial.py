"""One trial of a sweep, as Ray Tune runs it: a training run in its own folder, an epoch for each of Tune's steps.

The folder is the trial's memory. A trial that is begun again (after its process died, or the driver, or after a
pause) tells Tune the epochs that are in its journal, then trains on from its checkpoint. Tune's own checkpoints
serve only to pass weights from one trial to another.
"""

import dataclasses
import json
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from raycap.config import Config, part_to_plain
from raycap.runs import write_json
from raycap.runs.lease import LEASE
from raycap.stages.train import WORDS, fit
from raycap.training import Measure, Workers, checkpoint
from raycap.training.journal import METRICS, epochs
from raycap.training.keeping import CAPTIONER
from raycap.training.leave import SECONDS_BETWEEN_LOOKS, Leave
from raycap.training.material import wants_pixels
from raycap.training.run import STOP
from raycap.training.store import Pictures
from raycap.tuning.reading import config_of
from raycap.tuning.space import Parameters
from raycap.tuning.trials import BEGUN, ENDED, FACTS, FAILED, TRIALS, begin, score_of

FROM = "from.json"  # beside a copied run: whose it is, and how far it had come


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep share."""

    sweep: str
    config: Config
    workers: Workers
    concurrent: int
    pictures: dict[str, Pictures]  # by what their features were made by

    @property
    def measure(self) -> Measure:
        return self.config.train.validation.best_by

    def encoding_of(self, config: Config) -> str:
        """What the features of a trial depend on."""
        parts = {name: part_to_plain(name, getattr(config, name)) for name in ("reading", "encoder")}
        source = config.source and part_to_plain("source", config.source)
        changing = config.train.augmentation
        views = dataclasses.asdict(changing) if changing.views else None
        told = [parts, source, wants_pixels(config), views, config.train.start_from]
        return json.dumps(told, sort_keys=True)

    def config_of(self, parameters: Parameters, out: Path) -> Config:
        """One trial's."""
        config = config_of(self.config, parameters)
        return dataclasses.replace(
            config, train=dataclasses.replace(config.train, out=str(out), fresh=False, workers=self.workers)
        )


class TrialRun(tune.Trainable):
    """A step answers with the score of one epoch, higher is better; the run trains no epoch further than asked."""

    def setup(self, config: Mapping[str, Any], plan: Plan) -> None:  # type: ignore[override]
        self._plan = plan
        self._begin_with(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process, which has everything loaded."""
        self.cleanup()
        self._begin_with(new_config)
        return True

    def _begin_with(self, config: Mapping[str, Any]) -> None:
        self._parameters: Parameters = config["parameters"]
        self._out = Path(self._plan.sweep) / TRIALS / self.trial_name
        self._training: Future[bool] | None = None
        self._token = uuid.uuid4().hex[:8]

    def step(self) -> dict[str, Any]:
        if self._training is None:
            self._take_up()
        wanted = self.iteration + 1
        if wanted > len(epochs(self._out / METRICS)) and not self._is_over():
            self._train_to(wanted)
        measure = self._plan.measure
        sign = -1 if measure == "loss" else 1
        found = [sign * score_of(line, measure) for line in epochs(self._out / METRICS)]
        place = min(wanted, len(found))
        done = place == len(found) and self._is_over()
        return {"score": found[place - 1], "best": max(found[:place]), "done": done}

    def cleanup(self) -> None:
        """Let the run save and end by itself: workers that it started are only then given back to Ray."""
        while self._training is not None and not self._training.done():
            (self._out / STOP).touch()
            wait([self._training], 1)
        Leave(self._out, self._token).take_back()
        if (self._out / ENDED).exists():
            shutil.rmtree(self._out / checkpoint.FOLDER, ignore_errors=True)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The run as it stands, for another trial to go on from."""
        beside = Path(checkpoint_dir) / "run"
        beside.mkdir()
        for name in (METRICS, WORDS, BEGUN):
            shutil.copy(self._out / name, beside)
        shutil.copytree(self._out / CAPTIONER, beside / CAPTIONER)
        newest = checkpoint.newest(self._out)
        assert newest is not None
        shutil.copytree(newest, beside / checkpoint.FOLDER / newest.name)
        write_json(Path(checkpoint_dir) / FROM, {"trial": self.trial_name, "epoch": self.iteration})

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        """Go on from another trial's run, with the parameters that this one has now; of its own it has no need."""
        of = json.loads((Path(checkpoint_dir) / FROM).read_text(encoding="utf-8"))
        given = Path(checkpoint_dir) / "run"
        if of["trial"] == self.trial_name:
            return
        begun = json.loads((given / BEGUN).read_text(encoding="utf-8"))
        moved = [f"{key} {new}" for key, new in self._parameters.items() if begun["parameters"].get(key) != new]
        change = f"after epoch {of['epoch']} from trial {of['trial']}, with {', '.join(moved) or 'nothing changed'}"
        changes = [*begun["changes"], change]
        if self._begun() == {"parameters": self._parameters, "changes": changes}:
            return  # this was done before the trial died
        shutil.rmtree(self._out, ignore_errors=True)
        shutil.copytree(given, self._out, ignore=lambda _, names: {BEGUN} & set(names))
        begin(self._out, self._parameters, changes)

    def _begun(self) -> dict[str, Any] | None:
        file = self._out / BEGUN
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def _take_up(self) -> None:
        """Make the folder this trial's; one without its parameters was left half copied."""
        begun = self._begun()
        if begun is None or begun["parameters"] != self._parameters:
            shutil.rmtree(self._out, ignore_errors=True)
            begin(self._out, self._parameters, [])
        # Tune runs a trial once at a time: an owner on a lost machine is not waited for.
        (self._out / LEASE).unlink(missing_ok=True)
        if self._ended() == FAILED:
            (self._out / ENDED).unlink()

    def _ended(self) -> str:
        file = self._out / ENDED
        return str(json.loads(file.read_text(encoding="utf-8"))["status"]) if file.exists() else ""

    def _is_over(self) -> bool:
        """Whether the run has come to its end, or was ended before the driver was killed."""
        return (self._out / FACTS).exists() or self._ended() not in ("", FAILED)

    def _train_to(self, epoch: int) -> None:
        """Return when the run has done so many epochs, or has come to its end."""
        leave = Leave(self._out, self._token)
        leave.give(epoch)
        if self._training is None:
            config = self._plan.config_of(self._parameters, self._out)
            pool = ThreadPoolExecutor(1, "trial")
            pictures = self._plan.pictures[self._plan.encoding_of(config)]
            self._training = pool.submit(fit, config, pictures, self._token)
            pool.shutdown(wait=False)
        while not leave.is_used() and not self._training.done():
            wait([self._training], SECONDS_BETWEEN_LOOKS)
        if self._training.done():
            self._training.result()
