"""What is shown of a finished table of captions: a few captions are printed, up to 1,000 pictures
get a page."""

import dataclasses
from pathlib import Path

from raycap.bulk.job import FACTS
from raycap.config import Config
from raycap.errors import UserError
from raycap.evaluation.captions import read_captions
from raycap.fetch.trust import ONLY_WEB
from raycap.flags import flags_in_words
from raycap.report.options import Report
from raycap.report.page import write_page
from raycap.storage import RunFolder
from raycap.terminal import printable, write_err, write_out
from raycap.uris import has_scheme

# Rows, at most.
PRINTED, ON_A_PAGE = 50, 1000
PAGE = "gallery.html"


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
