"""Columns of a source's own table that prompts read, whether or not they are carried along."""

import dataclasses
from collections.abc import Sequence

from raycap.errors import UserError
from raycap.options import nearest
from raycap.sources.huggingface import HuggingFace
from raycap.sources.source import Source
from raycap.sources.table import Table, reserved_names
from raycap.sources.webdataset import WebDataset

# Columns of every row.
_OF_ROWS = ("key", "references")


def with_columns(source: Source, names: Sequence[str]) -> Source:
    """The source, so that its rows have these columns too. Raises UserError for what it lacks."""
    wanted = [name for name in names if name not in _OF_ROWS]
    if not wanted:
        return source
    shown = ", ".join(f"{{{name}}}" for name in wanted)
    if not isinstance(source, Table | WebDataset):
        hint = ""
        if isinstance(source, HuggingFace):
            hint = " Its metadata.jsonl or Parquet files are a table: --source table"
        raise UserError(
            f"a prompt holds {shown}, and this source has no columns of its own: give a table "
            "(CSV, JSON lines, Parquet), or write {{ for a brace that belongs to the text." + hint
        )
    for name in wanted:
        if name in reserved_names():
            raise UserError(
                f"a prompt holds {{{name}}}, and raycap has a column of that name: rename yours. "
                "The human caption of a picture is {reference}"
            )
    # Each sample of WebDataset has fields of its own.
    known = source.own_columns() if isinstance(source, Table) else wanted
    for name in wanted:
        if name not in known:
            raise UserError(
                f"a prompt holds {{{name}}}, and {source.path} has no column {name!r}"
                f"{nearest(name, known)}"
            )
    carried = tuple(dict.fromkeys([*source.columns, *wanted]))
    return dataclasses.replace(source, columns=carried)
