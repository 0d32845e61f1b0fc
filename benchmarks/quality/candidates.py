"""What the scripts in this folder share: their captioner, and the candidate captions of photos
whose features are kept, which are written once.

    options = parser(__doc__).parse_args()
    captioner, search = read_captioner(options)
    candidates = candidates_of(options.kept, "dev", captioner, search, neighbours)
"""

import argparse
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from features import PhotoSet, read_set

from raycap.captioners.generation import picture_seed
from raycap.captioners.trained import TrainedCaptioner
from raycap.captioners.trained.consensus import find_candidates
from raycap.captioners.trained.neighbours import Neighbours, to_file
from raycap.search import Beam, Hypothesis

BATCH = 64


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of every script: KEPT, the folder of features.py, and a captioner."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("kept", type=Path)
    found.add_argument("--captioner", default="shipped")
    found.add_argument("--encoder-weights", default="")
    return found


def read_captioner(options: argparse.Namespace) -> tuple[TrainedCaptioner, Beam]:
    """The captioner in float32, and its own search without neighbours."""
    captioner = TrainedCaptioner.read(
        options.captioner, "cpu", "fp32", encoder_weights=options.encoder_weights
    )
    search = captioner.plan.search
    assert isinstance(search, Beam)
    return captioner, replace(search, consensus=0.0, fusion=0.0, drawn=0, best=1)


def with_counts(search: Beam, counts: str) -> Beam:
    """With so many beams, drawn captions and, where given, this fusion: "5,0,3"."""
    width, drawn, *fusion = counts.split(",")
    return replace(
        search, width=int(width), drawn=int(drawn), fusion=float(fusion[0]) if fusion else 0.0
    )


def candidates_of(
    kept: Path,
    name: str,
    captioner: TrainedCaptioner,
    search: Beam,
    neighbours: Neighbours | None = None,
    mirror: bool = False,
) -> list[list[Hypothesis]]:
    """Of a kept file, or searched now and kept. Neighbours are needed for `search.fusion`."""
    view = "mirror" if mirror else "plain"
    weights = b"".join(part.numpy().tobytes() for part in captioner.decoder.state_dict().values())
    if neighbours is not None and search.fusion:
        weights += to_file(replace(neighbours, familiarity=np.zeros(0, np.float32), doubt=None))
    digest = hashlib.sha256(weights)
    made_by = f"{search.width}-{search.drawn}-{search.fusion:g}-{view}-{digest.hexdigest()[:8]}"
    file = kept / f"{name}.candidates-{made_by}.jsonl"
    if not file.exists():
        found = _search(read_set(kept, name), captioner, search, neighbours, mirror)
        plain = [
            [(one.words, one.log_probability, one.score, one.finished) for one in each]
            for each in found
        ]
        file.write_text("\n".join(json.dumps(line) for line in plain))
    lines = map(json.loads, file.read_text().splitlines())
    return [[Hypothesis(tuple(words), *rest) for words, *rest in each] for each in lines]


def processor_ms(
    kept: Path, captioner: TrainedCaptioner, search: Beam, neighbours: Neighbours | None = None
) -> float:
    """Processor time of the search for a photo of dev, in a batch."""
    photos = read_set(kept, "dev", BATCH)
    started = time.process_time()
    _search(photos, captioner, search, neighbours, mirror=False)
    return 1000 * (time.process_time() - started) / len(photos.keys)


@torch.inference_mode()
def _search(
    photos: PhotoSet,
    captioner: TrainedCaptioner,
    search: Beam,
    neighbours: Neighbours | None,
    mirror: bool,
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
        bonus = None
        if search.fusion:
            assert neighbours is not None
            near = neighbours.nearest(vectors.numpy())
            bonus = neighbours.word_bonus(*near, len(captioner.vocabulary))
        found += find_candidates(search, captioner.decoder, memory, seeds, word_bonus=bonus)
    return found
