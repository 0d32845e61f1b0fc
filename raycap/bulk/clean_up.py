"""What is removed when a run has ended."""

from concurrent.futures import ThreadPoolExecutor

from raycap.bulk.job import ANSWERS
from raycap.bulk.plan import folder_of, plan_numbers, plans_of_table, read_plan
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
    not needed any more."""
    remove_old_files(table, unfinished=True)
    completed = table.completed
    numbers, plans = plan_numbers(out), plans_of_table(out, completed)
    for plan in plans:
        if plan.operation <= completed and plan.keys != "unique":
            out.remove(f"{plan.folder}/{LISTED}")
    needed = {plan.operation for plan in plans}
    for number in numbers:
        # The highest number says which ones are used, also if its plan was given up.
        if number in needed or completed < number == numbers[-1]:
            continue
        if number <= completed or read_plan(out, number) is None:
            out.remove(folder_of(number))
    for name in out.folders(SIDE):
        if int(name) <= completed:
            out.remove(f"{SIDE}/{name}")
    out.remove_empty(SIDE)
    for name in out.names(hidden=True):
        if name.startswith(PROBE):
            out.remove_file(name)
    out.remove(STAGED)
    out.remove(ANSWERS)


def remove_old_files(table: OutputTable, unfinished: bool = False) -> None:
    """Remove files that are not in the table, except for those that may still be committed: if
    this run was suspended, another one may be working. `unfinished`: also what a process was
    writing, which has no number in its name."""
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
        if name not in active and (0 if unfinished else 1) <= operation_of(name) <= newest
    ]
    with ThreadPoolExecutor(REMOVED_AT_ONCE) as pool:
        list(pool.map(folder.remove_file, old))
    folder.remove_empty(CHUNKS)
