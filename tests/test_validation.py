"""Validation in training captions as the finished captioner does."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from feature_tables import POSITIONS, WIDTH, features, store_of, write

from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.captioners.trained.consensus import find_candidates, rank_by_consensus
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.cli import main
from raycap.decoders import Recurrent, TopDown
from raycap.device import choose_precision
from raycap.encoders import Pixels
from raycap.images import Reading, read_whole
from raycap.search import Beam
from raycap.sources import Shapes
from raycap.storage import RunFolder
from raycap.training import Schedule, Train
from raycap.training.captions import CaptionWriter
from raycap.training.dataset import CaptionDataset
from raycap.training.distributed import WorkerGroup
from raycap.training.loop import train_captioner
from raycap.training.neighbours import search_with_doubt
from raycap.training.network import Network
from raycap.training.setup import TrainingSetup
from raycap.training.store import PictureTables
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
extract: {{precision: fp32}}
train:
  epochs: 2
  batch: 16
  lr: 1e-2
  precision: fp32
  trackers: []
  schedule: {{warmup: 2}}
  workers: {{count: 0, threads: 1, gpu: false}}
"""


def captions_of_validation(run: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    return {line["key"]: line["caption"] for line in lines if "caption" in line}


def test_a_run_validates_with_its_photos_and_finds_what_it_is_not_sure_of(tmp_path: Path) -> None:
    store = store_of(write(tmp_path / "table", features(168)), tmp_path / "cache")
    texts = [one for own in store.captions["references"].to_pylist() for one in own]
    vocabulary = Vocabulary.build(texts, VocabularyOptions(min_count=1))
    options = Recurrent(hidden_width=24, embedding_width=16, attention_width=16)
    plan = CaptionerPlan(Pixels(size=32, patch=16, frequencies=2), options, search=SEARCH)
    train = Train(epochs=1, batch=16, lr=0.02, schedule=Schedule(warmup=2), trackers=())
    tables = PictureTables(("a table",), "a listing")
    setup = TrainingSetup(plan, train, vocabulary, plan.encoder.build(), tables)
    precision = choose_precision("cpu", "fp32")
    run = tmp_path / "run"
    run.mkdir()
    train_captioner(setup, store, RunFolder(str(run)), precision, WorkerGroup())

    captioner = TrainedCaptioner.read(run / "captioner", "cpu", "fp32")
    neighbours = captioner.neighbours
    assert neighbours is not None and neighbours.doubt is not None
    assert len(neighbours.vectors) == len(store.rows_of("train"))
    dataset = CaptionDataset(store, store.rows_of("dev"), vocabulary)
    batch = dataset.batch(dataset.rows)
    vectors = batch.pictures[:, -1].float().numpy()
    near, familiar = neighbours.nearest(vectors), neighbours.familiar(vectors)
    bonus = neighbours.word_bonus(*near, len(vocabulary))
    with torch.inference_mode():
        grids = batch.pictures[:, :-1].float()
        memory = captioner.decoder.prepare(grids, torch.from_numpy(vectors))
        candidates = find_candidates(
            SEARCH, captioner.decoder, memory, [0] * len(vectors), word_bonus=bonus
        )
    ranked = [
        rank_by_consensus(SEARCH, each, neighbours, *own)
        for each, *own in zip(candidates, *near, familiar, strict=True)
    ]
    validated = captions_of_validation(run)
    found = [vocabulary.decode(captions[0].words) for captions, _ in ranked]
    assert found == [validated[store.key(row)] for row in dataset.rows]
    not_sure = [columns["doubt"] >= neighbours.doubt.threshold for _, columns in ranked]
    assert 0 < np.mean(not_sure) < 0.5
    assert not (run / "remembered").exists(), "it was for a run that continues"


@pytest.mark.thorough
def test_validation_wrote_the_captions_that_the_captioner_writes(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(CONFIG)
    flags = ["--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *flags]) == 0
    validated = captions_of_validation(tmp_path / "run")
    source = Shapes(count=PICTURES)
    table = pa.concat_tables(source.tables())
    keys = table["key"].to_pylist()
    pixels = [
        read_whole(data, Reading()).pixels
        for data, key in zip(source.embedded_pictures(table), keys, strict=True)
        if key in validated
    ]
    captioner = TrainedCaptioner.read(tmp_path / "run" / "captioner", "cpu", "fp32")
    rows = [{"sha256": key} for key in keys if key in validated]
    found = captioner.predict(pixels, rows)
    same = [validated[row["sha256"]] == one.caption for row, one in zip(rows, found, strict=True)]
    # Training reads features in float16.
    assert np.mean(same) >= 0.95 and len(same) > 30
    alone = dataclasses.replace(SEARCH, consensus=0.0)
    without = captioner.predict(pixels, rows, search=alone)
    assert sum(one.caption != other.caption for one, other in zip(found, without, strict=True)) > 5


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
