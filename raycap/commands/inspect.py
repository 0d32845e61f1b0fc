"""`raycap inspect`: reads every picture of a source and reports what it is or why it fails."""

import json
import time
from pathlib import Path
from typing import Any

from raycap import __version__
from raycap.bulk.options import BulkOptions
from raycap.bulk.picture_stream import SelectedRows, load_rows, manifest, notes_of
from raycap.bulk.placement import decoding_need
from raycap.cluster.needs import MOST_PIECES, wait_for_nodes
from raycap.cluster.nodes import selector
from raycap.cluster.ray_data import ray_data
from raycap.cluster.session import session
from raycap.config import Config
from raycap.errors import UserError
from raycap.images import Square
from raycap.inspection import Inspection, as_text
from raycap.options import kind_of
from raycap.progress import Progress
from raycap.sources import SOURCES, Source
from raycap.sources.layouts import PAGE, PartState, layout_of
from raycap.storage import whole_file, write_json
from raycap.storage.location import locate
from raycap.terminal import printable, write_out

SHOWN_OF_FAILED = ("key", "uri", "status", "error_message", "format", "sha256")


def inspect(config: Config) -> int:
    """Returns exit code 0 if every row can be read, 1 if some cannot or something has no row."""
    source, out = config.source, Path(config.inspect.out)
    if source is None:
        raise UserError(
            "which pictures? Give a folder, a list or a dataset: raycap inspect SOURCE"
        )
    layout = _layout(config, source)
    if missing := [str(state) for state in layout if not state.is_there]:
        lines = "".join(f"  {printable(line)}\n" for line in missing)
        write_out(f"missing, or named otherwise; {PAGE} says where to get it:\n{lines}\n")
    source.check()
    failed_rows = out.with_suffix(".failed.jsonl")
    started = time.monotonic()
    with session(config.cluster), ray_data(), whole_file(failed_rows) as failed_file:
        report = _read_all(config, source, failed_file)
    if not report["rows"]:
        raise UserError(f"{source.path} holds no rows")
    if not report["failed"]:
        failed_rows.unlink()
    report = {
        "raycap": __version__,
        "source": {"kind": kind_of(source, SOURCES), "path": source.path},
        "seconds": round(time.monotonic() - started, 1),
        **({"layout": [state._asdict() for state in layout]} if layout else {}),
        **report,
    }
    write_json(out, report)
    failures = f", and each failed row: {failed_rows}" if report["failed"] else ""
    write_out(f"{as_text(report)}\nwritten: {out}{failures}\n")
    return 1 if report["failed"] or report["left_out"] else 0


def _layout(config: Config, source: Source) -> list[PartState]:
    """The parts of the data set, if it is a well-known one, and of the vectors in the config."""
    states = layout_of(source.path)
    if glove := config.vocabulary.glove:
        is_there = locate(glove).exists()
        text = glove if is_there else f"missing: {glove}"
        states.append(PartState("GloVe", "vectors", is_there, text))
    return states


def _read_all(config: Config, source: Source, failed_file: Any) -> dict[str, Any]:
    rows = manifest(SelectedRows(source, BulkOptions(limit=config.inspect.limit)))
    wait_for_nodes([decoding_need(config.cluster, MOST_PIECES)], config.cluster.wait)
    pictures = load_rows(
        rows,
        fetch=config.fetch,
        trust=source.trust,
        reading=config.reading,
        intake=Square(),
        keep_pixels=False,
        nodes=selector(config.cluster.decode_on),
    )
    notes: dict[str, Any] = {"left_out": [], "notes": []}
    with Inspection(config.inspect.examples) as inspection, Progress("inspect") as progress:
        for table in pictures.iter_batches(batch_format="pyarrow", batch_size=None):
            notes = notes_of(table) or notes
            failed = inspection.add(table)
            for row in failed:
                shown = {name: row[name] for name in SHOWN_OF_FAILED}
                failed_file.write(json.dumps(shown, ensure_ascii=False) + "\n")
            progress.add(len(table), len(failed))
        return {**inspection.report(), **notes}
