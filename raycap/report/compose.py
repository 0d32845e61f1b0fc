"""One page to look at, of caption tables, training runs or sweeps, in one file."""

from pathlib import Path
from typing import Any

from raycap.config import Config
from raycap.evaluation import alignment, captions, references
from raycap.evaluation.references import References
from raycap.evaluation.scores import judge
from raycap.refusal import Refusal
from raycap.report import captions as of_captions
from raycap.report import sweep as of_sweep
from raycap.report import training as of_training
from raycap.report.pages import render
from raycap.report.thumbnails import Room
from raycap.runs import whole_file


def write_page(config: Config) -> str:
    """Write what the report section names to its `out`; the answer is what to tell of it."""
    options = config.report
    named = captions.names_and_paths(options.tables)
    sweeps = [of_sweep.read_sweep(name, path) for name, path in named if of_sweep.is_sweep(path)]
    runs = [of_training.read_run(name, path) for name, path in named if of_training.is_run(path)]
    tables = [one for one in named if not of_training.is_run(one[1]) and not of_sweep.is_sweep(one[1])]
    if not named:
        raise Refusal(
            "a report of what? Give caption tables, training runs or sweeps: raycap report TABLE_OR_RUN..."
        )
    known = references.read(config.source) if config.source else None
    room = Room(options.megabytes)
    of_runs = of_training.told(runs, known, options, room, config.fetch, config.reading)
    of_tables = _captions(tables, known, room, config)
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
    return f"written: {out} ({out.stat().st_size / 2**20:.1f} MB)\n"


def _captions(named: list[tuple[str, str]], known: References | None, room: Room, config: Config) -> dict[str, Any]:
    """What the page tells of caption tables; nothing where there are none."""
    how = config.evaluate
    tables = [captions.read(path, name, how.key_column, how.caption_column) for name, path in named]
    if not tables:
        return {"tables": (), "scores": None, "panels": (), "notes": ()}
    scores = judge(alignment.align(tables, known, how), how, config.metric) if known else None
    told = of_captions.told(tables, known, scores, config.report, how, room, config.fetch, config.reading)
    return {"tables": tables, **told}
