"""Validation in training captions as the finished captioner does."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from feature_tables import POSITIONS, WIDTH, features, store_of, write

from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.cli import main
from raycap.decoders import TopDown
from raycap.device import choose_precision
from raycap.images import Reading, read_whole
from raycap.search import Beam
from raycap.sources import Shapes
from raycap.training.captions import CaptionWriter
from raycap.training.dataset import CaptionDataset
from raycap.training.neighbours import search_with_doubt
from raycap.training.network import Network
from raycap.vocabulary import Vocabulary, VocabularyOptions

torch.set_num_threads(1)
PICTURES = 400
SEARCH = Beam(width=3, max_length=12, consensus=4.0, fusion=3.0)
CONFIG = f"""
source: {{kind: shapes, count: {PICTURES}}}
encoder: {{kind: pixels, size: 96, patch: 16, frequencies: 4}}
decoder: {{kind: recurrent, hidden_width: 48, embedding_width: 32, attention_width: 32}}
search: {{kind: beam, width: 3, max_length: 12, consensus: 4.0, fusion: 3.0}}
vocabulary: {{min_count: 1}}
train:
  epochs: 2
  batch: 16
  lr: 1e-2
  precision: fp32
  trackers: []
  schedule: {{warmup: 2}}
  workers: {{count: 0, threads: 1, gpu: false}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    (folder / "run.yaml").write_text(CONFIG)
    flags = ["--out", str(folder / "run"), "--cache", str(folder / "cache")]
    assert main(["train", "--config", str(folder / "run.yaml"), *flags]) == 0
    return folder / "run"


def test_validation_wrote_the_captions_that_the_captioner_writes(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    validated = {line["key"]: line["caption"] for line in lines if "caption" in line}
    source = Shapes(count=PICTURES)
    table = pa.concat_tables(source.tables())
    pixels = [
        read_whole(data, Reading()).pixels
        for data, key in zip(
            source.embedded_pictures(table), table["key"].to_pylist(), strict=True
        )
        if key in validated
    ]
    captioner = TrainedCaptioner.read(run / "captioner", "cpu", "fp32")
    rows = [{"sha256": key} for key in table["key"].to_pylist() if key in validated]
    found = captioner.predict(pixels, rows)
    same = [validated[row["sha256"]] == one.caption for row, one in zip(rows, found, strict=True)]
    # Training reads features in float16.
    assert np.mean(same) >= 0.95 and len(same) > 30
    alone = dataclasses.replace(SEARCH, consensus=0.0)
    without = captioner.predict(pixels, rows, search=alone)
    assert sum(one.caption != other.caption for one, other in zip(found, without, strict=True)) > 5

    doubt = captioner.neighbours.doubt if captioner.neighbours else None
    assert doubt is not None
    not_sure = [one.extras["doubt"] >= doubt.threshold for one in found]
    assert np.mean(not_sure) == pytest.approx(0.1, abs=0.05)
    assert sorted(path.name for path in (run / "captioner").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "neighbours.safetensors",
        "vocabulary.json",
    ]
    assert not (run / "remembered").exists(), "it was for a run that continues"


def test_the_decoder_validates_in_float32_whatever_the_precision_of_the_run(
    tmp_path: Path,
) -> None:
    store = store_of(write(tmp_path / "table", features(24)), tmp_path / "cache")
    texts = [one for own in store.captions["references"].to_pylist() for one in own]
    vocabulary = Vocabulary.build(texts, VocabularyOptions(min_count=1))
    dataset = CaptionDataset(store, store.rows_of("train"), vocabulary)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = TopDown(hidden_width=24, embedding_width=16, attention_width=16)
        decoder = options.build(len(vocabulary), POSITIONS, WIDTH)
    network = Network(decoder, None).eval()
    batch = dataset.batch(dataset.rows)
    keys = [store.key(row) for row in batch.rows]
    bare = [[words[1:-1] for words in dataset.captions(row)] for row in dataset.rows]
    neighbours = build_neighbours(batch.pictures[:, -1].float().numpy(), bare, 8)
    found = {}
    for name in ("fp32", "bf16"):
        precision = choose_precision("cpu", name)
        writer = CaptionWriter(network, vocabulary, SEARCH, precision, neighbours)
        with torch.no_grad():
            found[name] = writer.find(*writer.read(batch.pictures), keys)
    assert found["bf16"] == found["fp32"]
    assert all(captions and columns["agreement"] >= 0 for captions, columns in found["fp32"])


def test_doubt_is_about_the_search_that_asks_neighbours() -> None:
    assert search_with_doubt(SEARCH) == SEARCH
    plain = Beam(width=5, length_penalty=0.8)
    assert search_with_doubt(plain) == dataclasses.replace(plain, consensus=4.0, fusion=3.0)
