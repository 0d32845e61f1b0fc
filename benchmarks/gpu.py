"""What raycap does on this machine's GPU: one command, a table and a file of results.

    python benchmarks/gpu.py [--out gpu.json] [--minutes 9] [--only encoder search] [--short]

It needs this repository, torch and torchvision, and no weights or photos: weights are random, and
photos are cut from samples/. Each section runs in a process of its own, within its time: a section
that fails or takes too long costs itself only, and says why. Sections whose packages are missing
are skipped. `--short` shows in some seconds, on a processor, that all sections work.

    machine      names and versions
    encoder      ResNet-50 in each precision, also compiled, beside bare torchvision
    search       beam 3 of three decoders; launches and synchronisations of a batch
    worker       a model worker: from pixels in host memory to captions
    jobs         `raycap caption` from JPEG files to rows, and how busy the GPU is
    decode       JPEGs on processors and on the device
    training     steps of three decoders
    huggingface  a tiny model, and BLIP in its usual size

Wanted on an H200: ResNet-50 in bf16 12,000 pictures/s; worker 6,000/s; jobs 0.9 of the lesser of
worker and decode; the GPU busy for 0.9 of the time.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
# For what the sections import.
PATHS = (str(REPOSITORY), str(HERE), str(REPOSITORY / "tests"))
# Lines of a failed section that its reason is taken from.
LAST_LINES = 15


class Section(NamedTuple):
    """Which function measures it, for how long at most, and which packages it needs."""

    module: str
    seconds: float
    packages: tuple[str, ...] = ()


SECTIONS = {
    "machine": Section("gpu", 20),
    "encoder": Section("gpu_model", 105, ("torchvision",)),
    "search": Section("gpu_model", 65),
    "worker": Section("gpu_model", 70),
    "jobs": Section("gpu_whole", 120, ("ray", "deltalake")),
    "decode": Section("gpu_whole", 40, ("torchvision",)),
    "training": Section("gpu_model", 50),
    "huggingface": Section("gpu_model", 50, ("transformers", "tokenizers")),
}


def machine(report: Any, setting: Any) -> None:
    """Names and versions."""
    import torch

    device = setting.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    report.add("device", f"{device.type}: {name or platform.machine()}", "")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        report.add("memory of the GPU", memory, "GiB")
    report.add("processors", len(os.sched_getaffinity(0)), "")
    for package in ("torch", "torchvision", "ray", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            report.add(package, importlib.metadata.version(package), "")
    report.add("CUDA", str(torch.version.cuda), "")


def run_section(name: str, short: bool, path: Path) -> None:
    """Measure one section in this process."""
    sys.path[:0] = [each for each in PATHS if each not in sys.path]
    from gpu_tools import Report, Setting

    with tempfile.TemporaryDirectory() as folder:
        module = importlib.import_module(SECTIONS[name].module)
        getattr(module, name)(Report(path), Setting(short, folder))


def missing(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if importlib.util.find_spec(package) is None]


def measure(name: str, short: bool, seconds: float, folder: Path) -> dict[str, Any]:
    """The results of a section, and why they are not complete."""
    section = SECTIONS[name]
    if lacking := missing(section.packages):
        return {"rows": [], "reason": f"skipped: {', '.join(lacking)} is not installed"}
    if seconds <= 0:
        return {"rows": [], "reason": "skipped: the other sections have taken all the time"}
    path, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, str(HERE / "gpu.py"), "--section", name, "--result", str(path)]
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command + (["--short"] if short else []),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own processes end with it
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)},
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    reason = ""
    if status is None:
        reason = f"ended after {seconds:.0f} s: the rest was not measured"
    elif status:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = " | ".join(lines[-LAST_LINES:])[-600:] or f"it ended with {status}"
    rows = json.loads(path.read_text()) if path.exists() else []
    return {"rows": rows, "reason": reason, "seconds": round(time.monotonic() - start, 1)}


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, found in results.items():
        taken = f" ({found['seconds']} s)" if "seconds" in found else ""
        lines.append(f"\n{name}{taken}")
        for row in found["rows"]:
            value = row["value"]
            shown = f"{value:,.4g}" if isinstance(value, float) and value < 1000 else value
            shown = f"{value:,.0f}" if isinstance(value, float) and value >= 1000 else shown
            lines.append(f"  {row['what']:66} {shown} {row['unit']}")
        if found["reason"]:
            lines.append(f"  not complete: {found['reason']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.section:
        run_section(given.section, given.short, given.result)
        return 0
    # Some seconds are for starting and ending processes.
    end = time.monotonic() + 60 * given.minutes - 10
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            seconds = min(SECTIONS[name].seconds, end - time.monotonic())
            results[name] = measure(name, given.short, seconds, Path(folder))
            print(table({name: results[name]}), flush=True)
            given.out.write_text(json.dumps(results, indent=1))
    print(f"\nwritten to {given.out}")
    return 0 if any(found["rows"] for found in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
