"""The content of a page about training runs: curves, a table of epochs, sample captions by epoch,
the best and the worst captions."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycap.config import loads
from raycap.errors import UserError
from raycap.evaluation.references import References, read_references
from raycap.fetch import Trust
from raycap.metrics import facts_of, find_facts, headline_scores
from raycap.report.pictures import PagePictures, Panel, Thumbnail, square_of
from raycap.sources import Shapes, Source
from raycap.sources.records import root_of
from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, PICTURES, read_log
from raycap.uris import STORES, is_local, scheme_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]

EXTREMES = 8  # pictures with the best captions of a run, and as many with the worst
# For each chart its lines, as kind of log line and name in it. Scores have charts of their own.
CHARTS: dict[str, dict[str, tuple[str, str]]] = {
    "loss": {"training": ("step", "training_loss"), "validation": ("epoch", "validation_loss")},
    "token accuracy": {
        "training": ("step", "training_accuracy"),
        "validation": ("epoch", "accuracy"),
    },
}
LAST_CHARTS: dict[str, dict[str, tuple[str, str]]] = {
    "reward": {"training": ("step", "reward")},
    "learning rate": {"training": ("step", "lr")},
}
# Columns of the table of epochs before and behind the scores.
COLUMNS = {
    "epoch": "Epoch",
    "training_loss": "Training loss",
    "reward": "Reward",
    "validation_loss": "Validation loss",
    "accuracy": "Accuracy",
}
LAST_COLUMNS = {"seconds": "Seconds", "phase": "Phase"}
NOT_FOUND = "the source does not have this picture"


@dataclass(frozen=True)
class LoggedRun:
    """One training run, finished or under way."""

    name: str
    lines: Lines
    settings: str  # its config, as YAML
    finished: bool
    pictures: Lines = ()  # the captions of the best epoch for the validation pictures
    captioner: str = ""

    @property
    def epochs(self) -> Lines:
        return [line for line in self.lines if line["kind"] == "epoch"]

    @property
    def scores(self) -> dict[str, str]:
        """The name in the log and the label of each score of its captions."""
        labels = {}
        for name in dict.fromkeys(name for line in self.epochs for name in line):
            facts = find_facts(name)
            if facts and name not in COLUMNS and name != "perplexity":
                labels[name] = f"{facts.label[:1].upper()}{facts.label[1:]}"
        return labels

    @property
    def columns(self) -> dict[str, str]:
        """The columns of its table of epochs, with their headings."""
        named = {**COLUMNS, **self.scores, **LAST_COLUMNS}
        return {
            name: heading
            for name, heading in named.items()
            if any(name in line for line in self.epochs)
        }

    def shown(self, name: str, value: float) -> str:
        """A number as it is shown in the table of epochs."""
        facts = find_facts(name)
        if facts:
            return facts.shown(value)
        return f"{value:,.0f}" if name == "seconds" else f"{value:.3f}"

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The epoch whose captioner was kept."""
        return next((line for line in reversed(self.epochs) if line["best"]), None)

    @property
    def best_scores(self) -> str:
        """The headline scores of that epoch, in words."""
        best = self.best or {}
        return ", ".join(
            f"{facts.label} {facts.shown(best[name])}"
            for name, facts in headline_scores(best).items()
        )


@dataclass(frozen=True)
class SamplePicture:
    """One validation picture and its captions at several times of the training."""

    key: str
    references: Sequence[str]
    captions: Sequence[tuple[str, str, str]]  # run, when, caption
    thumbnail: Thumbnail


def is_run(path: str) -> bool:
    """Whether a folder holds a training run."""
    if scheme_of(path) in STORES:
        return RunFolder(path).exists(METRICS)
    return (Path(path) / METRICS).is_file()


