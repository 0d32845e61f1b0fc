"""Clusters that start with a head without processors and no other node: the nodes come when work
does."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from heads import autoscaled_head, check_job
from small_captioner import photos, save_captioner

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SMALL = {"CPU": 1, "object_store_memory": 100_000_000}
TYPES = {
    name: {
        "resources": SMALL,
        "labels": {"raycap": name},
        "node_config": {},
        "min_workers": 0,
        "max_workers": count,
    }
    for name, count in (("decode", 2), ("model", 1))
}
LABELS = ["--cluster.decode-on", "raycap=decode", "--cluster.model-on", "raycap=model"]
PICTURES = 24


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """With the autoscaler that `ray up` and KubeRay use."""
    with autoscaled_head(tmp_path_factory.mktemp("home"), TYPES, version=2) as environment:
        yield environment


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("work")
    save_captioner(folder / "model")
    photos(folder / "photos", range(PICTURES))
    return [
        "jobs/caption.py",
        str(folder / "photos"),
        "--model",
        str(folder / "model"),
        "--batch",
        "4",
    ]


def test_captioning_with_labels_starts_from_zero_nodes(
    cluster: dict[str, str], job: list[str], tmp_path: Path
) -> None:
    printed = check_job(cluster, *job, *LABELS, "--out", str(tmp_path / "out"))
    assert f"{PICTURES} rows, 0 failed" in printed
    messages = re.findall("raycap: waiting for .*", printed)
    assert messages and len(messages) < 20, "it prints what it waits for, and not all the time"
    # Of a node that comes at once it says nothing.
    wanted = "the label raycap=(decode, to decode pictures|model, to run the model)"
    assert any(re.search(wanted, message) for message in messages)
    assert pq.read_table(tmp_path / "out" / "captions").num_rows == PICTURES
