"""--only: what is parsed, which rows are chosen, and what is refused.

The property test has an evaluator of its own, in plain Python, and compares it with the columns of
Arrow over random tables and random expressions.
"""

import datetime
import math
import operator
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raycap.errors import UserError
from raycap.expressions import DEEPEST_EXPRESSION, LONGEST_EXPRESSION, parse
from raycap.row_filter import RowFilter

TEXTS = st.text(st.sampled_from("ab \"'\\`(),<>=!%_é\U0001f415"), max_size=4)
TEXTS |= st.sampled_from(["", "5", "7.50", "true", "and", "NaN", "2024-01-01", "dog", "Dog"])
TIMES = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
UTC_TIMES = TIMES.map(lambda moment: moment.replace(tzinfo=datetime.UTC))
DECIMALS = st.decimals(-9, 9, places=2)
FLOATS = st.sampled_from([0.0, -0.0, 0.1, 2.5, 1e300, math.nan, math.inf, -math.inf])
# Numbers as text, and text that is none.
UNTYPED = st.sampled_from(["5", " 5 ", "5.0", "1e3", "-2", "", "x", "nan", "0x1", "1_000", "٣"])

# For each column: its type, and its values.
COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), TEXTS),
    "large text": (pa.large_string(), TEXTS),
    "word": (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    "raw": (pa.string(), UNTYPED),
    "int": (pa.int8(), st.integers(-128, 127)),
    "big": (pa.uint64(), st.sampled_from([0, 5, 2**53, 2**53 + 1, 2**64 - 1])),
    "float": (pa.float64(), FLOATS),
    "single": (pa.float32(), st.sampled_from([0.5, 2.5, math.nan])),
    "decimal": (pa.decimal128(5, 2), DECIMALS),
    "flag": (pa.bool_(), st.booleans()),
    "moment": (pa.timestamp("us"), TIMES),
    "utc": (pa.timestamp("us", "UTC"), UTC_TIMES),
    "day": (pa.date32(), TIMES.map(datetime.datetime.date)),
    "texts": (pa.list_(pa.string()), st.lists(st.none() | TEXTS, max_size=3)),
    "numbers": (pa.large_list(pa.int16()), st.lists(st.none() | st.integers(-9, 9), max_size=3)),
    "pair": (pa.list_(pa.float64(), 2), st.tuples(FLOATS, FLOATS).map(list)),
}
UNTYPED_COLUMNS = ("raw",)
ORDER = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@st.composite
def random_tables(draw: Any) -> pa.Table:
    rows = draw(st.integers(0, 6))
    columns = {}
    for name, (kind, values) in COLUMNS.items():
        many = st.lists(st.none() | values, min_size=rows, max_size=rows)
        plain = pa.array(draw(many), kind.value_type if pa.types.is_dictionary(kind) else kind)
        columns[name] = plain.cast(kind)
    table = pa.table(columns)
    cut = draw(st.integers(0, rows))
    return pa.concat_tables([table.slice(0, cut), table.slice(cut)])


# A random expression is its text and a function from a row to true or false.
Rule = tuple[str, Any]


@st.composite
def random_comparisons(draw: Any) -> Rule:
    name = draw(st.sampled_from(sorted(COLUMNS)))
    column = draw(st.sampled_from([f"`{name}`"] if " " in name else [name, f"`{name}`"]))
    kind, values = COLUMNS[name]
    if draw(st.integers(0, 5)) == 0:
        negated = draw(st.booleans())
        text = f"{column} is not empty" if negated else f"{column}  IS empty"
        return text, lambda row: is_empty(row[name]) != negated
    is_list = pa.types.is_nested(kind)
    is_text = not is_list and isinstance(draw(values), str)
    choices = ["has", "not has"] if is_list else ["==", "!=", "=", "in", "not in", *ORDER]
    choices = [each for each in choices if name != "flag" or each not in ORDER]
    choices += ["contains", "not contains"] if is_text else []
    symbol = draw(st.sampled_from(choices))
    count = draw(st.integers(1, 3)) if symbol.endswith("in") else 1
    literals = [draw(random_literals(name)) for _ in range(count)]
    if symbol.endswith("contains"):
        literals = [(quoted(text), text) for text in [draw(TEXTS)]]
    shown = f"({' , '.join(text for text, _ in literals)})" if symbol.endswith("in") else ""

    def test(row: dict[str, Any]) -> bool:
        wanted = [value for _, value in literals]
        return fits(row[name], symbol, wanted, name)

    return f"{column} {symbol} {shown or literals[0][0]}", test


