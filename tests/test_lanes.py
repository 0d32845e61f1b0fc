"""The steps of a trained captioner's batches: what waits for what on a GPU, what overlaps, and the
batch size that fits."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cuda_stand_in import StandInForCuda
from small_captioner import photos, save_captioner

from raycap.bulk.captions import captions_job
from raycap.bulk.job import TableJob
from raycap.bulk.loading import Loaded, LocalLoader
from raycap.bulk.options import BulkOptions, CaptionOptions
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.captioners.trained import TrainedCaptioner, TrainedOptions, lanes
from raycap.captioners.trained.batches import FittingBatch, largest_batch
from raycap.captioners.trained.lanes import CudaLanes, Lanes
from raycap.cli import main
from raycap.cluster import Cluster
from raycap.device import PrecisionName
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.search import Beam
from raycap.sources import Folder
from raycap.storage import RunFolder

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


def squares(count: int, first: int = 0) -> list[np.ndarray]:
    return [
        np.random.default_rng(first + number).integers(0, 256, (64, 64, 3), np.uint8)
        for number in range(count)
    ]


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"sha256": str(number)} for number in range(count)]


# Streams


def work_in_streams(model: Path, cuda: StandInForCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four batches through three streams and three buffers, one ahead of the other."""
    captioner, expected = (TrainedCaptioner.read(model, "cpu", batch=4) for _ in range(2))
    for each in (captioner, expected):
        each.plan = dataclasses.replace(each.plan, search=Beam(width=2, max_length=2))
    captioner._lanes = CudaLanes(torch.device("cpu"), 4, cuda)
    fill, words = lanes._fill, captioner._predictions

    def fill_and_note(buffer: torch.Tensor, pictures: Any) -> None:
        cuda.note("fill", [], [buffer])  # NumPy writes it, which torch does not see
        fill(buffer, pictures)

    def words_and_note(found: Any) -> Any:
        found.is_done.wait()
        cuda.note("read", [part for part in found.results[0] if part is not None], [])
        return words(found)

    monkeypatch.setattr(lanes, "_fill", fill_and_note)
    monkeypatch.setattr(captioner, "_predictions", words_and_note)
    begun: list[Any] = []
    gives: list[Any] = []
    with cuda.watching():
        for number in range(4):
            begun.append(captioner.begin(squares(4, number), rows_of(4)))
            if len(begun) > captioner.batches_ahead:
                gives.append(begun.pop(0)())
        gives.append(begun.pop(0)())
        # In a job another thread does this: the host's order must not be what prevents races.
        said = [give() for give in gives]
    for number, captions in enumerate(said):
        wanted = expected.predict(squares(4, number), rows_of(4))
        assert [one.caption for one in captions] == [one.caption for one in wanted]


