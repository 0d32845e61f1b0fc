"""Runs of the endpoint captioner that are really killed: benchmarks/endpoint_faults.py, a few."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import endpoint_faults  # the long version of this test


@pytest.mark.slow
def test_kills_lose_no_row_and_repeat_no_call_whose_answer_was_kept(tmp_path: Path) -> None:
    counts = endpoint_faults.campaign(tmp_path, kills=4, each=2, pictures=120)
    assert counts.kills == 4
    assert (counts.lost, counts.doubled, counts.changed, counts.asked_again) == (0, 0, 0, 0)
