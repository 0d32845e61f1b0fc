r"""Every benchmark whose ratio stands in the README or in the table at the top of docs/speed.md,
one after the other, and that table written from their figures.

    python benchmarks/all.py --photos FOLDER --weights resnet50.safetensors \
        --peer VENV/bin/img2dataset --write
    python benchmarks/all.py --only decode search      # some of them; prints the table
    python benchmarks/all.py --quick                   # that they run: their figures say nothing

Each round of each benchmark is a process of its own. What it prints and its figures are kept in
--out. A ratio is the median of the rounds. A benchmark that lacks a package, data or another
program is skipped with its reason; its rows keep their figures, with the machine and the date that
they come from. The hand-written sections of docs/speed.md are not touched.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from json_figures import Figures, read_figures
from speed_table import Measured, Row, machine, table_of, updated

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "speed.md"
ROUNDS = 3
LINES_OF_A_FAILURE = 5
# What a benchmark may be given, and what a reader is to put there.
INPUTS = {"photos": "FOLDER", "weights": "FILE", "peer": "VENV/bin/img2dataset"}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as this table wants it."""

    rows: tuple[Row, ...]
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """Arguments behind those, which make it short."""
    inputs: tuple[str, ...] = ()
    """Which of INPUTS it takes."""
    needs: tuple[str, ...] = ()
    """Which of them it cannot do without."""
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    data: str = ""
    """A folder of RAYCAP_DATA."""
    file: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


PILLOW = 'Pillow `open().convert("RGB").resize()`'
PLAIN = "the fastest hand-written PyTorch program"
TRANSFORMERS = "Pillow and the processor of transformers, by processor time"
ADDRESSES = "fetching and decoding addresses of photos"
CAPTIONING = "captioning 3,000 photos, ResNet-50, beam 3"
DECODER = "training, the decoder of `configs/flickr8k.yaml`, cached features"
PIXELS = "JPEG bytes to the pixels that {} wants, 500x375, 12 megapixels"
PARALLEL = "training on 2 processes of 1 thread"

