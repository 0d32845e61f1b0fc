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
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycap.expressions import (
    ORDER,
    All,
    Comparison,
    Expression,
    Not,
    Value,
    comparisons,
    parse,
    refuse,
)
from raycap.options import nearest

# An array, or a column of an expression of pyarrow: its functions take both.
Operand = Any
Mask = NDArray[np.bool_]

# `text` of a format without types, such as CSV, is `untyped`: compared with a number it is one.
Kind = Literal["text", "untyped", "number", "exact", "boolean", "list", "other"]
HELD: dict[Kind, str] = {
    "text": "text",
    "untyped": "text",
    "number": "numbers",
    "exact": "numbers",
    "boolean": "true and false",
    "list": "lists",
}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
# Of text that is read as a number. No number of such a length is too large for 64 bits.
NUMBER_IN_TEXT = r"^-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,2})?$"
LARGEST_EXPONENT = 300
# Digits of a number that a 64-bit float tells from all others.
FLOAT_DIGITS = 15
MICROSECONDS = {
    "s": Fraction(10**6),
    "ms": Fraction(10**3),
    "us": Fraction(1),
    "ns": Fraction(1, 10**3),
}
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
        self._kinds: dict[str, _Column] = {}
        for comparison in comparisons(self._expression):
            name = comparison.column
            if name not in schema.names:
                reason = f"there is no column {name!r}{nearest(name, schema.names)}{hint}"
                refuse(option, text, comparison.position, reason)
            if schema.names.count(name) > 1:
                reason = f"there are several columns {name!r}"
                refuse(option, text, comparison.position, reason)
            if name not in self._kinds:
                self._kinds[name] = _Column(schema.field(name).type, name in untyped)
            self._test(comparison)  # refuses what does not fit

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it compares."""
        return tuple(self._kinds)

    def is_list(self, column: str) -> bool:
        return self._kinds[column].kind == "list"

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
        if isinstance(expression, Comparison):
            column = self._kinds[expression.column]
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
        if isinstance(expression, Comparison):
            column = self._kinds[expression.column]
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

    def _test(self, comparison: Comparison) -> Callable[[Operand], Operand]:
        """What says of the values of a column whether they fit: true or false, never null. Of
        `has`, it is about the values in a list."""
        operator, column = comparison.operator, self._kinds[comparison.column]
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
            return lambda values: _and_valid(values, pc.match_substring(values, part))
        tests = [self._compare(comparison, column, operator, value) for value in comparison.values]
        if len(tests) == 1:
            return tests[0]
        return lambda values: _balanced([test(values) for test in tests], pc.or_kleene)

    def _compare(
        self, comparison: Comparison, column: "_Column", operator: str, value: Value
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
            return lambda values: _and_valid(values, pc.equal(values, truth))
        if column.is_time:
            moment = self._moment(comparison, column, value)
            return functools.partial(_compare_units, column, operator, moment)
        if column.kind in ("number", "exact"):
            if number is None:
                self._refuse_value(value, f"{comparison.column} holds numbers, and this is none")
            if column.kind == "exact":
                return functools.partial(
                    _compare_units, column, operator, Fraction(number) / column.unit
                )
            return functools.partial(_compare_floats, operator, float(number))
        if column.kind == "untyped" and number is not None:
            return functools.partial(_compare_as_numbers, operator, number, value.text)
        if number is not None and operator in ORDER:
            self._refuse_value(
                value, f"{comparison.column} holds text: a text to compare it with is in quotes"
            )
        text = pa.scalar(value.text)
        return lambda values: _and_valid(values, _FUNCTIONS[operator](values, text))

    def _number(self, value: Value) -> Decimal:
        exponent = value.text.lower().partition("e")[2]
        is_far = len(exponent.lstrip("+-0")) > len(str(LARGEST_EXPONENT))
        number = Decimal(0) if is_far else Decimal(value.text)
        if is_far or (number and abs(number.adjusted()) > LARGEST_EXPONENT):
            self._refuse_value(value, "this number is too large or too small")
        return number

    def _moment(self, comparison: Comparison, column: "_Column", value: Value) -> Fraction:
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

    def _refuse_kind(self, comparison: Comparison, reason: str) -> NoReturn:
        column = self._kinds[comparison.column]
        held = HELD.get(column.kind, str(column.type))
        held = "times" if column.is_time else held
        reason = f"{comparison.column} holds {held}: {reason}"
        refuse(self._option, self._text, comparison.position, reason)

    def _refuse_value(self, value: Value, reason: str) -> NoReturn:
        refuse(self._option, self._text, value.position, reason)


@dataclass(frozen=True)
class _Column:
    """What a column holds."""

    type: pa.DataType
    is_untyped: bool = False

    @functools.cached_property
    def kind(self) -> Kind:
        kind, types = self.type, pa.types
        if types.is_dictionary(kind):
            return _Column(kind.value_type, self.is_untyped).kind
        if types.is_string(kind) or types.is_large_string(kind) or kind == pa.string_view():
            return "untyped" if self.is_untyped else "text"
        if types.is_floating(kind):
            return "number"
        if types.is_integer(kind) or types.is_decimal128(kind) or self.is_time:
            return "exact"
        if types.is_boolean(kind):
            return "boolean"
        is_list = types.is_list(kind) or types.is_large_list(kind)
        return "list" if is_list or types.is_fixed_size_list(kind) else "other"

    @property
    def is_time(self) -> bool:
        return bool(pa.types.is_timestamp(self.type) or pa.types.is_date(self.type))

    @property
    def has_zone(self) -> bool:
        return pa.types.is_timestamp(self.type) and self.type.tz is not None

    @property
    def items(self) -> "_Column":
        """Of a list: what its values are."""
        return _Column(self.type.value_type, self.is_untyped)

    @property
    def unit(self) -> Fraction:
        """Of an exact column: the smallest difference of two values. Of times, in microseconds."""
        if pa.types.is_timestamp(self.type):
            return MICROSECONDS[self.type.unit]
        if pa.types.is_date(self.type):
            return Fraction(86_400 * 10**6 if pa.types.is_date32(self.type) else 1000)
        if pa.types.is_decimal(self.type):
            return (
                Fraction(1, 10**self.type.scale)
                if self.type.scale > 0
                else Fraction(10**-self.type.scale)
            )
        return Fraction(1)

    @property
    def bounds(self) -> tuple[int, int]:
        """Of an exact column: the least and the largest value, in its unit."""
        if pa.types.is_decimal(self.type):
            return 1 - 10**self.type.precision, 10**self.type.precision - 1
        bits = self.type.bit_width
        if pa.types.is_unsigned_integer(self.type):
            return 0, 2**bits - 1
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def scalar(self, units: int) -> "pa.Scalar[Any]":
        """So many units as a value of the column."""
        if pa.types.is_decimal(self.type):
            sign, digits = int(units < 0), tuple(map(int, str(abs(units))))
            return pa.scalar(Decimal((sign, digits, -self.type.scale)), self.type)
        if pa.types.is_timestamp(self.type):
            return pa.scalar(units, pa.int64()).cast(self.type)
        if pa.types.is_date(self.type):
            size = pa.int32() if pa.types.is_date32(self.type) else pa.int64()
            return pa.scalar(units, size).cast(self.type)
        return pa.scalar(units, self.type)

    def prepared(self, values: Operand) -> Operand:
        """The values in the type that the functions of pyarrow compare."""
        kind = self.type
        if self.kind == "number":
            return values.cast(pa.float64())
        is_plain = pa.types.is_string(kind) or self.kind not in ("text", "untyped")
        if pa.types.is_dictionary(kind) and is_plain:
            return values.cast(kind.value_type)
        return values if is_plain else values.cast(pa.string())

    def is_empty(self, values: Operand) -> Operand:
        """Of prepared values: null, NaN, a text without characters, a list without values."""
        null = pc.is_null(values, nan_is_null=self.kind == "number")
        if self.kind in ("text", "untyped"):
            return pc.or_kleene(null, pc.equal(values, pa.scalar("")))
        if self.kind == "list":
            return pc.or_kleene(null, pc.equal(pc.list_value_length(values), pa.scalar(0)))
        return null


_FUNCTIONS: dict[str, Callable[[Operand, Operand], Operand]] = {
    "==": pc.equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def _and_valid(values: Operand, found: Operand) -> Operand:
    """False where there is no value, instead of null."""
    return pc.and_kleene(pc.is_valid(values), found)


def _compare_floats(operator: str, number: float, values: Operand) -> Operand:
    return _and_valid(values, _FUNCTIONS[operator](values, pa.scalar(number)))


def _compare_units(column: _Column, operator: str, number: Fraction, values: Operand) -> Operand:
    """Compare exact values with a number of their units, which may lie between two of them or
    beyond all of them."""
    below = math.floor(number)
    is_between = below != number
    least, largest = column.bounds
    all_fit = pc.is_valid(values)
    none_fits = pc.and_kleene(all_fit, pc.is_null(values))
    if operator == "==" and is_between:
        return none_fits
    if not least <= below <= largest:
        is_below_all = below < least
        fits_all = operator in (("<", "<=") if not is_below_all else (">", ">="))
        return all_fit if fits_all else none_fits
    if is_between:  # less than 2.5 is at most 2
        operator = {"<": "<=", ">=": ">"}.get(operator, operator)
    return _and_valid(values, _FUNCTIONS[operator](values, column.scalar(below)))


def _compare_as_numbers(operator: str, number: Decimal, text: str, values: Operand) -> Operand:
    """Compare text as numbers. Text that is no number fits nothing."""
    trimmed = pc.utf8_trim_whitespace(values)
    is_number = pc.match_substring_regex(trimmed, NUMBER_IN_TEXT)
    numbers = pc.if_else(is_number, trimmed, pa.scalar(None, pa.string())).cast(pa.float64())
    found = _compare_floats(operator, float(number), numbers)
    if operator != "==":
        return found
    # Two long numbers may be the same as floats.
    is_same = _and_valid(values, pc.equal(trimmed, pa.scalar(text)))
    return (
        pc.or_kleene(is_same, found) if len(number.as_tuple().digits) <= FLOAT_DIGITS else is_same
    )


def _has(lists: "pa.Array[Any]", test: Callable[[Operand], Operand]) -> Mask:
    """Whether each list has a value that fits."""
    found = np.zeros(len(lists), np.bool_)
    if not len(lists):
        return found
    rows = np.flatnonzero(lists.is_valid().to_numpy(zero_copy_only=False))
    present = lists.take(pa.array(rows))  # a null may still have values behind it
    items = _Column(present.type.value_type)
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
