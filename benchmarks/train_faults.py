"""Kill -9 a streamed training run at random moments, over and over, and compare it with an
undisturbed one.

python benchmarks/train_faults.py [--kills 20] [--pictures 600] [--epochs 6]

A cluster on this machine has a head and two nodes with one processor each; two workers train on
them. In turn a worker, the driver and a whole node are killed. A killed driver is started again, a
killed node is replaced. A kill comes up to two seconds after a checkpoint of that start.

In the end, the weights and the state of the optimiser must have the same bits as without kills,
the epochs the same figures, and the log each step once.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from stream import write_table

from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, read_epochs, read_log
from raycap.training.checkpoint import load_checkpoint

KINDS = ("worker", "driver", "node")
# Ray should notice a lost node soon, and start its processes on a busy machine too.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_agent_register_timeout_ms": "60000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_worker_niceness": "0",
    "OMP_NUM_THREADS": "1",
}
MEMORY: dict[str, Any] = {"object_store_memory": 150 * 2**20}
SECONDS_TO_HANG = 600.0  # without the next event, something hangs
CONFIG = """
source: {kind: table, path: %(folder)s/source.jsonl, key_column: path, split_column: split,
  references: [references]}
encoder: {kind: pixels, size: 8, patch: 8, frequencies: 2}
decoder: {kind: top_down, hidden_width: 24, embedding_width: 16, attention_width: 16,
  projection_width: 16}
search: {kind: greedy, max_length: 12}
vocabulary: {min_count: 5}
train:
  features: %(folder)s/table
  cache: %(folder)s/cache
  data: stream
  window: 256
  batch: 16
  lr: 0.01
  precision: fp32
  log_steps: 1
  checkpoint_minutes: 0.02
  trackers: []
  neighbours: 0
  validation: {best_by: loss}
  workers: {count: 2, cpus: 1, threads: 1, failures: 1000}
"""


class Machines:
    """A head that stays, and two nodes with a processor each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **MEMORY})
        self.nodes = [self.cluster.add_node(num_cpus=1, **MEMORY) for _ in range(2)]
        self.cluster.wait_for_nodes(300)

    def lose_one(self) -> None:
        """Kill a node, and add another one."""
        lost = self.nodes.pop(random.randrange(2))
        self.cluster.remove_node(lost, allow_graceful=False)
        while len(self.nodes) < 2:
            # A plain Exception, if a busy machine takes more than 30 seconds to start it.
            with contextlib.suppress(Exception):
                self.nodes.append(self.cluster.add_node(wait=False, num_cpus=1, **MEMORY))

    def workers(self) -> list[int]:
        """The processes that train."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.nodes}
        return [pid for pid, parent in _processes("ray::RayTrainWorker") if parent in raylets]


def _processes(title: str) -> Iterator[tuple[int, int]]:
    """Number and parent of the processes of this name."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_text().startswith(title):
                stat = (entry / "stat").read_text()
                yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


