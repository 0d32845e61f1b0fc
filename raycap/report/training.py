"""What a page tells of training runs: curves, epochs in figures, samples as they grew, best and worst captions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from raycap.errors import UserError
from raycap.evaluation.references import References
from raycap.fetch import Fetch, Fetcher, Trust
from raycap.images import Reading
from raycap.plots import curves
from raycap.report.attention import Panel, drawn, square_of
from raycap.report.options import Report
from raycap.report.thumbnails import PageBudget, Thumbnail, thumbnails
from raycap.training.run_files import METRICS, PICTURES, read_log

Lines = Sequence[Mapping[str, Any]]

# What is drawn, over the steps of the run: for each chart its lines, as kind of journal line and name in it.
CHARTS: dict[str, dict[str, tuple[str, str]]] = {
    "loss": {"training": ("step", "training_loss"), "validation": ("epoch", "validation_loss")},
    "token accuracy": {
        "training": ("step", "training_accuracy"),
        "validation": ("epoch", "accuracy"),
    },
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
    pictures: Lines = ()  # what the captioner that is kept says of each validation picture
    captioner: str = ""

    @property
    def epochs(self) -> Lines:
        return [line for line in self.lines if line["kind"] == "epoch"]

    @property
    def columns(self) -> dict[str, str]:
        """What its table of epochs shows, with the heading of each."""
        return {
            name: heading
            for name, heading in COLUMNS.items()
            if any(name in line for line in self.epochs)
        }

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
        found = read_log(Path(path) / METRICS)
        config = Path(path) / "config.yaml"
        settings = config.read_text(encoding="utf-8") if config.exists() else ""
        pictures = read_log(Path(path) / PICTURES)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the training run in {path}: {error}") from error
    if not found:
        raise UserError(f"{path}/{METRICS} has no line yet: the run has only begun")
    finished = (Path(path) / "facts.json").exists()
    return Run(name, found, settings, finished, pictures, str(Path(path) / "captioner"))


def told(
    runs: Sequence[Run],
    references: References | None,
    options: Report,
    room: PageBudget,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> dict[str, Any]:
    """What the template asks for."""
    extremes = _extremes(runs, options.extremes)
    said = _said(runs)
    keys = [each["key"] for _, pictures in extremes for each in pictures] + list(said)
    shown = _shown(list(dict.fromkeys(keys)), references, options, room, fetch, trust, reading)
    samples = [
        Sample(
            key,
            references.captions.get(key, [first]) if references else [first],
            grown,
            shown[key],
        )
        for key, (first, grown) in said.items()
    ]
    panels, notes = _panels(runs, references, options, room, fetch, trust, reading)
    return {
        "charts": charts(runs) if runs else [],
        "extremes": extremes,
        "shown": shown,
        "samples": samples,
        "panels": panels,
        "notes": notes,
    }


def _extremes(runs: Sequence[Run], most: int) -> list[tuple[str, Lines]]:
    """Of each run the pictures with the best captions by CIDEr-D, and those with the worst; none is both."""
    chosen: list[tuple[str, Lines]] = []
    for run in runs:
        order = sorted(run.pictures, key=lambda picture: -picture["cider_d"])
        count = min(most, len(order) // 2)
        whose = f" of {run.name}" if len(runs) > 1 else ""
        if count:
            chosen += [
                (f"Best{whose}", order[:count]),
                (f"Worst{whose}", order[: -count - 1 : -1]),
            ]
    return chosen


def _panels(
    runs: Sequence[Run],
    references: References | None,
    options: Report,
    room: PageBudget,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> tuple[list[Panel], list[str]]:
    """At most so many, shared by the runs; and why there are none of a run that has maps."""
    made: list[Panel] = []
    notes: list[str] = []
    uris = references.uris if references else {}
    with Fetcher(fetch, trust) as fetcher:
        for run in runs:
            rows = [each for each in run.pictures if "attention" in each][
                : options.panels // len(runs)
            ]
            seen = [{**each, "uri": uris[each["key"]]} for each in rows if each["key"] in uris]
            try:
                made += (
                    drawn(run.name, seen, square_of(run.captioner), room, fetcher, reading)
                    if seen
                    else ()
                )
            except UserError as refusal:
                notes.append(f"no maps of attention of {run.name}: {refusal}")
            if rows and not seen:
                notes.append(
                    f"maps of attention of {run.name}: give --references SOURCE, which has the pictures"
                )
    return made, notes


def _shown(
    keys: Sequence[str],
    references: References | None,
    options: Report,
    room: PageBudget,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> dict[str, Thumbnail]:
    """Each picture by its key, or why there is none."""
    uris = (
        {key: references.uris[key] for key in keys if key in references.uris} if references else {}
    )
    made = thumbnails(list(uris.values()), options.thumbnail, room, fetch, trust, reading)
    lacking = Thumbnail("", 0, 0, "give --references SOURCE, with the pictures, to see this one")
    return dict.fromkeys(keys, lacking) | dict(zip(uris, made, strict=True))


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


def _said(runs: Sequence[Run]) -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    """By the key of each sample picture the reference that the journal shows, and what was said in the order of
    time: run, when, caption."""
    said: dict[str, tuple[str, list[tuple[str, str, str]]]] = {}
    for run, when, sample in _told(runs):
        _, grown = said.setdefault(sample["key"], (sample["reference"], []))
        if not grown or (grown[-1][0], grown[-1][2]) != (
            run,
            sample["caption"],
        ):  # else nothing new was said
            grown.append((run, when, sample["caption"]))
    return said


def _told(runs: Sequence[Run]) -> Iterable[tuple[str, str, Mapping[str, str]]]:
    for run in runs:
        for line in run.lines:
            when = (
                f"epoch {line['epoch']}" if line["kind"] == "epoch" else f"step {line['step']:,}"
            )
            for sample in line.get("samples", ()):
                yield run.name, when, sample
