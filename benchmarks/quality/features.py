"""The features of photos, for the scripts in this folder: encoded once with the encoder of a
captioner, kept in files.

    python benchmarks/quality/features.py KEPT [--captioner shipped] [--encoder-weights FILE]
        [--flickr8k data/flickr8k] [--coco data/coco-mini] [--mirror dev]

KEPT gets, for each of train, dev and coco: vectors [N, D], grids [N, P, D] (of train only with
--train-grids), and lines with key, digest and references. Dev and coco are encoded in float32,
train in the fastest precision: its vectors are only compared. The test split is never read.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.captioners.trained import TrainedCaptioner
from raycap.sources import Coco, Flickr, Source

BATCH = 64


@dataclass(frozen=True)
class PhotoSet:
    """Encoded photos."""

    keys: list[str]
    digests: list[str]
    references: list[list[str]]
    grids: np.ndarray | None  # [N, P, D], memory-mapped
    vectors: np.ndarray  # [N, D]
    mirror_grids: np.ndarray | None
    mirror_vectors: np.ndarray | None


def read_set(kept: Path, name: str, most: int | None = None) -> PhotoSet:
    """What `main` wrote; of the first `most` photos."""
    lines = [json.loads(line) for line in (kept / f"{name}.jsonl").read_text().splitlines()][:most]

    def array(part: str) -> np.ndarray:
        found: np.ndarray = np.load(kept / f"{name}.{part}.npy", mmap_mode="r")[:most]
        return found

    has_grids = (kept / f"{name}.grids.npy").exists()
    has_mirror = (kept / f"{name}.mirror_grids.npy").exists()
    return PhotoSet(
        [line["key"] for line in lines],
        [line["sha256"] for line in lines],
        [line["references"] for line in lines],
        array("grids") if has_grids else None,
        np.array(array("vectors")),
        array("mirror_grids") if has_mirror else None,
        np.array(array("mirror_vectors")) if has_mirror else None,
    )


def encode_set(
    captioner: TrainedCaptioner,
    source: Source,
    split: str,
    kept: Path,
    name: str,
    mirror: bool,
    keeps_grids: bool,
) -> None:
    """Encode the photos of a split ("" for all) that have captions."""
    if (kept / f"{name}.jsonl").exists():
        return
    rows = [
        row
        for table in source.tables()
        for row in table.select(["key", "uri", "split", "references"]).to_pylist()
        if row["references"] and split in ("", row["split"])
    ]
    rows.sort(key=lambda row: str(row["key"]))
    parts: dict[str, list[np.ndarray]] = {}
    lines = []
    dtype = np.float16 if name == "train" else np.float32  # 6,000 grids are 0.75 GB in float16
    for batch, pixels, digests in _read(captioner, rows):
        views = {"": pixels, "mirror_": pixels.flip(3)} if mirror else {"": pixels}
        for prefix, view in views.items():
            with torch.inference_mode():
                grids, vectors = captioner._encode(view)
            if keeps_grids:
                parts.setdefault(f"{prefix}grids", []).append(grids.cpu().numpy().astype(dtype))
            parts.setdefault(f"{prefix}vectors", []).append(vectors.cpu().numpy())
        for row, digest in zip(batch, digests, strict=True):
            about = {"key": row["key"], "sha256": digest, "references": row["references"]}
            lines.append(json.dumps(about))
        print(f"{name}: {len(lines)} of {len(rows)}", flush=True)
    for part, arrays in parts.items():
        np.save(kept / f"{name}.{part}.npy", np.concatenate(arrays))
    (kept / f"{name}.jsonl").write_text("\n".join(lines))


def _read(
    captioner: TrainedCaptioner, rows: list[dict[str, Any]]
) -> Iterator[tuple[list[dict[str, Any]], torch.Tensor, list[str]]]:
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        loaded = captioner.load_pictures([row["uri"] for row in batch])
        pixels = np.stack([one.pixels for one in loaded if one.pixels is not None])
        assert len(pixels) == len(batch), [one.error for one in loaded if one.error]
        yield batch, torch.from_numpy(pixels).permute(0, 3, 1, 2), [one.sha256 for one in loaded]


def main() -> None:
    data = Path(os.environ.get("RAYCAP_DATA", "data"))
    parser = argparse.ArgumentParser()
    parser.add_argument("kept", type=Path)
    parser.add_argument("--captioner", default="shipped")
    parser.add_argument("--encoder-weights", default="")
    parser.add_argument("--flickr8k", default=str(data / "flickr8k"))
    parser.add_argument("--coco", default=str(data / "coco-mini"))
    parser.add_argument("--train-grids", action="store_true")
    parser.add_argument("--mirror", nargs="*", default=["dev"], help="sets to mirror too")
    options = parser.parse_args()
    options.kept.mkdir(parents=True, exist_ok=True)
    flickr = Flickr(path=options.flickr8k)
    for source, split, name in (
        (flickr, "dev", "dev"),
        (Coco(path=options.coco), "", "coco"),
        (flickr, "train", "train"),
    ):
        captioner = TrainedCaptioner.read(
            options.captioner,
            precision="auto" if name == "train" else "fp32",
            encoder_weights=options.encoder_weights,
        )
        keeps_grids = name != "train" or options.train_grids
        mirror = name in options.mirror
        encode_set(captioner, source, split, options.kept, name, mirror, keeps_grids)


if __name__ == "__main__":
    main()
