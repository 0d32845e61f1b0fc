r"""`raycap caption` beside plain programs for the same work: pictures per second, and where the
time goes.

    python benchmarks/caption.py --photos FOLDER --weights resnet50.safetensors \
        [--pictures 3000] [--rounds 3] [--programs raycap "plain 1 2"]

ResNet-50, LSTM with attention (512, 10,000 words, random weights: no caption ends early), beam 3,
captions of 20 words. In turn, each in a process of its own: raycap as it comes, which does without
Ray up to 4,000 pictures; raycap on Ray; the best plain programs that we know (DataLoader workers,
batches, the same encoder in the same numbers, channels_last, the batched beam, one Parquet file);
and, on a few pictures, the tutorials' way (one at a time, float32, a beam search in Python lists).
Medians over the rounds.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from json_figures import add_json, write_figures
from processor_time import processor_of
from torch.utils.data import DataLoader, Dataset

from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.decoders import Recurrent
from raycap.device import choose_precision
from raycap.encoders import ResNet50
from raycap.images import Reading, Square, read_picture
from raycap.schema import CAPTIONS
from raycap.search import Beam
from raycap.vocabulary import Vocabulary, VocabularyOptions

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.append(str(REPOSITORY / "tests"))
BATCH, WORDS, SLOW_PICTURES = int(os.environ.get("BATCH", "64")), 10_000, 16

# Workers of the DataLoader and threads of torch; which is best depends on what else the machine
# does.
PLAIN = ("plain 1 2", "plain 2 2")
OURS = {"raycap": "", "raycap on Ray": "ray_"}  # and how the names of their figures begin
# Ratios wanted; the last is one that a busy machine blurs least.
KINDS = {"steady": "wanted 0.95", "whole run": "wanted 0.85", "by processor time": "wanted 0.95"}
NAMES = ("steady", "whole", "processor")  # of the same, among the figures


def make_model(path: Path, weights: str) -> None:
    vocabulary = Vocabulary.build(
        [f"word{number}" for number in range(WORDS)], VocabularyOptions(min_count=1)
    )
    plan = CaptionerPlan(
        ResNet50(weights=weights, stride_in_1x1=True),
        Recurrent(),
        search=Beam(width=3, min_length=19),
    )
    encoder = plan.encoder.build()
    torch.manual_seed(0)
    decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    TrainedCaptioner(plan, vocabulary, encoder, decoder).save(path, include_encoder=True)


def make_photos(source: Path, folder: Path, pictures: int) -> None:
    """The same photos under so many names."""
    folder.mkdir()
    photos = sorted(
        path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    for number in range(pictures):
        photo = photos[number % len(photos)]
        os.link(photo, folder / f"{number:06d}{photo.suffix}") if _linkable(
            photo, folder
        ) else shutil.copy(photo, folder / f"{number:06d}{photo.suffix}")


def _linkable(photo: Path, folder: Path) -> bool:
    return photo.stat().st_dev == folder.stat().st_dev


class Photos(Dataset[tuple[int, torch.Tensor, tuple[int, int, str]]]):
    """Bytes to pixels in a DataLoader's workers, with the same reader."""

    def __init__(self, paths: list[str], square: Square) -> None:
        self.paths, self.square = paths, square

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int) -> tuple[int, torch.Tensor, tuple[int, int, str]]:
        data = Path(self.paths[place]).read_bytes()
        picture = read_picture(data, Reading(), self.square)
        assert picture.pixels is not None
        about = (picture.width, picture.height, hashlib.sha256(data).hexdigest())
        return place, torch.from_numpy(picture.pixels).permute(2, 0, 1), about


def together(items: list[Any]) -> tuple[list[int], torch.Tensor, list[Any]]:
    return (
        [item[0] for item in items],
        torch.stack([item[1] for item in items]),
        [item[2] for item in items],
    )