def test_streams_wait_for_what_they_use(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = StandInForCuda()
    work_in_streams(model, cuda, monkeypatch)
    assert cuda.races() == []
    actors = [access.actor for access in cuda.accesses]
    assert {"copies", "encoder", "search", "host"} <= set(actors)
    # The encoder is launched for the next batch before this one is searched for.
    turns = [actor for actor in actors if actor in ("encoder", "search")]
    turns = [actor for actor, before in zip(turns, ["", *turns], strict=False) if actor != before]
    assert turns == ["encoder", *["search", "encoder"] * 2, "search"]


@pytest.mark.parametrize(
    "ignores", ["copies waits", "encoder waits", "search waits", "host waits"]
)
def test_without_one_of_the_waits_there_is_a_race(
    ignores: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = StandInForCuda(ignores)
    work_in_streams(model, cuda, monkeypatch)
    assert cuda.races()


# A table job


class Trace:
    """Which step of which batch was begun when, in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, int]] = []
        self.threads: dict[str, set[int]] = {"encode": set(), "search": set(), "answer": set()}
        self._numbers: dict[int, int] = {}
        for step, name in (
            ("encode", "_encode_batch"),
            ("search", "_search_batch"),
            ("answer", "_predictions"),
        ):
            original = getattr(TrainedCaptioner, name)
            monkeypatch.setattr(TrainedCaptioner, name, self._noting(step, original))

    def _noting(self, step: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def noting(captioner: TrainedCaptioner, batch: Any, *more: Any) -> Any:
            request = batch if step == "encode" else None
            request = batch.request if step == "search" else request
            request = batch.batch.request if step == "answer" else request
            number = self._numbers.setdefault(id(request), len(self._numbers))
            self._kept = [*getattr(self, "_kept", []), request]  # no other gets its id
            self.steps.append((step, number))
            self.threads[step].add(threading.get_ident())
            return original(captioner, batch, *more)

        return noting


def load_all_first(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the model wait for rows that are still to come, although it has other work: what the
    trace shows then does not depend on the speed of the loader."""
    take = LocalLoader.next
    taken = [0]

    def patient(loader: LocalLoader, seconds: float | None) -> Loaded | None:
        if seconds == 0.0 and taken[0] < rows:
            seconds = 60.0
        loaded = take(loader, seconds)
        taken[0] += 0 if loaded is None else len(loaded.places)
        return loaded

    monkeypatch.setattr(LocalLoader, "next", patient)


def captions_of(out: Path) -> dict[str, str]:
    table = pq.read_table(out / "captions")
    return dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_batches_of_a_job_overlap(
    ahead: int, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos(tmp_path / "photos", range(24))
    job = ["caption", str(folder), "--model", str(model), "--batch", "4", "--precision", "fp32"]
    paths = sorted(folder.iterdir())
    expected = TrainedCaptioner.read(model, "cpu", precision="fp32").caption(paths)
    monkeypatch.setattr(Lanes, "ahead", ahead)
    load_all_first(monkeypatch, 24)
    trace = Trace(monkeypatch)
    assert main([*job, "--out", str(tmp_path / "out")]) == 0

    steps, batches = trace.steps, range(6)
    place = {step: steps.index(step) for step in steps}
    assert sorted(steps) == sorted((step, n) for step in trace.threads for n in batches)
    for n in batches[:-1]:
        # A processor searches at once; a GPU has the next batch to encode meanwhile.
        assert (place["encode", n + 1] < place["search", n]) == bool(ahead)
    for n in batches[:-2]:
        assert place["search", n] < place["encode", n + 2]
    under_way = [
        sum(step == "encode" for step, _ in steps[: end + 1])
        - sum(step == "answer" for step, _ in steps[: end + 1])
        for end in range(len(steps))
    ]
    assert max(under_way) <= 4
    assert trace.threads["encode"] == trace.threads["search"]
    assert not trace.threads["answer"] & trace.threads["search"], "words are found elsewhere"
    assert captions_of(tmp_path / "out") == {
        path.name: found.caption for path, found in zip(paths, expected, strict=True)
    }


def test_a_batch_that_does_not_fit_is_made_in_smaller_ones(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = TrainedCaptioner.read(model, "cpu", batch=8)
    captioner.plan = dataclasses.replace(captioner.plan, search=Beam(width=2, max_length=3))
    expected = captioner.predict(squares(8), rows_of(8))
    encode, results = captioner._encode, captioner._results

    def cramped(pixels: torch.Tensor) -> Any:
        if len(pixels) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    def cramped_search(batch: Any, nearest: Any) -> Any:
        if batch.count > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return results(batch, nearest)

    for name, function in (("_encode", cramped), ("_results", cramped_search)):
        with monkeypatch.context() as patch:
            patch.setattr(captioner, name, function)
            patch.setattr(captioner, "_fitting", FittingBatch(8))
            found = captioner.begin(squares(8), rows_of(8))()()
            assert [one.caption for one in found] == [one.caption for one in expected]
            assert captioner._fitting.size in (2, 4)
            # From now on it does not try the whole batch.
            again = captioner.begin(squares(8), rows_of(8))()()
            assert [one.caption for one in again] == [one.caption for one in expected]

    def broken(pixels: torch.Tensor) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(captioner, "_encode", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        captioner.begin(squares(2), rows_of(2))


# The largest batch


@pytest.mark.parametrize(
    ("most", "found"), [(79, 32), (80, 64), (400, 256), (1279, 512), (10**6, 1024), (2, 1)]
)
def test_the_largest_batch_has_a_margin(most: int, found: int) -> None:
    tried = []

    def try_batch(size: int) -> None:
        tried.append(size)
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    assert largest_batch(try_batch) == found
    assert 1.25 * found <= most and len(tried) <= 8
    assert max(tried) <= 1280, "larger batches are not tried"


def test_a_gpu_that_is_too_small_and_other_faults_are_reported() -> None:
    def full(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(UserError, match="memory is too small for this captioner"):
        largest_batch(full)
    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(broken)


def test_a_batch_is_tried_as_a_run_uses_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainedOptions.read(str(model), "", None, batch=3)
    captioner = options.open("cpu", None)
    monkeypatch.setattr(Lanes, "ahead", 1)
    sizes: list[tuple[str, int]] = []
    encode, results = captioner._encode, captioner._results

    def noting(pixels: torch.Tensor) -> Any:
        sizes.append(("encode", len(pixels)))
        return encode(pixels)

    def noting_search(batch: Any, nearest: Any) -> Any:
        sizes.append(("search", batch.count))
        return results(batch, nearest)

    monkeypatch.setattr(captioner, "_encode", noting)
    monkeypatch.setattr(captioner, "_results", noting_search)
    captioner.try_batch()
    assert sizes == [("encode", 3), ("encode", 3), ("search", 3), ("search", 3)]
    assert options.largest_batch("cpu", 1.0) is None, "a processor needs none"


@dataclasses.dataclass
class Devices:
    """A GPU in bf16 on which batches of 8 fit."""

    asked: int = 0

    def choose_precision(self, options: BulkOptions) -> PrecisionName:
        return "bf16"

    def choose_batch(self, job: TableJob) -> int:
        assert job.options.precision != "auto", "how much fits depends on it"
        self.asked += 1
        return 8


def test_the_batch_of_a_run_is_found_once(model: Path) -> None:
    def decided(
        precision: PrecisionName = "bf16",
        batch: int | None = None,
        record: dict[str, Any] | None = None,
        planned: int | None = None,
    ) -> tuple[int, Any, int]:
        """The batch, the one in the identity, and how often it was looked for."""
        options = CaptionOptions(precision=precision, batch=batch)
        job, devices = job_of(options), Devices()
        job = resolve_precision(job, record, RunFolder("/nowhere"), devices, planned)
        return job.options.batch_size, job.identity.get("batch"), devices.asked

    def job_of(options: CaptionOptions) -> TableJob:
        trained = TrainedOptions.read(str(model), "", None, batch=64, precision=options.precision)
        source = Folder(path=str(model))
        return captions_job(trained, source, options, Fetch(), Reading(), Cluster())

    assert decided() == (8, 8, 1)
    assert decided("auto") == (8, 8, 1)
    assert decided("fp32") == (8, None, 1), "in fp32 the batch decides nothing"
    assert decided(batch=4) == (4, 4, 0), "what was asked for is not looked for"
    earlier = {"identity": {"precision": "bf16", "batch": 16}}
    assert decided("auto", record=earlier) == (16, 16, 0)
    assert decided("fp32", planned=32) == (32, None, 0), "of an interrupted run"
    assert decided("auto", record=earlier, planned=32) == (16, 16, 0)
    first = job_of(CaptionOptions())
    assert as_recorded(first, earlier).identity["batch"] == 16
    assert as_recorded(job_of(CaptionOptions(batch=4)), earlier).identity["batch"] == 4
    assert job_of(CaptionOptions(batch=5)).order(RunFolder("/a"), RunFolder("/b")).batch == 5
    assert first.order(RunFolder("/a"), RunFolder("/b")).batch == 64


@pytest.mark.thorough
def test_a_run_keeps_the_batch_that_was_found_at_its_start(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = iter((8, 16, 32))  # as if other GPUs were there each time
    monkeypatch.setattr(TrainedOptions, "largest_batch", lambda *_: next(found))
    folder, out = photos(tmp_path / "photos", range(3)), tmp_path / "out"
    job = ["caption", str(folder), "--model", str(model), "--precision", "bf16"]

    def identity(of: Path) -> dict[str, Any]:
        return dict(json.loads((of / "run.json").read_text())["identity"])

    assert main([*job, "--out", str(out)]) == 0
    assert "batches of 8" in capsys.readouterr().err
    assert identity(out)["batch"] == 8
    photos(folder, range(3, 5))
    assert main([*job, "--out", str(out)]) == 0, "what was found first is used"
    assert "batches of 16" not in capsys.readouterr().err
    assert identity(out)["batch"] == 8 and len(captions_of(out)) == 5
    assert main([*job, "--out", str(out), "--batch", "4"]) == 2
    assert "batch was 8, now 4" in " ".join(capsys.readouterr().err.split())

    fp32 = [*job[:-1], "fp32", "--out", str(tmp_path / "fp32")]
    assert main(fp32) == 0
    assert "batches of 16" in capsys.readouterr().err
    assert "batch" not in identity(tmp_path / "fp32"), "in fp32 the batch decides nothing"
    plan = json.loads((tmp_path / "fp32" / "_plan" / "0001" / "plan.json").read_text())
    assert plan["batch"] == 16
    assert main([*job, "--out", str(tmp_path / "given"), "--batch", "2"]) == 0
    assert identity(tmp_path / "given")["batch"] == 2, "what was asked for is not looked for"
    assert next(found) == 32