def read_run(name: str, path: str) -> LoggedRun:
    """The run in a folder. Raises UserError if its log has no line yet."""
    try:
        folder = RunFolder(path)
        lines = [line for line in read_log(folder / METRICS) if line["kind"] != "start"]
        settings = (folder.read("config.yaml") or b"").decode("utf-8")
        pictures = read_log(folder / PICTURES)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the training run in {path}: {error}") from error
    if not lines:
        raise UserError(f"{path}/{METRICS} has no line yet: the run has only begun")
    finished = folder.exists("facts.json")
    return LoggedRun(name, lines, settings, finished, pictures, f"{path.rstrip('/')}/captioner")


def run_values(
    runs: Sequence[LoggedRun], references: References | None, pictures: PagePictures
) -> dict[str, Any]:
    """The values for the template."""
    extremes = _extremes(runs)
    samples = _captions_of_samples(runs)
    keys = dict.fromkeys([each["key"] for _, own in extremes for each in own] + list(samples))
    uris = references.uris if references else {}
    thumbnails = dict.fromkeys(keys, Thumbnail(reason=NOT_FOUND))
    known = [key for key in keys if key in uris]
    thumbnails |= dict(zip(known, pictures.thumbnails([uris[key] for key in known]), strict=True))
    sample_pictures = []
    for key, (first_reference, captions) in samples.items():
        own = references.captions.get(key) if references else None
        sample = SamplePicture(key, own or [first_reference], captions, thumbnails[key])
        sample_pictures.append(sample)
    return {
        "charts": charts(runs) if runs else [],
        "extremes": extremes,
        "cider_d": facts_of("cider_d"),
        "thumbnails": thumbnails,
        "samples": sample_pictures,
    }


