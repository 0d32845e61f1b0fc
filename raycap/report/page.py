"""One page to look at, of caption tables, training runs or sweeps, in one file."""

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from raycap.config import Config
from raycap.errors import UserError
from raycap.evaluation import alignment, captions, references
from raycap.evaluation.references import References
from raycap.evaluation.scoring import judge
from raycap.fetch import Trust
from raycap.fetch.trust import ONLY_WEB
from raycap.report import tables as of_tables
from raycap.report import sweep as of_sweep
from raycap.report import training as of_training
from raycap.report.html import render
from raycap.report.run_source import references_of_runs
from raycap.report.thumbnails import PageBudget
from raycap.sources.records import root_of
from raycap.sources.rows import counted
from raycap.storage import whole_file
from raycap.uris import local_path


def write_page(config: Config, trust: Trust = ONLY_WEB) -> str:
    """Write the page that the report section asks for to its `out`; the answer is what to say of it.

    What a table names is opened only below the table's own folder, where the references' pictures are, and where
    `trust` or --fetch.trust permits it: the table may be somebody else's.
    """
    options = config.report
    named = captions.names_and_paths(options.tables)
    sweeps, runs = [], []
    for name, path in named:
        with _as_written(path):
            if of_sweep.is_sweep(path):
                sweeps.append(of_sweep.read_sweep(name, path))
            if of_training.is_run(path):
                runs.append(of_training.read_run(name, path))
    tables = [
        one for one in named if not of_training.is_run(one[1]) and not of_sweep.is_sweep(one[1])
    ]
    if not named:
        raise UserError(
            "a report of what? Give caption tables, training runs or sweeps: raycap report TABLE_OR_RUN..."
        )
    known = references.read(config.source) if config.source else None
    trust = trust.also(*(Trust.below(root_of(path).uri) for _, path in tables))
    trust = trust.also(config.source.trust) if config.source else trust
    room = PageBudget(options.megabytes)
    as_written = _as_written(" and ".join(path for _, path in named))
    with (
        tempfile.TemporaryDirectory() as folder,
        as_written if runs or sweeps else contextlib.nullcontext(),
    ):
        known_of_runs, trust_of_runs = known, trust
        notes: list[str] = []
        if known is None and runs:
            known_of_runs, own, notes = references_of_runs(runs, Path(folder))
            trust_of_runs = trust.also(own)
        of_runs = of_training.told(
            runs, known_of_runs, options, room, config.fetch, trust_of_runs, config.reading
        )
        of_runs["notes"] = [*notes, *of_runs["notes"]]
        of_tables = _captions(tables, known, room, trust, config)
        page = render(
            title=options.title or " and ".join(name for name, _ in named),
            sweeps=sweeps,
            runs=runs,
            **{name: [*of_runs.pop(name), *of_tables.pop(name)] for name in ("panels", "notes")},
            **of_runs,
            **of_tables,
        )
    out = Path(options.out)
    with whole_file(out) as file:
        file.write(page)
    entries = of_tables.get("entries", ())
    refused = [entry.uri for entry, picture in entries if "--fetch.trust" in picture.reason]
    return f"{_remedy(refused)}written: {out} ({out.stat().st_size / 2**20:.1f} MB)\n"


@contextlib.contextmanager
def _as_written(path: str) -> Iterator[None]:
    """Journals and tables of trials are shown as raycap writes them; what somebody changed is refused."""
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


def _remedy(uris: list[str]) -> str:
    """How to see pictures that the tables may not name by themselves."""
    if not uris:
        return ""
    paths = [
        path for uri in uris if (path := local_path(uri)) is not None and path.startswith("/")
    ]
    folder = (
        os.path.commonpath([str(Path(path).resolve().parent) for path in paths]) if paths else ""
    )
    option = (
        f"--fetch.trust {shlex.quote(folder)}" if folder.strip("/") else "--fetch.trust PREFIX"
    )
    pictures = counted(len(uris), "picture is", "pictures are")
    return (
        f"{pictures} not shown: a table may be somebody else's, so it opens nothing outside of its own folder. "
        f"If you trust what it names: {option}\n"
    )


def _captions(
    named: list[tuple[str, str]],
    known: References | None,
    room: PageBudget,
    trust: Trust,
    config: Config,
) -> dict[str, Any]:
    """What the page tells of caption tables; nothing where there are none."""
    how = config.evaluate
    tables = [
        captions.read(path, name, how.key_column, how.caption_column) for name, path in named
    ]
    if not tables:
        return {"tables": (), "scores": None, "panels": (), "notes": ()}
    scores = judge(alignment.align(tables, known, how), how, config.metric) if known else None
    told = of_tables_page.told(
        tables, known, scores, config.report, how, room, config.fetch, trust, config.reading
    )
    return {"tables": tables, **told}
