"""The loss curves of local and streamed training on real features, laid over each other.

python benchmarks/curves.py data/flickr8k [--weights FILE] [--epochs 3] [--png FILE]

`raycap train` with configs/compact.yaml (MobileNetV2, without augmentation and dropout, with a
smaller decoder), once for each way:

- local: features in a mapped file, all pictures shuffled
- local, window: the same file, in the order in which it would be streamed
- streamed: the feature table is read while training, by 1, 2 and 4 workers

All but the first have the same pictures in the same steps, so their losses must agree: exactly
with one worker, else as far as sums of float32 numbers in another order do. If they do not, the
exit code is 1.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, read_log
from raycap.training.checkpoint import load_checkpoint, newest_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
# Data, pictures that are shuffled together, and workers; 0 workers: in the command's own process.
WAYS = {
    "local": ("local", 0, 0),
    "local, window": ("local", 512, 0),
    "streamed, 1 process": ("stream", 512, 0),
    "streamed, 2 workers": ("stream", 512, 2),
    "streamed, 4 workers": ("stream", 512, 4),
}
SAME_ORDER = "local, window"
TOLERANCE = 1e-3  # of the loss of a step; those of two steps differ by a tenth and more
# What the figure shows: the others lie on these.
DRAWN = {
    "local": ("#2f80c3", 1.2, "-"),
    SAME_ORDER: ("#3a9d5d", 3.0, "-"),
    "streamed, 1 process": ("#202020", 1.0, "--"),
}


def command(given: argparse.Namespace, way: str, out: Path, cache: Path) -> list[str]:
    """The command of a way."""
    data, window, workers = WAYS[way]
    ways = ["--train.data", data, "--workers.count", str(workers)]
    ways += ["--train.window", str(window)] if window else []
    config = str(REPOSITORY / "configs" / "compact.yaml")
    plain = ["--augmentation.views", "0", "--augmentation.crop", "0", "--augmentation.no-flip"]
    small = {"hidden": 128, "embedding": 128, "projection": 128, "attention": 64}
    for part, width in small.items():
        plain += [f"--decoder.{part}-width", str(width)]
    # Each worker draws its own dropout, so with dropout the number of workers would matter.
    for part in ("grid", "embedding", "layer", "output"):
        plain += [f"--decoder.{part}-dropout", "0"]
    length = ["--epochs", str(given.epochs), "--self-critical.epochs", "0"]
    length += ["--schedule.warmup", "50", "--log-steps", "1"]
    length += ["--features", given.features] if given.features else ["--limit", given.pictures]
    where = ["--out", str(out), "--train.cache", str(cache)]
    weights = ["--encoder.weights", given.weights] if given.weights else []
    fast = ["--search", "greedy", "--train.neighbours", "0", "--workers.threads", "1"]
    start = [sys.executable, "-m", "raycap", "train", given.data, "--config", config]
    return [*start, *ways, *plain, *length, *where, *weights, *fast, "--train.precision", "fp32"]


def lines_of(out: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(out / METRICS) if line["kind"] == kind]


def farthest(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two curves, as a share of the loss."""
    pairs = zip(ours, theirs, strict=True)
    return max(abs(one - other) / other for one, other in pairs)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    """The weights after the last step."""
    folder = RunFolder(str(out))
    found = load_checkpoint(folder, newest_checkpoint(folder), torch.device("cpu"))
    assert found is not None, f"{out} has no checkpoint"
    return {
        name: weight
        for name, weight in found.tensors.items()
        if name.startswith("network.") and weight.is_floating_point()
    }


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all weights, as a share of their norm."""
    apart = sum(float((ours[name] - weight).square().sum()) for name, weight in theirs.items())
    return float((apart / sum(float(each.square().sum()) for each in theirs.values())) ** 0.5)


def draw(runs: dict[str, Path], file: Path) -> None:
    """Running means of the training loss over ten steps, and the loss of each validation."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, (colour, width, style) in DRAWN.items():
        steps = lines_of(runs[name], "step")
        losses = [line["training_loss"] for line in steps]
        means = [
            statistics.fmean(losses[max(0, end - 10) : end]) for end in range(1, len(losses) + 1)
        ]
        places = [line["step"] for line in steps]
        axes.plot(places, means, style, color=colour, linewidth=width, label=name)
        epochs = lines_of(runs[name], "epoch")
        validated = [line["validation_loss"] for line in epochs]
        axes.plot(
            [line["step"] for line in epochs],
            validated,
            "o",
            color=colour,
            markersize=2 + 2 * width,
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a word")
    axes.set_ylim(top=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="training; dots: validation")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--weights", default="")
    parser.add_argument("--pictures", default="2000", help="of each split")
    parser.add_argument("--features", default="", help="a feature table that is there already")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--folder", type=Path, help="keep runs and features there")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder: Path = given.folder or Path(scratch)
        runs = {}
        for name in given.ways:
            runs[name] = folder / name.replace(",", "").replace(" ", "-")
            options = command(given, name, runs[name], folder / "cache")
            with (folder / "output.log").open("a") as log:
                subprocess.run(options, check=True, stdout=log, stderr=log)
            steps, epochs = (lines_of(runs[name], kind) for kind in ("step", "epoch"))
            rate = statistics.median(line["captions_per_second"] for line in steps)
            losses = ", ".join(f"{line['validation_loss']:.5f}" for line in epochs)
            [workers] = {line["workers"] for line in lines_of(runs[name], "start")}
            print(
                f"{name}: {workers} workers, {len(steps)} steps, validation loss {losses}; "
                f"{rate:.0f} captions/s",
                flush=True,
            )
            if workers != (WAYS[name][2] or 1):
                raise SystemExit(f"{name} had {workers} workers")
        if SAME_ORDER not in runs:
            return
        expected = [line["training_loss"] for line in lines_of(runs[SAME_ORDER], "step")]
        weights = weights_of(runs[SAME_ORDER])
        if given.png and runs.keys() >= DRAWN.keys():
            draw(runs, given.png)
        others = []
        for name, out in runs.items():
            if name.startswith("streamed"):
                found = [line["training_loss"] for line in lines_of(out, "step")]
                share, apart = farthest(found, expected), distance(weights_of(out), weights)
                print(
                    f"{name}: steps differ by {share:.1e} of the loss at most, the last weights "
                    f"by {apart:.1e} of their norm"
                )
                if share > (TOLERANCE if WAYS[name][2] > 1 else 0):
                    others.append(name)
        if others:
            raise SystemExit(f"other losses than {SAME_ORDER}: {'; '.join(others)}")


if __name__ == "__main__":
    main()
