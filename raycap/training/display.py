"""Shows the progress of a training run. Reads its log, and updates the progress bar, the learning
curve and the trackers."""

import hashlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tqdm import tqdm

from raycap import plots
from raycap.errors import UserError
from raycap.metrics import headline_scores
from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, LogReader, read_epochs
from raycap.terminal import lines_of, printable, write_out
from raycap.training.options import Tracker
from raycap.training.run_facts import facts_as_text

log = logging.getLogger(__name__)

CURVE = "learning_curve.png"
# Drawing takes half a second, which may be longer than an epoch.
SECONDS_BETWEEN_CURVES = 10.0


class RunDisplay:
    """Shows new lines of the log whenever `update` is called."""

    def __init__(self, out: RunFolder, trackers: Iterable[Tracker]) -> None:
        self._out = out
        self._reader = LogReader(out)
        # Trackers write to the local disk; what they write is copied to a store.
        self._scratch = None if out.is_local else tempfile.TemporaryDirectory()
        self._local = Path(out.path() if self._scratch is None else self._scratch.name)
        self._trackers = {name: open_tracker(name, self._local, out.uri) for name in trackers}
        self._bar: tqdm[Any] | None = None
        self._has_new_epoch = False
        self._is_first_step = True  # since the start line
        self._mean_loss = RunningMean()
        self._drawn = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update(at_once=True)
        self._draw_curve()
        if self._bar is not None:
            self._bar.close()
        for tracker in self._trackers.values():
            tracker.close()
        if self._scratch is not None:
            self._copy_to_store()
            self._scratch.cleanup()

    def _copy_to_store(self) -> None:
        """Copy what trackers have written. A store that fails must not end hours of training."""
        for file in (each for each in self._local.rglob("*") if each.is_file()):
            try:
                self._out.put(file.relative_to(self._local).as_posix(), str(file))
            except UserError as error:
                log.warning("%s", error)
                return

    def update(self, at_once: bool = False) -> None:
        """Show the lines that were added since the last call."""
        show = {
            "start": self._start,
            "step": self._step,
            "epoch": self._epoch,
            "samples": self._samples,
        }
        for line in self._reader.new_lines(at_once):
            show[line["kind"]](line)
        if time.monotonic() > self._drawn + SECONDS_BETWEEN_CURVES:
            self._draw_curve()

    def _start(self, line: dict[str, Any]) -> None:
        for text in facts_as_text(line):
            self._print(printable(text))
        self._is_first_step = True

    def _step(self, line: dict[str, Any]) -> None:
        rate = f"{line['captions_per_second']:,.0f} captions/s"
        left = (line["steps"] - line["step"]) / max(line["steps_per_second"], 1e-9)
        if self._is_first_step:
            self._print(f"time: about {duration(left)} for all steps, without validation")
            self._is_first_step = False
        loss = _loss_or_reward(line) + self._mean_loss.added(line)
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    desc="train", total=line["steps"], unit=" steps", initial=line["step"]
                )
            text = f"epoch {line['epoch']}, {loss}, {rate}"
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(line["step"] - self._bar.n)
        else:
            log.info(
                "step %s of %s: %s, %s, %s left",
                line["step"],
                line["steps"],
                loss,
                rate,
                duration(left),
            )
        self._track(line, "training")

    def _epoch(self, line: dict[str, Any]) -> None:
        scores = ", ".join(f"{name} {line[name]:.4f}" for name in headline_scores(line))
        self._print(
            f"epoch {line['epoch']}: {_loss_or_reward(line)}, validation loss "
            f"{line['validation_loss']:.3f}, accuracy {line['accuracy']:.3f}, "
            f"{scores}{' (best so far)' if line['best'] else ''}"
        )
        self._samples(line)
        self._has_new_epoch = True
        self._track(line, "epoch")

    def _draw_curve(self) -> None:
        """Draw the learning curve, if it has changed."""
        if self._has_new_epoch:
            figure = plots.learning_curve(read_epochs(self._out / METRICS))
            plots.save(figure, self._local / CURVE)
            self._has_new_epoch, self._drawn = False, time.monotonic()
            if self._scratch is not None:
                self._copy_to_store()

    def _samples(self, line: dict[str, Any]) -> None:
        for sample in line["samples"]:
            # Keys and captions may contain control characters.
            key, caption, reference = (
                printable(sample[name]) for name in ("key", "caption", "reference")
            )
            self._print(f"  {key}: {caption}   (a person: {reference})")

    def _track(self, line: dict[str, Any], family: str) -> None:
        figures = {
            f"{family}/{name}": value
            for name, value in line.items()
            if isinstance(value, float) or name == "vocabulary"
        }
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.add(line["step"], figures)
            except Exception as error:  # noqa: BLE001 - a lost server must not end hours of training
                del self._trackers[name]
                log.warning("the tracker %s failed and gets no more figures: %s", name, error)

    def _print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(lines_of(text), file=sys.stdout)
        else:
            write_out(text + "\n")
            sys.stdout.flush()


