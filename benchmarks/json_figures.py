"""The figures of a benchmark as JSON, which `all.py` reads: `--json FILE` of each of them."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

Figures = Mapping[str, float | str]


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write the figures into this file too")


def write_figures(given: argparse.Namespace, figures: Figures) -> None:
    """Write them where `--json` says. Text says under which conditions they were measured."""
    if given.json is not None:
        given.json.write_text(json.dumps(dict(figures), indent=2) + "\n")


def read_figures(path: Path) -> dict[str, float | str]:
    found: dict[str, float | str] = json.loads(path.read_text())
    return found
