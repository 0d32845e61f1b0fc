"""What a training run says of itself: the facts at its start, a dry run; and runs that are cut
short."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feature_tables import features, source_config, write

from raycap import Captioner
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.sources import Notes, Shapes
from raycap.storage.training_log import read_epochs, read_log
from raycap.training import Train
from raycap.training.display import RunningMean
from raycap.training.limited import limited

pytestmark = pytest.mark.usefixtures("no_ray")

CONFIG = """
encoder: {kind: pixels, size: 32, patch: 16, frequencies: 2}
decoder: {kind: recurrent, hidden_width: 24, embedding_width: 16, attention_width: 16}
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 20}
train: {epochs: 3, batch: 8, lr: 0.02, schedule: {warmup: 2}, precision: fp32, log_steps: 1}
"""
PICTURES = 48


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    table = write(tmp_path / "table", features(PICTURES))
    file = tmp_path / "run.yaml"
    file.write_text(source_config(table) + CONFIG)
    where = ["--features", table, "--cache", str(tmp_path / "cache"), "--trackers"]
    return ["train", "--config", str(file), *where, "--workers.count", "0"]


def test_a_run_says_at_its_start_what_it_is(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    [start] = [
        line for line in read_log(tmp_path / "run/metrics.jsonl") if line["kind"] == "start"
    ]
    references = [
        (row["part"], caption.split())
        for row in map(json.loads, (tmp_path / "table/source.jsonl").read_text().splitlines())
        for caption in row["references"]
    ]
    learned = [words for part, words in references if part == "train"]
    words = [word for caption in learned for word in caption]
    cut = {word for word in words if words.count(word) < 20}
    assert cut
    captioner = Captioner.load(tmp_path / "run/captioner")
    assert isinstance(captioner, TrainedCaptioner)
    parameters = sum(part.numel() for part in captioner.decoder.parameters())
    expected = {
        "device": "cpu",
        "precision": "fp32",
        "workers": 1,
        "pictures": {"train": 36, "dev": 12},
        "captions": {"train": len(learned), "dev": len(references) - len(learned)},
        "vocabulary": 4 + len(set(words)) - len(cut),
        "words_cut": len(cut),
        "unknown_words": sum(word in cut for word in words),
        "parameters_trained": parameters,
        "parameters_frozen": 0,
        "steps_per_epoch": 5,
        "steps": 15,
    }
    assert {name: start[name] for name in expected} == expected
    shown = capsys.readouterr().out
    for text in ("cpu in fp32", f"train: 36 pictures, {len(learned)} captions", "15 in all"):
        assert text in shown
    assert f"{len(cut)} rare ones cut" in shown and "without validation" in shown
    # A word counts as shares of the captions that use it, which do not add up exactly.
    for line in read_epochs(tmp_path / "run" / "metrics.jsonl"):
        assert isinstance(line["vocabulary"], int)


def test_a_dry_run_writes_nothing_and_says_what_a_run_says(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    dry = [*command, "--epochs", "1", "--self-critical.epochs", "1"]
    dry += ["--max-steps", "6", "--out", str(tmp_path / "run")]
    assert main([*dry, "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().out.splitlines()
    assert main(dry) == 0
    done = capsys.readouterr().out.splitlines()
    for word in ("device: ", "train: ", "dev: ", "vocabulary: ", "parameters: ", "steps: "):
        [here], [there] = (
            [line for line in lines if line.startswith(word)] for lines in (said, done)
        )
        assert here == there
    assert any(line.startswith("shapes: pictures 32 x 32, grid 4 x 12") for line in said)
    assert any(line.startswith("memory: ") for line in said)
    assert any(line.startswith("time: about") for line in said)


@pytest.mark.thorough
def test_a_run_ends_after_the_steps_that_it_was_given(command: list[str], tmp_path: Path) -> None:
    """Its steps are the first of the whole run, and a phase that is not reached is left out."""
    command += ["--epochs", "1", "--self-critical.epochs", "1", "--self-critical.max-length", "8"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    whole = steps_of(tmp_path / "whole")
    assert len(whole) == 10
    names = ("phase", "epoch", "step", "training_loss", "reward", "lr")
    for most, ends in ((3, [3]), (7, [5, 7])):
        out = tmp_path / str(most)
        assert main([*command, "--max-steps", str(most), "--out", str(out)]) == 0
        cut = steps_of(out)
        assert [line["steps"] for line in cut] == [most] * most
        assert [[line.get(name) for name in names] for line in cut] == [
            [line.get(name) for name in names] for line in whole[:most]
        ]
        assert [line["step"] for line in read_epochs(out / "metrics.jsonl")] == ends
        assert Captioner.load(out / "captioner")


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(run / "metrics.jsonl") if line["kind"] == "step"]


@pytest.mark.thorough
def test_a_limit_takes_the_first_pictures_of_each_split(tmp_path: Path) -> None:
    """And a later run without it finds their features, and adds the others."""
    (tmp_path / "run.yaml").write_text("source: {kind: shapes, count: 40}\n" + CONFIG)
    run = ["train", "--config", str(tmp_path / "run.yaml"), "--cache", str(tmp_path / "cache")]
    run += ["--trackers", "--workers.count", "0", "--epochs", "1", "--vocabulary.min-count", "1"]
    splits: dict[str, Any] = {}
    for name, changes in (("few", ["--limit", "3"]), ("all", [])):
        assert main([*run, *changes, "--out", str(tmp_path / name)]) == 0
        start = read_log(tmp_path / name / "metrics.jsonl")[0]
        splits[name] = start["pictures"]
    rows = pa.concat_tables(Shapes(count=40).tables(Notes()))
    counts = {split: rows["split"].to_pylist().count(split) for split in ("train", "dev")}
    assert splits == {"few": {"train": 3, "dev": min(3, counts["dev"])}, "all": counts}
    [table] = (tmp_path / "cache" / "features").iterdir()
    assert json.loads((table / "facts.json").read_text())["rows"] == 40


def test_a_limited_source_gives_the_first_readable_pictures_in_their_order() -> None:
    whole = Shapes(count=60)
    source = limited(whole, Train(limit=4))
    rows = pa.concat_tables(source.tables(Notes())).to_pylist()
    everything = pa.concat_tables(whole.tables(Notes())).to_pylist()
    for split in ("train", "dev"):
        wanted = [row["key"] for row in everything if row["split"] == split][:4]
        assert [row["key"] for row in rows if row["split"] == split] == wanted
    places = [row["key"] for row in everything]
    assert [places.index(row["key"]) for row in rows] == sorted(
        places.index(row["key"]) for row in rows
    )
    assert limited(whole, Train()) is whole


def test_the_running_mean_follows_a_phase() -> None:
    mean = RunningMean()
    line: dict[str, Any] = {"phase": "cross_entropy", "training_loss": 4.0}
    assert mean.added(line) == ""
    assert mean.added({**line, "training_loss": 3.0}) == " (running mean 3.900)"
    assert mean.added({"phase": "self_critical", "reward": 0.5}) == ""