@st.composite
def random_literals(draw: Any, name: str) -> tuple[str, Any]:
    """The text of a value, and the value."""
    values = COLUMNS[name][1]
    if name in ("texts", "text", "large text", "word"):
        text = draw(TEXTS)
        return quoted(text), text
    if name == "raw":
        text = draw(UNTYPED | st.sampled_from(["5", "1000", "0.5"]))
        number = as_number(text)
        is_bare = number is not None and text == text.strip() and draw(st.booleans())
        return (text, number) if is_bare else (quoted(text), text)
    if name == "flag":
        return draw(st.sampled_from([("true", True), ("FALSE", False)]))
    if name in ("moment", "utc", "day"):
        moment = draw(values)
        if name == "day" and draw(st.booleans()):
            moment = draw(TIMES)  # between two days
        text = moment.isoformat()
        if name == "utc" and draw(st.booleans()):
            text = moment.astimezone(datetime.timezone(datetime.timedelta(hours=2))).isoformat()
        return draw(st.sampled_from([text, quoted(text)])), moment
    numbers = st.integers(-300, 300).map(Decimal) | st.decimals(-10, 10, places=3)
    numbers |= st.sampled_from(
        [Decimal(2**53), Decimal(2**53 + 1), Decimal(2**64), Decimal("1e9")]
    )
    number = draw(numbers)
    return str(number), number


@st.composite
def joined(draw: Any, rules: Any) -> Rule:
    many = draw(st.lists(rules, min_size=1, max_size=3))
    word = draw(st.sampled_from(["and", "or", "not"]))
    if word == "not":
        text, test = many[0]
        return f"not({text})", lambda row: not test(row)
    text = f" {word} ".join(f"({text})" for text, _ in many)
    join = all if word == "and" else any
    return text, lambda row: join([test(row) for _, test in many])


RULES = st.recursive(random_comparisons(), joined, max_leaves=6)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def as_number(text: str) -> Decimal | None:
    return Decimal(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[0-9]+)?", text) else None


def is_empty(value: Any) -> bool:
    return value is None or value in ("", []) or (isinstance(value, float) and math.isnan(value))


def fits(value: Any, symbol: str, wanted: list[Any], name: str) -> bool:
    """What a person expects of one comparison."""
    if symbol in ("!=", "not in", "not has", "not contains"):
        positive = {"!=": "==", "not in": "in", "not has": "has", "not contains": "contains"}
        return not fits(value, positive[symbol], wanted, name)
    if value is None:
        return False
    if symbol == "has":
        return any(fits(item, "==", wanted, name) for item in value)
    if symbol == "contains":
        return wanted[0] in value
    return any(compare(value, ORDER.get(symbol, operator.eq), each, name) for each in wanted)


