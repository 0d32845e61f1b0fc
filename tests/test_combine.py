"""One captioner of several: ensembles, and means of weights."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_captioner import photos, save_captioner

from raycap.captioners import Captioner
from raycap.captioners.combining import Combine
from raycap.captioners.trained import TrainedCaptioner, TrainedOptions
from raycap.captioners.trained.checks import CONFIG, digest_of_config
from raycap.captioners.trained.combine import combine
from raycap.captioners.trained.doubt import Doubt
from raycap.captioners.trained.folder import add_neighbours
from raycap.captioners.trained.neighbours import build_neighbours
from raycap.cli import main
from raycap.decoders import Ensemble, Recurrent, TopDown, Transformer
from raycap.decoders.decoder import Decoder
from raycap.decoders.ensemble import EnsembleDecoder
from raycap.decoders.teacher_forcing import pad_captions
from raycap.encoders import Pixels
from raycap.errors import UserError
from raycap.search import Beam, Greedy, Sample
from raycap.training.setup import build_encoder
from raycap.vocabulary import END, START

torch.set_num_threads(1)
WORDS, POSITIONS, WIDTH = 30, 9, 8
SMALL: dict[str, Any] = {"hidden_width": 16, "embedding_width": 8}
MEMBERS = (
    Recurrent(**SMALL, attention_width=8),
    Recurrent(**SMALL, attention="none", cell="gru", vector_enters="first_input"),
    TopDown(**SMALL, attention_width=8, projection_width=8, output_layers=(12,)),
    Transformer(**SMALL, layers=1, heads=2),
)
SEARCHES = (Greedy(max_length=9), Beam(width=3, best=3, max_length=9), Sample(max_length=9))


def members(*options: Any) -> list[Decoder]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        built = [one.build(WORDS, POSITIONS, WIDTH).eval() for one in options]
        with torch.no_grad():
            for decoder in built:
                for parameter in decoder.parameters():
                    parameter.mul_(3)  # surer of its words, so that they disagree
    return built


def features(pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    sizes = (POSITIONS, WIDTH), (WIDTH,)
    grids, vectors = (torch.rand(pictures, *size, generator=chance) for size in sizes)
    return grids, vectors


@torch.inference_mode()
def test_the_probability_of_each_word_is_the_mean_of_the_decoders() -> None:
    alone = members(*MEMBERS)
    ensemble = EnsembleDecoder(alone)
    words = pad_captions([[[START, 7, 9, 11, END], [START, 12, END]], [[START, 5, 6, END]]])
    inputs = words[..., :-1].masked_fill(words[..., :-1] == END, 0)
    grids, vectors = features(2)
    memories = [decoder.prepare(grids, vectors) for decoder in alone]
    pairs = zip(alone, memories, strict=True)
    each = [decoder(memory, inputs)[0].softmax(-1) for decoder, memory in pairs]
    expected = torch.stack(each).mean(0)
    memory = ensemble.prepare(grids, vectors)
    logits, attention = ensemble(memory, inputs)
    is_word = words[..., 1:] != 0
    assert torch.allclose(logits.softmax(-1)[is_word], expected[is_word], atol=1e-6)
    assert attention is not None and torch.allclose(attention[is_word].sum(-1), torch.ones(()))
    state = ensemble.initial_state(memory, 2)
    for position in range(3):
        step = ensemble.step(inputs[..., position], state, memory)
        state, here = step.state, is_word[..., position]
        found = step.logits.softmax(-1)
        assert torch.allclose(found[here], expected[:, :, position][here], atol=1e-6)
    assert (expected - each[0])[is_word].abs().max() > 0.01, "they disagree"


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
@torch.inference_mode()
def test_equal_decoders_write_what_one_of_them_writes(search: Any) -> None:
    [alone] = members(MEMBERS[2])
    ensemble = EnsembleDecoder([alone, alone, alone])
    grids, vectors = features(5)
    found = [
        search.search(decoder, decoder.prepare(grids, vectors), seeds=range(5), attention=True)
        for decoder in (alone, ensemble)
    ]
    assert torch.equal(found[0].words, found[1].words)
    assert torch.allclose(found[0].score, found[1].score, atol=1e-5)
    assert torch.allclose(found[0].attention, found[1].attention, atol=1e-5)


@torch.inference_mode()
def test_the_search_for_devices_finds_the_captions_of_an_ensemble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensemble = EnsembleDecoder(members(*MEMBERS))
    memory = ensemble.prepare(*features(5))
    found = []
    for search in ("processor", "device"):
        monkeypatch.setenv("RAYCAP_SEARCH", search)
        captions = SEARCHES[1].search(ensemble, memory, attention=True).hypotheses()
        found.append([[one.words for one in each] for each in captions])
    assert found[0] == found[1]
    assert len({one for each in found[0] for one in each}) > 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three captioners with other weights. The second and the third remember photos."""
    paths = [tmp_path_factory.mktemp("apart") / f"captioner-{seed}" for seed in range(3)]
    chance = np.random.default_rng(0)
    for seed, path in enumerate(paths):
        captioner = save_captioner(path, seed)
        captioner.facts = {"licence": "free", "training": {"seed": seed}}
        captioner.save(path)
        if seed:
            captions = chance.integers(4, 30, (12, 3, 6)).tolist()
            neighbours = build_neighbours(chance.random((12, captioner.encoder.width)), captions)
            doubt = Doubt((1.0, 1.0, 1.0, 0.0), 0.0)
            add_neighbours(path, dataclasses.replace(neighbours, doubt=doubt))
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(photos(tmp_path_factory.mktemp("photos"), range(5)).iterdir())


