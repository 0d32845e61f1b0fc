"""Several runs in one config file: shared options, and under `runs` what each changes."""

import difflib
from collections.abc import Mapping
from typing import Any

from raycap.errors import UserError

RUNS = "runs"


def chosen(data: Any, run: str) -> Any:
    """Returns the data of one run; a file without `runs` is one run without a name."""
    if not isinstance(data, Mapping) or RUNS not in data:
        if run:
            raise UserError(f"there is only one run in it, so leave out --run {run}")
        return data
    runs = data[RUNS]
    if not isinstance(runs, Mapping) or not runs:
        raise UserError(f"{RUNS} is {runs!r}: name each run, and under its name what it changes")
    if run not in runs:
        close = difflib.get_close_matches(run, runs, n=1)
        guess = f"; did you mean '{close[0]}'?" if close else ""
        raise UserError(f"it holds the runs {', '.join(runs)}: choose one with --run NAME{guess}")
    shared = {name: value for name, value in data.items() if name != RUNS}
    return merged(shared, runs[run] or {})


def merged(shared: Any, own: Any) -> Any:
    """Merges `own` over `shared` option by option; a part of another kind replaces all of it."""
    if not isinstance(shared, Mapping) or not isinstance(own, Mapping):
        return own
    if "kind" in own and own["kind"] != shared.get("kind"):
        return own
    return {**shared, **{name: merged(shared.get(name), value) for name, value in own.items()}}
