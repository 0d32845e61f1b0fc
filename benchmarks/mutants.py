"""Break the code that keeps rows right, one piece at a time, and see whether a test fails.

    python benchmarks/mutants.py                    # all of them; a line for each
    python benchmarks/mutants.py "no fence check"   # some of them, by their names

Each mutant runs in a copy of the repository.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
SECONDS = 900.0


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest


KILLS = "tests/test_kill_points.py"
LATE = "tests/test_late_runs.py"
MUTANTS = (
    Mutant(
        "no fence check",
        "raycap/bulk/table.py",
        "if self.operation > operation:",
        "if False:",
        "tests/test_table.py",
    ),
    Mutant(
        "no check for chunks that are there",
        "raycap/bulk/table.py",
        "if file.chunk not in held]",
        "]",
        "tests/test_table.py",
    ),
    Mutant(
        "commit without the transaction id",
        "raycap/bulk/table.py",
        "transactions = [Transaction(OPERATION, operation)]",
        "transactions = [Transaction(OPERATION, operation)] if completes else []",
        "tests/test_table.py",
    ),
    Mutant(
        "numbers of the log are kept when it has gone on",
        "raycap/bulk/table.py",
        "if self._numbers_version != self.version:",
        "if False:",
        "tests/test_table.py",
    ),
    Mutant(
        "compaction before the end",
        "raycap/bulk/scheduler.py",
        "if is_idle and self._is_planned:",
        "if is_idle:",
        "tests/test_compaction.py",
    ),
    Mutant(
        "a retry merged twice",
        "raycap/bulk/table.py",
        "if self.completed >= operation:  # another process has completed it",
        "if False:",
        "tests/test_table.py",
    ),
    Mutant(
        "a retry replaces rows that have succeeded",
        "raycap/bulk/finish.py",
        'pc.and_(places.is_valid(), pc.not_equal(old["status"], SUCCESS))',
        "places.is_valid()",
        "tests/test_compaction.py",
    ),
    Mutant(
        "orphans committed by a late worker",
        "raycap/bulk/table.py",
        "if self.completed >= plan:  # its chunks are already joined into parts",
        "if False:",
        "tests/test_compaction.py",
    ),
    Mutant(
        "facts.json stays while the table is changed",
        "raycap/bulk/scheduler.py",
        "self.out.remove(FACTS)  # the table is unfinished again",
        "pass",
        f"{KILLS} -k some_steps",
    ),
    Mutant(
        "an abandoned operation is not locked out",
        "raycap/bulk/operations.py",
        "self.table.begin(number, plan.operation)  # from now on",
        "pass  #",
        f"{KILLS} -k wakes",
    ),
    Mutant(
        "a plan has the next free number",
        "raycap/bulk/run.py",
        "number = self.operations.newest + 1\n",
        "number = max([0, *map(int, self.out.folders('_plan'))]) + 1\n",
        f"{KILLS} -k decision",
    ),
    Mutant(
        "run.json says whose rows a folder holds",
        "raycap/bulk/run.py",
        "        if plans:\n            write_record(self.job, self.out, plans[0].identity)",
        "        if False:",
        KILLS,
    ),
    Mutant(
        "files that may still be committed are removed",
        "raycap/bulk/clean_up.py",
        "operation_of(name) <= newest",
        "True",
        "tests/test_compaction.py",
    ),
    Mutant(
        "each lease is dead",
        "raycap/storage/lease.py",
        "if found is not None and _is_alive(found):",
        "if False:",
        "tests/test_bulk.py",
    ),
    Mutant(
        "a lease from the future is alive",
        "raycap/storage/lease.py",
        'abs(time.time() - float(lease.get("beat", 0)))',
        '(time.time() - float(lease.get("beat", 0)))',
        "tests/test_bulk.py",
    ),
    Mutant(
        "a file is created twice",
        "raycap/storage/folder.py",
        "os.link(part, path)",
        "os.replace(part, path)",
        "tests/test_bulk.py tests/test_plan.py",
    ),
    Mutant(
        "a lost answer of a creation counts as another's file",
        "raycap/storage/folder.py",
        "return self.read(name) == content",
        "return False",
        "tests/test_bulk.py",
    ),
    Mutant(
        "parts in the order of commits",
        "raycap/bulk/finish.py",
        "sorted(files, key=lambda file: chunk_of(file.path))",
        "files",
        "tests/test_compaction.py",
    ),
    Mutant(
        "rows of shards that are there are planned again",
        "raycap/bulk/plan.py",
        'taken.add(read_shard(out, plan.operation, unit, shard.number)["key"])',
        "pass",
        "tests/test_plan.py",
    ),
    Mutant(
        "plans before an overwrite count",
        "raycap/bulk/plan.py",
        "            found = [plan]",
        "            found.append(plan)",
        "tests/test_plan.py",
    ),
    Mutant(
        "the first unit ignores the sample",
        "raycap/bulk/listing.py",
        "self.options.sample < 1 or self.options.only",
        "False",
        "tests/test_units_of_files.py -k sample",
    ),
    Mutant(
        "the first unit ignores earlier plans",
        "raycap/bulk/listing.py",
        "unit == 0 and not self.earlier",
        "unit == 0",
        "tests/test_units_of_files.py -k appended",
    ),
    Mutant(
        "tars hold pictures that have changed",
        "raycap/sinks/webdataset.py",
        "elif digests[number] and _digest(data) != digests[number]:",
        "elif False:",
        "tests/test_exports.py -k captioned_pictures_only",
    ),
    Mutant(
        "texts of other people are removed",
        "raycap/sinks/text_files.py",
        "if content is not None and _digest(content) == digest:",
        "if content is not None:",
        "tests/test_exports.py",
    ),
    Mutant(
        "exports of parts that are gone stay",
        "raycap/bulk/exports.py",
        "        if stale:",
        "        if False:",
        "tests/test_exports.py -k some_steps",
    ),
    Mutant(
        "a joined export is not made again",
        "raycap/bulk/exports.py",
        "if missing or stale or complete != state or not is_joined:",
        "if missing or stale or not is_joined:",
        "tests/test_exports.py",
    ),
    Mutant(
        "a number that is over is planned",
        "raycap/bulk/operations.py",
        "        self.newest = plan.operation\n        self.table.check_open(plan.operation)\n",
        "        self.newest = plan.operation\n",
        LATE,
    ),
    Mutant(
        "a plan that came too late counts",
        "raycap/bulk/plan.py",
        "if number <= completed and not out.exists(plan.shard_name(0, 0)):",
        "if False:",
        LATE,
    ),
    Mutant(
        "the number of a plan without rows is used again",
        "raycap/bulk/run.py",
        "give_up_plan(self.out, plan.operation)",
        "self.out.remove(plan.folder)",
        LATE,
    ),
    Mutant(
        "a plan that others have found empty is carried out",
        "raycap/bulk/scheduler.py",
        "if read_plan(self.out, self.plan.operation) is None:",
        "if False:",
        LATE,
    ),
    Mutant(
        "a complete operation is given up",
        "raycap/bulk/table.py",
        "            if self.completed >= plan:\n                raise taken_over(self.folder)\n"
        "            return []",
        "            return []",
        LATE,
    ),
    Mutant(
        "an operation that was given up is resumed",
        "raycap/bulk/operations.py",
        "if plan.kind not in REPLACEMENTS or self.table.operation <= plan.operation:",
        "if True:",
        LATE,
    ),
    Mutant(
        "a run goes on whatever others have done",
        "raycap/bulk/operations.py",
        "            if self._has_looked:\n",
        "            if False:\n",
        LATE,
    ),
    Mutant(
        "parts in the table are written again",
        "raycap/bulk/finish.py",
        "if not table.create(name, content):",
        "if table.write(name, content):",
        LATE,
    ),
    Mutant(
        "facts of a table that has changed are written",
        "raycap/bulk/run.py",
        "        version = self.table.version\n        self.operations.check_unchanged(version)\n",
        "        version = self.table.version\n",
        LATE,
    ),
    Mutant(
        "facts of a table that changes now stay",
        "raycap/bulk/run.py",
        "            if counts_in(self.out.read_json(FACTS), version) is not None:\n",
        "            if False:\n",
        LATE,
    ),
    Mutant(
        "facts of another version stay",
        "raycap/bulk/run.py",
        "counts_in(self.out.read_json(FACTS), version) is None:",
        "not self.out.exists(FACTS):",
        LATE,
    ),
    Mutant(
        "a plan is carried out under two numbers",
        "raycap/bulk/table.py",
        "if self.completed >= plan:  # its chunks are already joined into parts",
        "if self.completed >= operation:",
        "tests/test_table.py",
    ),
    Mutant(
        "files are replaced that are gone",
        "raycap/bulk/table.py",
        "if not {file.path for file in removed} <= {file.path for file in self.files()}:",
        "if False:",
        "tests/test_table.py",
    ),
    Mutant(
        "an interrupted listing is completed with another selection",
        "raycap/bulk/run.py",
        '**{"only": ""} | plan.selection, retry=""',
        'only=plan.selection.get("only", ""), retry=""',
        KILLS,
    ),
    Mutant(
        "what could not be read is not listed again",
        "raycap/bulk/run.py",
        'if may_be_there_now(self.notes["left_out"]):',
        "if False:",
        "tests/test_listed_once.py",
    ),
)


def try_mutant(mutant: Mutant, copy: Path) -> str:
    """The first test that fails; "" if none does."""
    file = copy / mutant.file
    whole = file.read_text()
    assert whole.count(mutant.old) == 1, f"{mutant.name}: its text is not in {mutant.file} once"
    file.write_text(whole.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", *mutant.tests.split()],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        return failed[0].split()[1] if failed else ""
    except subprocess.TimeoutExpired:
        return f"{mutant.tests} (does not end)"
    finally:
        file.write_text(whole)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="of mutants; all by default")
    chosen = parser.parse_args(arguments)
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="raycap-mutants-") as folder:
        copy = Path(folder) / "raycap"
        left_out = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache")
        shutil.copytree(REPOSITORY, copy, ignore=left_out, symlinks=True)
        for mutant in MUTANTS:
            if not chosen.names or mutant.name in chosen.names:
                began = time.monotonic()
                test = try_mutant(mutant, copy)
                survivors += not test
                seconds = time.monotonic() - began
                print(f"{mutant.name}: {test or 'SURVIVES'} ({seconds:.0f} s)", flush=True)
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
