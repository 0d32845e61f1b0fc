"""Training that streams a feature table: the order of an epoch, captions that come with their
rows, and runs that are equal to those on unpacked data."""

import dataclasses
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feature_tables import (
    features,
    pictures_of,
    references,
    source_config,
    source_rows,
    write,
)
from hypothesis import given
from hypothesis import strategies as st
from test_train import CONFIG, DECODER, curve
from test_training import options, run

from raycap.cli import main
from raycap.errors import UserError
from raycap.schema import SUCCESS
from raycap.sources import records
from raycap.storage import RunFolder, memory
from raycap.training import Train, caption_join, loop, row_groups, store
from raycap.training.data import StreamedDataset, data_mode, datasets_of, open_pictures
from raycap.training.dataset import Batch
from raycap.training.options import DataMode
from raycap.training.order import BlockCursor, GroupedOrder
from raycap.training.row_groups import ROWS, join_captions, open_row_groups
from raycap.training.setup import caption_batches
from raycap.training.store import PictureStore, PictureTables
from raycap.training.stream import PictureStream
from raycap.vocabulary import Vocabulary, VocabularyOptions

pytestmark = pytest.mark.usefixtures("no_ray")

PICTURES, GROUP, WINDOW = 96, 5, 24


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    captions = [caption for number in range(12) for caption in references(number)]
    return Vocabulary.build(captions, VocabularyOptions(min_count=1))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureTables:
    """A table whose rows are in another order than the source's, with two failed rows."""
    folder = tmp_path_factory.mktemp("tables")
    table = features(PICTURES)
    status = [SUCCESS if number not in (7, 50) else "failed_to_decode" for number in range(96)]
    table = table.set_column(table.column_names.index("status"), "status", [status])
    order = np.random.default_rng(3).permutation(PICTURES)
    return pictures_of(
        write(folder / "table", table.take(order), source_rows(PICTURES), files=3, group=GROUP)
    )


def joined(pictures: PictureTables, folder: Path) -> PictureTables:
    rows = RunFolder(str(folder / ROWS))
    join_captions(pictures.tables[0], Path(pictures.listing), rows, Train())
    return dataclasses.replace(pictures, rows=str(rows))


@pytest.fixture(scope="module")
def both(
    pictures: PictureTables, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PictureStore, PictureStream]:
    """The same table, unpacked and as a stream."""
    folder, chosen = tmp_path_factory.mktemp("data"), Train(window=WINDOW)
    local = open_pictures(pictures, chosen, folder / "cache")
    stream = open_pictures(joined(pictures, folder), chosen, folder / "cache")
    assert isinstance(local, PictureStore) and isinstance(stream, PictureStream)
    return local, stream


# The order of an epoch


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    window=st.integers(1, 200),
    batch=st.integers(1, 40),
    workers=st.integers(1, 6),
    epoch=st.integers(0, 2),
)
def test_an_epoch_has_every_picture_once(
    sizes: list[int], window: int, batch: int, workers: int, epoch: int
) -> None:
    order = GroupedOrder(np.array(sizes), window, seed=5).epoch(epoch)
    assert order.pictures == sum(sizes)
    steps = range(0, sum(sizes), batch)
    shares = [
        [order.positions(start, start + batch, worker, workers) for start in steps]
        for worker in range(workers)
    ]
    for number, start in enumerate(steps):
        together = np.sort(np.concatenate([own[number] for own in shares]))
        assert together.tolist() == list(range(start, min(start + batch, sum(sizes))))
    cursor = BlockCursor(order)
    found = [cursor.picture(*order.lane_and_place(one)) for one in range(sum(sizes))]
    assert sorted(found) == [
        (group, one) for group, size in enumerate(sizes) for one in range(size)
    ]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=60), start=st.integers(0, 400))
