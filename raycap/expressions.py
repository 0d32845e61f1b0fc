"""Parses --only: comparisons of columns, joined by `and`, `or`, `not` and brackets.

    parse('flags has cut_off and width > 500')
    ->  All((ColumnComparison("flags", "has", ...), ColumnComparison("width", ">", ...)))

Nothing is evaluated as code. `raycap.row_filter` checks the types, and finds the rows.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from raycap.errors import UserError

LONGEST_EXPRESSION = 10_000
DEEPEST_EXPRESSION = 50
LONGEST_QUOTE = 20

# What two expressions that mean the same have in common does not depend on where they say it.
Position = field(default=0, compare=False)


@dataclass(frozen=True)
class Value:
    """What a column is compared with. A quoted one is always text."""

    text: str
    is_quoted: bool
    position: int = Position


@dataclass(frozen=True)
class ColumnComparison:
    """One column and what it is compared with. `in` has several values, `is empty` none."""

    column: str
    operator: str  # one of OPERATORS
    values: tuple[Value, ...] = ()
    position: int = Position


@dataclass(frozen=True)
class Not:
    part: "Expression"


@dataclass(frozen=True)
class All:
    """`and`"""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Any:
    """`or`"""

    parts: "tuple[Expression, ...]"


Expression = ColumnComparison | Not | All | Any

ORDER = ("<=", ">=", "<", ">")
OPERATORS = ("==", *ORDER, "in", "contains", "has", "is empty")
KEYWORDS = ("and", "or", "not", "in", "contains", "has", "is", "empty")
EXAMPLE = "width > 500 and not (caption contains 'dog')"


def parse(text: str, option: str = "--only") -> Expression:
    """The expression in a text. Raises UserError that says where it cannot be understood."""
    return _Parser(text, option).parse()


def comparisons(expression: Expression) -> Iterator[ColumnComparison]:
    """All comparisons of an expression, from left to right."""
    if isinstance(expression, ColumnComparison):
        yield expression
    elif isinstance(expression, Not):
        yield from comparisons(expression.part)
    else:
        for part in expression.parts:
            yield from comparisons(part)


def refuse(option: str, text: str, position: int, reason: str) -> NoReturn:
    """Raises the UserError about what stands at a position, counted from 0."""
    rest = text[position:]
    quoted = rest[:LONGEST_QUOTE] + "..." * (len(rest) > LONGEST_QUOTE)
    where = f"character {position + 1} ({quoted})" if rest else "its end"
    raise UserError(f"{option}: at {where}: {reason}")


class _Token(NamedTuple):
    kind: str  # word, text, column (in backticks), symbol, end
    text: str
    position: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.lower() in words

    def is_symbol(self, *symbols: str) -> bool:
        return self.kind == "symbol" and self.text in symbols


_TOKENS = re.compile(
    r"""
      (?P<space> \s+ )
    | (?P<symbol> == | != | <= | >= | [=<>(),] )
    | (?P<text> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' )
    | (?P<column> `[^`]+` )
    | (?P<word> [^\s"'`(),<>=!]+ )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Parser:
    """Recursive descent. One method for each rule, which begins at `self._token`."""

    def __init__(self, text: str, option: str) -> None:
        self._text, self._option = text, option
        self._depth = 0
        if len(text) > LONGEST_EXPRESSION:
            raise UserError(
                f"{option} has {len(text):,} characters, and at most {LONGEST_EXPRESSION:,} are "
                "read: make a column of your own table say which rows are meant"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            refuse(option, text, error.start, "this is no UTF-8")
        self._tokens = self._split()
        self._token = next(self._tokens)

    def _split(self) -> Iterator[_Token]:
        position = 0
        while position < len(self._text):
            found = _TOKENS.match(self._text, position)
            if found is None:
                self._refuse_character(position)
            kind, text = str(found.lastgroup), found.group()
            if kind == "text":
                text = re.sub(r"\\([\\\"'])", r"\1", text[1:-1])
            elif kind == "column":
                text = text[1:-1]
            elif text == "=":
                text = "=="
            if kind != "space":
                yield _Token(kind, text, position)
            position = found.end()
        yield _Token("end", "", position)

    def _refuse_character(self, position: int) -> NoReturn:
        character = self._text[position]
        reason = f"{character!r} belongs to no comparison; {_LIST_OF_OPERATORS}"
        if character in "\"'`":
            reason = f"the {character} is not closed"
        refuse(self._option, self._text, position, reason)

    def parse(self) -> Expression:
        if self._token.kind == "end":
            raise UserError(f"{self._option} is empty: give a comparison, such as {EXAMPLE!r}")
        expression = self._any()
        if self._token.kind != "end":
            self._refuse("'and' or 'or' belongs here, or nothing more")
        return expression

    def _any(self) -> Expression:
        parts = self._joined("or", self._all)
        return parts[0] if len(parts) == 1 else Any(parts)

    def _all(self) -> Expression:
        parts = self._joined("and", self._one)
        return parts[0] if len(parts) == 1 else All(parts)

    def _joined(self, word: str, part: Callable[[], Expression]) -> tuple[Expression, ...]:
        """One part or more, with this word between them."""
        parts = [part()]
        while self._token.is_word(word):
            self._next()
            parts.append(part())
        return tuple(parts)

    def _one(self) -> Expression:
        """A comparison, something in brackets, or `not` and one of them."""
        if not (self._token.is_word("not") or self._token.is_symbol("(")):
            return self._comparison()
        self._depth += 1
        if self._depth > DEEPEST_EXPRESSION:
            self._refuse(f"more than {DEEPEST_EXPRESSION} brackets are open")
        expression: Expression
        if self._token.is_word("not"):
            self._next()
            expression = Not(self._one())
        else:
            opened = self._next()
            expression = self._any()
            self._close(opened)
        self._depth -= 1
        return expression

    def _comparison(self) -> Expression:
        column = self._token
        if column.kind == "text":
            self._refuse(f"a column belongs here, without quotes: {column.text}")
        if column.kind == "word" and column.text.lower() in KEYWORDS:
            self._refuse(
                f"a column belongs here; the column of that name is written `{column.text}`"
            )
        if column.kind not in ("word", "column"):
            self._refuse("a column belongs here")
        self._next()
        negated = False
        if self._token.is_word("is"):
            self._next()
            if self._token.is_word("not"):
                self._next()
                negated = True
            if not self._token.is_word("empty"):
                self._refuse("'empty' belongs here: `is empty` or `is not empty`")
            self._next()
            return _negated(
                ColumnComparison(column.text, "is empty", (), column.position), negated
            )
        if self._token.is_word("not"):
            self._next()
            negated = True
            if not self._token.is_word("in", "has", "contains"):
                self._refuse("'in', 'has' or 'contains' belongs here")
        if self._token.is_word("in"):
            self._next()
            values = self._values()
            return _negated(ColumnComparison(column.text, "in", values, column.position), negated)
        operator = self._token.text.lower()
        if self._token.is_symbol("!="):
            operator, negated = "==", True
        is_symbol = self._token.is_symbol("==", "!=", *ORDER)
        if not (is_symbol or self._token.is_word("has", "contains")):
            self._refuse(
                f"{column.text!r} is compared with nothing; {_LIST_OF_OPERATORS}. A column whose "
                "name has spaces is written in `backticks`"
            )
        self._next()
        comparison = ColumnComparison(column.text, operator, (self._value(),), column.position)
        return _negated(comparison, negated)

    def _values(self) -> tuple[Value, ...]:
        opened = self._token
        if not opened.is_symbol("("):
            self._refuse("'(' belongs here, as in `split in (train, dev)`")
        self._next()
        values = [self._value()]
        while self._token.is_symbol(","):
            self._next()
            values.append(self._value())
        self._close(opened)
        return tuple(values)

    def _value(self) -> Value:
        token = self._token
        if token.kind == "text":
            self._next()
            return Value(token.text, True, token.position)
        if token.kind == "column":
            self._refuse("a column is compared with a value, not with another column")
        if token.kind != "word":
            self._refuse(
                'a value belongs here: a number, a word, or a text in quotes ("two dogs")'
            )
        if token.text.lower() in KEYWORDS:
            self._refuse(f'a value belongs here; the word itself is written "{token.text}"')
        self._next()
        return Value(token.text, False, token.position)

    def _close(self, opened: _Token) -> None:
        if not self._token.is_symbol(")"):
            self._refuse(f"')' belongs here, for the '(' of character {opened.position + 1}")
        self._next()

    def _next(self) -> _Token:
        """Go on to the next token. Returns the one before it."""
        token = self._token
        self._token = next(self._tokens)
        return token

    def _refuse(self, reason: str) -> NoReturn:
        refuse(self._option, self._text, self._token.position, reason)


_LIST_OF_OPERATORS = "there are == != < <= > >=, in (...), contains, has, is empty"


def _negated(comparison: ColumnComparison, negated: bool) -> Expression:
    return Not(comparison) if negated else comparison
