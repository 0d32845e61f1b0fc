"""Pictures per second of raycap's encoder against a bare torchvision loop, with the same numbers
and memory layout.

python benchmarks/encode.py [--encoder resnet50] [--size 224] [--batch 32] [--rounds 7] [--threads
2]

Random weights: they change no timing. Both sides start from uint8 pictures in memory and end with
float32 features of the last map; the bare loop is torchvision's network without its head, cast
once, channels_last. All sides take turns in one run; the figures are medians, the ratios are of
medians. At least 0.97 is wanted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from json_figures import add_json, write_figures
from torch import Tensor, nn

from raycap.device import Precision, PrecisionName, choose_precision
from raycap.encoders import ENCODERS, Torchvision
from raycap.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD

Loop = Callable[[Tensor], object]
KINDS = {
    kind: options
    for kind, options in ENCODERS.items()
    if issubclass(options, Torchvision) and kind != "vit_b_16"
}


def bare(kind: str, precision: Precision) -> Loop:
    """What one would write by hand."""
    network = torchvision.models.get_model(kind, weights=None).eval()
    layers = (
        network.features
        if hasattr(network, "features")
        else nn.Sequential(*list(network.children())[:-2])
    )
    layers = layers.to(precision.device, precision.dtype).to(memory_format=torch.channels_last)
    normalise = torchvision.transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)

    def loop(pixels: Tensor) -> object:
        colours = normalise(pixels.to(precision.device).float() / 255).to(precision.dtype)
        cells = layers(colours.contiguous(memory_format=torch.channels_last))
        return cells.flatten(2).transpose(1, 2).float()

    return loop


def sides(kind: str, size: int, device: str) -> dict[str, Loop]:
    """Each way of encoding, by name; the bare loop first of each precision."""
    encoder = KINDS[kind](weights="random", size=size).build()
    loops: dict[str, Loop] = {}
    names: tuple[PrecisionName, ...] = ("fp32", "bf16")
    for name in names:
        precision = choose_precision(device, name)
        loops[f"{name} bare torchvision"] = bare(kind, precision)
        loops[f"{name} raycap"] = encoder.for_inference(precision)
    return loops


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encoder",
        default="resnet50",
        choices=[k for k in ENCODERS if k not in ("timm", "pixels")],
    )
    parser.add_argument("--device", default="auto")
    for name, default in (
        ("size", 224),
        ("batch", 32),
        ("rounds", 7),
        ("threads", torch.get_num_threads()),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)

    loops = sides(given.encoder, given.size, given.device)
    pixels = torch.randint(0, 256, (given.batch, 3, given.size, given.size), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    with torch.inference_mode():
        for round_ in range(given.rounds + 1):
            for name, loop in loops.items():
                start = time.perf_counter()
                loop(pixels)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if round_:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)

    rates = {name: given.batch / statistics.median(times) for name, times in seconds.items()}
    print(
        f"{given.encoder}, {given.size} pixels, batches of {given.batch}, {given.threads} threads"
    )
    print(f"derived: {choose_precision(given.device)}")
    for name, rate in rates.items():
        print(
            f"{name:24} {rate:8.1f} pictures/s   "
            f"{rate / rates[f'{name[:4]} bare torchvision']:5.2f} x bare"
        )
    print(f"{'bf16 against fp32':24} {rates['bf16 raycap'] / rates['fp32 raycap']:5.2f} x")
    figures = {
        f"{name}_ratio": rates[f"{name} raycap"] / rates[f"{name} bare torchvision"]
        for name in ("fp32", "bf16")
    }
    write_figures(given, figures)


if __name__ == "__main__":
    main()
