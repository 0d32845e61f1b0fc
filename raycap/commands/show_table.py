"""What is shown of a finished table of captions: a few captions are printed, up to 1,000 pictures
get a page."""

import contextlib
import dataclasses
import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raycap.bulk.job import FACTS
from raycap.config import Config
from raycap.errors import UserError
from raycap.evaluation.captions import read_captions
from raycap.fetch import Fetcher
from raycap.fetch.trust import ONLY_WEB
from raycap.flags import flags_in_words
from raycap.images.guard import read_guarded
from raycap.report import drawing
from raycap.report.options import Report
from raycap.report.page import write_page
from raycap.schema import SUCCESS
from raycap.sources import Source
from raycap.storage import RunFolder
from raycap.terminal import printable, write_err, write_out
from raycap.uris import has_scheme

# Rows, at most.
PRINTED, ON_A_PAGE = 50, 1000
PAGE = "gallery.html"
DRAWN = "drawn"
DRAWN_AT_ONCE, REASONS = 8, 5


def show_table(config: Config) -> None:
    """Nothing that goes wrong here harms the table."""
    out = RunFolder(config.caption.out)
    rows = (out.read_json(FACTS) or {}).get("rows", 0)
    try:
        if rows <= PRINTED:
            table = read_captions(str(out / "captions"), "captions").rows
            for row in table.sort_by("key").to_pylist():
                caption = row["caption"] or f"({row['status']}: {row['error_message']})"
                flags = printable(flags_in_words(row["flags"]))
                write_out(f"{printable(row['key'])}: {printable(caption)}{flags}\n")
        if not out.is_local or rows > ON_A_PAGE:
            write_out(f"a page of them: raycap report {out}\n")
        elif _is_older(Path(out.path(PAGE)), Path(out.path(FACTS))):
            page = write_page(
                _page_of(out, config),
                None,
                config.evaluate,
                config.metric,
                config.fetch,
                config.reading,
                config.source.trust if config.source else ONLY_WEB,
            )
            write_out(page)
    except UserError as error:
        write_err(f"raycap: the table is whole, but cannot be shown: {error}\n")


def draw_table(config: Config, source: Source) -> None:
    """Draw the first pictures of the table, each with its caption, into OUT/drawn."""
    out = Path(RunFolder(config.caption.out).path())
    rows = read_captions(str(out / "captions"), "captions").rows
    rows = rows.filter(pc.equal(rows["status"], SUCCESS)).sort_by("key")
    rows = rows.slice(0, config.caption.show_most)
    (out / DRAWN).mkdir(exist_ok=True)
    reasons = []
    with Fetcher(config.fetch, source.trust) as fetcher:
        for start in range(0, len(rows), DRAWN_AT_ONCE):
            batch = rows.slice(start, DRAWN_AT_ONCE)
            pictures = _bytes_of(batch, source, fetcher)
            for row, data in zip(batch.to_pylist(), pictures, strict=True):
                whole = read_guarded(data, config.reading, None)
                if whole.pixels is None:
                    reasons.append(f"{row['key']}: {whole.error}")
                    continue
                digest = hashlib.sha256(data).hexdigest()
                file = drawing.free_path(row["key"], digest, "captioned", out / DRAWN)
                notes = {drawing.PHOTO: digest, "Title": row["caption"]}
                drawing.save(drawing.draw(whole.pixels, row["caption"]), file, notes)
    write_out(f"drawn: {len(rows) - len(reasons):,} pictures in {out / DRAWN}\n")
    for reason in reasons[:REASONS]:
        write_err(f"raycap: not drawn: {printable(reason)}\n")


def _bytes_of(rows: pa.Table, source: Source, fetcher: Fetcher) -> list[bytes]:
    """The pictures of these rows; empty where there is none any more."""
    found = [picture.data for picture in fetcher.fetch_all(rows["uri"].to_pylist())]
    absent = [number for number, data in enumerate(found) if not data]
    if absent:  # perhaps they lie in the source itself
        with contextlib.suppress(UserError, OSError, ValueError):
            embedded = source.embedded_pictures(rows.take(absent).select(["key", "uri"]))
            for number, data in zip(absent, embedded, strict=True):
                found[number] = data or b""
    return found


def _page_of(out: RunFolder, config: Config) -> Report:
    """What `raycap report` would be asked for."""
    title = config.source.path.rstrip("/").rpartition("/")[2] if config.source else ""
    table = out.path() if has_scheme(out.uri) else out.uri
    return dataclasses.replace(
        config.report,
        tables=(table,),
        out=f"{table}/{PAGE}",
        title=title,
        model=config.caption.model,
    )


def _is_older(page: Path, facts: Path) -> bool:
    return not page.exists() or page.stat().st_mtime_ns < facts.stat().st_mtime_ns
