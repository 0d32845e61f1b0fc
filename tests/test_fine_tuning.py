"""`raycap train --model`: LoRA adapters on tiny models, trained, killed, continued and used."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from packages import need
from PIL import Image

from raycap import Captioner
from raycap.captioners.huggingface.options import HuggingFaceModel
from raycap.cli import main
from raycap.sources import Shapes
from raycap.storage.training_log import read_epochs, read_log

pytestmark = need("transformers", "peft")

PROMPT = "Describe this picture in one sentence."
COMMAND = ["--precision", "fp32", "--workers.count", "0", "--captioner.max-tokens", "14"]
FLAGS = ["--batch", "4", "--lr", "5e-3", "--schedule.warmup", "0"]
FLAGS += ["--lora.rank", "4", "--lora.dropout", "0", "--trackers"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The hub's client may have been imported, and have read the variable, before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pictures with captions in another style than that of the tiny model."""
    return write_table(tmp_path_factory.mktemp("data"), 40)


def write_table(folder: Path, count: int) -> Path:
    source = Shapes(count=count, seed=5)
    lines = []
    for table in source.tables():
        pictures = source.embedded_pictures(table)
        for row, picture in zip(table.to_pylist(), pictures, strict=True):
            assert picture is not None
            (folder / row["key"]).write_bytes(picture)
            caption = in_style(row["references"][0])
            lines.append({"path": row["key"], "split": row["split"], "caption": caption})
    file = folder / "shapes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def in_style(caption: str) -> str:
    """red circle above blue square: the model says "a red circle above a blue square"."""
    return caption.replace("a ", "")


def command(data: Path, out: Path, *flags: str, model: str = "") -> list[str]:
    model = model or tiny_models.trained()
    own = ["--model", model, "--out", str(out), "--train.cache", str(out.parent / "cache")]
    return ["train", str(data), *own, "--source.split-column", "split", *COMMAND, *flags]


def curve(out: Path) -> list[dict[str, Any]]:
    """The epochs of a run, without its times."""
    return [
        {name: value for name, value in line.items() if "seconds" not in name}
        for line in read_epochs(out / "metrics.jsonl")
    ]


