"""Several Ray nodes on this machine: what runs where, nodes that come and go, and machines with
other disks."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from feature_tables import features, source_config, write
from million import captioned  # in benchmarks/
from ray.cluster_utils import Cluster
from raylets import parents_of
from small_captioner import photos, save_captioner
from table_jobs import Numbers, captions_job
from tables import keys
from test_train import CONFIG, DECODER, close, curve, steps, wait_for

from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.cli import main
from raycap.cluster.nodes import check_visible, selector
from raycap.errors import UserError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("no_ray")]
MEMORY = {"object_store_memory": 150 * 2**20}
DECODER_TITLE = "ray::load_table"


@contextlib.contextmanager
def cluster_of(**head: Any) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={**MEMORY, **head})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "raycap", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_pictures_are_decoded_and_captioned_on_the_labelled_nodes_and_a_new_node_is_used(
    tmp_path: Path,
) -> None:
    source, model, out = (
        photos(tmp_path / "photos", range(400), size=8),
        tmp_path / "model",
        tmp_path / "out",
    )
    save_captioner(model)
    with cluster_of(num_cpus=1) as cluster:
        decodes = cluster.add_node(num_cpus=1, labels={"raycap": "decode"}, **MEMORY)
        # A GPU in name only.
        models = {
            "num_cpus": 1,
            "num_gpus": 1,
            "labels": {"raycap": "model"},
            **MEMORY,
        }
        first = cluster.add_node(**models)
        cluster.wait_for_nodes()
        where = ["--cluster.address", cluster.address, "--cluster.decode-on", "raycap=decode"]
        pool = [
            "--cluster.model-on",
            "raycap=model",
            "--gpus",
            "1",
            "--actors",
            "2",
            "--device",
            "cpu",
        ]
        small = ["--batch", "2", "--beam", "20", "--part-rows", "16"]
        run = start("caption", source, "--model", model, "--out", out, *where, *pool, *small)
        second, decoded_by = None, set()
        while run.poll() is None:
            decoded_by |= parents_of(DECODER_TITLE)
            # The pool waits for a place for its second actor.
            if second is None and (out / "captions").exists():
                second = cluster.add_node(**models)
            time.sleep(0.02)
        printed = run.stdout.read() if run.stdout else ""
        assert run.returncode == 0, printed
        assert second is not None
        assert decoded_by == {raylet(decodes)}
        nodes = json.loads((out / "facts.json").read_text())["nodes"]
        assert {name.rpartition("/")[2] for name in nodes} == {
            node.node_id[:8] for node in (first, second)
        }
        assert sum(node["rows"] for node in nodes.values()) == 400
        ray.init(cluster.address, log_to_driver=False)
        try:
            assert selector("raycap=model") == {"raycap": "model"}
            with pytest.raises(
                UserError, match=r"no node of the cluster has the label raycap=paint"
            ):
                selector("raycap=paint")
        finally:
            ray.shutdown()


def open_together(folder: str, count: int, _options: Any, _threads: int) -> Any:
    """A model that is loaded only while so many others load too. Each notes its node."""
    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"{node} {time.time_ns()}").touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < count:
        if time.monotonic() > end:
            raise UserError("the other workers have not begun to load their models")
        time.sleep(0.05)

    def answer(table: pa.Table) -> pa.Table:
        return captioned(table, "a dog")

    return answer


@pytest.mark.slow
def test_models_load_at_the_same_time_on_all_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The workers import this file and its helpers.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    loading = tmp_path / "loading"
    loading.mkdir()
    count = 4
    options = CaptionOptions(out=str(tmp_path / "out"), batch=4, actors=count, threads=1)
    model = functools.partial(open_together, str(loading), count)
    with cluster_of(num_cpus=2) as cluster:
        for _ in range(2):
            cluster.add_node(num_cpus=1, **MEMORY)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False)
        try:
            assert run_job(captions_job(Numbers(200), options, "together", model), {}) == 0
        finally:
            ray.shutdown()
    nodes = [path.name.partition(" ")[0] for path in loading.iterdir()]
    assert len(nodes) == count
    assert len(set(nodes)) == 3
    assert len(keys(tmp_path / "out")) == 200


@pytest.mark.slow
def test_a_node_lost_while_training_costs_time_only(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    table = write(tmp_path / "table", features(64))
    config.write_text(source_config(table) + CONFIG % DECODER)
    usual = [
        "--config",
        str(config),
        "--features",
        table,
        "--epochs",
        "8",
        "--cache",
        str(tmp_path / "cache"),
    ]
    usual += ["--validation.best-by", "loss"]
    assert main(["train", *usual, "--out", str(tmp_path / "whole"), "--workers.count", "0"]) == 0
    out = tmp_path / "out"
    with cluster_of(num_cpus=0) as cluster:
        nodes = [cluster.add_node(num_cpus=1, **MEMORY) for _ in range(3)]
        cluster.wait_for_nodes()
        workers = [
            "--workers.count",
            "2",
            "--workers.cpus",
            "1",
            "--cluster.address",
            cluster.address,
        ]
        run = start("train", *usual, "--out", out, *workers)
        wait_for(lambda: steps(out) >= 14 or run.poll() is not None)
        busy = parents_of("ray::RayTrainWorker")
        lost = next(node for node in nodes if raylet(node) in busy)
        assert run.poll() is None
        cluster.remove_node(lost, allow_graceful=False)
        printed, _ = run.communicate(timeout=240)
        assert run.returncode == 0, printed
    assert close(curve(out), curve(tmp_path / "whole"))


@pytest.mark.slow
def test_a_lost_head_with_its_driver_costs_a_command(tmp_path: Path) -> None:
    source, model, out = (
        photos(tmp_path / "photos", range(160), size=8),
        tmp_path / "model",
        tmp_path / "out",
    )
    save_captioner(model)
    small = [
        "--batch",
        "4",
        "--beam",
        "20",
        "--part-rows",
        "16",
        "--actors",
        "1",
    ]
    command = ["caption", source, "--model", model, "--out", out, *small, "--cluster.address"]
    with cluster_of(num_cpus=1) as cluster:
        cluster.add_node(num_cpus=1, **MEMORY)
        cluster.wait_for_nodes()
        run = start(*command, cluster.address)
        wait_for(lambda: keys(out) or run.poll() is not None)
        for process in (
            each.process for kind in cluster.head_node.all_processes.values() for each in kind
        ):
            process.kill()
        run.kill()  # it ran on the head, as a job's driver does
        run.communicate()
    first = keys(out)
    assert 0 < len(first) < 160 and not (out / "facts.json").exists()
    with cluster_of(num_cpus=2) as cluster:
        printed, _ = (again := start(*command, cluster.address)).communicate(timeout=200)
    assert again.returncode == 0, printed
    assert f"{160 - len(first)} made now" in printed
    assert sorted(keys(out)) == sorted(path.name for path in source.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="needs unshare, to play another machine"
)
def test_a_folder_that_another_machine_does_not_see_is_refused_before_work_starts(
    tmp_path: Path,
) -> None:
    """The other machine is a Ray node with a host name and a disk of its own."""
    hidden, shared = tmp_path / "hidden", tmp_path / "shared"
    for folder in (hidden, shared):
        folder.mkdir()
    with cluster_of(num_cpus=1) as cluster:
        node = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
        node += [
            f"--address={cluster.address}",
            f"--object-store-memory={MEMORY['object_store_memory']}",
        ]
        script = f'hostname elsewhere && mount -t tmpfs none "{hidden}" && exec "$@"'
        other = subprocess.Popen(
            ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", *node],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ray.init(cluster.address, log_to_driver=False)
        try:
            end = time.monotonic() + 60
            while (
                len([each for each in ray.nodes() if each["Alive"]]) < 2 and time.monotonic() < end
            ):
                if other.poll() is not None:
                    printed = other.stdout.read()[:200] if other.stdout else ""
                    pytest.skip(f"may not play another machine here: {printed}")
                time.sleep(0.1)
            check_visible({str(shared): "--out"})
            (hidden / "out").mkdir()
            with pytest.raises(
                UserError,
                match=r"hidden/out \(--out\) is on one machine only, .*elsewhere does not",
            ):
                check_visible({str(hidden / "out"): "--out", str(shared): "the source"})
        finally:
            ray.shutdown()
            other.terminate()
            other.wait(60)
