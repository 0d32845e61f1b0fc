"""What a page tells of training runs: curves, the epochs in figures, samples as they grew, settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from raycap.evaluation.references import References
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.plots import curves
from raycap.refusal import Refusal
from raycap.report.options import Report
from raycap.report.thumbnails import Thumbnail, thumbnails
from raycap.training.journal import METRICS, lines

Lines = Sequence[Mapping[str, Any]]

# What is drawn, over the steps of the run: for each chart its lines, as kind of journal line and name in it.
CHARTS: dict[str, dict[str, tuple[str, str]]] = {
    "loss": {"training": ("step", "training_loss"), "validation": ("epoch", "validation_loss")},
    "token accuracy": {"training": ("step", "training_accuracy"), "validation": ("epoch", "accuracy")},
    "CIDEr-D": {"validation": ("epoch", "cider_d")},
    "BLEU-4": {"validation": ("epoch", "bleu_4")},
    "reward": {"training": ("step", "reward")},
    "learning rate": {"training": ("step", "lr")},
}
COLUMNS = {
    "epoch": "Epoch",
    "training_loss": "Training loss",
    "reward": "Reward",
    "validation_loss": "Validation loss",
    "accuracy": "Accuracy",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
    "cut_off": "Cut off",
    "distinct": "Distinct",
    "seconds": "Seconds",
    "phase": "Phase",
}


@dataclass(frozen=True)
class Run:
    """One training run, finished or under way."""

    name: str
    lines: Lines
    settings: str  # its config, as YAML
    finished: bool

    @property
    def epochs(self) -> Lines:
        return [line for line in self.lines if line["kind"] == "epoch"]

    @property
    def columns(self) -> dict[str, str]:
        """What its table of epochs shows, with the heading of each."""
        return {name: heading for name, heading in COLUMNS.items() if any(name in line for line in self.epochs)}

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The epoch whose captioner was kept."""
        return next((line for line in reversed(self.epochs) if line["best"]), None)


@dataclass(frozen=True)
class Sample:
    """One validation picture and what was said of it while the captioner learned."""

    key: str
    references: Sequence[str]
    said: Sequence[tuple[str, str, str]]  # run, when, caption
    thumbnail: Thumbnail


def is_run(path: str) -> bool:
    """Whether a training run lies there."""
    return (Path(path) / METRICS).is_file()


def read_run(name: str, path: str) -> Run:
    """The run in a folder; a refusal where it has not come to its first line."""
    try:
        found = lines(Path(path) / METRICS)
        config = Path(path) / "config.yaml"
        settings = config.read_text(encoding="utf-8") if config.exists() else ""
    except (OSError, ValueError) as error:
        raise Refusal(f"cannot read the training run in {path}: {error}") from error
    if not found:
        raise Refusal(f"{path}/{METRICS} has no line yet: the run has only begun")
    return Run(name, found, settings, (Path(path) / "facts.json").exists())


def charts(runs: Sequence[Run]) -> list[tuple[str, Figure]]:
    """A chart for each measure that the runs have; of several runs a line each."""
    drawn = []
    for title, named in CHARTS.items():
        if len(runs) > 1:
            source = list(named.values())[-1]
            series = {run.name: _points(run.lines, *source) for run in runs}
        else:
            series = {name: _points(runs[0].lines, *source) for name, source in named.items()}
        series = {name: points for name, points in series.items() if points[0]}
        if series:
            drawn.append((title, curves(series, "step", title)))
    return drawn


def _points(found: Lines, kind: str, name: str) -> tuple[list[float], list[float]]:
    known = [line for line in found if line["kind"] == kind and name in line]
    return [line["step"] for line in known], [line[name] for line in known]


def samples(
    runs: Sequence[Run], references: References | None, options: Report, fetch: Fetch, reading: Reading
) -> list[Sample]:
    """Each sample picture once, with its captions in the order of time; and itself where the source has it."""
    said: dict[str, list[tuple[str, str, str]]] = {}
    first: dict[str, str] = {}  # the reference that the journal shows
    for run, when, sample in _told(runs):
        told = said.setdefault(sample["key"], [])
        if not told or (told[-1][0], told[-1][2]) != (run, sample["caption"]):  # else nothing new was said
            told.append((run, when, sample["caption"]))
        first.setdefault(sample["key"], sample["reference"])
    uris = [references.uris.get(key, "") if references else "" for key in said]
    known = [uri for uri in uris if uri]
    made = iter(thumbnails(known, options.thumbnail, options.megabytes * 2**20, fetch, reading))
    return [
        Sample(
            key,
            references.captions.get(key, [first[key]]) if references else [first[key]],
            told,
            next(made) if uri else Thumbnail("", 0, 0, "give --references SOURCE to see the picture"),
        )
        for (key, told), uri in zip(said.items(), uris, strict=True)
    ]


def _told(runs: Sequence[Run]) -> Iterable[tuple[str, str, Mapping[str, str]]]:
    for run in runs:
        for line in run.lines:
            when = f"epoch {line['epoch']}" if line["kind"] == "epoch" else f"step {line['step']:,}"
            for sample in line.get("samples", ()):
                yield run.name, when, sample
