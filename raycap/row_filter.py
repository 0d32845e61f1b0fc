"""Which rows of a table --only chooses.

    only = RowFilter("width > 500 and flags has cut_off", schema)
    only.columns         ->  ("width", "flags")
    only.mask(table)     ->  [True, False, ...]
    only.for_parquet()   ->  a filter for row groups: those that it excludes have no such row

A missing value (null, NaN) makes a comparison false, and `not` makes true of false. So each row is
chosen either by an expression or by `not (...)` of it, and never by both.
"""

import datetime
import functools
import re
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.column_values import (
    FUNCTIONS,
    HELD,
    Column,
    Operand,
    and_valid,
    compare_as_numbers,
    compare_floats,
    compare_units,
)
from raycap.expressions import (
    ORDER,
    All,
    ColumnComparison,
    Expression,
    Not,
    Value,
    comparisons,
    parse,
    refuse,
)
from raycap.options import nearest

Mask = NDArray[np.bool_]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
LARGEST_EXPONENT = 300
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class RowFilter:
    """An expression over the columns of one schema. Raises UserError where they do not fit."""

    def __init__(
        self,
        text: str,
        schema: pa.Schema,
        untyped: Collection[str] = (),
        option: str = "--only",
        hint: str = "",
    ) -> None:
        """`untyped` columns hold text of a format without types. `hint` ends the message about a
        column that is not there."""
        self._text, self._option = text, option
        self._expression = parse(text, option)
        self._columns: dict[str, Column] = {}
        for comparison in comparisons(self._expression):
            name = comparison.column
            if name not in schema.names:
                reason = f"there is no column {name!r}{nearest(name, schema.names)}{hint}"
                refuse(option, text, comparison.position, reason)
            if schema.names.count(name) > 1:
                reason = f"there are several columns {name!r}"
                refuse(option, text, comparison.position, reason)
            if name not in self._columns:
                self._columns[name] = Column(schema.field(name).type, name in untyped)
            self._test(comparison)  # refuses what does not fit

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it compares."""
        return tuple(self._columns)

    def is_list(self, column: str) -> bool:
        return self._columns[column].kind == "list"

    def mask(self, table: pa.Table) -> Mask:
        """For each row, whether it is chosen."""
        return self._mask(self._expression, table)

    def choose(self, table: pa.Table) -> pa.Table:
        """The chosen rows."""
        mask = self.mask(table)
        return table if mask.all() else table.filter(pa.array(mask))

    def for_parquet(self) -> "pc.Expression | None":
        """An expression that is true of all chosen rows and perhaps of others; None if it would be
        true of all."""
        return self._superset(self._expression)

    def _mask(self, expression: Expression, table: pa.Table) -> Mask:
        if isinstance(expression, ColumnComparison):
            column = self._columns[expression.column]
            values = _as_one_array(table[expression.column])
            if expression.operator == "has":
                return _has(values, self._test(expression))
            found = self._test(expression)(column.prepared(values))
            return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
        if isinstance(expression, Not):
            return ~self._mask(expression.part, table)
        join = np.logical_and if isinstance(expression, All) else np.logical_or
        return functools.reduce(join, [self._mask(part, table) for part in expression.parts])

    def _superset(self, expression: Expression) -> "pc.Expression | None":
        if isinstance(expression, ColumnComparison):
            column = self._columns[expression.column]
            is_of_values = expression.operator not in ("has", "is empty")
            if not is_of_values or column.kind == "untyped":
                return None
            return self._test(expression)(column.prepared(pc.field(expression.column)))
        if isinstance(expression, Not):
            return None  # NaN is not in the statistics of a Parquet file
        parts = [self._superset(part) for part in expression.parts]
        if isinstance(expression, All):
            known = [part for part in parts if part is not None]
            return _balanced(known, lambda one, other: one & other) if known else None
        if any(part is None for part in parts):
            return None
        return _balanced(parts, lambda one, other: one | other)

    def _test(self, comparison: ColumnComparison) -> Callable[[Operand], Operand]:
        """What says of the values of a column whether they fit: true or false, never null. Of
        `has`, it is about the values in a list."""
        operator, column = comparison.operator, self._columns[comparison.column]
        if operator == "is empty":
            return column.is_empty
        kind = column.kind
        if operator == "has":
            if kind != "list" or column.items.kind in ("list", "other"):
                hint = "; contains finds a part of a text" if kind in ("text", "untyped") else ""
                self._refuse_kind(comparison, f"`has` finds one value in a list{hint}")
            column, operator = column.items, "=="
            kind = column.kind
        if kind == "list":
            self._refuse_kind(comparison, f"write {comparison.column} has VALUE")
        if kind == "other":
            self._refuse_kind(comparison, "only `is empty` and `is not empty` can be asked of it")
        if operator == "contains":
            if kind not in ("text", "untyped"):
                self._refuse_kind(comparison, "`contains` finds a part of a text")
            part = comparison.values[0].text
            return lambda values: and_valid(values, pc.match_substring(values, part))
        tests = [self._compare(comparison, column, operator, value) for value in comparison.values]
        if len(tests) == 1:
            return tests[0]
        return lambda values: _balanced([test(values) for test in tests], pc.or_kleene)

    def _compare(
        self, comparison: ColumnComparison, column: "Column", operator: str, value: Value
    ) -> Callable[[Operand], Operand]:
        """What compares a column with one value."""
        operator = "==" if operator == "in" else operator
        is_number = not value.is_quoted and NUMBER.fullmatch(value.text) is not None
        number = self._number(value) if is_number else None
        if column.kind == "boolean":
            word = value.text.lower()
            if operator != "==" or word not in ("true", "false"):
                self._refuse_value(value, f"{comparison.column} is compared with true or false")
            truth = pa.scalar(word == "true")
            return lambda values: and_valid(values, pc.equal(values, truth))
        if column.is_time:
            moment = self._moment(comparison, column, value)
            return functools.partial(compare_units, column, operator, moment)
        if column.kind in ("number", "exact"):
            if number is None:
                self._refuse_value(value, f"{comparison.column} holds numbers, and this is none")
            if column.kind == "exact":
                return functools.partial(
                    compare_units, column, operator, Fraction(number) / column.unit
                )
            return functools.partial(compare_floats, operator, float(number))
        if column.kind == "untyped" and number is not None:
            return functools.partial(compare_as_numbers, operator, number, value.text)
        if number is not None and operator in ORDER:
            self._refuse_value(
                value, f"{comparison.column} holds text: a text to compare it with is in quotes"
            )
        text = pa.scalar(value.text)
        return lambda values: and_valid(values, FUNCTIONS[operator](values, text))

    def _number(self, value: Value) -> Decimal:
        exponent = value.text.lower().partition("e")[2]
        is_far = len(exponent.lstrip("+-0")) > len(str(LARGEST_EXPONENT))
        number = Decimal(0) if is_far else Decimal(value.text)
        if is_far or (number and abs(number.adjusted()) > LARGEST_EXPONENT):
            self._refuse_value(value, "this number is too large or too small")
        return number

    def _moment(self, comparison: ColumnComparison, column: "Column", value: Value) -> Fraction:
        """A time in units of its column, since 1970."""
        try:
            moment = datetime.datetime.fromisoformat(value.text)
        except ValueError:
            self._refuse_value(
                value,
                f"{comparison.column} holds times: write one as 2024-12-31 or 2024-12-31T23:59:59",
            )
        if moment.tzinfo is not None and not column.has_zone:
            self._refuse_value(value, f"the times of {comparison.column} have no time zone")
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        since = moment - EPOCH
        seconds = since.days * 86_400 + since.seconds
        return (seconds * 10**6 + since.microseconds) / column.unit

    def _refuse_kind(self, comparison: ColumnComparison, reason: str) -> NoReturn:
        column = self._columns[comparison.column]
        held = HELD.get(column.kind, str(column.type))
        held = "times" if column.is_time else held
        reason = f"{comparison.column} holds {held}: {reason}"
        refuse(self._option, self._text, comparison.position, reason)

    def _refuse_value(self, value: Value, reason: str) -> NoReturn:
        refuse(self._option, self._text, value.position, reason)


def _has(lists: "pa.Array[Any]", test: Callable[[Operand], Operand]) -> Mask:
    """Whether each list has a value that fits."""
    found = np.zeros(len(lists), np.bool_)
    if not len(lists):
        return found
    rows = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    present = lists.take(pa.array(rows))  # a null may still have values behind it
    items = Column(present.type.value_type)
    values = items.prepared(pc.list_flatten(present))
    fitting = test(values).to_numpy(zero_copy_only=False).astype(np.bool_)
    parents = pc.list_parent_indices(present).to_numpy(zero_copy_only=False)
    found[rows[parents[fitting]]] = True
    return found


def _as_one_array(column: "pa.ChunkedArray[Any]") -> "pa.Array[Any]":
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _balanced(parts: Sequence[Any], join: Callable[[Any, Any], Any]) -> Any:
    """Joins many expressions without nesting them deeply."""
    while len(parts) > 1:
        pairs = [parts[at : at + 2] for at in range(0, len(parts), 2)]
        parts = [join(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]
