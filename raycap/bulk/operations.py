"""Which operations a table has, and which number comes next, whatever other runs do meanwhile.

What a run does next is decided from the operations that it has seen. Another run may go on at any
moment, because this one was suspended, for example. So each number is used once: whoever writes
the plan with it first has it, and the other run stops. It also stops if it finds later operations
than those that it has decided from.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from raycap.bulk.clean_up import SIDE
from raycap.bulk.job import FACTS
from raycap.bulk.plan import Plan, newest_plan, plan_numbers, take_number, write_plan
from raycap.bulk.table import OutputTable, taken_over
from raycap.storage import RunFolder

# Operations that make files again. While they are incomplete, the table is as it was before.
REPLACEMENTS = ("overwrite", "retry", "finish")


@dataclass
class Operations:
    """The operations of a table, as one run knows them."""

    out: RunFolder
    table: OutputTable
    newest: int = 0  # the highest number that this run knows to be used
    _has_looked: bool = False

    def unfinished(self) -> Plan | None:
        """The plan of an operation that has begun and is not complete. Raises TakenOverError if
        other runs have gone on since this one has looked first: their rows may not be its own."""
        while True:
            # The table first: each operation that it names has written its plan before.
            self.table.load()
            numbers = plan_numbers(self.out)
            if self._has_looked:
                self._check_newest(numbers)
            self._has_looked = True
            self.newest = max(self.newest, self.table.operation, *numbers)
            plan = newest_plan(self.out, numbers)
            if plan is None or plan.operation <= self.table.completed:
                return None
            if plan.kind not in REPLACEMENTS or self.table.operation <= plan.operation:
                return plan
            # A run was killed, or is suspended, between the two steps of `give_up`.
            self._remove(plan)

    def add(self, plan: Plan) -> None:
        """Write a plan, with the number after the newest. Raises UserError if another run was
        quicker."""
        write_plan(self.out, plan)
        self.newest = plan.operation
        self.table.check_open(plan.operation)
        self._check_newest(plan_numbers(self.out))

    def number_of(self, plan: Plan) -> int:
        """The number with which this run commits for a plan: that of the plan, unless a later
        operation has begun and was given up. Then commits with the plan's number are refused, and
        this run takes a higher one."""
        if self.newest == plan.operation:
            return plan.operation
        take_number(self.out, self.newest + 1)
        self.newest += 1
        self._check_newest(plan_numbers(self.out))
        return self.newest

    def give_up(self, plan: Plan) -> None:
        """Remove an interrupted operation that has changed nothing in the table yet."""
        self.table.check_open(plan.operation)
        self.out.remove(FACTS)  # they describe the version of the table before `begin`
        number = plan.operation + 1
        if self.table.exists:
            self.table.begin(number, plan.operation)  # from now on no process can commit for it
        self.newest = max(self.newest, number)
        self._remove(plan)

    def _remove(self, plan: Plan) -> None:
        self.out.remove(f"{SIDE}/{plan.operation:04}")
        self.out.remove(plan.folder)

    def check_unchanged(self, version: int | None = None) -> None:
        """Raise TakenOverError if another run has begun a later operation, or has changed the
        table since this version of it."""
        self.table.load()
        has_changed = version is not None and version != self.table.version
        if has_changed or self.table.operation > self.newest:
            raise taken_over(self.table.folder)

    def _check_newest(self, numbers: Iterable[int]) -> None:
        """Raise TakenOverError if another run has begun a later operation, or is about to."""
        if max(0, self.table.operation, *numbers) > self.newest:
            raise taken_over(self.table.folder)
