"""What a column of a table holds, and how its values are compared with a number, a text or a time.

    column = Column(pa.int32())
    compare_units(column, "<", Fraction(5, 2), values)   ->  true where a value is at most 2

The functions take arrays, or columns of an expression of pyarrow. They say true or false of each
value, never null.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

# An array, or a column of an expression of pyarrow: its functions take both.
Operand = Any

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
# Of text that is read as a number. No number of such a length is too large for 64 bits.
NUMBER_IN_TEXT = r"^-?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,2})?$"
# Digits of a number that a 64-bit float distinguishes from all others.
FLOAT_DIGITS = 15
MICROSECONDS = {
    "s": Fraction(10**6),
    "ms": Fraction(10**3),
    "us": Fraction(1),
    "ns": Fraction(1, 10**3),
}


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    type: pa.DataType
    is_untyped: bool = False

    @functools.cached_property
    def kind(self) -> Kind:
        kind, types = self.type, pa.types
        if types.is_dictionary(kind):
            return Column(kind.value_type, self.is_untyped).kind
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
    def items(self) -> "Column":
        """Of a list: what its values are."""
        return Column(self.type.value_type, self.is_untyped)

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


FUNCTIONS: dict[str, Callable[[Operand, Operand], Operand]] = {
    "==": pc.equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def and_valid(values: Operand, found: Operand) -> Operand:
    """False where there is no value, instead of null."""
    return pc.and_kleene(pc.is_valid(values), found)


def compare_floats(operator: str, number: float, values: Operand) -> Operand:
    return and_valid(values, FUNCTIONS[operator](values, pa.scalar(number)))


def compare_units(column: Column, operator: str, number: Fraction, values: Operand) -> Operand:
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
    return and_valid(values, FUNCTIONS[operator](values, column.scalar(below)))


def compare_as_numbers(operator: str, number: Decimal, text: str, values: Operand) -> Operand:
    """Compare text as numbers. Text that is no number fits nothing."""
    trimmed = pc.utf8_trim_whitespace(values)
    is_number = pc.match_substring_regex(trimmed, NUMBER_IN_TEXT)
    numbers = pc.if_else(is_number, trimmed, pa.scalar(None, pa.string())).cast(pa.float64())
    found = compare_floats(operator, float(number), numbers)
    if operator != "==":
        return found
    # Two long numbers may be the same as floats.
    is_same = and_valid(values, pc.equal(trimmed, pa.scalar(text)))
    return (
        pc.or_kleene(is_same, found) if len(number.as_tuple().digits) <= FLOAT_DIGITS else is_same
    )