BENCHMARKS = {
    "decode": Benchmark(
        rows=(
            Row(
                "decode 500x375 photos to 224",
                PILLOW,
                "{small_ratio:.2f} (PSNR at least {small_psnr:.0f} dB)",
            ),
            Row(
                "decode 12-megapixel photos",
                PILLOW,
                "{large_ratio:.1f} (PSNR at least {large_psnr:.0f} dB)",
            ),
        ),
        arguments=("--rounds", "7"),
        quick=("--rounds", "1"),
        inputs=("photos",),
        needs=("photos",),
    ),
    "encode": Benchmark(
        rows=(
            Row(
                "encode, ResNet-50 in bf16",
                "bare torchvision, same dtype and layout",
                "{bf16_ratio:.2f} (fp32: {fp32_ratio:.2f})",
            ),
        ),
        arguments=("--threads", "2"),
        quick=("--size", "64", "--batch", "2", "--rounds", "1"),
    ),
    "search": Benchmark(
        rows=(
            Row(
                "beam search, batch 64, width 3",
                "one picture at a time, same captions",
                "{ratio:.1f}",
            ),
        ),
        arguments=("--rounds", "3", "--threads", "2"),
        quick=("--rounds", "1", "--batch", "2"),
    ),
    "step": Benchmark(
        rows=(
            Row(
                "training step, LSTM with attention",
                "the usual tutorial code, same gradients",
                "{fp32_ratio:.1f} (bf16: {bf16_ratio:.1f})",
            ),
        ),
        arguments=("--rounds", "3", "--threads", "2"),
        quick=("--rounds", "1", "--pictures", "2"),
    ),
    "train": Benchmark(
        rows=(
            Row(DECODER, "a plain torch loop, features in memory", "{loop_ratio:.2f}"),
            Row(
                DECODER,
                "pictures encoded at every epoch, one caption a row, float32",
                "{tutorials_ratio:.0f}",
            ),
            Row(PARALLEL, "1 process of 2 threads", "{workers_ratio:.2f}"),
        ),
        quick=("--pictures", "8", "--batch", "4", "--steps", "1", "--rounds", "1"),
        inputs=("photos", "weights"),
    ),
    "exchange": Benchmark(
        rows=(
            Row(
                f"{PARALLEL}, by processor time",
                "1 process of 2 threads",
                "{after_by_processor:.2f} (DDP: {during_by_processor:.2f})",
            ),
        ),
        arguments=("--batch", "16", "--steps", "4"),
        quick=("--batch", "4", "--steps", "1"),
    ),
    "caption": Benchmark(
        rows=(
            Row(f"{CAPTIONING}, the whole run", PLAIN, "{whole_plain:.2f} ({precision})"),
            Row(f"{CAPTIONING}, on Ray, the whole run", PLAIN, "{ray_whole_plain:.2f}"),
            Row(
                f"{CAPTIONING}, on Ray, without start-up time",
                PLAIN,
                "{ray_steady_plain:.2f} (by processor time {ray_processor_plain:.2f})",
            ),
            Row(
                f"{CAPTIONING}, on Ray, without start-up time",
                "one picture at a time in fp32",
                "{ray_steady_slow:.1f}",
            ),
        ),
        arguments=("--rounds", "1"),
        quick=("--pictures", "48"),
        inputs=("photos", "weights"),
        needs=("photos", "weights"),
    ),
    "urls": Benchmark(
        rows=tuple(
            Row(
                f"{ADDRESSES}, {dead}",
                "img2dataset",
                f"{{steady_{percent}:.2f}} ({{kilobytes:.0f}} KB each; with the start "
                f"{{whole_{percent}:.2f}})",
            )
            for percent, dead in (
                (0, "none dead"),
                (1, "1% at dead hosts"),
                (5, "5% at dead hosts"),
            )
        ),
        arguments=("--rounds", "1", "--rows", "30000"),
        quick=("--rows", "300", "--dead", "0"),
        inputs=("photos", "peer"),
        needs=("photos", "peer"),
        environment={"OMP_NUM_THREADS": "1"},
    ),
    "endpoint": Benchmark(
        rows=(
            Row(
                "captions of a server that answers after 4 s, 256 in flight",
                "what the server can give, 64/s",
                "{share:.2f}",
            ),
        ),
        quick=(*("--seconds", "0.2", "--in-flight", "8", "--rounds", "3"), "--at-once", "20"),
    ),
    "intake": Benchmark(
        rows=tuple(
            Row(PIXELS.format(title), TRANSFORMERS, f"{{{name}_small:.2f}}, {{{name}_large:.2f}}")
            for name, title in (
                ("qwen2_vl", "Qwen2-VL"),
                ("blip", "BLIP"),
                ("smolvlm", "SmolVLM (enlarged to 2048 pixels)"),
            )
        ),
        quick=("--seconds", "0.01"),
        inputs=("photos",),
        needs=("photos",),
        packages=("transformers",),
    ),
    "scaling": Benchmark(
        rows=(
            Row(
                "four workers with a captioner that only sleeps",
                "four times the rate of one",
                "{efficiency_4:.2f}",
            ),
        ),
        file="million",
        arguments=("--scaling",),
        quick=("--rounds", "1", "--batches", "3"),
    ),
    "metrics": Benchmark(
        rows=(Row("score 5,000 COCO pictures", "pycocoevalcap with Java", "{corpus_ratio:.1f}"),),
        quick=("--rounds", "1", "--pictures", "4"),
        packages=("pycocoevalcap",),
        programs=("java",),
        data="reference-scores",
    ),
}


def reason_to_skip(benchmark: Benchmark, inputs: Mapping[str, str]) -> str:
    """What a benchmark lacks here; empty if nothing."""
    if missing := [f"--{name} {INPUTS[name]}" for name in benchmark.needs if name not in inputs]:
        return f"give {' and '.join(missing)}"
    for package in benchmark.packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    for program in benchmark.programs:
        if shutil.which(program) is None:
            return f"there is no program {program} on this machine"
    if benchmark.data and not (data_folder() / benchmark.data).is_dir():
        return f"RAYCAP_DATA has no folder {benchmark.data}"
    return ""