def plain(model: Path, folder: Path, out: Path, workers: int, threads: int) -> None:
    """The best plain program; says how many rows it has after each batch."""
    torch.set_num_threads(threads)
    captioner = TrainedCaptioner.read(model)
    preprocessing = captioner.encoder.preprocessing
    encode = captioner.encoder.for_inference(choose_precision())
    paths = sorted(str(path) for path in folder.iterdir())
    photos = Photos(
        paths, Square(preprocessing.size, preprocessing.resize, preprocessing.interpolation)
    )
    loader = DataLoader(
        photos,
        BATCH,
        num_workers=workers,
        collate_fn=together,
        prefetch_factor=2 if workers else None,
    )
    rows = []
    for places, pixels, about in loader:
        with torch.inference_mode():
            memory = captioner.decoder.prepare(*encode(pixels))
            found = captioner.plan.search.search(captioner.decoder, memory).hypotheses()
        for place, best, (width, height, digest) in zip(places, found, about, strict=True):
            said = captioner.vocabulary.decode(best[0].words)
            row = {
                "key": Path(paths[place]).name,
                "uri": paths[place],
                "caption": said,
                "score": best[0].score,
            }
            rows.append(
                row | {"status": "success", "width": width, "height": height, "sha256": digest}
            )
        print(len(rows), flush=True)
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), out, compression="zstd")


def slow(model: Path, folder: Path) -> None:
    """The tutorials' way."""
    from slow_search import slow_beam  # type: ignore[import-not-found]

    captioner = TrainedCaptioner.read(model, precision="fp32")
    preprocessing = captioner.encoder.preprocessing
    search = captioner.plan.search
    assert isinstance(search, Beam)
    for number, path in enumerate(sorted(folder.iterdir())[: SLOW_PICTURES + 1]):
        picture = read_picture(
            path.read_bytes(),
            Reading(),
            Square(preprocessing.size, preprocessing.resize, preprocessing.interpolation),
        )
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(picture.pixels)).permute(2, 0, 1)[None]
            slow_beam(
                search, captioner.decoder, captioner.decoder.prepare(*captioner.encoder(pixels))
            )
        print(number + 1, flush=True)


def costs(model: Path, folder: Path) -> dict[str, float]:
    """Milliseconds a picture of each act, alone in one process with all threads (decoding has
    one)."""
    captioner = TrainedCaptioner.read(model)
    preprocessing = captioner.encoder.preprocessing
    encode = captioner.encoder.for_inference(choose_precision())
    square = Square(preprocessing.size, preprocessing.resize, preprocessing.interpolation)
    seconds = dict.fromkeys(("fetch", "decode", "encode", "search", "write"), 0.0)
    for turn in range(4):
        paths = sorted(folder.iterdir())[turn * BATCH : (turn + 1) * BATCH]
        marks = [time.perf_counter()]
        data = [path.read_bytes() for path in paths]
        marks.append(time.perf_counter())
        read = [read_picture(each, Reading(), square).pixels for each in data]
        marks.append(time.perf_counter())
        with torch.inference_mode():
            features = encode(
                torch.from_numpy(np.stack([p for p in read if p is not None])).permute(0, 3, 1, 2)
            )
            marks.append(time.perf_counter())
            memory = captioner.decoder.prepare(*features)
            found = captioner.plan.search.search(captioner.decoder, memory).hypotheses()
        marks.append(time.perf_counter())
        rows = [
            {"key": path.name, "caption": captioner.vocabulary.decode(f[0].words)}
            for path, f in zip(paths, found, strict=True)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows), folder.parent / "costs.parquet", compression="zstd"
        )
        marks.append(time.perf_counter())
        if turn:  # the first warms up
            for act, before, after in zip(seconds, marks, marks[1:], strict=False):
                seconds[act] += 1000 * (after - before) / (3 * BATCH)
    return seconds


class Mark(NamedTuple):
    """How far a program was."""

    when: float  # seconds
    rows: int
    processor: float  # seconds of all its processes


def watch(command: list[str], rows: Callable[[], int], said: Path) -> list[Mark]:
    """Run a program and look at it ten times a second."""
    used: dict[int, float] = {}
    marks = []
    with said.open("wb") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file)
    while process.poll() is None:
        used |= processor_of(process.pid)
        marks.append(Mark(time.time(), rows(), sum(used.values())))
        time.sleep(0.1)
    assert process.returncode == 0
    return [*marks, Mark(time.time(), rows(), sum(used.values()))]


def rows_of(part: Path) -> int:
    """The rows of a Parquet file; none if it has been removed."""
    with contextlib.suppress(FileNotFoundError):
        return int(pq.read_metadata(part).num_rows)
    return 0


