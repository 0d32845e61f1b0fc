"""What is shown of a pile when its table is whole: of a few pictures the captions, of some hundred a page."""

import dataclasses
from pathlib import Path

from raycap.bulk.work import FACTS
from raycap.config import Config
from raycap.errors import UserError
from raycap.evaluation.captions import read_captions
from raycap.fetch.trust import ONLY_WEB
from raycap.report.options import Report
from raycap.report.page import write_page
from raycap.storage import RunFolder
from raycap.terminal import printable, write_err, write_out
from raycap.uris import has_scheme

PRINTED, PAGED = 50, 1000  # rows, at most
PAGE = "gallery.html"


def show(config: Config) -> None:
    """Of a finished run. Nothing that goes wrong here harms the table."""
    out = RunFolder(config.caption.out)
    rows = (out.read_json(FACTS) or {}).get("rows", 0)
    try:
        if rows <= PRINTED:
            _print(
                read_captions(str(out / "captions"), "captions").rows.sort_by("key").to_pylist()
            )
        if not out.is_local or rows > PAGED:
            write_out(f"a page of them: raycap report {out}\n")
        elif _is_older(Path(out.path(PAGE)), Path(out.path(FACTS))):
            write_out(
                write_page(
                    _page_of(out, config),
                    None,
                    config.evaluate,
                    config.metric,
                    config.fetch,
                    config.reading,
                    config.source.trust if config.source else ONLY_WEB,
                )
            )
    except UserError as refusal:
        write_err(f"raycap: the table is whole, but cannot be shown: {refusal}\n")


def _page_of(out: RunFolder, config: Config) -> Report:
    """What `raycap report` would be asked for."""
    title = config.source.path.rstrip("/").rpartition("/")[2] if config.source else ""
    place = out.path() if has_scheme(out.uri) else out.uri
    return dataclasses.replace(
        config.report,
        tables=(place,),
        out=f"{place}/{PAGE}",
        title=title,
        model=config.caption.model,
    )


def _print(rows: list[dict[str, str]]) -> None:
    for row in rows:
        said = row["caption"] or f"({row['status']}: {row['error_message']})"
        write_out(f"{printable(row['key'])}: {printable(said)}\n")


def _is_older(page: Path, facts: Path) -> bool:
    return not page.exists() or page.stat().st_mtime_ns < facts.stat().st_mtime_ns