def data_folder() -> Path:
    return Path(os.environ.get("RAYCAP_DATA", "/nowhere"))


def command_of(name: str, inputs: Mapping[str, str], quick: bool = False) -> list[str]:
    """The file of a benchmark and its arguments."""
    benchmark = BENCHMARKS[name]
    given = [
        word
        for option in benchmark.inputs
        if option in inputs
        for word in (f"--{option}", inputs[option])
    ]
    more = benchmark.quick if quick else ()
    return [f"benchmarks/{benchmark.file or name}.py", *benchmark.arguments, *given, *more]


def command_text(name: str) -> str:
    """The command as a reader gives it."""
    benchmark = BENCHMARKS[name]
    settings = [f"{key}={value}" for key, value in benchmark.environment.items()]
    return f"`{' '.join([*settings, 'python', *command_of(name, INPUTS)])}`"


def measure(name: str, number: int, inputs: Mapping[str, str], quick: bool, out: Path) -> Figures:
    """Run one round. Raises RuntimeError with the end of what a benchmark that failed has said."""
    figures, said = out / f"{name}-{number}.json", out / f"{name}-{number}.txt"
    command = [sys.executable, *command_of(name, inputs, quick), "--json", str(figures)]
    environment = os.environ | dict(BENCHMARKS[name].environment)
    paths = (str(HERE.parent), environment.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with said.open("wb") as file:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode or not figures.exists():
        last = said.read_text(errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
        raise RuntimeError(f"it ended with {done.returncode}, see {said}\n" + "\n".join(last))
    return read_figures(figures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if a benchmark failed."""
    given = parsed(arguments)
    inputs = {name: getattr(given, name) for name in INPUTS if getattr(given, name)}
    rounds = given.rounds or (1 if given.quick else ROUNDS)
    out = Path(given.out or tempfile.mkdtemp(prefix="raycap-benchmarks-"))
    out.mkdir(parents=True, exist_ok=True)
    print(f"the output of each benchmark is kept in {out}", flush=True)
    if os.getloadavg()[0] > 1:
        print(f"this machine is busy: its load is {os.getloadavg()[0]:.1f}", flush=True)
    found, has_failed = [], False
    for name, benchmark in BENCHMARKS.items():
        figures: list[Figures] = []
        if name not in given.only:
            pass
        elif reason := reason_to_skip(benchmark, inputs):
            print(f"{name}: skipped: {reason}", flush=True)
        else:
            try:
                for number in range(1, rounds + 1):
                    began = time.monotonic()
                    figures.append(measure(name, number, inputs, given.quick, out))
                    took = time.monotonic() - began
                    print(f"{name}: round {number} took {took:.0f} s", flush=True)
            except RuntimeError as error:
                print(f"{name}: failed: {error}", flush=True)
                figures, has_failed = [], True
        found.append(Measured(benchmark.rows, figures, command_text(name)))
    page = updated(PAGE.read_text(), found, machine())
    if given.write:
        PAGE.write_text(page)
        print(f"written: {PAGE}; README.md has some of these figures too")
    else:
        print(table_of(page), end="")
    return int(has_failed)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    photos = data_folder() / "flickr8k-original"
    parser.add_argument(
        "--photos",
        default=str(photos) if photos.is_dir() else "",
        help="a folder of JPEGs of 500x375; by default flickr8k-original in RAYCAP_DATA",
    )
    parser.add_argument("--weights", help="ResNet-50 in the layout of He et al., as safetensors")
    parser.add_argument("--peer", help="img2dataset, in an environment of its own")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="short forms, one round")
    parser.add_argument("--out", help="where the output is kept; a new folder by default")
    parser.add_argument("--write", action="store_true", help="write docs/speed.md")
    given = parser.parse_args(arguments)
    if given.quick and given.write:
        parser.error("--quick measures nothing that could stand in docs/speed.md")
    for name in INPUTS:  # benchmarks run in the folder of the repository
        if path := getattr(given, name):
            setattr(given, name, str(Path(path).absolute()))
    return given


if __name__ == "__main__":
    sys.exit(main())
