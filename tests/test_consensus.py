"""Remembered training photos, and captions chosen by agreement with theirs."""

import dataclasses
import functools
import hashlib
import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from plain_cider import plain_cider
from small_captioner import photos, save_captioner

from raycap.captioners.trained import TrainedCaptioner, TrainedOptions
from raycap.captioners.trained.checks import NEIGHBOURS
from raycap.captioners.trained.doubt import fit_doubt
from raycap.captioners.trained.folder import add_neighbours
from raycap.captioners.trained.gram_vectors import build_gram_vectors
from raycap.captioners.trained.neighbours import (
    Neighbours,
    build_neighbours,
    from_file,
    to_file,
)
from raycap.decoders import Recurrent
from raycap.decoders.decoder import Decoder
from raycap.decoders.teacher_forcing import loss_by_picture, pad_captions
from raycap.errors import UserError
from raycap.metrics.consensus import CiderConsensus
from raycap.search import Beam, Greedy, search_identity
from raycap.search.captions import select_pictures
from raycap.vocabulary import END, START

torch.set_num_threads(1)
REMEMBERED = 12
BEAM = Beam(width=4, drawn=6, drawn_temperature=2.0, max_length=12)


@functools.cache  # two processors or calls may differ in the last digits
def remembered(width: int, seed: int = 0) -> Neighbours:
    """Made-up training photos with made-up captions."""
    chance = np.random.default_rng(seed)
    vectors = chance.random((REMEMBERED, width))
    return build_neighbours(vectors, sentences(), 8).calibrated(chance.random((20, width)))


def sentences() -> list[list[list[int]]]:
    """Of few words, so that several photos have the same."""
    chance = np.random.default_rng(0)
    return [chance.integers(4, 30, (3, 6)).tolist() for _ in range(REMEMBERED)]


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


@pytest.mark.parametrize("seed", range(5))
def test_vectors_of_n_grams_agree_as_the_mean_of_tf_idf_cosines(seed: int) -> None:
    """Computed again with dictionaries; CIDEr-D but for clipping and the lengths of captions."""
    chance = random.Random(seed)

    def caption(most: int) -> list[int]:
        return [chance.randrange(4, most) for _ in range(chance.randrange(1, 9))]

    references = [[caption(10) for _ in range(chance.randrange(1, 4))] for _ in range(20)]
    captions = [caption(12) for _ in range(6)]  # with words that no photo has
    near = chance.sample(range(20), 5)
    weights = np.array([chance.random() for _ in near])
    weights /= weights.sum()

    def grams(words: list[int], n: int) -> list[tuple[int, ...]]:
        return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]

    expected = []
    for one in captions:
        total = 0.0
        for n in range(1, 5):
            photos = Counter(
                gram for own in references for gram in {g for each in own for g in grams(each, n)}
            )

            def tf_idf(words: list[int], n: int = n, photos: Counter = photos) -> dict:
                counts = Counter(grams(words, n))
                return {g: k * math.log(20 / max(photos[g], 1)) for g, k in counts.items()}

            mine = tf_idf(one)
            norm = math.sqrt(sum(value**2 for value in mine.values())) or 1.0
            for photo, weight in zip(near, weights, strict=True):
                for other in references[photo]:
                    theirs = tf_idf(other)
                    length = math.sqrt(sum(value**2 for value in theirs.values())) or 1.0
                    both = sum(
                        value / length * math.log(20 / photos[gram])
                        for gram, value in theirs.items()
                        if gram in mine
                    )
                    total += 10 / 4 * weight * both / norm / len(references[photo])
        apart = [len(one) - np.mean([len(each) for each in references[photo]]) for photo in near]
        expected.append(total * float(weights @ np.exp(-np.square(apart) / 72)))
    vectors = build_gram_vectors(references, fewest_photos=1)
    found = vectors.agreement(captions, np.array(near), weights)
    assert found == pytest.approx(expected, rel=0.05, abs=0.03), "weights are in 255ths"
    assert vectors.fits(20) and max(expected) > 0.5


