"""Models that transformers knows, as captioners: tiny ones of each dialect, made here.

Nothing is downloaded. The trained one describes the pictures of `shapes`, so that a caption on the
wrong row, a wrong crop or a wrong order in a batch shows.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_models
import torch
from packages import need
from PIL import Image

from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions
from raycap.captioners.presets import HEADER, PRESETS, preset_rows
from raycap.errors import UserError
from raycap.images import Fit, Reading, Square, read_picture
from raycap.schema import ATTEMPT
from raycap.sources import Shapes

pytestmark = need("transformers")
CHAT = ("qwen2-vl", "idefics3", "llava")
PREFIX = ("blip", "git", "vision-encoder-decoder")
TASK = ("florence2",)
FAMILIES = (*CHAT, *PREFIX, *TASK)
# Pictures of several shapes, and some of the same.
SIZES = ((96, 64), (64, 96), (32, 32), (96, 64), (160, 40), (64, 64), (32, 96))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The hub's client may have been imported, and have read the variable, before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model of this family."""
    place, made = tmp_path_factory.mktemp("models"), {}

    def built(family: str) -> str:
        if family not in made:
            made[family] = tiny_models.build(family, place / family)
        return made[family]

    return built


def opened(folder: str, num_captions: int | None = None, **options: Any) -> Any:
    asked = HuggingFaceModel(**{"max_tokens": 8, **options})
    return asked.captioner(folder, num_captions, "fp32").open("cpu", None)


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """A picture of large coloured blocks: each differs from the others at every size."""
    chance = np.random.default_rng(seed)
    blocks = chance.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


def pictures() -> list[np.ndarray]:
    return [noise(*size, seed) for seed, size in enumerate(SIZES)]


def rows_of(loaded: list[Any]) -> list[dict[str, Any]]:
    return [{"sha256": each.sha256, "width": each.width} for each in loaded]


def predict(captioner: Any, shown: list[np.ndarray]) -> list[Any]:
    loaded = captioner.load_pictures(shown)
    return captioner.predict([each.pixels for each in loaded], rows_of(loaded))


# The answers.


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_gets_the_same_caption_alone_and_in_any_batch(
    family: str, folder_of: Callable[[str], str]
) -> None:
    captioner = opened(folder_of(family))
    shown = pictures()
    together = predict(captioner, shown)
    assert len({each.caption for each in together}) > 3, "the pictures tell the rows apart"
    alone = [predict(captioner, [picture])[0] for picture in shown]
    backwards = predict(captioner, shown[::-1])[::-1]
    captioner.budget.most = captioner.budget.now = 2.5 * (8 + 10)  # batches of one or two
    pairs = predict(captioner, shown)
    for row, others in enumerate(zip(together, alone, backwards, pairs, strict=True)):
        assert {(each.caption, each.error) for each in others} == {
            (alone[row].caption, alone[row].error)
        }
        counts = {tuple(each.extras.values()) for each in others}
        assert len(counts) == 1, "the same tokens in and out"
        if not alone[row].error:
            assert [each.score for each in others] == pytest.approx(
                4 * [alone[row].score], abs=1e-4
            )


