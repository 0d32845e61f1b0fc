"""Marks tests that need packages which are not always installed."""

from importlib.util import find_spec

import pytest


def need(*names: str) -> pytest.MarkDecorator:
    """Skips tests where one of these packages is missing.

    It does not import them, as `pytest.importorskip` does: each test worker collects all files,
    and transformers and its like take seconds. Tests import them when they run.
    """
    missing = [name for name in names if find_spec(name) is None]
    reason = f"{', '.join(missing)} is not installed: pip install 'raycap[dev]'"
    return pytest.mark.skipif(bool(missing), reason=reason)
