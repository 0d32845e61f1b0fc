"""A run as people see it: reads along in metrics.jsonl; keeps bar, learning curve and trackers up to date."""

import logging
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from raycap import plots
from raycap.terminal import lines_of, printable, write_out
from raycap.training import Tracker
from raycap.training.journal import METRICS, Reader, epochs
from raycap.training.trackers import attempt, open_tracker

log = logging.getLogger(__name__)

CURVE = "learning_curve.png"
SCORES = ("bleu_4", "rouge_l", "cider_d")


class Watch:
    """Call `look` now and then; it shows what is new."""

    def __init__(self, out: Path, trackers: Iterable[Tracker]) -> None:
        self._out = out
        self._reader = Reader(out / METRICS)
        self._trackers = {name: open_tracker(name, out) for name in trackers}
        self._bar: tqdm[Any] | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        if self._bar is not None:
            self._bar.close()
        for tracker in self._trackers.values():
            tracker.close()

    def look(self) -> None:
        """Show the lines that were added since the last look."""
        for line in self._reader.new():
            {"step": self._step, "epoch": self._epoch, "samples": self._samples}[line["kind"]](line)

    def _step(self, line: dict[str, Any]) -> None:
        figure = _figure(line)
        rate = f"{line['captions_per_second']:,.0f} captions/s"
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(desc="train", total=line["steps"], unit=" steps", initial=line["step"])
            self._bar.set_postfix_str(f"epoch {line['epoch']}, {figure}, {rate}", refresh=False)
            self._bar.update(line["step"] - self._bar.n)
        else:
            left = (line["steps"] - line["step"]) / max(line["steps_per_second"], 1e-9)
            log.info("step %s of %s: %s, %s, %s left", line["step"], line["steps"], figure, rate, clock(left))
        self._track(line, "training")

    def _epoch(self, line: dict[str, Any]) -> None:
        scores = ", ".join(f"{name} {line[name]:.4f}" for name in SCORES)
        self._say(
            f"epoch {line['epoch']}: {_figure(line)}, validation loss {line['validation_loss']:.3f}, "
            f"accuracy {line['accuracy']:.3f}, {scores}{' (best so far)' if line['best'] else ''}"
        )
        self._samples(line)
        plots.save(plots.learning_curve(epochs(self._out / METRICS)), self._out / CURVE)
        self._track(line, "epoch")

    def _samples(self, line: dict[str, Any]) -> None:
        for sample in line["samples"]:
            key, caption, reference = (printable(sample[name]) for name in ("key", "caption", "reference"))
            self._say(f"  {key}: {caption}   (a person: {reference})")

    def _track(self, line: dict[str, Any], family: str) -> None:
        figures = {f"{family}/{name}": float(value) for name, value in line.items() if isinstance(value, float)}
        for name, tracker in list(self._trackers.items()):
            error = attempt(partial(tracker.add, line["step"], figures))
            if error is not None:
                del self._trackers[name]
                log.warning("the tracker %s hears no more of this run: %s", name, error)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(lines_of(text), file=sys.stdout)
        else:
            write_out(text + "\n")
            sys.stdout.flush()


def _figure(line: dict[str, Any]) -> str:
    """What learning raises or lowers."""
    return f"reward {line['reward']:.3f}" if "reward" in line else f"loss {line['training_loss']:.3f}"


def clock(seconds: float) -> str:
    """A length of time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 9 else f"{minutes} min {rest} s"
