"""A new metric, sink or sweep scheduler is one class and one line: each test adds a toy one in a
program of its own, which touches nothing but the dict of that package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_captioner import photos, save_captioner

METRIC = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from raycap.metrics import METRICS, ScoreFacts, mean_score


@dataclass(frozen=True)
class Articles:
    scores: ClassVar = (
        ScoreFacts("articles", "Articles", "share of the words that are articles", "lower",
                   format="{:.0%}", picture_rank=1),
    )
    article: str = "the"

    def compute(self, corpus):
        words = [text.split() for text in corpus.tokens]
        shares = np.array([own.count(self.article) / len(own) for own in words])
        return (mean_score(self.scores[0], shares, corpus.signature(article=self.article)),)


METRICS["articles"] = Articles
"""

SINK = """
from raycap.sinks import SINKS, Sink, captioned_rows


class Markdown(Sink):
    name, ending, joined = "markdown", ".md", "captions.md"

    def write(self, part, settings):
        rows = captioned_rows(part, settings.folder)
        text = "".join(f"- {row['key']}: {row['caption']}\\n" for row in rows)
        settings.folder.write(self.target(part), text.encode())
        return 0

    def finish(self, folder):
        parts = [folder.read(name) for name in folder.names(self.name)]
        folder.write(self.joined, b"".join(parts))


SINKS["markdown"] = Markdown()
"""

SCHEDULER = """
from raycap.tuning.schedulers import SCHEDULERS


class Half:
    def build(self, options, epochs):
        return f"ends trials after {epochs // 2} of {epochs} epochs"


SCHEDULERS["half"] = Half()
"""

RUN = """
import sys
from raycap.cli import main

sys.exit(main(sys.argv[1:]))
"""


def run(part: str, *arguments: str, folder: Path) -> str:
    """`raycap` with the part added; what it wrote to stdout."""
    program = folder / "with_part.py"
    program.write_text(part + RUN)
    ended = subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_metric(tmp_path: Path) -> None:
    for name, captions in {
        "good": ["a dog runs", "two men sit"],
        "bad": ["the the dog", "the two men"],
    }.items():
        rows = [{"key": str(key), "caption": text} for key, text in enumerate(captions)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "references.jsonl").write_text(
        '{"file_name": "0", "references": ["a dog"]}\n{"file_name": "1", "references": ["men"]}\n'
    )
    tables = [str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")]
    flags = ["--references", str(tmp_path / "references.jsonl")]
    out = tmp_path / "scores.json"
    options = ["--metrics", "articles", "bleu", "--samples", "100", "--out", str(out)]
    text = run(METRIC, "evaluate", *tables, *flags, *options, folder=tmp_path)
    assert "articles" in text
    scores = json.loads(out.read_text())
    assert [table["scores"]["articles"]["score"] for table in scores["tables"]] == [0, 0.5]
    assert scores["best"]["articles"]["table"] == "good", "the lower the better"
    run(
        METRIC,
        "evaluate",
        tables[0],
        *flags,
        *options,
        "--metric.articles.article",
        "a",
        folder=tmp_path,
    )
    [table] = json.loads(out.read_text())["tables"]
    assert table["scores"]["articles"]["score"] == pytest.approx(1 / 6), "it has options"
    page = tmp_path / "page.html"
    metrics = ["--evaluate.metrics", "articles", "--evaluate.samples", "0"]
    run(METRIC, "report", *tables, *flags, *metrics, "--out", str(page), folder=tmp_path)
    text = page.read_text()
    assert "Articles" in text and "50%" in text and "share of the words" in text
    assert "Articles of good</option>" in text, "pictures are sorted by it"


@pytest.mark.ray
def test_a_sink(tmp_path: Path) -> None:
    save_captioner(tmp_path / "captioner")
    folder, out = photos(tmp_path / "photos", range(6)), tmp_path / "out"
    flags = ["--model", str(tmp_path / "captioner"), "--batch", "4", "--actors", "1"]
    command = ["caption", str(folder), "--out", str(out), *flags, "--also", "markdown"]
    run(SINK, *command, folder=tmp_path)
    lines = (out / "captions.md").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"- {n:05d}.png" for n in range(6)]
    (folder / "00000.png").unlink()
    run(SINK, *command, "--overwrite", folder=tmp_path)
    lines = (out / "captions.md").read_text().splitlines()
    assert len(lines) == 5, "its files go with the table that they were made of"


def test_a_scheduler(tmp_path: Path) -> None:
    config = run(SCHEDULER, "tune", "--scheduler", "half", "--print-config", folder=tmp_path)
    assert "scheduler: half" in config
    part = SCHEDULER + (
        "from raycap.tuning import Tune\n"
        "print(SCHEDULERS['half'].build(Tune(scheduler='half'), 8))\n"
    )
    text = run(part, "tune", "--scheduler", "half", "--print-config", folder=tmp_path)
    assert "ends trials after 4 of 8 epochs" in text
