"""A captioner as its users meet it: taught until it knows its pictures, saved, loaded, tampered
with, explained."""

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from raycap import Captioner
from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.captioners.trained.batches import FittingBatch
from raycap.captioners.trained.checks import FORMAT, OLDEST_FORMAT, digest_of_config
from raycap.captioners.trained.folder import state_of, words_of
from raycap.decoders import DecoderChoice, Recurrent, TopDown, Transformer
from raycap.encoders import Pixels, ResNet18
from raycap.errors import UserError
from raycap.images import Reading, read_picture
from raycap.search import Beam, Greedy, Sample
from raycap.sources import Coco, Shapes
from raycap.vocabulary import PAD, Vocabulary, VocabularyOptions

torch.set_num_threads(1)  # the networks are tiny: a second thread would only wait

SMALL = {"hidden_width": 96, "embedding_width": 48, "output_dropout": 0.0}
DECODERS: dict[str, DecoderChoice] = {
    "lstm-attention": Recurrent(attention_width=48, gated_context=True, deep_output=True, **SMALL),
    "gru-none": Recurrent(cell="gru", attention="none", vector_enters="first_input", **SMALL),
    "top-down": TopDown(projection_width=64, attention_width=48, **SMALL),
    "transformer": Transformer(layers=2, heads=4, layer_dropout=0.0, **SMALL),
}


