"""A new metric, sink or sweep scheduler is one class and one line: each test adds a toy one to one
file of a copy of the package, and uses it from the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_captioner import photos, save_captioner

METRIC = """
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Articles:
    scores: ClassVar[tuple[ScoreFacts, ...]] = (
        ScoreFacts("articles", "Articles", "share of the words that are articles", "lower",
                   format="{:.0%}", picture_rank=1),
    )
    article: str = "the"

    def compute(self, corpus):
        words = [text.split() for text in corpus.tokens]
        shares = np.array([own.count(self.article) / len(own) for own in words])
        return (mean_score(self.scores[0], shares, corpus.signature(article=self.article)),)


"""

SINK = """
from raycap.sinks.rows import captioned_rows


class Markdown(Sink):
    name, ending, joined = "markdown", ".md", "captions.md"

    def write(self, part, settings):
        rows = captioned_rows(part, settings)
        text = "".join(f"- {row['key']}: {row['caption']}\\n" for row in rows)
        settings.folder.write(self.target(part), text.encode())
        return 0

    def finish(self, folder):
        parts = [folder.read(name) for name in folder.names(self.name)]
        folder.write(self.joined, b"".join(parts))


"""

SCHEDULER = """
class Half:
    def build(self, options, epochs):
        return f"ends trials after {epochs // 2} of {epochs} epochs"


"""

# Captions twice in one process; the second time fewer pictures, into a new table.
TWICE = """
import shutil, sys
from raycap.cli import main

file, copy, *command = sys.argv[1:]
assert main(command) == 0
shutil.copy(file, copy)
assert main([*command, "--limit", "5", "--overwrite"]) == 0
"""

PACKAGE = Path(__file__).parents[1] / "raycap"


def add(folder: Path, module: str, part: str, before: str, line: str) -> None:
    """Copy the package, with a class and its line added to one file."""
    shutil.copytree(PACKAGE, folder / "raycap", copy_function=os.symlink)
    file = folder / "raycap" / module
    text = file.read_text()
    file.unlink()
    assert text.count(before) == 1
    file.write_text(text.replace(before, f"{part}{before}    {line}\n"))


# Each command is a list of words in JSON. What it prints ends with a form feed.
COMMANDS = """
import json, sys
from raycap.cli import main

for command in sys.argv[1:]:
    try:
        assert main(json.loads(command)) == 0
    except SystemExit as end:
        assert end.code in (None, 0)
    print(end="\\f")
"""


def run(folder: Path, *commands: list[str]) -> list[str]:
    """What each of the commands writes to stdout, with the `raycap` of that copy."""
    printed = run_python(folder, "-c", COMMANDS, *map(json.dumps, commands))
    return printed.split("\f")[:-1]


def run_python(folder: Path, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_metric(tmp_path: Path) -> None:
    line = '"articles": Articles,'
    add(tmp_path, "metrics/__init__.py", METRIC, "METRICS: dict[str, type[Metric]] = {\n", line)
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
    options = ["--metrics", "articles", "bleu", "--samples", "100"]
    page = tmp_path / "page.html"
    with_option = tmp_path / "with-option.json"
    option = ["--out", str(with_option), "--metric.articles.article", "a"]
    shown = ["--evaluate.metrics", "articles", "--evaluate.samples", "0", "--out", str(page)]
    text, *_ = run(
        tmp_path,
        ["evaluate", *tables, *flags, *options, "--out", str(out)],
        ["evaluate", tables[0], *flags, *options, *option],
        ["report", *tables, *flags, *shown],
    )
    assert "articles" in text
    scores = json.loads(out.read_text())
    assert [table["scores"]["articles"]["score"] for table in scores["tables"]] == [0, 0.5]
    assert scores["best"]["articles"]["table"] == "good", "the lower the better"
    [table] = json.loads(with_option.read_text())["tables"]
    assert table["scores"]["articles"]["score"] == pytest.approx(1 / 6), "it has options"
    text = page.read_text()
    assert "Articles" in text and "50%" in text and "share of the words" in text
    assert "Articles of good</option>" in text, "pictures are sorted by it"


@pytest.mark.thorough
def test_a_sink(tmp_path: Path) -> None:
    add(tmp_path, "sinks/__init__.py", SINK, "ALL_SINKS: tuple[Sink, ...] = (\n", "Markdown(),")
    save_captioner(tmp_path / "captioner")
    folder, out = photos(tmp_path / "photos", range(6)), tmp_path / "out"
    flags = ["--model", str(tmp_path / "captioner"), "--batch", "4", "--actors", "1"]
    command = ["caption", str(folder), "--out", str(out), *flags, "--also", "markdown"]
    first = tmp_path / "first.md"
    run_python(tmp_path, "-c", TWICE, str(out / "captions.md"), str(first), *command)
    lines = first.read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"- {n:05d}.png" for n in range(6)]
    assert (out / "captions.md").read_text().splitlines() == lines[:5], (
        "its files go with the table that they were made of"
    )


def test_a_scheduler(tmp_path: Path) -> None:
    line = '"half": Half(),'
    add(
        tmp_path,
        "tuning/schedulers.py",
        SCHEDULER,
        "SCHEDULERS: dict[str, Scheduler] = {\n",
        line,
    )
    config, help_text = run(
        tmp_path, ["tune", "--scheduler", "half", "--print-config"], ["tune", "--help"]
    )
    assert "scheduler: half" in config
    assert "half" in help_text