def compare(value: Any, function: Any, wanted: Any, name: str) -> bool:
    if name == "raw" and isinstance(wanted, Decimal):
        number = as_number(value.strip())
        return number is not None and bool(function(number, wanted))
    if isinstance(value, float):
        return bool(function(value, float(wanted)))
    is_day = isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
    if is_day and isinstance(wanted, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    return bool(function(value, wanted))


@settings(max_examples=60)
@given(table=random_tables(), rule=RULES)
def test_the_chosen_rows_are_those_of_plain_python(table: pa.Table, rule: Rule) -> None:
    text, test = rule
    only = RowFilter(text, table.schema, UNTYPED_COLUMNS)
    expected = [test(row) for row in table.to_pylist()]
    assert only.mask(table).tolist() == expected
    assert len(only.choose(table)) == sum(expected)
    opposite = RowFilter(f"not ({text})", table.schema, UNTYPED_COLUMNS)
    assert opposite.mask(table).tolist() == [not each for each in expected]
    # What is left out while Parquet is read holds no chosen row.
    superset = only.for_parquet()
    if superset is not None:
        kept = table.select(only.columns).filter(superset)
        assert only.choose(table.select(only.columns)).num_rows == only.mask(kept).sum()


# Words that mean something, so that random texts come close to expressions.
PIECES = st.sampled_from(
    [
        *("width", "flags", "caption", "and", "or", "not", "in", "has", "contains", "is", "empty"),
        *("(", ")", ",", "==", "!=", "<", ">=", "5", "-1e5", "1e999", "true", '"a b"', "'", '"'),
        *("`", "`width`", "\\", "\x00", "\ud800", "  ", "dog", "é", "!", "=", "NOT"),
    ]
)
SCHEMA = pa.schema(
    [
        ("width", pa.int32()),
        ("flags", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("score", pa.float32()),
    ]
)


@settings(max_examples=100)
@given(st.text(max_size=60) | st.lists(PIECES, max_size=25).map(" ".join))
@example("(" * 5000)
@example("not " * 2000 + "width > 5")
@example("width in (" + "5, " * 3000 + "5)")
@example("width > 5" + " or width > 5" * 700)
@example('"' * LONGEST_EXPRESSION)
@example("width > 1e" + "9" * 5000)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        only = RowFilter(text, SCHEMA)
    except UserError as error:
        assert str(error).startswith("--only")
        assert len(str(error)) < 600
        return
    table = SCHEMA.empty_table()
    assert only.mask(table).tolist() == []
    only.for_parquet()
    assert parse(text) == parse(f" {text}  ")


def test_parsing_takes_time_in_proportion_to_its_text() -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        for _ in range(3):
            with pytest.raises(UserError):
                parse(text)
        return time.process_time() - began

    for start in ('"', "'\\", "a" * 10, "( ", "a == "):
        longest = start * (LONGEST_EXPRESSION // len(start))
        assert seconds(longest) < 100 * max(seconds(longest[: len(longest) // 20]), 0.01)


def test_rows_without_a_value_are_chosen_by_not() -> None:
    table = pa.table({"width": [400, 600, None], "title": ["", None, "a dog"]})
    chosen = {
        "width > 500": [1],
        "not (width > 500)": [0, 2],
        "width != 600": [0, 2],
        "width <= 500": [0],
        "title is empty": [0, 1],
        "title is not empty": [2],
        "width is empty or title contains dog": [2],
        "width in (400, 600) and title is empty": [0, 1],
        "width > 5 or width > 9 and title == nothing": [0, 1],  # `and` binds more closely
        "not width > 500 and width > 1": [0],  # `not` more closely still
    }
    for text, rows in chosen.items():
        mask = RowFilter(text, table.schema).mask(table)
        assert [row for row in range(3) if mask[row]] == rows, text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("with > 500", "at character 1 (with > 500): there is no column 'with'; did you mean "),
        ("width > 500 and hight > 5", "at character 17 (hight > 5): there is no column 'hight'"),
        ("width >", "at its end: a value belongs here"),
        ("width > wide", "at character 9 (wide): width holds numbers, and this is none"),
        ("width contains 5", "width holds numbers: `contains` finds a part of a text"),
        ("flags == cut_off", "flags holds lists: write flags has VALUE"),
        ("caption has dog", "caption holds text: `has` finds one value in a list; contains finds"),
        ("caption > 5", "caption holds text: a text to compare it with is in quotes"),
        ("meta == 5", "meta holds struct<a: int64>: only `is empty`"),
        ("(width > 500", "at its end: ')' belongs here, for the '(' of character 1"),
        ("width > 500)", "at character 12 ()): 'and' or 'or' belongs here"),
        ("width > 500 height > 5", "at character 13 (height > 5): 'and' or 'or' belongs here"),
        ("width", "at its end: 'width' is compared with nothing; there are == != <"),
        ("'width' > 5", "a column belongs here, without quotes: width"),
        ("width > and", 'a value belongs here; the word itself is written "and"'),
        ("width == `height`", "a column is compared with a value, not with another column"),
        ('caption == "dog', 'at character 12 ("dog): the " is not closed'),
        ("split in train", "at character 10 (train): '(' belongs here"),
        ("taken > yesterday", "taken holds times: write one as 2024-12-31"),
        ("taken > 2024-01-01T00:00:00Z", "the times of taken have no time zone"),
        ("low > true", "low is compared with true or false"),
        ("", "--only is empty: give a comparison, such as"),
        ("width > 5; import os", "at character 12 (import os): 'and' or 'or' belongs here"),
        ("__import__('os') == 5", "at character 11 (('os') == 5): '__import__' is compared with"),
    ],
)
def test_what_is_refused_says_where_and_why(text: str, message: str) -> None:
    schema = pa.schema(
        [
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("flags", pa.list_(pa.string())),
            ("caption", pa.string()),
            ("split", pa.string()),
            ("low", pa.bool_()),
            ("taken", pa.timestamp("ms")),
            ("meta", pa.struct([("a", pa.int64())])),
        ]
    )
    with pytest.raises(UserError, match=re.escape(message)):
        RowFilter(text, schema)


def test_brackets_nest_to_a_limit() -> None:
    def nested(depth: int) -> str:
        return "(" * depth + "width > 5" + ")" * depth

    assert RowFilter(nested(DEEPEST_EXPRESSION), SCHEMA).columns == ("width",)
    with pytest.raises(UserError, match="brackets are open"):
        RowFilter(nested(DEEPEST_EXPRESSION + 1), SCHEMA)


def test_row_groups_without_a_chosen_row_are_not_read(tmp_path: Path) -> None:
    """Of numbers that grow; NaN is in no statistics, and its row is chosen all the same."""
    numbers = pa.table({"number": [1, 2, 3, 4], "float": [1.0, math.nan, 7.0, math.nan]})
    pq.write_table(numbers, tmp_path / "a.parquet", row_group_size=2)
    only = RowFilter("number > 2", numbers.schema)
    read = pq.read_table(tmp_path / "a.parquet", filters=only.for_parquet())
    assert read["number"].to_pylist() == [3, 4]
    for text in ("not (float > 5)", "float is empty", "float != 7"):
        assert RowFilter(text, numbers.schema).for_parquet() is None