def _extremes(runs: Sequence[LoggedRun]) -> list[tuple[str, Lines]]:
    """The pictures of each run with the best captions by CIDEr-D, and those with the worst."""
    chosen: list[tuple[str, Lines]] = []
    for run in runs:
        order = sorted(run.pictures, key=lambda picture: -picture["cider_d"])
        count = min(EXTREMES, len(order) // 2)
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        if count:
            chosen.append((f"Best{of_run}", order[:count]))
            chosen.append((f"Worst{of_run}", order[: -count - 1 : -1]))
    return chosen


def panels_of_runs(
    runs: Sequence[LoggedRun], references: References | None, most: int, pictures: PagePictures
) -> tuple[list[Panel], list[str]]:
    """Up to `most` panels of the runs, and notes about runs whose attention maps could not be
    shown."""
    panels: list[Panel] = []
    notes: list[str] = []
    uris = references.uris if references else {}
    for run in runs:
        rows = [each for each in run.pictures if "attention" in each][: most // len(runs)]
        located = [{**each, "uri": uris[each["key"]]} for each in rows if each["key"] in uris]
        if rows and not located:
            notes.append(
                f"maps of attention of {run.name}: give --references SOURCE, which has the "
                "pictures"
            )
        if not located:
            continue
        try:
            panels += pictures.panels(run.name, located, square_of(run.captioner))
        except UserError as error:
            notes.append(f"no maps of attention of {run.name}: {error}")
    return panels, notes


def charts(runs: Sequence[LoggedRun]) -> "list[tuple[str, Figure]]":
    """A chart for each measure that the runs have; for several runs a line each."""
    from raycap.plots import curves

    of_scores: dict[str, dict[str, tuple[str, str]]] = {}
    every_score = dict.fromkeys(name for run in runs for name in run.scores)
    for name, facts in headline_scores(every_score).items():
        of_scores[facts.label] = {"validation": ("epoch", name)}
    drawn = []
    for title, lines in {**CHARTS, **of_scores, **LAST_CHARTS}.items():
        if len(runs) > 1:
            last = list(lines.values())[-1]
            series = {run.name: _points(run.lines, *last) for run in runs}
        else:
            series = {line: _points(runs[0].lines, *where) for line, where in lines.items()}
        series = {line: points for line, points in series.items() if points[0]}
        if series:
            drawn.append((title, curves(series, "step", title)))
    return drawn


def _points(lines: Lines, kind: str, name: str) -> tuple[list[float], list[float]]:
    known = [line for line in lines if line["kind"] == kind and name in line]
    return [line["step"] for line in known], [line[name] for line in known]


def _captions_of_samples(
    runs: Sequence[LoggedRun],
) -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    """By the key of each sample picture the reference in the log, and its captions in the order
    of time: run, when, caption."""
    captions: dict[str, tuple[str, list[tuple[str, str, str]]]] = {}
    for run, line, sample in _samples(runs):
        when = f"epoch {line['epoch']}" if line["kind"] == "epoch" else f"step {line['step']:,}"
        _, own = captions.setdefault(sample["key"], (sample["reference"], []))
        is_repeated = own and (own[-1][0], own[-1][2]) == (run.name, sample["caption"])
        if not is_repeated:
            own.append((run.name, when, sample["caption"]))
    return captions


def _samples(
    runs: Sequence[LoggedRun],
) -> Iterator[tuple[LoggedRun, Mapping[str, Any], Mapping[str, str]]]:
    for run in runs:
        for line in run.lines:
            for sample in line.get("samples", ()):
                yield run, line, sample


# ------------------------------------------------------- the pictures, from the run's own source


def references_of_runs(
    runs: Sequence[LoggedRun], folder: Path
) -> tuple[References, Trust, list[str]]:
    """The references and URIs of the runs' pictures, in the sources of the runs' configs; the
    places that these may be opened from; and why a run gets none.

    A run folder may come from somebody else, and must not bring other pictures of this machine
    into the page. So only a source at a local path is read, only pictures below that path's folder
    are opened, and the source must have a caption for a picture that the run has logged. Pictures
    without a file are written to `folder`.
    """
    captions: dict[str, list[str]] = {}
    uris: dict[str, str] = {}
    trust = Trust.below(str(folder))
    notes = []
    for run in runs:
        # Some references of each picture that the page may show.
        logged: dict[str, set[str]] = {}
        for picture in run.pictures:
            logged.setdefault(picture["key"], set()).update(picture["references"])
        for _, _, sample in _samples([run]):
            logged.setdefault(sample["key"], set()).add(sample["reference"])
        try:
            source = _source_of(run)
            known = read_references(source)
            if isinstance(source, Shapes):
                known = _write_pictures(source, known, logged.keys(), folder)
            else:
                trust = trust.also(Trust.below(root_of(source.path).uri))
        except UserError as error:
            notes.append(f"pictures of {run.name}: {error}; --references SOURCE shows them")
            continue
        for key, references in logged.items():
            if key in known.uris and references & set(known.captions.get(key, ())):
                captions[key] = known.captions[key]
                uris[key] = known.uris[key]
    return References(captions, dict.fromkeys(captions, ""), uris), trust, notes


def _source_of(run: LoggedRun) -> Source:
    """The source in the run's config."""
    try:
        source = loads(run.settings, "config.yaml").source if run.settings else None
    except UserError as error:
        raise UserError(f"its config cannot be read ({error})") from error
    if source is None:
        raise UserError(
            "it learned from a feature table, which does not say where the pictures are"
        )
    if not isinstance(source, Shapes) and not is_local(source.path):
        raise UserError(f"its source, {source.path}, is not on this machine")
    return source


def _write_pictures(
    source: Source, known: References, keys: Collection[str], folder: Path
) -> References:
    """The same references, with the wanted pictures, which the source draws itself, in files."""
    uris: dict[str, str] = {}
    for rows in source.tables():
        for key, data in zip(rows["key"].to_pylist(), rows["bytes"].to_pylist(), strict=True):
            if key in keys and data is not None:
                file = folder / f"{len(uris)}.png"
                file.write_bytes(data)
                uris[key] = str(file)
    return References(known.captions, known.splits, uris)