def adapter_of(out: Path) -> bytes:
    return (out / "captioner" / "adapter_model.safetensors").read_bytes()


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """A picture of large coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


# The words that are learned.


@pytest.mark.parametrize(
    ("family", "prompt"),
    [
        ("qwen2-vl", ""),
        ("blip", ""),
        *(
            pytest.param(*each, marks=pytest.mark.thorough)
            for each in (
                ("vision-encoder-decoder", ""),
                ("idefics3", ""),
                ("llava", ""),
                ("git", ""),
                ("florence2", ""),
                ("blip", "What is it"),
                ("git", "What is it"),
            )
        ),
    ],
)
def test_given_words_are_predicted_as_when_the_model_writes_them(
    family: str, prompt: str, tmp_path: Path
) -> None:
    from raycap.captioners.huggingface.given_words import NO_WORD, GivenWords

    folder = tiny_models.build(family, tmp_path / "model")
    asked = HuggingFaceModel(max_tokens=6, prompt=prompt)
    captioner = asked.captioner(folder, None, "fp32").open("cpu", None)
    shown = [noise(64, 64, 1), noise(96, 64, 2), noise(64, 64, 3)]
    shown = [each.pixels for each in captioner.load_pictures(shown)]
    given_words = GivenWords(captioner)

    written, expected = [], []
    for picture in shown:
        question = captioner.options.prompt
        inputs = captioner.tensors(captioner.inputs([picture], [question]))
        made = captioner.model.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        logits = torch.stack(made.logits, 1)[0]  # [T, V]
        count = len(logits) - len(written)  # captions of several lengths in one batch
        written.append(made.sequences[0, -len(logits) :][:count].tolist())
        expected.append(logits[:count])
    assert len({tuple(words) for words in written}) == len(shown)

    for places in given_words.together(shown):
        scored = given_words([shown[each] for each in places], [written[each] for each in places])
        for row, place in enumerate(places):
            is_word = scored.words[row] != NO_WORD
            assert scored.words[row][is_word].tolist() == written[place]
            torch.testing.assert_close(
                scored.logits[row][is_word], expected[place], atol=2e-4, rtol=1e-3
            )


@pytest.mark.parametrize("family", ["qwen2-vl", "blip"])
def test_the_tokens_of_a_caption_are_read_back_as_the_caption(family: str, tmp_path: Path) -> None:
    from raycap.captioners.huggingface.answer_text import AnswerReader
    from raycap.captioners.huggingface.given_words import GivenWords

    folder = tiny_models.build(family, tmp_path / "model")
    captioner = HuggingFaceModel().captioner(folder, None, "fp32").open("cpu", None)
    tokens = GivenWords(captioner).tokens(" a red circle above a blue square")
    reader = AnswerReader(captioner.model, captioner.inputs.tokenizer, family, False)
    question = captioner.options.stages[-1].sample_question()
    answer = reader.read(question, [*tokens, *tokens], [0.0] * 2 * len(tokens), None)
    assert (answer.text, answer.finish_reason) == ("a red circle above a blue square", "stop")


# The examples of an epoch.


def test_each_epoch_has_each_picture_once_and_each_caption_has_its_turn() -> None:
    from raycap.training.fine_tuning.pictures import Examples, FittedPictures

    count, captions = 11, 3
    keys = [f"{number:02}" for number in range(count)]
    references = [[f"{key} {number}" for number in range(captions)] for key in keys]
    pixels = [np.full((2, 3, 3), number, np.uint8) for number in range(count)]
    table = pa.table(
        {
            "key": keys,
            "sha256": keys,
            "pixels": pa.array([each.tobytes() for each in pixels], pa.large_binary()),
            "height": pa.array([2] * count, pa.int32()),
            "width": pa.array([3] * count, pa.int32()),
        }
    )
    listed = pa.table({"key": keys, "split": ["train"] * count, "references": references})
    store = FittedPictures(table, listed)
    examples = Examples(store, store.rows_of("train"), seed=1)
    learned: list[str] = []
    orders = set()
    for epoch in range(captions):
        steps = [share.tolist() for share in examples.shares(epoch, 4, 0, 1)]
        assert [len(step) for step in steps] == [4, 4, 3]
        rows = [row for step in steps for row in step]
        assert sorted(rows) == list(range(count))
        orders.add(tuple(rows))
        # Two workers have the same steps, and so has a run that continues.
        both = [list(examples.shares(epoch, 4, worker, 2)) for worker in range(2)]
        shared = [sorted([*one, *two]) for one, two in zip(*both, strict=True)]
        assert shared == [sorted(step) for step in steps]
        assert [s.tolist() for s in examples.shares(epoch, 4, 0, 1, start=1)] == steps[1:]
        for row in rows:
            picture, caption = examples.example(row, epoch)
            assert (picture == pixels[row]).all() and caption.startswith(keys[row])
            learned.append(caption)
    assert len(orders) == captions
    assert sorted(learned) == sorted(each for own in references for each in own)


# A run.


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(command(data, out, *FLAGS, "--epochs", "2", "--log-steps", "1")) == 0
    return out


def test_a_run_writes_what_every_training_run_writes(run: Path) -> None:
    facts = json.loads((run / "facts.json").read_text())
    lines = read_log(run / "metrics.jsonl")
    start = lines[0]
    assert facts["epochs"] == 2 and [line["kind"] for line in lines].count("step") == 16
    assert start["pictures"] == {"train": 32, "dev": 4} and start["steps"] == 16
    assert start["parameters_trained"] < start["parameters_frozen"]
    losses = [line["training_loss"] for line in lines if line["kind"] == "step"]
    assert losses[-1] < losses[0] / 2
    assert (run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    card = (run / "captioner" / "README.md").read_text()
    assert "32 pictures, 32 captions (train)" in card and tiny_models.trained() in card
    assert not list((run / "captioner").glob("*model-*"))  # the base model is not in it


def test_the_captioner_writes_what_the_run_has_validated(run: Path, data: Path) -> None:
    captioner = Captioner.load(run / "captioner", precision="fp32", device="cpu")
    validated = read_log(run / "validation.jsonl")
    files = [data.parent / Path(line["key"]).name for line in validated]
    captions = [each.caption for each in captioner.caption(files)]
    assert captions == [line["caption"] for line in validated]
    plain = Captioner.load(tiny_models.trained(), precision="fp32", device="cpu")
    assert captions != [each.caption for each in plain.caption(files)]


@pytest.mark.thorough
@pytest.mark.usefixtures("no_ray")
def test_the_command_captions_and_scores_with_it(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raycap.captioners.kinds import kind_of_model

    folder = run / "captioner"
    assert kind_of_model(str(folder)) == "huggingface"
    flags = ["--out", str(tmp_path / "out"), "--precision", "fp32", "--limit", "4"]
    assert main(["caption", str(data), "--model", str(folder), *flags]) == 0
    [file] = (tmp_path / "out" / "captions").glob("*.parquet")
    assert pq.read_table(file)["status"].to_pylist() == ["success"] * 4

    # The scores of the run, from captions that are written again.
    scores = tmp_path / "scores.json"
    config = tmp_path / "run.yaml"
    source = f"{{kind: table, path: {data}, split_column: split}}"
    config.write_text(
        f"source: {source}\ncaption: {{precision: fp32, actors: 1}}\n"
        f"evaluate: {{split: dev, samples: 0, cache: {tmp_path / 'cache'}}}\n"
    )
    assert main(["evaluate", str(folder), "--config", str(config), "--out", str(scores)]) == 0
    [table] = json.loads(scores.read_text())["tables"]
    [kept] = [line for line in read_epochs(run / "metrics.jsonl") if line["best"]][-1:]
    assert table["scores"]["cider_d"]["score"] == pytest.approx(kept["cider_d"])
    capsys.readouterr()


def test_the_identity_is_of_base_adapter_and_prompt(run: Path, tmp_path: Path) -> None:
    def identity(folder: Path, **options: Any) -> dict[str, Any]:
        return HuggingFaceModel(**options).captioner(str(folder), None, "fp32").identity()

    copy = tmp_path / "copy"
    shutil.copytree(run / "captioner", copy)
    (copy / "README.md").write_text("another card")
    assert identity(copy) == identity(run / "captioner")
    assert identity(copy)["prompt"] == PROMPT
    assert identity(copy, prompt="What is it ?") != identity(copy)
    asked = HuggingFaceModel(max_tokens=14)  # as in the run
    plain = asked.captioner(tiny_models.trained(), None, "fp32").identity()
    assert {name for name in plain if plain[name] != identity(copy)[name]} == {"adapter"}


def test_a_base_that_moved_changed_or_went_is_refused_with_the_remedy(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "captioner"
    shutil.copytree(tiny_models.trained(), base)
    shutil.copytree(run / "captioner", folder)
    pointer = json.loads((folder / "captioner.json").read_text())
    pointer["base"]["model"] = str(tmp_path / "gone")
    (folder / "captioner.json").write_text(json.dumps(pointer))
    [photo, *_] = map(str, data.parent.glob("*.png"))
    one = ["caption", photo, "--model", str(folder), "--device", "cpu"]

    assert main(one) == 2
    assert "--captioner.base FOLDER" in capsys.readouterr().err
    assert main([*one, "--captioner.base", str(base)]) == 0
    config = base / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert main([*one, "--captioner.base", str(base)]) == 2
    assert "is not the one that" in capsys.readouterr().err
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert main([*one, "--captioner.base", str(base)]) == 2
    assert "adapter_model.safetensors is missing, damaged" in capsys.readouterr().err


def test_a_finished_run_is_not_made_again_and_another_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raycap.commands.fine_tune import run_tuning
    from raycap.config import loads, with_parameters
    from raycap.errors import UserError

    config, before = loads((run / "config.yaml").read_text()), adapter_of(run)
    assert run_tuning(config)
    assert "finished; nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"train\.lora\.rank"):
        run_tuning(with_parameters(config, {"train.lora.rank": 8}))
    assert adapter_of(run) == before


# What is refused.


@pytest.mark.parametrize(
    ("section", "option", "value", "words"),
    [
        ("train", "encoder_lr", 1e-3, "train.encoder_lr"),
        ("train", "features", "x", "train.features"),
        ("train", "self_critical", {"epochs": 1}, "train.self_critical.epochs"),
        ("train", "objective", {"scheduled_sampling": 0.1}, "objective.scheduled_sampling"),
        ("train", "optimiser", {"averaging": 0.9}, "train.optimiser.averaging"),
        ("train", "lora", {"layers": "nothing"}, "fits no layer of the model"),
        ("train", "lora", {"layers": ".*"}, "fits the whole model too"),
        ("train", "lora", {"layers": ".*lm_head"}, "fits lm_head too"),
        ("train", "lora", {"layers": "("}, "no regular expression"),
        ("train", "lora", {"rank": 0}, "lora.rank is 0"),
        ("decoder", "kind", "transformer", "decoder is for captioners"),
        ("search", "kind", "greedy", "search is for captioners"),
        ("vocabulary", "min_count", 2, "vocabulary.min_count"),
        ("captioner", "kind", "vllm", "only models of the kind huggingface"),
        ("captioner", "quantize", "4bit", "--captioner.quantize: weights in 8 or 4 bits"),
        ("captioner", "start", "a", "--captioner.start"),
        ("captioner", "prompt", "Describe {title} .", "leave out what stands in braces"),
    ],
)
def test_options_that_do_not_apply_are_refused_by_name(
    section: str, option: str, value: Any, words: str, tmp_path: Path
) -> None:
    from raycap.commands.fine_tune import run_tuning
    from raycap.config import from_plain
    from raycap.errors import UserError
    from raycap.variants import merged

    usual = {
        "train": {"model": tiny_models.trained(), "out": str(tmp_path / "run")},
        "captioner": {"kind": "huggingface"},
        "source": {"kind": "shapes"},
    }
    with pytest.raises(UserError, match=re.escape(words)):
        run_tuning(from_plain(merged(usual, {section: {option: value}})))
    assert not (tmp_path / "run").exists()


def test_every_option_of_a_training_run_is_used_or_refused() -> None:
    """A new option of `Train` belongs into one of the two."""
    from raycap.training import Train
    from raycap.training.fine_tuning.setup import OF_TRAINED

    used = {"out", "fresh", "dry_run", "limit", "max_steps", "model", "cache", "lora"}
    used |= {"training_splits", "validation_split", "epochs", "batch", "lr", "seed", "precision"}
    used |= {"tf32", "checkpoint_minutes", "log_steps", "trackers", "data_name", "data_licence"}
    used |= {"objective", "optimiser", "schedule", "validation", "workers"}
    names = {field.name for field in dataclasses.fields(Train)}
    assert used | {name for name in OF_TRAINED if "." not in name} == names


def test_models_that_cannot_be_fine_tuned_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raycap.commands.fine_tune import run_tuning
    from raycap.config import from_plain
    from raycap.errors import UserError

    for model, words in (
        (str(run / "captioner"), f"give its base model, {tiny_models.trained()}"),
        ("http://127.0.0.1:9/v1", "is a server, whose weights are not here"),
        ("shipped", "leave out --model and give --start-from"),
    ):
        train = {"model": model, "out": str(tmp_path / "run")}
        with pytest.raises(UserError, match=re.escape(words)):
            run_tuning(from_plain({"train": train, "captioner": {"kind": "huggingface"}}))
    assert main(["train", "--prompt", "What?"]) == 2
    assert "name it (--model smolvlm" in capsys.readouterr().err


def test_other_defaults_belong_to_a_model_that_is_fine_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from raycap.config import loads
    from raycap.training.options import FINE_TUNING

    file = tmp_path / "run.yaml"
    file.write_text("train: {epochs: 7, validation: {samples: 1}}\n")
    for flags, epochs in (([], FINE_TUNING["epochs"]), (["--config", str(file)], 7)):
        assert main(["train", "--model", "smolvlm", *flags, "--print-config"]) == 0
        train = loads(capsys.readouterr().out).train
        assert (train.epochs, train.lr) == (epochs, FINE_TUNING["lr"])
        assert train.objective.label_smoothing == 0
    assert main(["train", "--config", str(file), "--print-config"]) == 0
    assert loads(capsys.readouterr().out).train.objective.label_smoothing > 0


# What a run promises.


@pytest.mark.thorough
def test_a_tiny_model_learns_to_say_it_in_other_words(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path / "run", *FLAGS, "--epochs", "8")) == 0
    epochs = curve(tmp_path / "run")
    assert epochs[-1]["training_loss"] < 0.03 < epochs[0]["training_loss"]
    capsys.readouterr()
    captioner = Captioner.load(tmp_path / "run" / "captioner", precision="fp32", device="cpu")
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    learned = [line for line in lines if line["split"] == "train"]
    captions = captioner.caption([data.parent / line["path"] for line in learned])
    right = sum(
        each.caption == line["caption"] for each, line in zip(captions, learned, strict=True)
    )
    assert right >= len(learned) - 1


@pytest.mark.thorough
def test_a_dry_run_writes_nothing_and_says_what_a_run_would_be(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(data, tmp_path / "run", "--dry-run", "--batch", "4")) == 0
    said = capsys.readouterr().out
    assert "train: 32 pictures, 32 captions" in said and "steps: 8 per epoch, 24 in all" in said
    assert re.search(r"parameters: [\d,]+ trained, [\d,]+ frozen", said)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Commands that a test starts; those that still run when it fails are ended."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_as_an_undisturbed_one(
    data: Path, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    # Dropout too must be that of the step, and one checkpoint is in the middle of an epoch.
    flags = [*FLAGS, "--epochs", "12", "--lora.dropout", "0.1", "--log-steps", "1"]
    flags += ["--checkpoint-minutes", "0.01", "--workers.threads", "1"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    assert main(command(data, whole, *flags)) == 0

    def steps() -> int:
        return max((line["step"] for line in read_log(out / "metrics.jsonl")), default=0)

    def saved() -> list[str]:
        return [state.parent.name for state in (out / "checkpoints").glob("*/state.json")]

    for _ in range(2):
        before, checkpoints = steps(), saved()
        process = subprocess.Popen(
            [sys.executable, "-m", "raycap", *command(data, out, *flags)],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        wait_for(
            lambda before=before, old=checkpoints, process=process: (
                (steps() >= before + 10 and set(saved()) - set(old)) or process.poll() is not None
            )
        )  # type: ignore[misc]
        assert process.poll() is None, "it was to be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(command(data, out, *flags)) == 0
    starts = [line["step"] for line in read_log(out / "metrics.jsonl") if line["kind"] == "start"]
    assert len(starts) > 1
    assert curve(out) == curve(whole)
    assert adapter_of(out) == adapter_of(whole)


@pytest.mark.thorough
def test_a_run_that_was_killed_after_its_last_step_is_validated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycap.training.fine_tuning import loop

    flags = [*FLAGS, "--epochs", "1", "--checkpoint-minutes", "1e-9"]
    with monkeypatch.context() as patch:
        patch.delattr(loop, "validate_epoch")
        with pytest.raises(NameError):
            main(command(data, tmp_path / "run", *flags))
    assert main(command(data, tmp_path / "run", *flags)) == 0
    assert [line["epoch"] for line in curve(tmp_path / "run")] == [1]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_two_workers_learn_what_one_learns(data: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--epochs", "2", "--batch", "5"]
    assert main(command(data, tmp_path / "one", *flags)) == 0
    assert main(command(data, tmp_path / "two", *flags, "--workers.count", "2")) == 0
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    for ours, theirs in zip(one, two, strict=True):
        for name in ("training_loss", "validation_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
