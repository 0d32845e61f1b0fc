"""benchmarks/gpu.py in its short form: each section measures something, on a processor too."""

import json
from pathlib import Path
from typing import Any

import gpu
import gpu_tools
import pytest
from gpu_tools import Report, Setting, covered, read_trace

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.mark.parametrize("name", [pytest.param("search", marks=pytest.mark.thorough), "worker"])
def test_a_section_measures(name: str, tmp_path: Path) -> None:
    gpu.run_section(name, True, tmp_path / "result.json")
    rows = json.loads((tmp_path / "result.json").read_text())
    assert not [row for row in rows if row["unit"] == "failed"]
    assert any(row["unit"] == "pictures/s" and row["value"] > 0 for row in rows)
    assert any("operators" in row["what"] and row["value"] > 10 for row in rows)


@pytest.mark.thorough
def test_the_whole_benchmark_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["machine", "encoder", "jobs", "decode", "training", "huggingface"]
    assert gpu.main(["--short", "--out", str(tmp_path / "gpu.json"), "--only", *names]) == 0
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == names
    for name, found in results.items():
        assert found["rows"] or found["reason"].startswith("skipped"), (name, found["reason"])
        assert not [row for row in found["rows"] if row["unit"] == "failed"], name
        if found["rows"]:
            assert not found["reason"], name
    assert "device" in capsys.readouterr().out


def test_a_section_that_fails_takes_too_long_or_lacks_a_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "ended after" in gpu.measure("machine", True, 0.01, tmp_path)["reason"]
    monkeypatch.setitem(gpu.SECTIONS, "no such", gpu.Section("gpu", 9))
    assert "invalid choice" in gpu.measure("no such", True, 60, tmp_path)["reason"]
    monkeypatch.setitem(gpu.SECTIONS, "far", gpu.Section("gpu", 9, ("json", "no_such_package")))
    assert gpu.measure("far", True, 60, tmp_path)["reason"] == (
        "skipped: no_such_package is not installed"
    )
    assert "all the time" in gpu.measure("machine", True, -1.0, tmp_path)["reason"]
    assert sum(section.seconds for section in gpu.SECTIONS.values()) <= 9 * 60


def test_a_part_that_fails_costs_itself_only_and_what_was_measured_stays(tmp_path: Path) -> None:
    report = Report(tmp_path / "result.json")
    with report.part("first"):
        report.add("first", 1.0, "pictures/s")
        raise RuntimeError("CUDA error: no kernel image\nmore lines")
    with report.part("second"):
        report.add("second", 2.0, "pictures/s")
    rows = json.loads((tmp_path / "result.json").read_text())
    assert [row["what"] for row in rows] == ["first", "first", "second"]
    assert rows[1]["value"] == "RuntimeError: CUDA error: no kernel image"


def test_launches_waits_and_overlap_are_read_from_a_trace() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"name": name, "cat": "cuda_runtime", "ts": 0, "dur": 1}

    def kernel(start: float, end: float, stream: int) -> dict[str, Any]:
        return {
            "name": "gemm",
            "cat": "kernel",
            "ts": start,
            "dur": end - start,
            "args": {"stream": stream},
        }

    events = [
        *[call("cudaLaunchKernel")] * 6,
        *[call("cuLaunchKernelEx")] * 2,
        *[call("cudaGraphLaunch")] * 4,
        *[call("cudaStreamSynchronize")] * 4,
        {"name": "aten::mm", "cat": "cpu_op", "ts": 0, "dur": 1},
        {"name": "aten::nonzero", "cat": "cpu_op", "ts": 0, "dur": 1},
        kernel(0, 4, 7),
        kernel(2, 6, 13),
        kernel(8, 10, 7),
    ]
    found = read_trace(events, batches=2)
    assert (found.launches, found.graphs, found.synchronisations) == (4, 2, 2)
    assert found.operators == 1
    assert found.busy == pytest.approx(8 / 10)
    assert found.overlap == pytest.approx(2 / 8)
    assert covered([]) == (0.0, 0.0)


def test_the_busy_meter_says_why_it_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_tools.shutil, "which", lambda _: None)
    with gpu_tools.BusyMeter() as meter:
        pass
    assert meter.share() is None and "nvidia-smi" in meter.reason
    meter.samples = [(0, 0), (1, 80.0), (2, 0.0), (3, 100.0), (4, 0)]
    assert meter.share() == pytest.approx(0.6)
    assert Setting(True, "/tmp").seconds < Setting(False, "/tmp").seconds
