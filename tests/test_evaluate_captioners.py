"""`raycap evaluate` on captioners: it captions first, once, and finds the losses of training."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raycap.cli import main
from raycap.storage.training_log import read_epochs

pytestmark = pytest.mark.usefixtures("no_ray")

CONFIG = """
source: {kind: shapes, count: 120}
encoder: {kind: pixels, size: 32, patch: 16, frequencies: 2}
decoder:
  {kind: top_down, hidden_width: 24, embedding_width: 16, attention_width: 16,
    projection_width: 16}
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 1}
train:
  epochs: 3
  batch: 8
  lr: 0.02
  schedule: {warmup: 2}
  precision: fp32
  trackers: []
  workers: {count: 0}
  cache: %s
evaluate: {samples: 200, split: dev, cache: %s}
caption: {batch: 8, actors: 1, precision: fp32}
extract: {batch: 8, actors: 1, precision: fp32}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, no_ray: None) -> Path:
    """A folder with run.yaml, and two runs of it: `short` learned less."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "run.yaml"
    config.write_text(CONFIG % (folder / "cache", folder / "cache"))
    for name, lr in (("long", "0.02"), ("short", "0.002")):
        assert (
            main(["train", "--config", str(config), "--out", str(folder / name), "--lr", lr]) == 0
        )
    return folder


def evaluated(folder: Path, *arguments: str) -> dict[str, Any]:
    out = folder / "scores.json"
    assert (
        main(["evaluate", *arguments, "--config", str(folder / "run.yaml"), "--out", str(out)])
        == 0
    )
    return json.loads(out.read_text())


def kept(run: Path) -> dict[str, Any]:
    return [line for line in read_epochs(run / "metrics.jsonl") if line["best"]][-1]


def test_what_training_measured_is_found_again(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(trained, f"tuned={trained / 'long' / 'captioner'}")
    [table] = found["tables"]
    scores = {name: score["score"] for name, score in table["scores"].items()}
    line = kept(trained / "long")
    assert found["pictures"] == 12 and found["captioners"] == {
        "tuned": str(trained / "long" / "captioner")
    }
    # Training looks at features that were rounded to float16 on their way through a table.
    assert scores["loss"] == pytest.approx(line["validation_loss"], rel=1e-3)
    assert scores["perplexity"] == pytest.approx(line["perplexity"], rel=1e-3)
    assert scores["token_accuracy"] == pytest.approx(line["accuracy"], abs=0.005)
    for name in ("bleu_4", "rouge_l", "cider_d", "distinct"):
        assert scores[name] == pytest.approx(line[name], abs=1e-9), name
    assert table["scores"]["loss"]["low"] < scores["loss"] < table["scores"]["loss"]["high"]
    assert (
        "end:yes" in table["scores"]["loss"]["signature"]
        and "token_accuracy" in capsys.readouterr().out
    )
    pictures = pq.read_table(trained / "scores.pictures.parquet").to_pylist()
    captions = {row["key"]: row for row in pq.read_table(table["path"]).to_pylist()}
    assert set(captions) == {row["key"] for row in pictures}, (
        "no picture of another split was captioned"
    )
    for row in pictures:
        own = captions[row["key"]]
        assert row["loss"] == pytest.approx(own["true_surprise"] / own["true_count"])
        assert row["token_accuracy"] == pytest.approx(own["true_right"] / own["true_count"])


def test_captioners_and_tables_stand_side_by_side_and_nothing_is_captioned_twice(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [f"{name}={trained / name / 'captioner'}" for name in ("short", "long")]
    first = evaluated(trained, *runs)
    assert first["best"]["loss"]["table"] == "long", "the less the better"
    assert [comparison["metric"] for comparison in first["comparisons"]].count("loss") == 1
    capsys.readouterr()
    table = Path(first["tables"][1]["path"])
    before = {path.name: path.stat().st_mtime_ns for path in table.glob("*.parquet")}
    plain = trained / "plain.parquet"
    pq.write_table(pq.read_table(table, columns=["key", "caption"]), plain)
    second = evaluated(trained, runs[1], str(plain))
    assert {path.name: path.stat().st_mtime_ns for path in table.glob("*.parquet")} == before
    printed = capsys.readouterr().out
    assert "0 made now" in printed and f"written: {table}" in printed
    ours, theirs = (each["scores"] for each in second["tables"])
    assert set(ours) - set(theirs) == {"loss", "perplexity", "token_accuracy"}
    assert {name: ours[name]["score"] for name in theirs} == {
        name: theirs[name]["score"] for name in theirs
    }
    assert ours == first["tables"][1]["scores"]
    [line] = [line for line in printed.splitlines() if line.startswith("loss")]
    assert line.split()[-1] == "-"


def test_a_split_is_captioned_and_belongs_to_the_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--config", str(trained / "run.yaml"), "--model", str(trained / "long" / "captioner")]
    command = ["caption", *model, "--out", str(tmp_path / "out"), "--split"]
    assert main([*command, "val"]) == 0
    keys = pq.read_table(tmp_path / "out" / "captions")["key"].to_pylist()
    assert sorted(keys) == [f"{number:06}.png" for number in range(8, 120, 10)]
    assert main([*command, "dev"]) == 0, "another word for the same split"
    assert main([*command, "test"]) == 2
    assert "source.of_split was 'dev', now 'test'" in capsys.readouterr().err
    assert main(["caption", *model, "--out", str(tmp_path / "none"), "--split", "holdout"]) == 2
    assert (
        "no picture of shapes is of split 'holdout'; there are dev, test, train"
        in capsys.readouterr().err
    )
