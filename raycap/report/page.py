"""Writes a report about caption tables, training runs or sweeps as one HTML file."""

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from raycap.errors import UserError
from raycap.evaluation import Evaluate
from raycap.evaluation.alignment import align
from raycap.evaluation.captions import names_and_paths, read_captions
from raycap.evaluation.references import read_references
from raycap.evaluation.scoring import score_tables
from raycap.fetch import Fetch, Trust
from raycap.fetch.trust import ONLY_WEB
from raycap.images import Reading
from raycap.report.html import render
from raycap.report.options import Report
from raycap.report.pictures import PageBudget, PagePictures
from raycap.report.sweep import is_sweep, read_sweep
from raycap.report.tables import table_values
from raycap.report.training import (
    is_run,
    panels_of_runs,
    read_run,
    references_of_runs,
    run_values,
)
from raycap.sources import Source
from raycap.sources.manifest import counted
from raycap.sources.records import root_of
from raycap.storage import whole_file
from raycap.uris import local_path


def write_page(
    options: Report,
    source: Source | None,
    evaluate: Evaluate,
    metric_options: Any,
    fetch: Fetch,
    reading: Reading,
    trust: Trust = ONLY_WEB,
) -> str:
    """Write the page to `options.out`. Returns the text to print about it.

    `source` has the references. The table may come from somebody else, so its pictures are opened
    only in the table's own folder, where the pictures of the references are, and where `trust` or
    --fetch.trust permits it.
    """
    # Sort the arguments: sweeps, training runs, and the rest, which are caption tables.
    named = names_and_paths(options.tables)
    if not named:
        raise UserError(
            "a report of what? Give caption tables, training runs or sweeps: "
            "raycap report TABLE_OR_RUN..."
        )
    sweeps, runs, table_paths = [], [], []
    for name, path in named:
        with _checked_format(path):
            if is_sweep(path):
                sweeps.append(read_sweep(name, path))
            elif is_run(path):
                runs.append(read_run(name, path))
            else:
                table_paths.append((name, path))
    only = options.only or evaluate.only
    if only and not table_paths:
        raise UserError("--only chooses rows of caption tables, and none is given: leave it out")
    references = read_references(source) if source else None
    trust = trust.also(*(Trust.below(root_of(path).uri) for _, path in table_paths))
    if source:
        trust = trust.also(source.trust)
    pictures = PagePictures(fetch, trust, reading, PageBudget(options.megabytes))

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if runs or sweeps:
            stack.enter_context(_checked_format(" and ".join(path for _, path in named)))

        # Training runs: without --references, the pictures come from the source of each run.
        run_references, run_pictures = references, pictures
        notes: list[str] = []
        if references is None and runs:
            run_references, run_trust, notes = references_of_runs(runs, Path(folder))
            run_pictures = pictures.also_trust(run_trust)
        values = run_values(runs, run_references, run_pictures)
        panels, panel_notes = panels_of_runs(runs, run_references, options.panels, run_pictures)
        notes += panel_notes

        # Caption tables: scored if there are references.
        tables = [
            read_captions(path, name, evaluate.key_column, evaluate.caption_column, only)
            for name, path in table_paths
        ]
        evaluation = None
        if tables and references:
            alignment = align(tables, references, evaluate)
            evaluation = score_tables(alignment, evaluate, metric_options)
        if tables:
            of_tables = table_values(tables, references, evaluation, options, evaluate, pictures)
            panels += of_tables.pop("panels")
            notes += of_tables.pop("notes")
        else:
            of_tables = {"tables": (), "scores": None}

        title = options.title or " and ".join(name for name, _ in named)
        page = render(
            title=title,
            sweeps=sweeps,
            runs=runs,
            panels=panels,
            notes=notes,
            **values,
            **of_tables,
        )
    out = Path(options.out)
    with whole_file(out) as file:
        file.write(page)
    entries = of_tables.get("entries", ())
    refused = [entry.uri for entry, picture in entries if "--fetch.trust" in picture.reason]
    size = out.stat().st_size / 2**20
    return f"{_how_to_trust(refused)}written: {out} ({size:.1f} MB)\n"


@contextlib.contextmanager
def _checked_format(path: str) -> Iterator[None]:
    """Raises UserError for errors from logs and tables that do not have the format of raycap."""
    try:
        yield
    except UserError:
        raise
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        UndefinedError,
    ) as error:
        raise UserError(
            f"{path} is not as raycap writes training runs and sweeps ({type(error).__name__})"
        ) from error


def _how_to_trust(refused: Sequence[str]) -> str:
    """A line that says how to show the pictures at these URIs, which were refused."""
    if not refused:
        return ""
    folders = []
    for uri in refused:
        path = local_path(uri)
        if path is not None and path.startswith("/"):
            folders.append(str(Path(path).resolve().parent))
    folder = os.path.commonpath(folders) if folders else ""
    prefix = shlex.quote(folder) if folder.strip("/") else "PREFIX"
    return (
        f"{counted(len(refused), 'picture is', 'pictures are')} not shown: a table may be "
        "somebody else's, so it opens nothing outside of its own folder. If you trust what it "
        f"names: --fetch.trust {prefix}\n"
    )
