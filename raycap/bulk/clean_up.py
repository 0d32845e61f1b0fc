"""What is removed when a run has ended."""

from concurrent.futures import ThreadPoolExecutor

from raycap.bulk.job import ANSWERS
from raycap.bulk.plan import PLANS, plans_of_table
from raycap.bulk.repeated_keys import LISTED
from raycap.bulk.table import CHUNKS, OutputTable, operation_of
from raycap.storage import RunFolder
from raycap.storage.filesystem import REMOVED_AT_ONCE
from raycap.storage.folder import PROBE, STAGED

# Folder of the side tables, in which retries and overwrites make their rows. At the end of the
# operation these replace rows of the output table.
SIDE = "_side"


def clean_up(out: RunFolder, table: OutputTable) -> None:
    """Remove files that were never committed or were replaced, and plans and side tables that are
    not needed any more. Files that may still be committed stay: if this run was suspended, another
    one may be working."""
    table.load()
    completed, folder = table.completed, table.folder
    active = {file.path for file in table.files()}
    old = [
        name
        # The names of chunks have the number of their plan, those of parts the number of the
        # commit.
        for names, newest in (
            (folder.names(CHUNKS, hidden=True), completed),
            (folder.names(hidden=True), max(completed, table.operation - 1)),
        )
        for name in names
        if name not in active and operation_of(name) <= newest
    ]
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(folder.remove_file, old))
    folder.remove_empty(CHUNKS)

    for plan in plans_of_table(out, completed):
        if plan.operation <= completed and plan.keys != "unique":
            out.remove(f"{plan.folder}/{LISTED}")
    needed = {plan.operation for plan in plans_of_table(out, completed)}
    for name in out.folders(PLANS):
        if int(name) not in needed and int(name) <= completed:
            out.remove(f"{PLANS}/{name}")
    for name in out.folders(SIDE):
        if int(name) <= completed:
            out.remove(f"{SIDE}/{name}")
    out.remove_empty(SIDE)
    for name in out.names(hidden=True):
        if name.startswith(PROBE):
            out.remove_file(name)
    out.remove(STAGED)
    out.remove(ANSWERS)