class Run:
    """A training run, started as often as it needs."""

    def __init__(self, config: Path, out: Path, machines: Machines, epochs: int) -> None:
        self.out = out
        self._command = [sys.executable, "-m", "raycap", "train", "--config", str(config)]
        self._command += ["--out", str(out), "--epochs", str(epochs)]
        self._command += ["--cluster.address", machines.cluster.address]
        self.start()

    def start(self) -> None:
        with Path(f"{self.out}.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def wait_for(self, is_there: Callable[[], object]) -> bool:
        """Whether it came before the end of the run."""
        end = time.monotonic() + SECONDS_TO_HANG
        while self.process.poll() is None:
            if is_there():
                return True
            if time.monotonic() > end:
                raise SystemExit(f"the run hangs; see {self.out}.log")
            time.sleep(0.02)
        if self.process.returncode:
            raise SystemExit(f"the run ended with {self.process.returncode}; see {self.out}.log")
        return False

    def kill(self, kind: str, machines: Machines) -> None:
        """Kill -9 a worker, the driver or a node."""
        if kind == "worker":
            for pid in random.sample(machines.workers(), 1):
                os.kill(pid, signal.SIGKILL)
        elif kind == "node":
            machines.lose_one()
        else:
            self.process.kill()
            self.process.wait()
            self.start()


def disturb(run: Run, machines: Machines, kinds: Iterator[str], most: int) -> list[str]:
    """Kill until the run ends or so many kills are made. Returns what was killed."""
    killed: list[str] = []
    before = ""  # the newest checkpoint at the last kill

    def has_gone_on() -> bool:
        return newest_checkpoint(run.out) > before and bool(machines.workers())

    began = time.monotonic()
    while len(killed) < most and run.wait_for(has_gone_on):
        seconds = time.monotonic() - began
        time.sleep(2 * random.random())
        before, steps = newest_checkpoint(run.out), len(steps_of(run.out))
        if run.process.poll() is not None:
            break
        kind = next(kinds)
        run.kill(kind, machines)
        killed.append(kind)
        began = time.monotonic()
        print(f"{kind} killed at step {steps}, {seconds:.1f} s after the last", flush=True)
    run.wait_for(lambda: False)
    return killed


def newest_checkpoint(out: Path) -> str:
    """The name of the newest complete checkpoint."""
    return max((path.parent.name for path in out.glob("checkpoints/*/state.json")), default="")


def steps_of(out: Path) -> list[int]:
    lines = read_log(RunFolder(str(out)) / METRICS)
    return [line["step"] for line in lines if line["kind"] == "step"]


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two finished runs."""
    found = []
    mine, other = (
        load_checkpoint(RunFolder(str(out)), torch.device("cpu")) for out in (ours, theirs)
    )
    assert mine is not None and other is not None
    for name, tensor in mine.tensors.items():
        if not torch.equal(tensor, other.tensors[name]):
            found.append(f"the tensor {name}")
    steps = steps_of(ours)
    if steps != list(range(1, other.state.step + 1)):
        found.append(f"the steps of the log: {len(steps)} lines for {other.state.step} steps")
    epochs = [read_epochs(RunFolder(str(out)) / METRICS) for out in (ours, theirs)]
    for one, two in itertools.zip_longest(*epochs, fillvalue={}):
        # The loss of an epoch is a sum, which a checkpoint cuts: its last digits differ.
        if abs(one["training_loss"] - two["training_loss"]) > 1e-5 * two["training_loss"]:
            found.append(f"the training loss of epoch {two['epoch']}")
        if one["validation_loss"] != two["validation_loss"]:
            found.append(f"the validation loss of epoch {two['epoch']}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    random.seed(given.seed)
    os.environ |= QUICK
    began = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix="raycap-train-faults-", ignore_cleanup_errors=True
    ) as scratch:
        folder = Path(scratch)
        write_table(folder, given.pictures, 1, 12, 40)
        config = folder / "config.yaml"
        config.write_text(CONFIG % {"folder": folder})
        machines = Machines()
        try:
            whole = Run(config, folder / "whole", machines, given.epochs)
            whole.wait_for(lambda: False)
            print(f"undisturbed: {len(steps_of(whole.out))} steps", flush=True)
            killed: list[str] = []
            kinds = itertools.cycle(KINDS)
            for number in itertools.count():
                run = Run(config, folder / f"run{number}", machines, given.epochs)
                killed += disturb(run, machines, kinds, given.kills - len(killed))
                wrong = differences(run.out, whole.out)
                last = read_epochs(RunFolder(str(run.out)) / METRICS)[-1]
                print(
                    f"run {number}: {len(killed)} kills so far, validation loss "
                    f"{last['validation_loss']:.6f}; {'; '.join(wrong) or 'no difference'}",
                    flush=True,
                )
                if len(killed) >= given.kills:
                    break
        finally:
            machines.cluster.shutdown()  # type: ignore[no-untyped-call]
    print({kind: killed.count(kind) for kind in KINDS}, f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
