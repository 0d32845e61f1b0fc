"""`raycap inspect`: read every picture of a source, say what is there, and what cannot be read and why."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from raycap import __version__
from raycap.config import Config, kind_of
from raycap.images import Square
from raycap.inspection import Inspection, as_text
from raycap.progress import Progress
from raycap.refusal import Refusal
from raycap.runs import whole_file, write_json
from raycap.sources import Source
from raycap.stages.needs import MOST_PIECES, Need, provide
from raycap.stages.nodes import selector
from raycap.stages.pictures import manifest, opened
from raycap.stages.session import session


def inspect(config: Config) -> int:
    """Exit code 0 when every row can be read, 1 when some cannot."""
    source, out = config.source, Path(config.inspect.out)
    if source is None:
        raise Refusal("which pictures? Give a folder, a list or a dataset: raycap inspect SOURCE")
    source.check()
    failed_rows = out.with_suffix(".failed.jsonl")
    started = time.monotonic()
    with session(config.cluster), whole_file(failed_rows) as failed_file:
        report = _read_all(config, source, failed_file)
    if not report["rows"]:
        raise Refusal(f"{source.path} holds no rows")
    if not report["failed"]:
        failed_rows.unlink()
    report = {
        "raycap": __version__,
        "source": {"kind": kind_of("source", source), "path": source.path},
        "seconds": round(time.monotonic() - started, 1),
        **report,
        "notes": list(source.notes()),
    }
    write_json(out, report)
    failures = f", and each failed row: {failed_rows}" if report["failed"] else ""
    sys.stdout.write(f"{as_text(report)}\nwritten: {out}{failures}\n")
    return 1 if report["failed"] else 0


def _read_all(config: Config, source: Source, failed_file: Any) -> dict[str, Any]:
    rows = manifest(source)
    if config.inspect.limit is not None:
        rows = rows.limit(config.inspect.limit)
    provide([Need("to decode pictures", config.cluster.decode_on, {"CPU": 1.0}, MOST_PIECES)], config.cluster.wait)
    where = selector(config.cluster.decode_on)
    pictures = opened(rows, source, config.fetch, config.reading, Square(), keep_pixels=False, nodes=where)
    with Inspection(config.inspect.examples) as inspection, Progress("inspect") as progress:
        for table in pictures.iter_batches(batch_format="pyarrow", batch_size=None):
            failed = inspection.add(table)
            for row in failed:
                shown = {name: row[name] for name in ("key", "uri", "status", "error_message", "format", "sha256")}
                failed_file.write(json.dumps(shown, ensure_ascii=False) + "\n")
            progress.add(len(table), len(failed))
        return inspection.report()