def test_any_position_is_found_without_those_before(sizes: list[int], start: int) -> None:
    order = GroupedOrder(np.array(sizes), 64, seed=5).epoch(1)
    start = min(start, sum(sizes))
    whole, late = BlockCursor(order), BlockCursor(order)
    expected = [whole.picture(*order.lane_and_place(one)) for one in range(sum(sizes))]
    found = [late.picture(*order.lane_and_place(one)) for one in range(start, sum(sizes))]
    assert found == expected[start:]


def test_pictures_of_one_row_group_are_far_apart_and_blocks_are_small() -> None:
    order = GroupedOrder(np.full(400, 10), window=320, seed=0)
    epoch = order.epoch(0)
    cursor = BlockCursor(epoch)
    groups = np.array([cursor.picture(*epoch.lane_and_place(one))[0] for one in range(4000)])
    # In a step of 32 pictures that are drawn at random, 1.2 of 32 share their row group.
    shared = [32 - len(set(groups[start : start + 32])) for start in range(0, 4000, 32)]
    assert np.mean(shared) < 4
    assert order.lanes == 32
    blocks = [block for lane in range(32) for block in epoch.blocks(lane)]
    assert max(len(block.order) for block in blocks) <= 20
    assert any(not np.array_equal(block.order, np.sort(block.order)) for block in blocks)
    assert epoch.blocks(0).__next__().pieces != order.epoch(1).blocks(0).__next__().pieces


# Captions that come with their rows


@pytest.mark.parametrize(
    ("partition", "most"),
    [(7, 100), (7, 3), (100_000, 100)],
    ids=["many partitions", "three partitions", "one partition"],
)
def test_captions_are_beside_their_rows(
    partition: int,
    most: int,
    pictures: PictureTables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caption_join, "ROWS_OF_PARTITION", partition)
    monkeypatch.setattr(caption_join, "MOST_PARTITIONS", most)
    groups = open_row_groups(pictures.tables[0], RunFolder(joined(pictures, tmp_path).rows))
    assert int(groups.column("rows").sum()) == PICTURES and max(groups.column("rows")) == GROUP
    source = {row["path"]: row for row in source_rows(PICTURES)}
    training = validation = captions = 0
    for group in range(len(groups)):
        table = row_groups.read_group(*groups.feature_file(group), ["key", "status"]).to_pylist()
        beside = row_groups.read_group(
            *groups.caption_file(group), ["key", "split", "references"]
        ).to_pylist()
        for row, own in zip(table, beside, strict=True):
            if row["status"] != SUCCESS:
                assert own == {"key": None, "split": None, "references": None}
                continue
            listed = source[row["key"]]
            expected = {"split": listed["part"], "references": listed["references"]}
            assert own == {"key": row["key"], **expected}
            training += listed["part"] == "train"
            captions += len(listed["references"]) * (listed["part"] == "train")
            validation += listed["part"] == "dev"
    sums = [int(groups.column(name).sum()) for name in ("training", "validation", "captions")]
    assert sums == [training, validation, captions]


