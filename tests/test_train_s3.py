"""`raycap train` with its features, its run folder and its captioner in a bucket, on a server of
the test's own."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_tables import features, references, source_flags, store_of, write
from raylets import parents_of
from test_cluster import MEMORY, cluster_of, raylet
from test_train import CONFIG, DECODER

from raycap import Captioner
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, read_epochs, read_log
from raycap.training import Train
from raycap.training.checkpoint import (
    CheckpointWriter,
    TrainState,
    load_checkpoint,
    newest_checkpoint,
)
from raycap.training.data import datasets_of
from raycap.training.run_files import EpochLimit
from raycap.training.self_critical import FREQUENCIES, count_frequencies, document_frequencies
from raycap.vocabulary import Vocabulary, VocabularyOptions

CPU = torch.device("cpu")


def losses(out: str) -> list[tuple[float, float]]:
    lines = read_epochs(RunFolder(out) / METRICS)
    return [(line["training_loss"], line["validation_loss"]) for line in lines]


def command(folder: Path, s3: Any, *more: str) -> list[str]:
    """A run whose source and features are in a bucket. Its config and its cache are in
    `folder`."""
    folder.mkdir()
    if not s3.exists("training"):
        table = write(folder / "table", features(96), group=5)
        s3.mkdir("training")
        for file in Path(table).iterdir():
            s3.put_file(str(file), f"training/table/{file.name}")
    (folder / "run.yaml").write_text(CONFIG % DECODER)
    table = "s3://training/table"
    where = ["--features", table, "--train.cache", str(folder / "cache")]
    stream = ["--train.data", "stream", "--train.window", "24", "--validation.best-by", "loss"]
    config = ["--config", str(folder / "run.yaml")]
    return ["train", *source_flags(table), *config, *where, *stream, *more]


# Checkpoints


@pytest.mark.parametrize("place", ["disk", pytest.param("bucket", marks=pytest.mark.thorough)])
def test_a_checkpoint_is_whole_or_not_there(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run = RunFolder(str(tmp_path / "run"))
    if place == "bucket":
        request.getfixturevalue("s3").mkdirs("checkpoints", exist_ok=True)
        run = RunFolder("s3://checkpoints/run")
    weight = torch.ones(3)
    writer = CheckpointWriter(run)
    for step in (1, 2, 3):
        weight.fill_(step)
        writer.save(TrainState(step=step), {"weight": weight}, {"pace": step})
        weight.fill_(-1)  # training goes on while the checkpoint is written
    writer.close()
    assert run.folders("checkpoints") == ["step-000000002", "step-000000003"]
    found = load_checkpoint(run, newest_checkpoint(run), CPU)
    assert found is not None and found.state.step == 3 and found.numbers == {"pace": 3}
    assert found.tensors["weight"].tolist() == [3, 3, 3]
    # A process was killed before it had written all of the last one.
    run.remove("checkpoints/step-000000003/state.json")
    found = load_checkpoint(run, newest_checkpoint(run), CPU)
    assert found is not None and found.tensors["weight"].tolist() == [2, 2, 2]


@pytest.mark.thorough
def test_document_frequencies_in_a_bucket_are_counted_once(s3: Any, tmp_path: Path) -> None:
    s3.mkdirs("frequencies", exist_ok=True)
    store = store_of(write(tmp_path / "table", features(12)), tmp_path / "cache")
    captions = [caption for number in range(12) for caption in references(number)]
    vocabulary = Vocabulary.build(captions, VocabularyOptions(min_count=1))
    training, _ = datasets_of(store, Train(), vocabulary)
    run = RunFolder("s3://frequencies/run")
    counted = document_frequencies(run, training)
    content = run.read(FREQUENCIES)
    again = document_frequencies(run, None)  # type: ignore[arg-type]
    for found in (counted, again):
        assert found.pictures == len(training) and len(found.hashes[3])
        local = count_frequencies(training)
        for n in range(4):
            assert np.array_equal(found.hashes[n], local.hashes[n])
            assert np.array_equal(found.counts[n], local.counts[n])
    assert run.read(FREQUENCIES) == content


# Whole runs


@pytest.mark.usefixtures("no_ray")
@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_from_another_folder(
    tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, here = "s3://training/run", ["--workers.count", "0", "--epochs", "10"]
    started = command(tmp_path / "first", s3, *here, "--out", out)
    process = start(started)
    try:
        wait_for(process, lambda: len(losses(out)) >= 2)
    finally:
        process.kill()
        process.communicate()
    assert 2 <= len(losses(out)) < 10
    # On another machine, the lease of a dead run is waited for.
    RunFolder(out).remove_file("_lease.json")
    again = command(tmp_path / "second", s3, *here, "--out", out)
    monkeypatch.chdir(tmp_path / "second")
    assert main(again) == 0
    whole = command(tmp_path / "third", s3, *here, "--out", str(tmp_path / "whole"))
    assert main(whole) == 0
    assert losses(out) == losses(str(tmp_path / "whole"))
    facts = json.loads(s3.cat("training/run/facts.json"))
    assert facts["epochs"] == 10
    names = {name.rpartition("/")[2] for name in s3.ls("training/run", refresh=True)}
    assert {"captioner", "metrics.jsonl", "learning_curve.png", "validation.jsonl"} <= names
    captioner = Captioner.load(f"{out}/captioner")
    assert isinstance(captioner, TrainedCaptioner) and captioner.neighbours is not None
    steps = [line["step"] for line in read_log(RunFolder(out) / METRICS) if line["kind"] == "step"]
    assert steps == list(range(1, steps[-1] + 1))


# Several nodes without a shared folder


ELASTIC = """
import functools, sys
from raycap.cli import main
from raycap.cluster import train_workers
from raycap.commands import train
train_workers.SECONDS_BETWEEN_RESIZES = 2.0
train.run_training = functools.partial(train.run_training, epoch_token="test")
sys.exit(main(sys.argv[1:]))
"""


def start(arguments: list[str], *program: str) -> "subprocess.Popen[str]":
    """The command in a process of its own, or a program with its arguments."""
    command = [sys.executable, *(program or ("-m", "raycap")), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def close(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> bool:
    return len(ours) == len(theirs) and bool(np.allclose(ours, theirs, rtol=1e-3))


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_two_nodes_without_a_shared_folder_do_what_one_process_does(
    tmp_path: Path, s3: Any
) -> None:
    epochs = ["--epochs", "3"]
    whole = command(tmp_path / "here", s3, *epochs, "--workers.count", "0")
    assert main([*whole, "--out", str(tmp_path / "whole")]) == 0
    caches = [tmp_path / name for name in ("first", "second")]
    with cluster_of(num_cpus=0) as cluster:
        for cache in caches:
            own = {"XDG_CACHE_HOME": str(cache)}
            cluster.add_node(num_cpus=1, env_vars=own, **MEMORY)
        cluster.wait_for_nodes()
        workers = ["--workers.count", "2", "--workers.cpus", "1"]
        workers += ["--cluster.address", cluster.address]
        out = "s3://training/nodes"
        given = command(tmp_path / "driver", s3, *epochs, *workers, "--out", out)
        given.remove("--train.cache")
        given.remove(str(tmp_path / "driver" / "cache"))
        run = start(given)
        printed, _ = run.communicate(timeout=400)
        assert run.returncode == 0, printed
    assert close(losses(out), losses(str(tmp_path / "whole")))
    # Each node has unpacked the validation pictures for itself, and nothing else.
    for cache in caches:
        [unpacked] = (cache / "raycap" / "rows").iterdir()
        assert (unpacked / "rows.bin").stat().st_size < 96 * 5 * 12 * 2 / 2
    assert Captioner.load(f"{out}/captioner") is not None


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_run_goes_on_with_more_and_with_fewer_workers(tmp_path: Path, s3: Any) -> None:
    """Without dropout, the losses say that every picture was learned from once in each epoch. The
    run waits before each epoch until the test allows it."""
    epochs = ["--epochs", "8"]
    whole = command(tmp_path / "here", s3, *epochs, "--workers.count", "0")
    assert main([*whole, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "elastic"
    out.mkdir()
    limit = EpochLimit(out, "test")
    with cluster_of(num_cpus=0) as cluster:
        first = cluster.add_node(num_cpus=1, **MEMORY)
        cluster.wait_for_nodes()
        where = ["--workers.min", "1", "--workers.max", "2", "--workers.cpus", "1"]
        where += ["--cluster.address", cluster.address]
        given = command(tmp_path / "driver", s3, *epochs, *where, "--out", str(out))
        limit.allow(2)
        run = start(given, "-c", ELASTIC)

        def has_workers_on(*nodes: Any) -> bool:
            return parents_of("ray::RayTrainWorker") == {raylet(node) for node in nodes}

        try:
            wait_for(run, limit.is_reached)
            second = cluster.add_node(num_cpus=1, **MEMORY)
            wait_for(run, lambda: has_workers_on(first, second))
            limit.allow(4)
            wait_for(run, limit.is_reached)
            limit.allow(7)
            wait_for(run, lambda: len(losses(str(out))) > 4)
            cluster.remove_node(first, allow_graceful=False)
            wait_for(run, lambda: has_workers_on(second))
            limit.allow(8)
            printed, _ = run.communicate(timeout=240)
        finally:
            run.kill()
    assert run.returncode == 0, printed
    assert close(losses(str(out)), losses(str(tmp_path / "whole")))
    lines = read_log(out / METRICS)
    workers = [line["workers"] for line in lines if line["kind"] == "start"]
    assert [count for count, _ in itertools.groupby(workers)] == [1, 2, 1]
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == list(range(1, steps[-1] + 1))


def wait_for(run: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    """Wait until the condition holds. Fails if the run ends before, or takes minutes."""
    end = time.monotonic() + 240
    while not condition():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)
