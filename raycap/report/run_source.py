"""The pictures of training runs, found by the source that each run's config names."""

from collections.abc import Collection, Sequence
from pathlib import Path

from raycap.config import loads
from raycap.errors import UserError
from raycap.evaluation.references import References, read
from raycap.fetch import Trust
from raycap.report.training import Run
from raycap.sources import Shapes, Source
from raycap.sources.records import root_of
from raycap.uris import is_local


def references_of_runs(runs: Sequence[Run], folder: Path) -> tuple[References, Trust, list[str]]:
    """What the runs' sources say of the runs' pictures, which places these may be opened from, and why there is
    nothing of a run.

    A run folder may come from somebody else, and must not bring other pictures of this machine into the page. So
    only a source at a local path is read, only pictures below that path's folder are opened, and the source must
    give a picture a caption that the run has recorded. Pictures without a file are written to `folder`.
    """
    captions: dict[str, list[str]] = {}
    uris: dict[str, str] = {}
    trust = Trust.below(str(folder))
    notes = []
    for run in runs:
        recorded = _recorded_captions(run)
        try:
            source = _source_of(run)
            known = read(source)
            if isinstance(source, Shapes):
                known = _with_files(source, known, recorded.keys(), folder)
            else:
                trust = trust.also(Trust.below(root_of(source.path).uri))
        except UserError as refusal:
            notes.append(f"pictures of {run.name}: {refusal}; --references SOURCE shows them")
            continue
        for key, recorded_captions in recorded.items():
            if key in known.uris and recorded_captions & set(known.captions.get(key, ())):
                captions[key] = known.captions[key]
                uris[key] = known.uris[key]
    return References(captions, dict.fromkeys(captions, ""), uris), trust, notes


def _recorded_captions(run: Run) -> dict[str, set[str]]:
    """Some captions that people wrote, for each picture that the page may show."""
    recorded: dict[str, set[str]] = {}
    for picture in run.pictures:
        recorded.setdefault(picture["key"], set()).update(picture["references"])
    for line in run.lines:
        for sample in line.get("samples", ()):
            recorded.setdefault(sample["key"], set()).add(sample["reference"])
    return recorded


def _source_of(run: Run) -> Source:
    """The source in the run's config."""
    try:
        source = loads(run.settings, "config.yaml").source if run.settings else None
    except UserError as refusal:
        raise UserError(f"its config cannot be read ({refusal})") from refusal
    if source is None:
        raise UserError(
            "it learned from a feature table, which does not say where the pictures are"
        )
    if not isinstance(source, Shapes) and not is_local(source.path):
        raise UserError(f"its source, {source.path}, is not on this machine")
    return source


def _with_files(
    source: Source, known: References, keys: Collection[str], folder: Path
) -> References:
    """The same references; the wanted pictures, which the source draws itself, are in files now."""
    uris: dict[str, str] = {}
    for rows in source.tables():
        for key, data in zip(rows["key"].to_pylist(), rows["bytes"].to_pylist(), strict=True):
            if key in keys and data is not None:
                file = folder / f"{len(uris)}.png"
                file.write_bytes(data)
                uris[key] = str(file)
    return References(known.captions, known.splits, uris)