def test_memory_before_the_first_step_does_not_grow_with_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing, joining and counting words, with small partitions: Arrow's memory and Python's."""
    monkeypatch.setattr(caption_join, "ROWS_OF_PARTITION", 100)
    monkeypatch.setattr(caption_join, "ROWS_AT_ONCE", 200)
    monkeypatch.setattr(caption_join, "KEYS_AT_ONCE", 100)
    monkeypatch.setattr(row_groups, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(records, "MOST_ROWS", 100)
    peaks = []
    for count in (200, 400, 2_000):  # the first one imports what is missing
        table = write(tmp_path / str(count), features(count), files=count // 200, group=20)
        pool = pa.proxy_memory_pool(pa.system_memory_pool())
        with monkeypatch.context() as patch:
            patch.setattr(pa, "system_memory_pool", lambda own=pool: own)
            tracemalloc.start()
            try:
                pictures = joined(pictures_of(table), tmp_path / f"run {count}")
                with memory.held_briefly():
                    assert sum(map(len, caption_batches(pictures))) == count
                peaks.append((pool.max_memory(), tracemalloc.get_traced_memory()[1]))
            finally:
                tracemalloc.stop()
    assert all(large < 1.5 * small for small, large in zip(*peaks[1:], strict=True)), peaks


def test_a_table_that_has_changed_is_refused(pictures: PictureTables, tmp_path: Path) -> None:
    rows = RunFolder(joined(pictures, tmp_path).rows)
    other = write(tmp_path / "other", features(PICTURES), files=3, group=4)
    with pytest.raises(UserError, match=r"not those that this run began with.*--fresh"):
        open_row_groups(other, rows)


def test_row_groups_that_would_fill_the_memory_are_refused(
    pictures: PictureTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "MOST_BYTES_OF_GROUP", 100)
    with pytest.raises(UserError, match=r"make the features again.*--train.data local"):
        joined(pictures, tmp_path)


# Epochs of a stream


def batches(
    store: PictureStore | PictureStream, vocabulary: Vocabulary, workers: int, start: int = 0
) -> Iterator[list[Batch]]:
    """The batches of all workers in each step of epoch 1."""
    for worker in range(workers):
        training, _ = datasets_of(store, Train(window=WINDOW), vocabulary)
        shares = training.shares(1, 0, 8, worker, workers, start)
        yield [training.batch(share) for share in shares if len(share)]
        training.close()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_streamed_epoch_is_that_of_the_unpacked_table(
    workers: int, both: tuple[PictureStore, PictureStream], vocabulary: Vocabulary
) -> None:
    local, streamed = (list(batches(store, vocabulary, workers)) for store in both)
    for ours, theirs in zip(streamed, local, strict=True):
        assert len(ours) == len(theirs) > 2
        for one, other in zip(ours, theirs, strict=True):
            for name in ("pictures", "words", "has_sides"):
                assert torch.equal(getattr(one, name), getattr(other, name))


def test_an_epoch_goes_on_from_any_step(
    both: tuple[PictureStore, PictureStream], vocabulary: Vocabulary
) -> None:
    [whole] = batches(both[1], vocabulary, 1)
    for start in range(len(whole)):
        [rest] = batches(both[1], vocabulary, 1, start)
        assert [batch.rows.tolist() for batch in rest] == [
            batch.rows.tolist() for batch in whole[start:]
        ]
        assert torch.equal(rest[0].pictures, whole[start].pictures)


def test_a_stream_knows_all_captions_and_gives_samples(
    both: tuple[PictureStore, PictureStream], vocabulary: Vocabulary
) -> None:
    local, streamed = (datasets_of(store, Train(window=WINDOW), vocabulary)[0] for store in both)
    assert sorted(map(sorted, local.references())) == sorted(map(sorted, streamed.references()))
    assert local.count_captions() == streamed.count_captions() > len(local) == len(streamed)
    for most in (5, 1000):
        own = list(streamed.sample(most, False))
        assert sum(len(sample.pictures) for sample in own) == min(most, len(local))
        found = np.concatenate([sample.pictures for sample in own])
        theirs = np.concatenate([sample.pictures for sample in local.sample(most, False)])
        assert np.array_equal(found, theirs)
        captions = [captions for sample in own for captions in sample.captions]
        samples = local.sample(most, False)
        assert captions == [captions for sample in samples for captions in sample.captions]


def test_validation_pictures_of_many_row_groups_keep_their_order(
    pictures: PictureTables,
    both: tuple[PictureStore, PictureStream],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "PIECES_AT_ONCE", 2)
    stream = open_pictures(joined(pictures, tmp_path), Train(window=WINDOW), tmp_path / "cache")
    assert isinstance(stream, PictureStream)
    assert stream.validation.captions.equals(both[1].validation.captions)
    assert np.array_equal(stream.validation.rows, both[1].validation.rows)


def test_more_workers_than_lanes_are_refused(
    both: tuple[PictureStore, PictureStream], vocabulary: Vocabulary
) -> None:
    training, _ = datasets_of(both[1], Train(window=WINDOW), vocabulary)
    assert isinstance(training, StreamedDataset)
    with pytest.raises(UserError, match="larger window, or fewer workers"):
        training.shares(0, 0, 40, 0, training.order.lanes + 1)


# Whole runs


def test_a_streamed_run_writes_the_captioner_of_a_local_one(
    both: tuple[PictureStore, PictureStream], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """With self-critical training, whose references come with the rows."""
    critical = dataclasses.replace(Train().self_critical, epochs=1, samples=2, max_length=8)
    train = options(epochs=1, window=WINDOW, self_critical=critical)
    weights = []
    for each, name in zip(both, ("local", "stream"), strict=True):
        assert run(each, vocabulary, tmp_path / name, train)
        weights.append((tmp_path / name / "captioner" / "model.safetensors").read_bytes())
    assert curve(tmp_path / "local") == curve(tmp_path / "stream")
    assert weights[0] == weights[1]


def test_a_run_that_was_killed_after_its_last_step_is_validated(
    both: tuple[PictureStore, PictureStream],
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = options(epochs=1, window=WINDOW, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.delattr(loop, "validate_epoch")
        with pytest.raises(NameError):
            run(both[1], vocabulary, tmp_path / "killed", train)
    assert run(both[1], vocabulary, tmp_path / "killed", train)
    assert run(both[1], vocabulary, tmp_path / "whole", train)
    [epoch], [other] = curve(tmp_path / "killed"), curve(tmp_path / "whole")
    assert epoch == other


def config_of(tmp_path: Path, group: int = GROUP) -> list[str]:
    table = write(tmp_path / "table", features(PICTURES), group=group)
    file = tmp_path / "run.yaml"
    more = f"  features: {table}\n  cache: {tmp_path / 'cache'}\n  workers: {{count: 0}}\n"
    file.write_text(source_config(table) + CONFIG % DECODER + more)
    return ["train", "--config", str(file)]


def test_the_command_streams(tmp_path: Path) -> None:
    command = [*config_of(tmp_path), "--epochs", "1", "--train.window", "24"]
    assert main([*command, "--out", str(tmp_path / "run"), "--train.data", "stream"]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == "stream"
    learned = json.loads((tmp_path / "run" / "captioner" / "config.json").read_text())["facts"]
    assert learned["data"]["learned from"].startswith("72 pictures, 144 captions")
    # Only the 24 validation pictures were unpacked.
    [rows] = (tmp_path / "cache" / "rows").glob("*/rows.bin")
    assert rows.stat().st_size == 24 * 5 * 12 * 2


@pytest.mark.thorough
def test_a_run_keeps_the_way_in_which_it_began(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*config_of(tmp_path), "--epochs", "1"]
    local, stream = str(tmp_path / "local"), str(tmp_path / "stream")
    assert main([*command, "--out", local]) == 0
    assert main([*command, "--out", stream, "--train.data", "stream"]) == 0
    for out in (local, stream):
        (Path(out) / "facts.json").unlink()
    assert main([*command, "--out", stream]) == 0
    assert json.loads((tmp_path / "stream" / "run.json").read_text())["data"] == "stream"
    assert main([*command, "--out", local, "--train.data", "stream"]) == 2
    assert "begun with train.data local" in capsys.readouterr().err


def test_the_mode_is_chosen_by_the_free_space(
    pictures: PictureTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mode(free: int, data: DataMode = "auto") -> str:
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("raycap.training.data.shutil.disk_usage", lambda _: usage)
        return data_mode(pictures, Train(cache=str(tmp_path), data=data), "")

    size = sum(
        pq.read_metadata(file).row_group(group).total_byte_size
        for file in Path(pictures.tables[0]).glob("*.parquet")
        for group in range(pq.read_metadata(file).num_row_groups)
    )
    assert mode(3 * size) == "local" and mode(size) == "stream"
    assert mode(size, data="local") == "local" and mode(3 * size, data="stream") == "stream"