def plainly(family: str, folder: str, picture: np.ndarray) -> str:
    """The text that transformers gives as its documentation shows it."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    if family == "vision-encoder-decoder":
        images = transformers.AutoImageProcessor.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        inputs = images([picture], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return str(tokenizer.decode(made[0], skip_special_tokens=True)).strip()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    cut = 0
    if family in CHAT:
        content = [
            {"type": "image", "image": Image.fromarray(picture)},
            {"type": "text", "text": "Describe this picture in one sentence."},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        cut = inputs["input_ids"].shape[1]
    elif family == "florence2":
        inputs = processor(text="<DETAILED_CAPTION>", images=picture, return_tensors="pt")
    else:
        inputs = processor(images=picture, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=1)
    return str(processor.decode(made[0][cut:], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_caption_is_what_transformers_itself_answers(
    family: str, folder_of: Callable[[str], str]
) -> None:
    captioner = opened(folder_of(family))
    found = []
    for seed in range(4):
        # On the model's grid, so that no resize differs.
        picture = noise(32, 32, seed) if family not in CHAT[:2] else noise(96, 96, seed)
        [prediction] = predict(captioner, [picture])
        found.append(prediction.caption)
        assert prediction.caption == plainly(family, folder_of(family), picture)
    assert len(set(found)) > 1


@pytest.mark.parametrize("family", ["llava", "blip"])
def test_the_score_is_the_mean_log_probability_of_the_new_tokens(
    family: str, folder_of: Callable[[str], str]
) -> None:
    captioner = opened(folder_of(family))
    picture = noise(32, 32, 1)
    [prediction] = predict(captioner, [picture])
    inputs = captioner.inputs([picture], [captioner.options.prompt])
    made = captioner.model.generate(
        **inputs,
        max_new_tokens=8,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = made.sequences[0, -len(made.logits) :]
    logs = [
        torch.log_softmax(step[0], -1)[token]
        for step, token in zip(made.logits, tokens, strict=True)
    ]
    assert prediction.score == pytest.approx(float(torch.stack(logs).mean()), abs=1e-5)
    assert prediction.extras["tokens_out"] == len(tokens)


# Drawing.


@pytest.mark.parametrize("family", ["qwen2-vl", "blip"])
def test_drawn_captions_depend_on_the_picture_and_the_seed_and_on_nothing_else(
    family: str, folder_of: Callable[[str], str]
) -> None:
    draws = {"temperature": 1.5, "top_p": 0.95}
    captioner = opened(folder_of(family), seed=1, **draws)
    shown = pictures()
    together = [each.caption for each in predict(captioner, shown)]
    assert together == [predict(captioner, [picture])[0].caption for picture in shown]
    assert together == [each.caption for each in predict(captioner, shown[::-1])[::-1]]
    other = opened(folder_of(family), seed=2, **draws)
    assert together != [each.caption for each in predict(other, shown)]
    same = opened(folder_of(family), seed=1, **draws)
    assert together == [each.caption for each in predict(same, shown)]
    # Another file with the same pixels is another picture.
    pixels = [each.pixels for each in captioner.load_pictures(shown)]
    again = captioner.predict(pixels, [{"sha256": str(row)} for row in range(len(pixels))])
    assert together != [each.caption for each in again]


def test_words_are_drawn_by_their_probability() -> None:
    from raycap.captioners.huggingface.drawing import Draw

    probabilities = torch.tensor([0.1, 0.55, 0.05, 0.3])
    scores, ids = probabilities.log().expand(4000, -1), torch.zeros(4000, 3, dtype=torch.long)
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.1, 0.55, 0.05, 0.3]),
        (1.0, 0.6, [0, 0.55 / 0.85, 0, 0.3 / 0.85]),
        (1.0, 0.01, [0, 1, 0, 0]),
        (0.5, 1.0, [0.0247, 0.7469, 0.0062, 0.2222]),
    ):
        draw = Draw(temperature, top_p, range(4000), 5)
        chosen = draw(ids, scores).argmax(-1)
        shares = torch.bincount(chosen, minlength=4) / 4000
        assert np.allclose(shares, expected, atol=0.03), (temperature, top_p)
        # The score is that of the model, whatever the temperature.
        assert torch.allclose(draw.logs[0], probabilities.log()[chosen], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.2], ids=["beams", "drawn"])
@pytest.mark.parametrize("family", ["qwen2-vl", "blip", "florence2"])
def test_more_captions_are_alternatives_the_surest_first(
    family: str, temperature: float, folder_of: Callable[[str], str]
) -> None:
    captioner = opened(folder_of(family), 3, temperature=temperature)
    together = predict(captioner, pictures())
    for prediction in together:
        if prediction.error:
            continue
        scores = [prediction.score, *(other.score for other in prediction.alternatives)]
        assert scores == sorted(scores, reverse=True) and len(prediction.alternatives) <= 2
        assert all(score <= 0 for score in scores)
    assert sum(len(each.alternatives) for each in together) > 6
    alone = [predict(captioner, [picture])[0] for picture in pictures()]
    assert [each.caption for each in alone] == [each.caption for each in together]


def test_stop_texts_end_a_caption(folder_of: Callable[[str], str]) -> None:
    folder = folder_of("llava")
    whole = predict(opened(folder), pictures())
    words = next(each.caption.split() for each in whole if len(each.caption.split()) > 4)
    stopped = predict(opened(folder, stop=(words[2],)), pictures())
    for full, cut in zip(whole, stopped, strict=True):
        expected, found, _ = full.caption.partition(words[2])
        if cut.error:
            assert expected.strip() == ""
            continue
        assert cut.caption == expected.strip()
        if found:
            assert cut.extras["finish_reason"] == "stop"
            assert cut.extras["tokens_out"] < full.extras["tokens_out"] or full.caption.endswith(
                words[2]
            )


def test_a_caption_that_is_cut_off_says_so(folder_of: Callable[[str], str]) -> None:
    for prediction in predict(opened(folder_of("git"), max_tokens=3), pictures()):
        assert prediction.extras["tokens_out"] <= 3
        ended = prediction.extras["finish_reason"] == "stop"
        assert ended or prediction.extras["tokens_out"] == 3


@pytest.mark.parametrize("family", PREFIX)
def test_the_prompt_begins_the_caption(family: str, folder_of: Callable[[str], str]) -> None:
    folder = folder_of(family)
    plain = predict(opened(folder), pictures())
    begun = predict(opened(folder, prompt="a red"), pictures())
    kept = predict(opened(folder, prompt="a red", keep_prompt=True), pictures())
    assert [each.caption for each in begun] != [each.caption for each in plain]
    for prediction, with_prompt in zip(begun, kept, strict=True):
        if not prediction.error:
            assert with_prompt.caption == f"a red {prediction.caption}"


def test_the_system_message_is_in_the_prompt(folder_of: Callable[[str], str]) -> None:
    captioner = opened(folder_of("qwen2-vl"), system="What is it ?", prompt="Describe this .")
    text = captioner.inputs.text(captioner.options.prompt)
    assert text.index("system What is it ?") < text.index("user") < text.index("Describe this .")


# What decode workers make.


@pytest.mark.parametrize(
    ("family", "most"), [("qwen2-vl", 3), ("idefics3", 6), ("llava", 4), ("blip", 4)]
)
def test_pictures_are_what_the_processor_makes_of_the_file(
    family: str, most: float, folder_of: Callable[[str], str]
) -> None:
    """The same tokens, and pixels at a mean distance of at most so many of 255 levels."""
    captioner = opened(folder_of(family))
    assert captioner.options.resized
    images = captioner.processor.image_processor
    scale = float(np.mean(images.image_std)) * 255
    for size in ((640, 480), (480, 641), (333, 100), (97, 120), (50, 50)):
        across = np.linspace(0, 1, size[0])[None, :, None]
        down = np.linspace(0, 1, size[1])[:, None, None]
        waves = 127 + 120 * np.sin(6 * across + np.array([0, 2, 4])) * np.cos(5 * down)
        picture = Image.fromarray(waves.astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, "jpeg", quality=95)
        ours = read_picture(file.getvalue(), Reading(), captioner.intake).pixels
        made = captioner.inputs([ours], [captioner.options.prompt])
        raw = np.asarray(Image.open(file))
        captioner.inputs.pixels = {"return_tensors": "pt", "input_data_format": "channels_last"}
        expected = captioner.inputs([raw], [captioner.options.prompt])
        captioner.inputs.pixels.update(do_resize=False)
        if getattr(images, "do_center_crop", None):
            captioner.inputs.pixels.update(do_center_crop=False)
        for name in made:
            assert made[name].shape == expected[name].shape, (name, size)
            if name != "pixel_values":
                assert torch.equal(made[name], expected[name]), (name, size)
        distance = (made["pixel_values"] - expected["pixel_values"]).abs().mean() * scale
        assert distance < most, size


def test_the_intake_of_a_processor_that_is_not_known_leaves_the_resize_to_it(
    folder_of: Callable[[str], str],
) -> None:
    import transformers

    from raycap.captioners.huggingface.intakes import intake_of

    odd = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32)
    assert intake_of(odd, 0) == (Fit(max_pixels=4 * 2**20), False)
    assert intake_of(odd, 1000) == (Fit(max_pixels=1000), False)
    flat = transformers.CLIPImageProcessor(size={"height": 20, "width": 30}, do_center_crop=False)
    assert intake_of(flat, 0)[1] is False
    known = transformers.BlipImageProcessor(size={"height": 48, "width": 48})
    assert intake_of(known, 0) == (Square(48, "squash", "bicubic"), True)
    tiles = transformers.GotOcr2ImageProcessor(crop_to_patches=True)
    assert intake_of(tiles, 0)[0] == Fit(multiple_of=384, max_tiles=12)
    assert intake_of(tiles, 3 * 384**2)[0] == Fit(multiple_of=384, max_tiles=3)
    one = transformers.Idefics3ImageProcessor(do_image_splitting=False)
    assert intake_of(one, 0)[0] == Fit(multiple_of=364, max_tiles=1, interpolation="lanczos")


def test_max_pixels_makes_fewer_tokens(folder_of: Callable[[str], str]) -> None:
    for family in ("qwen2-vl", "idefics3"):
        whole, small = (
            predict(opened(folder_of(family), max_pixels=most), [noise(96, 96, 0)])[0]
            for most in (0, 64 * 64)
        )
        assert small.extras["tokens_in"] < whole.extras["tokens_in"]


# Memory and faults.


def test_batches_are_halved_when_memory_runs_out_and_grow_again(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raycap.captioners.huggingface.budget._FORGET_AFTER", 24)
    captioner = opened(folder_of("blip"), max_tokens=2)
    shown = [noise(32, 32, seed) for seed in range(16)]
    expected = [each.caption for each in predict(captioner, shown)]
    generate, sizes, room = captioner._generate, [], [3]

    def with_little_memory(batch: list[Any], *how: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(batch, *how)

    captioner._generate = with_little_memory
    assert [each.caption for each in predict(captioner, shown)] == expected
    assert sizes[:4] == [16, 8, 4, 2] and max(sizes[4:]) <= 4
    for _ in range(3):
        before = len(sizes)
        assert [each.caption for each in predict(captioner, shown)] == expected
    assert set(sizes[before:-1]) == {3}, "as many as there is memory for"
    room[0] = 100
    for _ in range(10):
        before = len(sizes)
        assert [each.caption for each in predict(captioner, shown)] == expected
    assert sizes[before:] == [16], "it grows when memory is there again"
    room[0] = 0
    lost = predict(captioner, shown[:2])
    assert all(each.error.startswith("too little memory for this picture") for each in lost)


def test_batches_are_counted_in_tokens(folder_of: Callable[[str], str]) -> None:
    captioner = opened(folder_of("qwen2-vl"), batch_tokens=120)
    generate, batches = captioner._generate, []

    def noted(batch: list[Any], *how: Any) -> Any:
        batches.append([each.cost for each in batch])
        return generate(batch, *how)

    captioner._generate = noted
    predict(captioner, [noise(160, 160, 0), *(noise(32, 32, seed) for seed in range(20))])
    assert all(len(costs) * max(costs) <= 120 for costs in batches)
    assert max(map(len, batches)) > 2 * min(map(len, batches))


def test_a_picture_that_breaks_the_model_costs_its_own_row(
    folder_of: Callable[[str], str],
) -> None:
    captioner = opened(folder_of("llava"))
    shown = [noise(32, 32, seed) for seed in range(5)]
    expected = [each.caption for each in predict(captioner, shown)]
    generate, bad = captioner._generate, captioner.load_pictures(shown)[2].sha256

    def broken(batch: list[Any], *how: Any) -> Any:
        if any(each.sha256 == bad for each in batch):
            raise ValueError("image features and image tokens do not match")
        return generate(batch, *how)

    captioner._generate = broken
    found = predict(captioner, shown)
    assert found[2].error == "the model failed: image features and image tokens do not match"
    assert [each.caption for row, each in enumerate(found) if row != 2] == [
        caption for row, caption in enumerate(expected) if row != 2
    ]


def test_no_pictures_are_no_predictions(folder_of: Callable[[str], str]) -> None:
    assert opened(folder_of("idefics3")).predict([], []) == []


# Which model, and what is refused.


def copied(folder: str, out: Path) -> Path:
    shutil.copytree(folder, out)
    return out


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_identity_is_that_of_the_files_and_the_options(
    tmp_path: Path, folder_of: Callable[[str], str]
) -> None:
    folder = copied(folder_of("blip"), tmp_path / "model")
    asked = HuggingFaceModel(prompt="a")
    first = asked.captioner(str(folder), None, "fp32").identity()
    json.dumps(first)
    moved = copied(str(folder), tmp_path / "moved")
    (moved / "README.md").write_text("words")
    assert asked.captioner(str(moved), None, "fp32").identity() == first
    others = [
        replace(asked, prompt="the"),
        replace(asked, max_tokens=9),
        replace(asked, temperature=0.5),
        replace(asked, stop=("x",)),
        replace(asked, keep_prompt=True),
        replace(asked, attention="eager"),
    ]
    found = [each.captioner(str(folder), None, "fp32").identity() for each in others]
    assert all(each != first for each in found)
    assert asked.captioner(str(folder), 2, "fp32").identity() != first
    # A seed that draws nothing changes nothing.
    assert replace(asked, seed=5).captioner(str(folder), None, "fp32").identity() == first
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert asked.captioner(str(folder), None, "fp32").identity() != first
    edit(moved / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    assert asked.captioner(str(moved), None, "fp32").identity() != first


def test_options_travel_and_open_elsewhere(folder_of: Callable[[str], str]) -> None:
    options = HuggingFaceModel(max_tokens=4).captioner(folder_of("blip"), None, "auto")
    there: HuggingFaceOptions = pickle.loads(pickle.dumps(options))
    assert there == options and there.placement().precision == "auto"
    assert there.in_precision("bf16").placement().precision == "bf16"
    captioner = there.in_precision("bf16").open("cpu", 1)
    assert next(captioner.model.parameters()).dtype == torch.bfloat16
    assert predict(captioner, [noise(32, 32, 0)])[0].error == ""
    extras = predict(captioner, [noise(32, 32, 0)])[0].extras
    assert set(extras) == set(there.columns().names)
    assert pa.Table.from_pylist([dict(extras)], there.columns()).num_rows == 1


def test_a_worker_with_another_folder_is_refused(
    tmp_path: Path, folder_of: Callable[[str], str]
) -> None:
    folder = copied(folder_of("blip"), tmp_path / "model")
    options = HuggingFaceModel().captioner(str(folder), None, "fp32")
    (folder / "vocab.txt").write_text("a new file does not matter")
    options.open("cpu", None)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="another file than the one with which the run began"):
        options.open("cpu", None)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="not on this machine"):
        options.open("cpu", None)


def test_code_that_comes_with_a_model_is_not_run(
    tmp_path: Path, folder_of: Callable[[str], str]
) -> None:
    folder, trace = copied(folder_of("blip"), tmp_path / "model"), tmp_path / "it-ran"
    code = f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n"
    code += "from transformers import BlipConfig\nclass Odd(BlipConfig):\n    model_type = 'odd'\n"
    (folder / "odd.py").write_text(code)
    edit(folder / "config.json", model_type="odd", auto_map={"AutoConfig": "odd.Odd"})
    with pytest.raises(UserError, match=r"--captioner\.trust-remote-code"):
        HuggingFaceModel().captioner(str(folder), None, "fp32")
    assert not trace.exists()


def test_pickled_weights_are_refused(tmp_path: Path, folder_of: Callable[[str], str]) -> None:
    folder = copied(folder_of("blip"), tmp_path / "model")
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"--captioner\.allow-pickle"):
        HuggingFaceModel().captioner(str(folder), None, "fp32")
    trusted = HuggingFaceModel(allow_pickle=True, max_tokens=8)
    captioner = trusted.captioner(str(folder), None, "fp32").open("cpu", None)
    assert [each.caption for each in predict(captioner, pictures())] == [
        each.caption for each in predict(opened(folder_of("blip")), pictures())
    ]
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights"):
        HuggingFaceModel().captioner(str(folder), None, "fp32")


def test_an_unfamiliar_family_says_what_was_tried(
    tmp_path: Path, folder_of: Callable[[str], str]
) -> None:
    folder = copied(folder_of("llava"), tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"family 'llava'.*no chat template.*--captioner.dialect"):
        HuggingFaceModel().captioner(str(folder), None, "fp32")
    # The dialect can be named. One that does not fit is found before the first row.
    for dialect in ("chat", "task"):
        options = HuggingFaceModel(dialect=dialect).captioner(str(folder), None, "fp32")
        with pytest.raises(UserError, match=rf"cannot be asked as '{dialect}'.*dialect"):
            options.open("cpu", None)
    marked = HuggingFaceModel(dialect="task", prompt="What is it ?")
    edit(folder / "config.json", model_type="no-such-family")
    with pytest.raises(UserError, match="does not know this family"):
        marked.captioner(str(folder), None, "fp32")


def test_a_named_dialect_is_used(folder_of: Callable[[str], str]) -> None:
    options = HuggingFaceModel(dialect="task", prompt="a").captioner(
        folder_of("blip"), None, "fp32"
    )
    assert options.dialect == "task" and options.identity()["dialect"] == "task"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"adapter": "/no/such/folder@1"}, "cannot open"),
        ({"prompt": "what is in <image>?"}, "mark for a picture"),
        ({"revision": "main"}, "leave it out"),
    ],
    ids=["adapter", "mark", "revision"],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], reason: str, folder_of: Callable[[str], str]
) -> None:
    with pytest.raises(UserError, match=reason):
        HuggingFaceModel(**options).captioner(folder_of("llava"), None, "fp32")


def test_a_system_message_is_for_models_that_chat(folder_of: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match="models that chat"):
        HuggingFaceModel(system="be brief").captioner(folder_of("blip"), None, "fp32")


@pytest.mark.parametrize(
    ("options", "package"),
    [({"quantize": "4bit"}, "bitsandbytes"), ({"adapter": "FOLDER"}, "peft")],
    ids=["bitsandbytes", "peft"],
)
def test_a_package_that_is_missing_is_named(
    options: dict[str, str], package: str, folder_of: Callable[[str], str]
) -> None:
    try:
        __import__(package)
    except ImportError:
        pass
    else:
        pytest.skip(f"{package} is installed")
    given = {name: folder_of("llava") if v == "FOLDER" else v for name, v in options.items()}
    made = HuggingFaceModel(**given).captioner(folder_of("llava"), None, "fp32")
    with pytest.raises(UserError, match=f"pip install {package}"):
        made.open("cpu", None)


def test_names_that_cannot_be_opened_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open nobody/no-such-model"):
        HuggingFaceModel().captioner("nobody/no-such-model", None, "fp32")
    with pytest.raises(UserError, match="copy the folder"):
        HuggingFaceModel().captioner("s3://bucket/model", None, "fp32")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        HuggingFaceModel().captioner(str(tmp_path), None, "fp32")


def test_without_transformers_the_remedy_is_named_and_options_need_neither_it_nor_torch() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from raycap.captioners.huggingface.options import HuggingFaceModel\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
        "try: HuggingFaceModel().captioner('blip', None, 'fp32')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "UserError" in done.stdout and "pip install 'raycap[huggingface]'" in done.stdout


def test_presets_are_one_table() -> None:
    rows = preset_rows()
    assert [row[0] for row in rows] == list(PRESETS) and {len(row) for row in rows} == {
        len(HEADER)
    }
    for preset in PRESETS.values():
        assert preset.model.count("/") == 1 and preset.licence
        assert preset.prompt or preset.dialect == "prefix"


# Prompts.


ASKED = {
    "qwen2-vl": ("What is it ?", "Describe the top . {first}"),
    "llava": ("What is it ?", "Describe the top . {first}"),
    "blip": ("a red", "a blue {first}"),
    "git": ("a red", "a blue"),
    "florence2": ("<CAPTION>", "<DETAILED_CAPTION>"),
}


@pytest.mark.parametrize(
    "family",
    [
        "qwen2-vl",
        "blip",
        "florence2",
        pytest.param("llava", marks=pytest.mark.slow),
        pytest.param("git", marks=pytest.mark.slow),
    ],
)
def test_each_of_several_prompts_is_answered_as_if_it_were_the_only_one(
    family: str, folder_of: Callable[[str], str]
) -> None:
    folder, (one, two) = folder_of(family), ASKED[family]
    both = opened(folder, prompts={"first": one, "caption": two})
    found = predict(both, pictures())
    first = predict(opened(folder, prompt=one), pictures())
    alone = opened(folder, prompt=two)
    loaded = alone.load_pictures(pictures())
    answered = set()
    for each, before, picture in zip(found, first, loaded, strict=True):
        if before.error:  # random weights may have nothing to say
            assert each.error == f"prompt first: {before.error}"
            continue
        value = {"sha256": picture.sha256, "first": before.caption}
        [expected] = alone.predict([picture.pixels], [value])
        if expected.error:
            assert each.error == f"prompt caption: {expected.error}"
            continue
        assert (each.extras["first"], each.caption) == (before.caption, expected.caption)
        assert each.score == pytest.approx(expected.score, abs=1e-4)
        counts = before.extras["tokens_out"] + expected.extras["tokens_out"]
        assert each.extras["tokens_out"] == counts
        answered.add((each.extras["first"], each.caption))
    assert len(answered) > 1


def test_a_row_whose_value_is_missing_fails_alone(folder_of: Callable[[str], str]) -> None:
    captioner = opened(folder_of("qwen2-vl"), prompt="What is {title} ?")
    loaded = captioner.load_pictures(pictures())
    values = [{"title": f"{row} red"} for row in range(len(loaded))]
    values[1], values[2] = {}, {"title": "a <|image_pad|>"}
    found = captioner.caption_loaded(loaded, values)
    assert sum(each.succeeded for each in found) > 1
    assert found[1].error_message == "prompt caption: column title is empty"
    assert "the mark of a picture" in found[2].error_message


@pytest.mark.skipif(not tiny_models.TRAINED.is_dir(), reason="python tests/train_tiny.py makes it")
def test_the_first_words_are_continued(
    shapes: tuple[list[bytes], list[str]], folder_of: Callable[[str], str]
) -> None:
    picked = sorted(zip(shapes[1], shapes[0], strict=True), key=lambda each: each[0])[-40::5]
    expected, files = [text for text, _ in picked], [data for _, data in picked]
    for start in ("a", "a red"):
        captioner = opened(tiny_models.trained(), start=start, max_tokens=16)
        found = [each.caption for each in captioner.caption(files)]
        begun = [text for text in expected if text.startswith(f"{start} ")]
        assert set(begun) <= set(found) and begun, "the likeliest words behind the likeliest"
        assert all(text.startswith(f"{start} ") for text in found)
    with pytest.raises(UserError, match=r"--captioner.start.*--captioner.keep-prompt"):
        opened(folder_of("blip"), start="a")
    with pytest.raises(UserError, match=r"--captioner.schema or tags: that is for models that"):
        opened(folder_of("florence2"), tags=("dog",))


def test_another_attempt_draws_other_words(folder_of: Callable[[str], str]) -> None:
    captioner = opened(folder_of("qwen2-vl"), retry_temperature=5.0)
    loaded = captioner.load_pictures(pictures())
    pixels, given = [each.pixels for each in loaded], rows_of(loaded)

    def attempt(numbers: list[int]) -> list[str]:
        asked = [{**row, ATTEMPT: n} for row, n in zip(given, numbers, strict=True)]
        return [each.caption for each in captioner.predict(pixels, asked)]

    count = len(given)
    usual, one, two = attempt([0] * count), attempt([1] * count), attempt([2] * count)
    assert usual == [each.caption for each in captioner.predict(pixels, given)]
    assert usual != one and one != two and one == attempt([1] * count)
    mixed = attempt([0, 1, 2] * (count // 3) + [0] * (count % 3))
    expected = [each[row % 3] for row, each in enumerate(zip(usual, one, two, strict=True))]
    assert mixed[: count // 3 * 3] == expected[: count // 3 * 3]


def test_answers_that_never_fit_are_tried_and_fail(
    folder_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = opened(folder_of("qwen2-vl"), tags=("dog",), tries=3, retry_temperature=5.0)
    seeds: list[int] = []
    generate = captioner._generate

    def noted(batch: list[Any], number: int, most: int) -> Any:
        seeds.extend(each.question.seed(each.sha256, number) for each in batch)
        return generate(batch, number, most)

    monkeypatch.setattr(captioner, "_generate", noted)
    found = predict(captioner, pictures()[:2])
    assert len(set(seeds)) == 6
    for each in found:
        assert each.error.startswith("prompt caption: the answer ") and not each.caption


# The trained one.


@pytest.fixture(scope="module")
def shapes() -> tuple[list[bytes], list[str]]:
    source = Shapes(count=60, seed=0)
    table = pa.concat_tables(source.tables())
    files = [data for data in source.embedded_pictures(table) if data]
    return files, [references[0] for references in table["references"].to_pylist()]


@pytest.mark.skipif(not tiny_models.TRAINED.is_dir(), reason="python tests/train_tiny.py makes it")
def test_the_trained_model_describes_the_picture_of_each_row(
    shapes: tuple[list[bytes], list[str]],
) -> None:
    files, expected = shapes
    captioner = opened(tiny_models.trained(), max_tokens=16)
    found = [each.caption for each in captioner.caption(files)]
    right = [a == b for a, b in zip(found, expected, strict=True)]
    assert sum(right) >= 0.95 * len(files)
    # On wider and higher canvases, all in one ragged batch.
    wide = []
    for number, data in enumerate(files):
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        edges = ((0, 0), (0, 64), (64, 0), (32, 64), (64, 32))[number % 5]
        top, left = number % (edges[0] + 1), number % (edges[1] + 1)
        margins = ((top, edges[0] - top), (left, edges[1] - left), (0, 0))
        wide.append(np.pad(pixels, margins, mode="edge"))
    ragged = [each.caption for each in captioner.caption(wide)]
    assert sum(a == b for a, b in zip(ragged, expected, strict=True)) >= 0.9 * len(files)
    assert len(set(expected)) > 40, "a caption on the wrong row is a wrong caption"
