"""Kill -9 a streamed training run at random moments, over and over, and compare it with an
undisturbed one.

python benchmarks/train_faults.py [--kills 20] [--pictures 600] [--epochs 6]

A cluster on this machine has a head and two nodes with one processor each; two workers train on
them. In turn a worker, the driver and a whole node are killed. A killed driver is started again, a
killed node is replaced. The moments take turns too:

- later: up to two seconds after a checkpoint of that start, while it trains or validates
- soon: some seconds after the last kill, or after the first start, while driver or workers start
- end: once in each run, up to a second after the last step, while it validates or finishes

In the end, the weights and the state of the optimiser must have the same bits as without kills,
the epochs the same figures, the steps the same losses, the log each step once, the captioner the
same bytes, and the folder the same files.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import random
import signal
import statistics
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
from raycap.storage.training_log import METRICS, PICTURES, read_epochs, read_log
from raycap.training import checkpoint
from raycap.training.run_files import CAPTIONER

KINDS = ("worker", "driver", "node")
MOMENTS = ("later", "soon")
# How long a kill waits at most: a driver takes so long until its workers train.
SOON = {"worker": 3.0, "driver": 15.0, "node": 10.0}
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
TRIES_TO_ADD = 5
# A driver that starts while a node is being replaced is refused. It is started again.
NO_ROOM = "more than the 1 that Ray has"
# Figures of a step are differences of sums over the epoch, which a checkpoint cuts.
STEP_TOLERANCE, EPOCH_TOLERANCE = 1e-4, 1e-5
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
  neighbours: 50
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
        for _ in range(TRIES_TO_ADD):
            # A plain Exception, if a busy machine takes more than 30 seconds to start it.
            with contextlib.suppress(Exception):
                self.nodes.append(self.cluster.add_node(wait=False, num_cpus=1, **MEMORY))
                return
        raise SystemExit("no node could be added: is the machine too busy?")

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
        self.out, self._log = out, Path(f"{out}.log")
        self._began = 0  # of the log of this start
        self._command = [sys.executable, "-m", "raycap", "train", "--config", str(config)]
        self._command += ["--out", str(out), "--epochs", str(epochs)]
        self._command += ["--cluster.address", machines.cluster.address]
        self.start()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._began = log.tell()
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def wait_for(self, is_there: Callable[[], object]) -> bool:
        """Whether it came before the end of the run."""
        end = time.monotonic() + SECONDS_TO_HANG
        while self.process.poll() is None:
            if is_there():
                return True
            if time.monotonic() > end:
                raise SystemExit(f"the run hangs; its output:\n{self._output()[-4000:]}")
            time.sleep(0.02)
        if self.process.returncode == 2 and NO_ROOM in self._output()[self._began :]:
            time.sleep(1)
            self.start()
            return self.wait_for(is_there)
        if self.process.returncode:
            raise SystemExit(
                f"the run ended with {self.process.returncode}; its output:\n"
                f"{self._output()[-4000:]}"
            )
        return False

    def _output(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self, kind: str, machines: Machines) -> bool:
        """Kill -9 a worker, the driver or a node. Returns False if it had gone before."""
        if kind == "worker":
            workers = machines.workers()
            with contextlib.suppress(ProcessLookupError):
                if workers:
                    os.kill(random.choice(workers), signal.SIGKILL)
                    return True
            return False
        if kind == "node":
            machines.lose_one()
            return True
        if self.process.poll() is not None:
            return False
        self.process.kill()
        self.process.wait()
        self.start()
        return True


@dataclasses.dataclass(frozen=True)
class Kill:
    """What was killed, when, and what it cost."""

    kind: str
    moment: str
    again: int  # steps that had to be made again
    seconds: float  # until the run had its next checkpoint, if it was waited for


def disturb(
    run: Run, machines: Machines, plan: Iterator[tuple[str, str]], last_step: int, most: int
) -> list[Kill]:
    """Kill until the run ends or so many kills are made. Returns the kills."""
    killed: list[Kill] = []
    before, starts_before = "", 0
    began, had_end = time.monotonic(), False

    def has_gone_on() -> bool:
        return newest_checkpoint(run.out) > before and bool(machines.workers())

    def is_at_end() -> bool:
        return not had_end and bool(steps_of(run.out)) and steps_of(run.out)[-1] == last_step

    while len(killed) < most:
        moment, kind = next(plan)
        if moment == "soon":
            if kind == "worker" and not run.wait_for(machines.workers):
                break
            time.sleep(SOON[kind] * random.random())
        elif not run.wait_for(lambda: has_gone_on() or is_at_end()):
            break
        elif is_at_end():
            moment, had_end = "end", True
            time.sleep(random.random())
        else:
            moment = "later"
            if killed:  # how long the last kill took
                seconds = time.monotonic() - began
                killed[-1] = dataclasses.replace(killed[-1], seconds=seconds)
            time.sleep(2 * random.random())
        newest, steps = newest_checkpoint(run.out), steps_of(run.out)
        starts = len(lines_of(run.out, "start"))
        if run.process.poll() is not None:
            break
        if not run.kill(kind, machines):
            continue
        # What the last kill has cost is counted once.
        again = len(steps) - int(newest.rpartition("-")[2] or 0) if starts > starts_before else 0
        killed.append(Kill(kind, moment, again, 0.0))
        before, starts_before, began = newest, starts, time.monotonic()
        print(f"{kind} killed at step {len(steps)} ({moment}), {again} made again", flush=True)
    run.wait_for(lambda: False)
    return killed


def newest_checkpoint(out: Path) -> str:
    """The name of the newest complete checkpoint; "" if there is none."""
    name = checkpoint.newest_checkpoint(RunFolder(str(out)))
    return "" if name is None else name


def lines_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(out / METRICS) if line["kind"] == kind]


def steps_of(out: Path) -> list[int]:
    return [line["step"] for line in lines_of(out, "step")]


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two finished runs."""
    found = _of_checkpoints(ours, theirs)
    steps, others = lines_of(ours, "step"), lines_of(theirs, "step")
    if steps_of(ours) != list(range(1, len(others) + 1)):
        return [*found, f"the steps of the log: {len(steps)} lines for {len(others)} steps"]
    for one, two in zip(steps, others, strict=True):
        if one["lr"] != two["lr"] or _are_apart(one, two, "training_loss", STEP_TOLERANCE):
            found.append(f"step {two['step']}: {one['training_loss']}, {two['training_loss']}")
    epochs, other_epochs = read_epochs(ours / METRICS), read_epochs(theirs / METRICS)
    if len(epochs) != len(other_epochs):
        return [*found, f"{len(epochs)} lines of {len(other_epochs)} epochs"]
    for one, two in zip(epochs, other_epochs, strict=True):
        for name, figure in two.items():
            if name.startswith("training_"):
                is_other = _are_apart(one, two, name, EPOCH_TOLERANCE)
            else:
                is_other = "seconds" not in name and one[name] != figure
            if is_other:
                found.append(f"{name} of epoch {two['epoch']}")
    if read_log(ours / PICTURES) != read_log(theirs / PICTURES):
        found.append("the captions of validation pictures")
    for file in sorted((theirs / CAPTIONER).glob("*")):
        # config.json and the card say how the run was started.
        mine = ours / CAPTIONER / file.name
        if file.suffix == ".safetensors" and mine.read_bytes() != file.read_bytes():
            found.append(f"the captioner's {file.name}")
    names = [{file.name for file in out.iterdir()} for out in (ours, theirs)]
    if names[0] != names[1]:
        found.append(f"the files {', '.join(sorted(names[0] ^ names[1]))}")
    return found


