"""Reads JSON of unknown origin: no NaN, no infinity, no nesting that breaks its readers."""

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """Parses JSON; raises ValueError, which quotes nothing of the text, if that fails."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number
