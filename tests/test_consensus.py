"""Remembered training photos, and captions chosen by agreement with theirs."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_cider import plain_cider
from small_captioner import photos, save_captioner

from raycap.captioners.trained import TrainedCaptioner, TrainedOptions
from raycap.captioners.trained.folder import NEIGHBOURS, add_neighbours
from raycap.captioners.trained.neighbours import (
    Neighbours,
    build_neighbours,
    from_file,
    to_file,
)
from raycap.errors import UserError
from raycap.metrics.consensus import CiderConsensus
from raycap.search import Beam, Greedy, search_identity

torch.set_num_threads(1)
REMEMBERED = 12
BEAM = Beam(width=4, drawn=6, drawn_temperature=2.0, max_length=12)


def remembered(width: int, seed: int = 0) -> Neighbours:
    """Made-up training photos with these sentences."""
    chance = np.random.default_rng(seed)
    vectors = chance.random((REMEMBERED, width))
    captions = [chance.integers(4, 30, (3, 6)).tolist() for _ in range(REMEMBERED)]
    return build_neighbours(vectors, captions, 8).calibrated(chance.random((20, width)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remembers") / "captioner"
    captioner = save_captioner(path)
    add_neighbours(path, remembered(captioner.encoder.width))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(photos(tmp_path_factory.mktemp("photos"), range(9)).iterdir())


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_plain_cider_d_over_the_captions_of_the_photos(seed: int) -> None:
    chance = random.Random(seed)

    def caption(most: int) -> list[int]:
        return [chance.randrange(4, most) for _ in range(chance.randrange(9))]

    references = [[caption(12) for _ in range(chance.randrange(1, 4))] for _ in range(9)]
    captions = [caption(14) for _ in range(6)]  # with words that no photo has
    near = chance.sample(range(9), 4)
    counts = [len(references[photo]) for photo in near]
    expected = []
    for one in captions:
        by_photo = plain_cider([one] * 9, references)  # type: ignore[arg-type]
        expected.append(np.average([by_photo[photo] for photo in near], weights=counts))
    found = CiderConsensus(references)(captions, np.array(near))
    assert found == pytest.approx(expected)


def test_the_nearest_photos_are_those_of_a_plain_search_and_do_not_depend_on_the_batch() -> None:
    chance = np.random.default_rng(3)
    vectors, asked = chance.random((200, 24)), chance.random((30, 24))
    neighbours = build_neighbours(vectors, [[[4]]] * 200, 24)
    rows, likeness = neighbours.nearest(asked, 10)
    roots = np.sqrt(vectors) - np.sqrt(vectors).mean(0)
    values, directions = np.linalg.eigh(np.cov(roots.T))

    def plain(features: np.ndarray) -> np.ndarray:
        whitened = (np.sqrt(features) - np.sqrt(vectors).mean(0)) @ directions / np.sqrt(values)
        unit: np.ndarray = whitened / np.linalg.norm(whitened, axis=1, keepdims=True)
        return unit

    cosines = plain(asked) @ plain(vectors).T
    assert likeness == pytest.approx(np.take_along_axis(cosines, rows, 1), abs=0.02)
    assert likeness == pytest.approx(-np.sort(-cosines, axis=1)[:, :10], abs=0.02)
    one_by_one = [neighbours.nearest(row[None], 10)[0][0] for row in asked]
    assert (np.array(one_by_one) == rows).all()


def test_photos_like_those_remembered_are_familiar_and_others_are_not() -> None:
    chance = np.random.default_rng(0)
    vectors = chance.random((100, 8)) * [9, 9, 9, 9, 1, 1, 1, 1]
    neighbours = build_neighbours(vectors[:50], [[[4]]] * 50, 8).calibrated(vectors[50:])

    def unfamiliar(features: np.ndarray) -> np.ndarray:
        return neighbours.unfamiliar(neighbours.nearest(features)[1])

    assert unfamiliar(vectors[:50]).mean() < 0.3 < unfamiliar(vectors[50:]).mean() < 0.7
    assert ((unfamiliar(vectors) >= 0) & (unfamiliar(vectors) <= 1)).all()


def test_without_weight_the_captions_are_those_of_the_search_alone(
    folder: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    plain = save_captioner(tmp_path / "plain")
    with_photos = TrainedCaptioner.read(folder, "cpu")
    assert with_photos.neighbours is not None and plain.neighbours is None
    for search in (Greedy(max_length=12), dataclasses.replace(BEAM, consensus=0.0)):
        expected = plain.caption(pictures, search=search)
        assert with_photos.caption(pictures, search=search) == expected
    assert search_identity(BEAM) == search_identity(Beam(width=4, max_length=12))


def test_more_weight_finds_captions_that_agree_more(folder: Path, pictures: list[Path]) -> None:
    captioner = TrainedCaptioner.read(folder, "cpu")
    assert captioner.neighbours is not None
    loaded = captioner.load_pictures(pictures)
    pixels = np.stack([one.pixels for one in loaded if one.pixels is not None])
    with torch.inference_mode():
        vectors = captioner.encoder(torch.from_numpy(pixels).permute(0, 3, 1, 2)).vector.numpy()
    near, _ = captioner.neighbours.nearest(vectors)
    means = []
    for weight in (0.001, 1000.0):
        captions = captioner.caption(pictures, search=dataclasses.replace(BEAM, consensus=weight))
        encoded = [captioner.vocabulary.encode(one.caption)[1:-1] for one in captions]
        agreement = [
            captioner.neighbours.consensus([words], rows)[0]
            for words, rows in zip(encoded, near, strict=True)
        ]
        means.append(np.mean(agreement))
    assert means[1] > means[0]


@pytest.mark.parametrize("fixed", [False, True])
def test_a_caption_does_not_depend_on_the_batch(
    folder: Path, pictures: list[Path], fixed: bool
) -> None:
    search = dataclasses.replace(BEAM, consensus=4.0, best=3)
    options = TrainedOptions.read(str(folder), "", search, batch=4, fixed_batch=fixed)
    captioner = options.open("cpu", 1)
    together = captioner.caption(pictures)
    apart = [captioner.caption([picture])[0] for picture in reversed(pictures)][::-1]
    assert [one.caption for one in together] == [one.caption for one in apart]
    assert [[other.caption for other in one.alternatives] for one in together] == [
        [other.caption for other in one.alternatives] for one in apart
    ]
    assert len({one.caption for one in together}) > 1


def test_mirrored_pictures_have_the_same_caption_with_mirror(
    folder: Path, pictures: list[Path]
) -> None:
    captioner = TrainedCaptioner.read(folder, "cpu")
    loaded = captioner.load_pictures(pictures)
    pixels = [one.pixels for one in loaded if one.pixels is not None]
    turned = [picture[:, ::-1] for picture in pixels]
    rows = [{"sha256": str(number)} for number in range(len(pixels))]
    search = dataclasses.replace(BEAM, mirror=True)
    with torch.inference_mode():
        features, mirrored = (
            captioner._features(torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2), mirror=True)
            for each in (pixels, turned)
        )
    side = captioner.encoder.side
    flipped = mirrored.grid.unflatten(1, (side, side)).flip(2).flatten(1, 2)
    assert torch.allclose(features.grid, flipped, atol=1e-5)
    assert torch.allclose(features.vector, mirrored.vector, atol=1e-5)
    captions = [one.caption for one in captioner.predict(pixels, rows, search=search)]
    assert captions != [one.caption for one in captioner.predict(pixels, rows, search=BEAM)]


def test_pictures_have_the_columns_unfamiliar_and_agreement(
    folder: Path, pictures: list[Path]
) -> None:
    plain = TrainedOptions.read(str(folder), "", None, batch=4)
    assert plain.columns().names == ["unfamiliar"]
    search = dataclasses.replace(BEAM, consensus=4.0)
    options = TrainedOptions.read(str(folder), "", search, batch=4)
    assert options.columns().names == ["unfamiliar", "agreement"]
    captioner = options.open("cpu", 1)
    loaded = captioner.load_pictures(pictures)
    predictions = captioner.predict([one.pixels for one in loaded], [{}] * len(loaded))  # type: ignore[misc]
    assert all(0 <= one.extras["unfamiliar"] <= 1 for one in predictions)
    assert all(one.extras["agreement"] >= 0 for one in predictions)


def test_a_captioner_without_photos_refuses_consensus_with_the_remedy(
    tmp_path: Path, pictures: list[Path]
) -> None:
    captioner = save_captioner(tmp_path / "plain")
    search = Beam(consensus=4.0)
    wrong = "remembers no training photos.*train.neighbours"
    with pytest.raises(UserError, match=wrong):
        TrainedOptions.read(str(tmp_path / "plain"), "", search, batch=4)
    with pytest.raises(UserError, match=wrong):
        captioner.caption(pictures, search=search)


def test_a_damaged_file_is_refused(folder: Path, tmp_path: Path) -> None:
    save_captioner(tmp_path / "copy")
    add_neighbours(tmp_path / "copy", remembered(TrainedCaptioner.read(folder).encoder.width))
    file = tmp_path / "copy" / NEIGHBOURS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"{NEIGHBOURS} is not what was written"):
        TrainedCaptioner.read(tmp_path / "copy")
    file.unlink()
    with pytest.raises(UserError, match=NEIGHBOURS):
        TrainedCaptioner.read(tmp_path / "copy")


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(3, np.float32)},
        {"words": np.full(3 * 6 * REMEMBERED, 999, np.uint32)},
        {"lengths": np.full(3 * REMEMBERED, 7, np.uint16)},
        {"captions": np.full(REMEMBERED, 4, np.uint16)},
        {"captions": np.full(REMEMBERED - 1, 3, np.uint16)},
        {"likeness": np.array([np.nan], np.float32)},
        {"vectors": np.zeros((0, 8), np.int8)},
        {"vectors": np.zeros((REMEMBERED, 8), np.float32)},
    ],
    ids=lambda change: f"{next(iter(change))}-{np.asarray(next(iter(change.values()))).shape}",
)
def test_a_file_that_does_not_fit_is_refused(change: dict) -> None:
    """Folders may be from anybody: what they say of themselves has the right digest."""
    good = remembered(16)
    assert from_file(to_file(good), 16, 40, "file").nearest(np.ones((1, 16)))[0].size == REMEMBERED
    with pytest.raises(UserError, match="file"):
        from_file(to_file(dataclasses.replace(good, **change)), 16, 40, "file")
    with pytest.raises(UserError, match="file"):
        from_file(to_file(good)[:-9], 16, 40, "file")


def test_the_digest_of_the_captioner_covers_the_photos(folder: Path, tmp_path: Path) -> None:
    save_captioner(tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / NEIGHBOURS).read_bytes()).hexdigest()
    assert config["sha256"][NEIGHBOURS] == digest
    with_photos = TrainedOptions.read(str(folder), "", None, batch=4)
    without = TrainedOptions.read(str(tmp_path / "plain"), "", None, batch=4)
    assert with_photos.identity() != without.identity()
    assert "training photos" in (folder / "README.md").read_text()