def _are_apart(one: dict[str, Any], two: dict[str, Any], name: str, tolerance: float) -> bool:
    return bool(abs(one[name] - two[name]) > tolerance * abs(two[name]))


def _of_checkpoints(ours: Path, theirs: Path) -> list[str]:
    """What differs between the last checkpoints of two runs."""
    cpu, loaded = torch.device("cpu"), []
    for out in (ours, theirs):
        folder = RunFolder(str(out))
        found = checkpoint.load_checkpoint(folder, checkpoint.newest_checkpoint(folder), cpu)
        assert found is not None, f"{out} has no checkpoint"
        loaded.append(found)
    mine, other = loaded
    different = []
    for name in sorted({*mine.tensors, *other.tensors}):
        tensors = mine.tensors.get(name), other.tensors.get(name)
        if tensors[0] is None or tensors[1] is None or not torch.equal(tensors[0], tensors[1]):
            different.append(f"the tensor {name}")
    states = [dataclasses.replace(each.state, seconds=0.0) for each in loaded]
    if states[0] != states[1]:
        different.append(f"the state {states[0]}, {states[1]}")
    return different


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
            killed, is_right = campaign(given, folder, config, machines)
        finally:
            machines.cluster.shutdown()  # type: ignore[no-untyped-call]
    for kind in KINDS:
        own = [kill for kill in killed if kill.kind == kind]
        moments = ", ".join(
            f"{sum(kill.moment == moment for kill in own)} {moment}"
            for moment in (*MOMENTS, "end")
        )
        seconds = [kill.seconds for kill in own if kill.seconds]
        median = f"{statistics.median(seconds):.0f}" if seconds else "?"
        print(
            f"{kind}: {len(own)} kills ({moments}), {sum(kill.again for kill in own)} steps made "
            f"again, {median} s to the next checkpoint (median)"
        )
    print(f"{time.monotonic() - began:.0f} s")
    if not is_right:
        raise SystemExit("a run that was killed differs from the undisturbed one")


def campaign(
    given: argparse.Namespace, folder: Path, config: Path, machines: Machines
) -> tuple[list[Kill], bool]:
    """The kills of as many runs as it takes, and whether all runs ended as the undisturbed one."""
    with Run(config, folder / "whole", machines, given.epochs) as whole:
        whole.wait_for(lambda: False)
    last_step = steps_of(whole.out)[-1]
    print(f"undisturbed: {last_step} steps", flush=True)
    killed: list[Kill] = []
    is_right = True
    plan = zip(itertools.cycle(MOMENTS), itertools.cycle(KINDS), strict=False)
    for number in itertools.count():
        with Run(config, folder / f"run{number}", machines, given.epochs) as run:
            more = disturb(run, machines, plan, last_step, given.kills - len(killed))
        if not more:
            raise SystemExit("a run ended before it was killed: give more --epochs")
        killed += more
        wrong = differences(run.out, whole.out)
        is_right = is_right and not wrong
        last = read_epochs(run.out / METRICS)[-1]
        print(
            f"run {number}: {len(killed)} kills so far, validation loss "
            f"{last['validation_loss']:.6f}; {'; '.join(wrong) or 'no difference'}",
            flush=True,
        )
        if len(killed) >= given.kills:
            return killed, is_right
    raise AssertionError("not reached")


if __name__ == "__main__":
    main()
