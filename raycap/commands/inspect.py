"""`raycap inspect`: read every picture of a source, say what is there, and what cannot be read and why."""

import json
import time
from pathlib import Path
from typing import Any

from raycap import __version__
from raycap.bulk.options import Bulk
from raycap.bulk.pictures import manifest, opened
from raycap.bulk.todo import Todo, noted
from raycap.cluster.needs import MOST_PIECES, Need, wait_for_nodes
from raycap.cluster.nodes import selector
from raycap.cluster.session import session
from raycap.config import Config, kind_of
from raycap.errors import UserError
from raycap.images import Square
from raycap.inspection import Inspection, as_text
from raycap.progress import Progress
from raycap.sources import Source
from raycap.storage import whole_file, write_json
from raycap.terminal import write_out


def inspect(config: Config) -> int:
    """Exit code 0 when every row can be read, 1 when some cannot or something could not become a row."""
    source, out = config.source, Path(config.inspect.out)
    if source is None:
        raise UserError(
            "which pictures? Give a folder, a list or a dataset: raycap inspect SOURCE"
        )
    source.check()
    failed_rows = out.with_suffix(".failed.jsonl")
    started = time.monotonic()
    with session(config.cluster), whole_file(failed_rows) as failed_file:
        report = _read_all(config, source, failed_file)
    if not report["rows"]:
        raise UserError(f"{source.path} holds no rows")
    if not report["failed"]:
        failed_rows.unlink()
    report = {
        "raycap": __version__,
        "source": {"kind": kind_of("source", source), "path": source.path},
        "seconds": round(time.monotonic() - started, 1),
        **report,
    }
    write_json(out, report)
    failures = f", and each failed row: {failed_rows}" if report["failed"] else ""
    write_out(f"{as_text(report)}\nwritten: {out}{failures}\n")
    return 1 if report["failed"] or report["left_out"] else 0


def _read_all(config: Config, source: Source, failed_file: Any) -> dict[str, Any]:
    rows = manifest(Todo(source, Bulk(limit=config.inspect.limit)))
    wait_for_nodes(
        [Need("to decode pictures", config.cluster.decode_on, {"CPU": 1.0}, MOST_PIECES)],
        config.cluster.wait,
    )
    where = selector(config.cluster.decode_on)
    pictures = opened(
        rows, source, config.fetch, config.reading, Square(), keep_pixels=False, nodes=where
    )
    notes: dict[str, Any] = {"left_out": [], "notes": []}
    with Inspection(config.inspect.examples) as inspection, Progress("inspect") as progress:
        for table in pictures.iter_batches(batch_format="pyarrow", batch_size=None):
            notes = noted(table) or notes
            failed = inspection.add(table)
            for row in failed:
                shown = {
                    name: row[name]
                    for name in ("key", "uri", "status", "error_message", "format", "sha256")
                }
                failed_file.write(json.dumps(shown, ensure_ascii=False) + "\n")
            progress.add(len(table), len(failed))
        return {**inspection.report(), **notes}