def measure(
    name: str, model: Path, folder: Path, out: Path, pictures: int
) -> tuple[float, float, float]:
    """Steady pictures per second, those of the whole run, and steady pictures per second of
    processor time."""
    said = out.with_suffix(".said")

    def lines() -> int:
        done = said.read_text().splitlines()
        return int(done[-1]) if done else 0

    def rows() -> int:
        # At the end files of chunks are joined to parts, and then removed.
        chunks, parts = (
            sum(map(rows_of, (out / "captions").glob(names)))
            for names in ("_chunks/*.parquet", "*.parquet")
        )
        return max(chunks, parts)

    if name in OURS:
        command = [
            "-m",
            "raycap",
            "caption",
            str(folder),
            "--model",
            str(model),
            "--out",
            str(out),
        ]
        if name == "raycap on Ray":
            command += ["--cluster.local-rows", "1"]
        marks = watch([sys.executable, *command, "--batch", str(BATCH)], rows, said)
    else:
        marks = watch(
            [sys.executable, __file__, "--child", name, str(model), str(folder), str(out)],
            lines,
            said,
        )
    most = marks[-1].rows
    middle = [mark for mark in marks if 0.2 * most <= mark.rows <= 0.95 * most]
    changes = [mark for before, mark in itertools.pairwise(middle) if mark.rows > before.rows]
    first, last = changes[0], changes[-1]
    done = last.rows - first.rows
    steady, cheap = done / (last.when - first.when), done / (last.processor - first.processor)
    return steady, most / (marks[-1].when - marks[0].when), cheap


def ratios(found: dict[str, list[tuple[float, float, float]]]) -> dict[str, float]:
    """Print and return medians of raycap beside those of the best plain program."""
    medians = {name: np.median(rounds, axis=0) for name, rounds in found.items()}
    plain = [medians[name] for name in PLAIN if name in medians]
    figures = {}
    for name, short in OURS.items():
        if name not in medians:
            continue
        for kind, (title, wanted) in enumerate(KINDS.items()):
            rate = medians[name][kind]
            if plain:
                ratio = float(rate / max(rates[kind] for rates in plain))
                print(f"{name} / plain, {title}: {ratio:.2f} ({wanted})")
                figures[f"{short}{NAMES[kind]}_plain"] = ratio
            if "slow" in medians:
                ratio = float(rate / medians["slow"][kind])
                print(f"{name} / one at a time, {title}: {ratio:.1f}")
                figures[f"{short}{NAMES[kind]}_slow"] = ratio
    return figures


def child(name: str, model: Path, folder: Path, out: Path) -> None:
    if name == "slow":
        slow(model, folder)
    else:
        plain(model, folder, out, *map(int, name.split()[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="a folder of photos, used again and again")
    parser.add_argument("--weights", help="ResNet-50 in the layout of He et al., as safetensors")
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    programs = [*OURS, *PLAIN, "slow"]
    parser.add_argument("--programs", nargs="+", choices=programs, default=programs)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    add_json(parser)
    chosen = parser.parse_args()
    if chosen.child:
        child(chosen.child[0], *map(Path, chosen.child[1:]))
        return
    if not (chosen.photos and chosen.weights):
        parser.error("give --photos FOLDER and --weights FILE: this benchmark needs real ones")
    home = Path(tempfile.mkdtemp(prefix="raycap-caption-"))
    try:
        make_model(home / "model", str(chosen.weights))
        make_photos(chosen.photos, home / "photos", chosen.pictures)
        print(
            "milliseconds a picture:",
            {act: round(ms, 2) for act, ms in costs(home / "model", home / "photos").items()},
        )
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in chosen.programs}
        for turn in range(chosen.rounds):
            for name, each in found.items():
                each.append(
                    measure(
                        name,
                        home / "model",
                        home / "photos",
                        home / f"{name}{turn}",
                        chosen.pictures,
                    )
                )
                print(
                    f"{turn} {name}: pictures per second: {[round(one, 2) for one in each[-1]]}",
                    flush=True,
                )
        write_figures(chosen, {"precision": choose_precision().name, **ratios(found)})
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
