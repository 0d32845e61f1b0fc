"""What a reader of a table sees, also while it is being made."""

from pathlib import Path

from deltalake import DeltaTable


def keys(out: Path, table: str = "captions") -> list[str]:
    """The keys of the rows that are committed."""
    if not (out / table / "_delta_log").exists():
        return []
    found: list[str] = DeltaTable(out / table).to_pyarrow_table(columns=["key"])["key"].to_pylist()
    return found