def test_an_ensemble_is_a_captioner_folder_like_any_other(
    folders: list[str], pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "ensemble")
    assert main(["combine", *folders, "--out", out]) == 0
    assert "3 captioners, by probabilities" in capsys.readouterr().out
    captioner = Captioner.load(out, device="cpu")
    assert isinstance(captioner, TrainedCaptioner)
    alone = [TrainedCaptioner.read(path, "cpu") for path in folders]
    expected = TrainedCaptioner(
        captioner.plan,
        alone[0].vocabulary,
        alone[0].encoder,
        EnsembleDecoder([one.decoder for one in alone]),
        device="cpu",
    )
    assert captioner.caption(pictures) == expected.caption(pictures)
    assert captioner.caption(pictures) != alone[0].caption(pictures)
    identities = [
        TrainedOptions.read(path, "", None, batch=4).identity() for path in (*folders, out)
    ]
    assert len({each["captioner"] for each in identities}) == 4
    neighbours, theirs = captioner.neighbours, alone[1].neighbours
    assert neighbours is not None and theirs is not None
    assert neighbours.doubt is None, "what one of them doubts, another may be sure of"
    assert (neighbours.vectors == theirs.vectors).all()
    card = (Path(out) / "README.md").read_text()
    for word in ("mean probabilities of 3 decoders", "free", "seed: 2", "not measured"):
        assert word in card
    # An ensemble of an ensemble is one of all its decoders.
    combine(Combine((out, folders[0]), str(tmp_path / "more"), numbers="int8"))
    plan = TrainedCaptioner.read(tmp_path / "more", "cpu").plan
    # Which pictures are accepted does not matter, how they are shown does.
    limited = dataclasses.replace(alone[0].plan.reading, max_side=9_000)
    white = dataclasses.replace(limited, background="white")
    for reading, fits in ((limited, True), (white, False)):
        alone[0].plan = dataclasses.replace(alone[0].plan, reading=reading)
        alone[0].save(tmp_path / "limited")
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match="backgrounds"):
            combine(Combine((folders[1], str(tmp_path / "limited")), str(tmp_path / "both")))
    assert isinstance(plan.decoder, Ensemble) and len(plan.decoder.members) == 4
    with pytest.raises(UserError, match="ensemble, which cannot be trained"):
        build_encoder(plan, out)


def test_the_mean_of_weights_is_between_them(folders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "mean"
    flags = ["--out", str(out), "--by", "weights", "--shares", "1", "3"]
    assert main(["combine", *folders[:2], *flags]) == 0
    first, second, mean = (
        TrainedCaptioner.read(path, "cpu").decoder.state_dict() for path in (*folders[:2], out)
    )
    for name, weight in mean.items():
        assert torch.allclose(weight, (first[name] + 3 * second[name]) / 4, atol=1e-6), name


def test_captioners_that_do_not_go_together_are_refused(
    folders: list[str], tmp_path: Path
) -> None:
    captioner = TrainedCaptioner.read(folders[0], "cpu")
    other_words = dataclasses.replace(captioner.vocabulary, words=captioner.vocabulary.words[:-1])
    other_encoder = dataclasses.replace(captioner.plan, encoder=Pixels(size=32))
    wider = Recurrent(hidden_width=64)
    decoder = wider.build(len(captioner.vocabulary), 1, captioner.encoder.width)
    changed = {
        "know different words": (captioner.plan, other_words, captioner.decoder),
        "different encoders": (other_encoder, captioner.vocabulary, captioner.decoder),
        "different decoders": (
            dataclasses.replace(captioner.plan, decoder=wider),
            captioner.vocabulary,
            decoder,
        ),
    }
    for wrong, (plan, vocabulary, own) in changed.items():
        path = tmp_path / wrong.replace(" ", "-")
        TrainedCaptioner(plan, vocabulary, plan.encoder.build(), own, device="cpu").save(path)
        with pytest.raises(UserError, match=wrong):
            combine(Combine((folders[0], str(path)), str(tmp_path / "out"), by="weights"))
    for wrong, options in {
        "at least two": Combine((folders[0],)),
        "1 numbers for 2": Combine(tuple(folders[:2]), by="weights", shares=(1.0,)),
    }.items():
        with pytest.raises(UserError, match=wrong):
            combine(options)
    with pytest.raises(UserError, match="leave them out"):
        Combine(shares=(1.0, 2.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, wrong",
    [
        (lambda own: own * 6, "2 to 16"),
        (lambda own: own[:1], "2 to 16"),
        (lambda own: [{"kind": "ensemble", "members": own}, *own[1:]], "no decoder 'ensemble'"),
        (lambda own: [{**own[0], "attention_width": 10**9}, *own[1:]], "attention_width"),
        (lambda own: [{**own[0], "hidden_width": 64}, *own[1:]], "does not fit"),
        (lambda own: ["lstm", *own[1:]], "members is"),
    ],
    ids=["many", "one", "nested", "large", "other-shape", "text"],
)
def test_a_folder_from_anybody_cannot_ask_for_more(
    folders: list[str], tmp_path: Path, change: Any, wrong: str
) -> None:
    out = tmp_path / "ensemble"
    combine(Combine(tuple(folders), str(out)))
    config = json.loads((out / CONFIG).read_text())
    config["decoder"]["members"] = change(config["decoder"]["members"])
    config["sha256"][CONFIG] = digest_of_config(config)
    (out / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match=wrong):
        TrainedCaptioner.read(out)