def taught(
    plan: CaptionerPlan,
    pictures: Sequence[bytes],
    captions: Sequence[str],
    steps: int,
    rate: float = 1e-2,
) -> tuple[TrainedCaptioner, list[float]]:
    """A captioner that has seen only these pictures, one caption each, until it knows them; and
    its losses."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(captions, VocabularyOptions(min_count=1))
    encoder = plan.encoder.build()
    decoder = plan.decoder.build(len(vocabulary), encoder.positions, encoder.width)
    squares = [
        read_picture(picture, plan.reading, encoder.preprocessing).pixels for picture in pictures
    ]
    with torch.inference_mode():
        grid, vector = encoder(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
    grid, vector = grid.clone(), vector.clone()  # out of inference mode
    numbers = [vocabulary.encode(caption) for caption in captions]
    longest = max(len(number) for number in numbers)
    # [B, 1, T]
    words = torch.tensor([number + [PAD] * (longest - len(number)) for number in numbers])[:, None]
    learned = [part for part in decoder.parameters() if part.requires_grad]
    optimiser = torch.optim.Adam(learned, rate, fused=True)
    losses = []
    for _ in range(steps):
        scores, _ = decoder(decoder.prepare(grid, vector), words[..., :-1])
        loss = functional.cross_entropy(
            scores.flatten(0, 2), words[..., 1:].flatten(), ignore_index=PAD
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if losses[-1] < 0.02:
            break
    captioner = TrainedCaptioner(
        plan, vocabulary, encoder, decoder, {"data": "made pictures"}, "cpu", "fp32"
    )
    return captioner, losses


@pytest.fixture(scope="module")
def shapes() -> tuple[list[bytes], list[str]]:
    table = next(iter(Shapes(count=24).tables()))
    return table["bytes"].to_pylist(), [
        references[0] for references in table["references"].to_pylist()
    ]


@pytest.fixture(scope="module")
def captioner(shapes: tuple[list[bytes], list[str]]) -> TrainedCaptioner:
    plan = CaptionerPlan(Pixels(size=96, patch=16, frequencies=4), DECODERS["lstm-attention"])
    return taught(plan, *shapes, steps=120)[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.thorough] if name == "top-down" else [])
        for name in DECODERS
    ],
)
def test_real_photos_are_learnt_word_for_word(name: str, shared_data: Path) -> None:
    source = Coco(str(shared_data / "coco-mini"))
    rows = [row for table in source.tables() for row in table.to_pylist()][:12]
    pictures = [Path(row["uri"]).read_bytes() for row in rows]
    captions = [row["references"][0] for row in rows]
    plan = CaptionerPlan(
        Pixels(patch=56, frequencies=4), DECODERS[name], search=Greedy(max_length=40)
    )
    rate = 3e-3 if name == "transformer" else 1e-2
    captioner, losses = taught(plan, pictures, captions, steps=400, rate=rate)
    assert losses[0] > 4 and losses[-1] < 0.05
    found = [caption.caption for caption in captioner.caption(pictures)]
    assert found == [
        " ".join(captioner.vocabulary.cleaning.words(caption)) for caption in captions
    ]


@pytest.mark.parametrize("name", DECODERS)
def test_a_captioner_writes_the_same_after_save_and_load(
    name: str, shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    plan = CaptionerPlan(
        Pixels(size=96, patch=32, frequencies=4), DECODERS[name], search=Beam(width=3, best=3)
    )
    captioner, losses = taught(plan, *shapes, steps=30)
    assert losses[-1] < losses[0]
    captioner.save(tmp_path / "captioner")
    loaded = Captioner.load(tmp_path / "captioner", device="cpu", precision="fp32")
    assert loaded.plan == plan and loaded.facts == {"data": "made pictures"}
    assert loaded.caption(shapes[0]) == captioner.caption(shapes[0])


def test_one_picture_alone_is_that_picture_in_a_batch(
    captioner: TrainedCaptioner, shapes: tuple[list[bytes], list[str]]
) -> None:
    for search in (Greedy(), Beam(width=3, best=2)):
        together = captioner.caption(shapes[0], search=search)
        alone = [captioner.caption([picture], search=search)[0] for picture in shapes[0]]
        assert [caption.words for caption in alone] == [caption.words for caption in together]
        assert [caption.score for caption in alone] == pytest.approx(
            [caption.score for caption in together], abs=1e-5
        )


def test_a_picture_is_the_same_as_path_bytes_pil_and_array(
    captioner: TrainedCaptioner, shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    data = shapes[0][0]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    every = captioner.caption([path, str(path), data, opened, np.asarray(opened.convert("RGB"))])
    assert len({(caption.caption, caption.width) for caption in every}) == 1
    assert [caption.score for caption in every] == pytest.approx([every[0].score] * 5, abs=1e-5)
    assert every[0].succeeded and (every[0].width, every[0].height) == (96, 96)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]
)
def test_pil_pictures_of_every_mode_are_taken(captioner: TrainedCaptioner, mode: str) -> None:
    picture = Image.new("RGB", (40, 30), (200, 40, 40))
    if mode == "I;16":
        picture = Image.new("I;16", (40, 30), 30000)
    elif mode == "LAB":
        picture = Image.new("LAB", (40, 30), (128, 128, 128))
    else:
        picture = picture.convert(mode)
    [caption] = captioner.caption([picture])
    assert caption.succeeded, caption.error_message


def test_bad_pictures_cost_their_own_row(
    captioner: TrainedCaptioner, shapes: tuple[list[bytes], list[str]]
) -> None:
    good = shapes[0][0]
    answers = captioner.caption(["no-such-picture.jpg", good, b"nonsense", good])
    assert [answer.status for answer in answers] == [
        "failed_to_fetch",
        "success",
        "failed_to_decode",
        "success",
    ]
    assert "no-such-picture.jpg" in answers[0].error_message and "not a picture" in str(answers[2])
    assert answers[1].caption == captioner.caption([good])[0].caption
    assert captioner.caption([]) == []


@pytest.mark.parametrize("wrong", ["photo.jpg", b"bytes", np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_list_of_pictures_is_refused(
    captioner: TrainedCaptioner, wrong: object
) -> None:
    with pytest.raises(UserError):
        captioner.caption(wrong if isinstance(wrong, str | bytes) else [wrong])


def test_search_can_be_chosen_for_one_call(
    captioner: TrainedCaptioner, shapes: tuple[list[bytes], list[str]]
) -> None:
    greedy = captioner.caption(shapes[0], search=Greedy())
    assert [caption.caption for caption in captioner.caption(shapes[0], beam=1)] == [
        c.caption for c in greedy
    ]
    assert len(captioner.caption(shapes[0][:1], search=Beam(width=4, best=4))[0].alternatives) == 3
    drawn = captioner.caption(shapes[0], search=Sample(seed=3, temperature=2.0))
    assert drawn == captioner.caption(shapes[0], search=Sample(seed=3, temperature=2.0))


def test_explaining_gives_a_map_for_each_word(
    captioner: TrainedCaptioner, shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    explanation = captioner.explain(shapes[0][0])
    maps = explanation.caption.attention
    assert maps is not None and maps.shape == (len(explanation.caption.words), 36)
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=1e-4)
    explanation.save(tmp_path / "panel.png")
    panel = Image.open(tmp_path / "panel.png")
    assert (
        panel.width > 800
        and len(set(panel.convert("RGB").resize((64, 64)).get_flattened_data())) > 50
    )
    assert explanation.caption.caption == captioner.caption([shapes[0][0]])[0].caption


def test_explaining_without_attention_is_refused(shapes: tuple[list[bytes], list[str]]) -> None:
    plan = CaptionerPlan(Pixels(size=96, patch=32, frequencies=4), DECODERS["gru-none"])
    with pytest.raises(UserError, match="no attention"):
        taught(plan, *shapes, steps=1)[0].explain(shapes[0][0])


def test_explaining_what_cannot_be_read_names_the_reason(captioner: TrainedCaptioner) -> None:
    with pytest.raises(UserError, match="not a picture"):
        captioner.explain(b"nonsense")


def test_weights_are_asked_for_only_if_the_folder_lacks_them(
    shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    """What `raycap train` says at its end."""
    from raycap.commands.train import _weights_option
    from raycap.config import Config

    plan = CaptionerPlan(ResNet18(weights="random", size=64), DECODERS["gru-none"])
    trained, _ = taught(plan, *shapes, steps=1)
    config = Config(encoder=ResNet18(weights="mine.pt", size=64))
    for included, option in ((True, ""), (False, " --encoder-weights mine.pt")):
        trained.save(tmp_path / str(included), include_encoder=included)
        assert _weights_option(config, str(tmp_path / str(included))) == option


def test_a_folder_that_stands_alone_needs_no_other_weights(
    shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    plan = CaptionerPlan(ResNet18(weights="random", size=64), DECODERS["top-down"])
    captioner, _ = taught(plan, *shapes, steps=2)
    captioner.save(tmp_path / "alone", include_encoder=True)
    captioner.save(tmp_path / "half", include_encoder=True, numbers="float16")
    loaded = Captioner.load(tmp_path / "alone", device="cpu", precision="fp32")
    assert [c.words for c in loaded.caption(shapes[0])] == [
        c.words for c in captioner.caption(shapes[0])
    ]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("alone", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.55
    assert all(
        caption.succeeded for caption in Captioner.load(tmp_path / "half").caption(shapes[0][:2])
    )
    # Rounded, the encoder is no longer what its options name: a copy must hold it without being
    # asked.
    Captioner.load(tmp_path / "half").save(tmp_path / "again", numbers="float16")
    again, half = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "half")
    )
    assert again == half


def test_a_frozen_encoder_must_be_the_one_that_was_there(
    shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    plan = CaptionerPlan(ResNet18(weights="random", size=64), DECODERS["top-down"])
    captioner, _ = taught(plan, *shapes, steps=1)
    captioner.save(tmp_path / "apart")
    state = {
        name.removeprefix("trunk."): part for name, part in captioner.encoder.state_dict().items()
    }
    assert Captioner.load(tmp_path / "apart").facts == captioner.facts
    other = ResNet18(weights="random", size=64).build()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    folder = tmp_path / "trained"
    trained = TrainedCaptioner(plan, captioner.vocabulary, other, captioner.decoder)
    trained.save(folder)
    with pytest.raises(UserError, match="other weights of its encoder"):
        Captioner.load(folder)
    assert state
    with pytest.raises(UserError, match=r"no-such\.safetensors"):
        Captioner.load(folder, encoder_weights="no-such.safetensors")
    save_file({"wrong": torch.zeros(1)}, str(tmp_path / "wrong.safetensors"))
    with pytest.raises(UserError, match=r"wrong\.safetensors"):
        Captioner.load(folder, encoder_weights=str(tmp_path / "wrong.safetensors"))


def test_a_folder_with_a_trained_encoder_holds_it(
    shapes: tuple[list[bytes], list[str]], tmp_path: Path
) -> None:
    plan = CaptionerPlan(
        ResNet18(weights="random", size=64, trainable="last"), DECODERS["top-down"]
    )
    captioner, _ = taught(plan, *shapes, steps=1)
    captioner.save(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["encoder_included"]


def test_a_folder_is_read_from_a_uri(captioner: TrainedCaptioner, tmp_path: Path) -> None:
    captioner.save(tmp_path / "captioner")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "captioner"), "/captioners/shapes", recursive=True)
    assert Captioner.load("memory://captioners/shapes").vocabulary == captioner.vocabulary
    # A run may start from it.
    assert words_of("memory://captioners/shapes") == captioner.vocabulary
    named = {f"decoder.{name}" for name in captioner.decoder.state_dict()}
    assert state_of("memory://captioners/shapes").keys() == named


def test_saving_again_replaces_the_folder_whole(
    captioner: TrainedCaptioner, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "captioner")
    (tmp_path / "captioner" / "stray.txt").write_text("from before")
    captioner.save(tmp_path / "captioner")
    names = {path.name for path in (tmp_path / "captioner").iterdir()}
    assert names == {"config.json", "model.safetensors", "vocabulary.json", "README.md"}
    assert [path.name for path in tmp_path.iterdir()] == ["captioner"]


def test_the_card_shows_the_facts(captioner: TrainedCaptioner, tmp_path: Path) -> None:
    facts = {"data": "made pictures", "scores": {"bleu_4": 0.5}, "limits": ["knows shapes only"]}
    plan, vocabulary = captioner.plan, captioner.vocabulary
    TrainedCaptioner(plan, vocabulary, captioner.encoder, captioner.decoder, facts).save(
        tmp_path / "captioner"
    )
    card = (tmp_path / "captioner" / "README.md").read_text()
    for words in (
        "made pictures",
        "bleu_4: 0.5",
        "knows shapes only",
        "not recorded",
        f"{len(vocabulary)} words",
    ):
        assert words in card


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_harmed_folders_are_refused(
    captioner: TrainedCaptioner, tmp_path: Path, name: str, harm: str
) -> None:
    folder = tmp_path / "captioner"
    captioner.save(folder)
    data = bytearray((folder / name).read_bytes())
    if harm == "missing":
        (folder / name).unlink()
    elif harm == "truncated":
        (folder / name).write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0xFF
        (folder / name).write_bytes(data)
    with pytest.raises(UserError, match="captioner"):
        Captioner.load(folder)


def changed(folder: Path, **values: object) -> None:
    """Change config.json as somebody would who knows how its digest is made."""
    config = {**json.loads((folder / "config.json").read_text()), **values}
    if config["sha256"]:
        config["sha256"] = {**config["sha256"], "config.json": digest_of_config(config)}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("number", [OLDEST_FORMAT - 1, FORMAT + 1])
def test_another_format_names_the_remedy(
    captioner: TrainedCaptioner, tmp_path: Path, number: int
) -> None:
    captioner.save(tmp_path / "captioner")
    changed(tmp_path / "captioner", format=number, raycap="9.9.9")
    with pytest.raises(UserError, match=rf"format {number}.*use raycap 9\.9\.9"):
        Captioner.load(tmp_path / "captioner")


@pytest.mark.parametrize(
    "values, named",
    [
        ({"decoder": {"kind": "os.system", "command": "true"}}, "os.system"),
        ({"decoder": {"kind": "recurrent", "hidden_width": "96"}}, "decoder.hidden_width"),
        ({"decoder": {"kind": "recurrent", "hidden_width": 8}}, "does not fit"),
        ({"search": None}, "search"),
        ({"encoder": None}, "encoder"),
        ({"sha256": None}, "sha256"),
        ({"sha256": {}}, "not what was written"),
        ({"facts": 3}, "facts"),
        ({"encoder_included": "yes"}, "encoder_included"),
    ],
)
def test_a_config_that_was_tampered_with_is_refused(
    captioner: TrainedCaptioner, tmp_path: Path, values: dict[str, object], named: str
) -> None:
    captioner.save(tmp_path / "captioner")
    changed(tmp_path / "captioner", **values)
    with pytest.raises(UserError, match=named):
        Captioner.load(tmp_path / "captioner")


def test_a_pickle_in_place_of_the_weights_is_not_opened(
    captioner: TrainedCaptioner, tmp_path: Path
) -> None:
    import hashlib

    folder = tmp_path / "captioner"
    captioner.save(folder)
    torch.save({"decoder": captioner.decoder}, folder / "model.safetensors")
    digests = json.loads((folder / "config.json").read_text())["sha256"]
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    changed(folder, sha256={**digests, "model.safetensors": digest})
    with pytest.raises(UserError, match="captioner"):
        Captioner.load(folder)


def test_a_fact_that_was_changed_is_noticed(captioner: TrainedCaptioner, tmp_path: Path) -> None:
    captioner.save(tmp_path / "captioner")
    config = tmp_path / "captioner" / "config.json"
    config.write_text(config.read_text().replace("made pictures", "flickr8k"))
    with pytest.raises(UserError, match="not what was written"):
        Captioner.load(tmp_path / "captioner")


def test_weights_for_an_encoder_without_any_are_refused(
    captioner: TrainedCaptioner, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "captioner")
    with pytest.raises(UserError, match="has no weights"):
        Captioner.load(tmp_path / "captioner", encoder_weights="weights.safetensors")


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captioner folder"):
        Captioner.load(tmp_path / "nothing")


# Out of memory: the error is injected where torch would raise it, with torch's own class.


class Device:
    """Takes batches of at most `fits` items, and none that hold a giant."""

    def __init__(self, fits: int) -> None:
        self.fits, self.batches = fits, []

    def act(self, batch: Sequence[str]) -> list[str]:
        self.batches.append(len(batch))
        if len(batch) > self.fits or "giant" in batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return [item.upper() for item in batch]


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered() -> None:
    device, room = Device(fits=5), FittingBatch(64)
    items = [f"item {number}" for number in range(40)]
    assert room.run(items, device.act) == [item.upper() for item in items]
    assert room.size == 5 and device.batches[:4] == [40, 20, 10, 5]
    device.batches.clear()
    room.run(items, device.act)
    assert max(device.batches) == 5


def test_an_item_too_large_alone_gets_the_reason_and_the_others_their_answers() -> None:
    answers = FittingBatch(4).run(["a", "b", "giant", "c", "d"], Device(fits=8).act)
    assert [answer for answer in answers if isinstance(answer, str)] == ["A", "B", "C", "D"]
    assert isinstance(answers[2], MemoryError)


def test_other_errors_are_not_swallowed() -> None:
    def broken(batch: Sequence[str]) -> list[str]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        FittingBatch(4).run(["a"], broken)


def test_captioning_goes_on_when_memory_runs_out(
    captioner: TrainedCaptioner,
    shapes: tuple[list[bytes], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = captioner.caption(shapes[0])
    encode = captioner._encode
    sizes = []

    def cramped(pixels: torch.Tensor) -> object:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    monkeypatch.setattr(captioner, "_encode", cramped)
    monkeypatch.setattr(captioner, "_fitting", FittingBatch(16))
    answers = captioner.caption(shapes[0])
    assert [answer.words for answer in answers] == [answer.words for answer in expected]
    assert captioner._fitting.size == 2 and sizes[:4] == [16, 8, 4, 2]

    def full(pixels: torch.Tensor) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(captioner, "_encode", full)
    answers = captioner.caption(shapes[0][:3])
    assert {(answer.status, answer.width) for answer in answers} == {("failed_to_caption", 96)}
    assert "memory" in answers[0].error_message


def test_reading_options_travel_with_the_folder(
    captioner: TrainedCaptioner, tmp_path: Path
) -> None:
    plan = dataclasses.replace(captioner.plan, reading=Reading(formats=("jpeg",)))
    TrainedCaptioner(plan, captioner.vocabulary, captioner.encoder, captioner.decoder).save(
        tmp_path / "captioner"
    )
    [answer] = Captioner.load(tmp_path / "captioner").caption([Image.new("RGB", (9, 9))])
    assert "allow-list" in answer.error_message
    shutil.rmtree(tmp_path / "captioner")


def test_strings_of_a_program_open_no_chains(captioner: TrainedCaptioner, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (96, 96)).save(picture, "png")
    for name in ("a::b.png", "c.png"):
        (tmp_path / name).write_bytes(picture.getvalue())
    store = fsspec.filesystem("memory")
    store.pipe("/program/a.png", picture.getvalue())
    strings = [
        str(tmp_path / "a::b.png"),
        f"file://{tmp_path}/a%3A%3Ab.png",
        "memory://program/a.png",
        "simplecache::memory://program/a.png",
        f"simplecache::file://{tmp_path}/c.png",
        f"zip://a.png::{tmp_path}/c.png",
        "http://127.0.0.1:9/a.png",
        "reference://a.png",
        "webhdfs://127.0.0.1:9/a.png",
    ]
    try:
        answers = captioner.caption(strings)
        assert [answer.succeeded for answer in answers] == [True, True] + [False] * 7
        assert all("refused" in answer.error_message for answer in answers[2:])
        trusted = captioner.caption(strings, trust=["memory://program", "simplecache://"])
        assert [answer.succeeded for answer in trusted] == [True] * 5 + [False] * 4
    finally:
        store.rm("/program", recursive=True)
    with pytest.raises(UserError, match="in brackets"):
        captioner.caption(strings, trust="memory://")
    with pytest.raises(UserError, match="refused"):
        captioner.explain("simplecache::memory://program/a.png")
