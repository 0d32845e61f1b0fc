"""The candidate captions of photos whose features are kept: written once, for the other scripts.

    python benchmarks/quality/candidates.py KEPT dev --width 10 --drawn 20

KEPT is the folder of features.py. The candidates are a line for each photo.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from features import PhotoSet, read_set

from raycap.captioners.generation import picture_seed
from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import find_candidates
from raycap.search import Beam, Hypothesis

BATCH = 64


def candidates_of(
    kept: Path, name: str, captioner: TrainedCaptioner, search: Beam, mirror: bool = False
) -> list[list[Hypothesis]]:
    """Of a kept file, or searched now and kept. `search.drawn` 0 draws none."""
    view = "mirror" if mirror else "plain"
    file = kept / f"{name}.candidates-{search.width}-{search.drawn}-{view}.jsonl"
    if not file.exists():
        found = _search(read_set(kept, name), captioner, search, mirror)
        plain = [
            [(one.words, one.log_probability, one.score, one.finished) for one in each]
            for each in found
        ]
        file.write_text("\n".join(json.dumps(line) for line in plain))
    lines = map(json.loads, file.read_text().splitlines())
    return [[Hypothesis(tuple(words), *rest) for words, *rest in each] for each in lines]


def processor_ms(kept: Path, captioner: TrainedCaptioner, search: Beam) -> float:
    """Processor time of the search for a photo of dev, in a batch."""
    photos = read_set(kept, "dev", BATCH)
    started = time.process_time()
    _search(photos, captioner, search, mirror=False)
    return 1000 * (time.process_time() - started) / len(photos.keys)


@torch.inference_mode()
def _search(
    photos: PhotoSet, captioner: TrainedCaptioner, search: Beam, mirror: bool
) -> list[list[Hypothesis]]:
    found: list[list[Hypothesis]] = []
    assert photos.grids is not None, "encode the photos again with --train-grids"
    for start in range(0, len(photos.keys), BATCH):
        rows = slice(start, start + BATCH)
        grids = torch.from_numpy(photos.grids[rows].astype("float32"))
        vectors = torch.from_numpy(photos.vectors[rows])
        if mirror:
            assert photos.mirror_grids is not None and photos.mirror_vectors is not None
            side = captioner.encoder.side
            other = torch.from_numpy(photos.mirror_grids[rows].astype("float32"))
            other = other.reshape(len(other), side, side, -1).flip(2).flatten(1, 2)
            grids = (grids + other) / 2
            vectors = (vectors + torch.from_numpy(photos.mirror_vectors[rows])) / 2
        memory = captioner.decoder.prepare(grids, vectors)
        seeds = [picture_seed(0, digest, 0) for digest in photos.digests[rows]]
        found += find_candidates(search, captioner.decoder, memory, seeds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kept", type=Path)
    parser.add_argument("name")
    parser.add_argument("--captioner", default="shipped")
    parser.add_argument("--encoder-weights", default="")
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--drawn", type=int, default=20)
    parser.add_argument("--mirror", action="store_true")
    options = parser.parse_args()
    captioner = TrainedCaptioner.read(
        options.captioner, "cpu", "fp32", encoder_weights=options.encoder_weights
    )
    search = captioner.plan.search
    assert isinstance(search, Beam)
    search = replace(search, width=options.width, drawn=options.drawn)
    candidates_of(options.kept, options.name, captioner, search, options.mirror)


if __name__ == "__main__":
    main()