def test_n_grams_of_few_photos_are_left_out() -> None:
    captions = [[[4, 5]], [[4, 6]], [[4, 7]], [[8, 9]]]
    vectors = build_gram_vectors(captions)
    assert len(vectors.gram_hashes) == 1 and vectors.photo_grams.tolist() == [1, 1, 1, 0]
    bonus = vectors.word_bonus(np.array([[0, 1], [3, 3]]), np.full((2, 2), 0.5), 10)
    assert (bonus > 0).nonzero()[1].tolist() == [4], "of the first picture"


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
        return neighbours.unfamiliar(neighbours.familiar(features))

    strange = chance.random((50, 8)) * [1, 1, 1, 1, 9, 9, 9, 9]
    assert 0.3 < unfamiliar(vectors[50:]).mean() < 0.7 and unfamiliar(vectors[:50]).mean() < 0.7
    assert unfamiliar(strange).mean() > 0.9
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
    near, likeness = captioner.neighbours.nearest(vectors)
    means = []
    for weight in (0.001, 1000.0):
        captions = captioner.caption(pictures, search=dataclasses.replace(BEAM, consensus=weight))
        encoded = [captioner.vocabulary.encode(one.caption)[1:-1] for one in captions]
        agreement = [
            captioner.neighbours.agreement([words], rows, alike)[0]
            for words, rows, alike in zip(encoded, near, likeness, strict=True)
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
    predictions = captioner.predict([one.pixels for one in loaded], [{}] * len(loaded))
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


def small_decoder() -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = Recurrent(hidden_width=16, embedding_width=8, attention_width=8)
        return options.build(30, 9, 8).eval()


GRAMS = sum(remembered(16).captions.photo_grams.tolist())


@pytest.mark.parametrize(
    "change",
    [
        {"mean": np.zeros(3, np.float32)},
        {"familiarity": np.array([np.nan], np.float32)},
        {"vectors": np.zeros((0, 8), np.int8)},
        {"vectors": np.zeros((REMEMBERED, 8), np.float32)},
        {"gram_hashes": np.array([5, 5], np.uint32)},
        {"gram_photos": np.zeros(1, np.uint32)},
        {"photo_grams": np.ones(REMEMBERED, np.uint16)},
        {"photo_grams": np.zeros(REMEMBERED - 1, np.uint16)},
        {"photo_lengths": np.full(REMEMBERED, np.inf, np.float16)},
        {"gram_places": np.full(GRAMS, 65_535, np.uint16)},
        {"gram_places": np.zeros(GRAMS, np.int64)},
        {"gram_weights": np.zeros(GRAMS - 1, np.uint8)},
        {"doubt": np.zeros(4, np.float32)},
        {"doubt": np.full(5, np.nan, np.float32)},
    ],
    ids=lambda change: f"{next(iter(change))}-{np.asarray(next(iter(change.values()))).shape}",
)
def test_a_file_that_does_not_fit_is_refused(change: dict) -> None:
    """Folders may be from anybody: what they say of themselves has the right digest."""
    good = to_file(remembered(16))
    assert from_file(good, 16, 40, "file").nearest(np.ones((1, 16)))[0].size == REMEMBERED
    arrays = safetensors.numpy.load(good) | change
    with pytest.raises(UserError, match="file"):
        from_file(safetensors.numpy.save(arrays, {"format": "2"}), 16, 40, "file")
    with pytest.raises(UserError, match="file"):
        from_file(good[:-9], 16, 40, "file")
    with pytest.raises(UserError, match="format '3'"):
        from_file(safetensors.numpy.save(arrays, {"format": "3"}), 16, 40, "file")


def first_format(**changes: np.ndarray) -> bytes:
    """The same photos and captions as those of `remembered`, in a file of format 1."""
    good = remembered(16)
    captions = sentences()
    arrays = {name: getattr(good, name) for name in ("vectors", "mean", "projection")}
    arrays["likeness"] = np.zeros(5, np.float32)
    texts = {
        "words": np.array([word for own in captions for one in own for word in one], np.uint32),
        "lengths": np.array([len(one) for own in captions for one in own], np.uint16),
        "captions": np.array([len(own) for own in captions], np.uint16),
    }
    whole = {name: np.ascontiguousarray(part) for name, part in (arrays | texts | changes).items()}
    return safetensors.numpy.save(whole, {"format": "1"})


def test_a_file_of_the_first_format_is_read_and_checked() -> None:
    found = from_file(first_format(), 16, 40, "file")
    expected = dataclasses.replace(remembered(16), familiarity=np.zeros(0, np.float32))
    assert to_file(found) == to_file(expected) and found.unfamiliar(np.ones(3)).tolist() == [0] * 3
    for changes in (
        {"words": np.full(3 * 6 * REMEMBERED, 999, np.uint32)},
        {"lengths": np.full(3 * REMEMBERED, 7, np.uint16)},
        {"captions": np.full(REMEMBERED, 4, np.uint16)},
        {"captions": np.full(REMEMBERED - 1, 3, np.uint16)},
    ):
        with pytest.raises(UserError, match="file does not fit"):
            from_file(first_format(**changes), 16, 40, "file")


def test_fusion_brings_words_of_similar_photos_into_captions_and_leaves_scores_alone() -> None:
    bonus = torch.zeros(2, 30)
    bonus[0, 12] = 100.0
    decoder = small_decoder()
    with torch.inference_mode():
        chance = torch.Generator().manual_seed(0)
        grids, vectors = (torch.rand(2, *size, generator=chance) for size in ((9, 8), (8,)))
        memory = decoder.prepare(grids, vectors)
        search = Beam(width=4, best=4, max_length=16)
        plain = search.search(decoder, memory).hypotheses()
        fused = search.search(decoder, memory, word_bonus=bonus).hypotheses()
        assert all(12 in one.words for one in fused[0]) and fused[1] == plain[1]
        assert all(one.words.count(12) == 1 for one in fused[0]), "once said, it is no bonus"
        for one in fused[0]:
            words = pad_captions([[[START, *one.words, *[END][: one.finished]]]])
            first = select_pictures(memory, torch.tensor([0]))
            own = -float(loss_by_picture(decoder, first, words)[0, 0])
            assert one.log_probability == pytest.approx(own, abs=1e-3)
            assert one.score == pytest.approx(own / (len(one.words) + one.finished), abs=1e-3)


def test_doubt_finds_planted_faults_and_says_so(
    folder: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    chance = np.random.default_rng(1)
    is_wrong = chance.random(400) < 0.25
    signs = chance.normal(size=(400, 3)) + is_wrong[:, None] * [2.0, 0.0, 1.0]
    doubt = fit_doubt(signs, is_wrong, share=0.1)
    chances = doubt.chance(signs)
    assert (chances >= doubt.threshold).mean() == pytest.approx(0.1, abs=0.01)
    assert is_wrong[chances >= doubt.threshold].mean() > 0.8
    assert chances.mean() == pytest.approx(is_wrong.mean(), abs=0.01)
    assert abs(doubt.weights[1]) < 0.3 < doubt.weights[2] < doubt.weights[0]

    neighbours = TrainedCaptioner.read(folder).neighbours
    assert neighbours is not None
    search = dataclasses.replace(BEAM, consensus=4.0, fusion=1.0)
    for threshold, expected in ((0.0, ("not_sure",)), (1.1, ())):
        save_captioner(tmp_path / "doubts")
        own = dataclasses.replace(doubt, threshold=threshold)
        add_neighbours(tmp_path / "doubts", dataclasses.replace(neighbours, doubt=own))
        options = TrainedOptions.read(str(tmp_path / "doubts"), "", search, batch=4)
        assert options.columns().names == ["unfamiliar", "agreement", "doubt"]
        for one in options.open("cpu", 1).caption(pictures[:2]):
            assert tuple(flag for flag in one.flags if flag == "not_sure") == expected
        shutil.rmtree(tmp_path / "doubts")


def test_the_digest_of_the_captioner_covers_the_photos(folder: Path, tmp_path: Path) -> None:
    save_captioner(tmp_path / "plain")
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((folder / NEIGHBOURS).read_bytes()).hexdigest()
    assert config["sha256"][NEIGHBOURS] == digest
    with_photos = TrainedOptions.read(str(folder), "", None, batch=4)
    without = TrainedOptions.read(str(tmp_path / "plain"), "", None, batch=4)
    assert with_photos.identity() != without.identity()
    assert "training photos" in (folder / "README.md").read_text()