class RunningMean:
    """The exponential running mean of the loss or reward: one figure jumps from line to line."""

    SHARE = 0.1  # of a new line

    def __init__(self) -> None:
        self._phase = ""
        self._mean = 0.0

    def added(self, line: Mapping[str, Any]) -> str:
        """The mean with this line, as text; "" for the first line of a phase."""
        value = float(line["reward"] if "reward" in line else line["training_loss"])
        if line["phase"] != self._phase:
            self._phase, self._mean = line["phase"], value
            return ""
        self._mean += self.SHARE * (value - self._mean)
        return f" (running mean {self._mean:.3f})"


def _loss_or_reward(line: dict[str, Any]) -> str:
    if "reward" in line:
        return f"reward {line['reward']:.3f}"
    return f"loss {line['training_loss']:.3f}"


def duration(seconds: float) -> str:
    """A duration as text: 2 h 5 min, 12 min, 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes > 9 else f"{minutes} min {rest} s"


# ------------------------------------------------------------------------------------- trackers


class OpenTracker(Protocol):
    """A service that gets the metrics of a run, in addition to metrics.jsonl."""

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Record the metrics of a step, by name."""

    def close(self) -> None:
        """Send everything that is not sent yet."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, out: Path, name: str) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"))

    def add(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `raycap`, at MLFLOW_TRACKING_URI."""

    def __init__(self, out: Path, name: str) -> None:
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment("raycap")
        mlflow.start_run(run_name=_last_part(name))

    def add(self, step: int, figures: dict[str, float]) -> None:
        named = {name.replace("/", "."): value for name, value in figures.items()}
        self._mlflow.log_metrics(named, step)

    def close(self) -> None:
        self._mlflow.end_run()


class WeightsAndBiases:
    """A run of the project `raycap`."""

    def __init__(self, out: Path, name: str) -> None:
        import wandb

        # The same folder continues the same run; another folder of that name is another run.
        run_id = f"{_last_part(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._run = wandb.init(
            project="raycap", name=_last_part(name), dir=str(out), id=run_id, resume="allow"
        )

    def add(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[Tracker, type[OpenTracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _last_part(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def open_tracker(name: Tracker, out: Path, run: str) -> OpenTracker:
    """Open a tracker, which may write files into `out`. `run` is the path or URI of the run's
    folder. Raises UserError, with the name of the extra, if its package is missing."""
    try:
        return TRACKERS[name](out, run)  # type: ignore[call-arg]
    except ImportError as error:
        raise UserError(
            f"the tracker {name} needs a package: pip install 'raycap[{name}]' ({error})"
        ) from error
    except Exception as error:  # any error of a package, a server or a key
        raise UserError(
            f"the tracker {name} cannot be opened (train.trackers): {error}"
        ) from error
