"""What every kind of captioner must do: one set of tests for all of them, through the commands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from chat_server import serving
from PIL import Image
from small_captioner import photos, save_captioner

from raycap.captioners import Captioner
from raycap.captioners.kinds import CAPTIONERS, kind_of_model
from raycap.captioners.presets import preset_rows
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.schema import CAPTIONS

pytestmark = pytest.mark.usefixtures("no_ray")

KINDS = ("trained", "huggingface", "endpoint")  # vllm needs a GPU: see test_vllm.py


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """What --model says for each kind."""
    folder = tmp_path_factory.mktemp("models")
    save_captioner(folder / "trained")
    with serving() as server:

        def model(kind: str) -> str:
            if kind == "endpoint":
                return server.url
            if kind == "huggingface":
                pytest.importorskip("transformers")
                import tiny_models

                return tiny_models.trained()
            return str(folder / kind)

        yield model


@pytest.fixture(params=KINDS)
def flags(
    request: pytest.FixtureRequest,
    model_of: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """The options of the command that choose a captioner."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = model_of(request.param)
    assert kind_of_model(model) == request.param, "the kind is found from the model"
    few = ["--captioner.max-tokens", "6"] if request.param != "trained" else []
    return ["--model", model, "--batch", "4", "--precision", "fp32", "--device", "cpu", *few]


def rows(out: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(out / "captions").to_pylist()
    found = {row["key"]: row for row in table}
    assert len(found) == len(table), "each key once"
    return found


def test_a_table_is_made_resumed_retried_and_exported(tmp_path: Path, flags: list[str]) -> None:
    folder, out = photos(tmp_path / "photos", range(6)), tmp_path / "out"
    Image.new("L", (90, 30), 128).save(folder / "grey.jpg")
    (folder / "bad.png").write_bytes(b"<html>")
    command = ["caption", str(folder), *flags, "--out", str(out), "--also", "jsonl", "txt"]

    assert main(command) == 1
    first = rows(out)
    assert {key: row["status"] for key, row in first.items()} == {
        **{f"{number:05}.png": "success" for number in range(6)},
        "grey.jpg": "success",
        "bad.png": "failed_to_decode",
    }
    assert all(row["caption"] for row in first.values() if row["status"] == "success")
    names = pq.read_schema(next((out / "captions").glob("*.parquet"))).names
    assert names[: len(CAPTIONS.names)] == CAPTIONS.names and "raycap.chunk" not in names
    lines = [json.loads(line) for path in out.glob("jsonl/*.jsonl") for line in path.open()]
    assert {line["key"]: line["caption"] for line in lines} == {
        key: row["caption"] for key, row in first.items()
    }
    assert (out / "txt" / "grey.jpg.txt").read_text().strip() == first["grey.jpg"]["caption"]

    # New pictures are added, and the rows that are there stay as they are.
    photos(folder, range(6, 8))
    assert main(command) == 1
    second = rows(out)
    assert len(second) == 10 and {key: second[key] for key in first} == first

    # Failed rows are made again, and only those.
    Image.new("RGB", (50, 40), "red").save(folder / "bad.png")
    assert main([*command, "--retry", "failed"]) == 0
    third = rows(out)
    assert third.pop("bad.png")["status"] == "success"
    assert third == {key: row for key, row in second.items() if key != "bad.png"}
    assert not (out / "_answers").exists()


def test_a_caption_does_not_depend_on_its_neighbours(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(7)), tmp_path / "out"
    assert main(["caption", str(folder), *flags, "--out", str(out)]) == 0
    capsys.readouterr()
    for key, row in list(rows(out).items())[::3]:
        assert main(["caption", str(folder / key), *flags]) == 0
        assert capsys.readouterr().out.strip() == row["caption"], key


def test_another_prompt_is_another_run(
    tmp_path: Path, model_of: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(2)), tmp_path / "out"
    command = ["caption", str(folder), "--model", model_of("endpoint"), "--out", str(out)]
    assert main([*command, "--prompt", "What is this?"]) == 0
    assert main([*command, "--prompt=Who is this?"]) == 2
    assert "prompt was 'What is this?', now 'Who is this?'" in capsys.readouterr().err
    assert len(rows(out)) == 2


def test_tables_are_evaluated_and_shown(tmp_path: Path, flags: list[str]) -> None:
    out, scores, page = tmp_path / "out", tmp_path / "scores.json", tmp_path / "page.html"
    shapes = ["--source", "shapes", "--source.count", "20"]
    assert main(["caption", *shapes, *flags, "--out", str(out)]) == 0
    references = ["--config", str(tmp_path / "shapes.yaml")]
    (tmp_path / "shapes.yaml").write_text("source: {kind: shapes, count: 20}\n")
    table = str(out / "captions")
    assert main(["evaluate", table, *references, "--out", str(scores)]) == 0
    assert "bleu" in scores.read_text().lower()
    assert main(["report", table, *references, "--out", str(page)]) == 0
    caption = next(iter(rows(out).values()))["caption"]
    assert caption.split(" ")[0] in page.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_lines_of_python_open_every_kind(
    kind: str, tmp_path: Path, model_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = photos(tmp_path / "photos", range(2))
    few = {} if kind == "trained" else {"max_tokens": 6}
    with Captioner.load(model_of(kind), precision="fp32", device="cpu", **few) as captioner:
        good, bad, other = captioner.caption(
            [folder / "00000.png", b"nonsense", (folder / "00001.png").read_bytes()]
        )
    assert good.succeeded and other.succeeded and bad.status == "failed_to_decode"
    assert isinstance(captioner, TrainedCaptioner) == (kind == "trained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x"], "--prompt: the captioner shipped was made by raycap train"),
        (["--captioner.seed", "3"], "--captioner.seed: the captioner shipped was made by"),
        (["--captioner", "hugingface"], "there is no captioner 'hugingface'; did you mean"),
        (["--model", "http://127.0.0.1:9/v1", "--beam", "3"], "--beam: only captioners that"),
        (["--model", "http://127.0.0.1:9/v1", "--search.width", "3"], "--search: only captioners"),
    ],
)
def test_options_of_another_kind_are_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path, range(1))
    assert main(["caption", str(tmp_path / "00000.png"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("shipped", "trained"),
        ("http://localhost:8000/v1", "endpoint"),
        ("https://a/v1,https://b/v1", "endpoint"),
        ("smolvlm", "huggingface"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "huggingface"),
        ("./no-such-folder", "trained"),
        ("no-such-folder", "trained"),
        ("a/b/c", "trained"),
    ],
)
def test_the_kind_is_found_from_the_model(model: str, kind: str) -> None:
    assert kind_of_model(model) == kind and kind in CAPTIONERS


def test_an_existing_folder_is_no_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "captioner").mkdir(parents=True)
    assert kind_of_model("runs/captioner") == "trained"
    (tmp_path / "runs/captioner/config.json").write_text('{"model_type": "blip"}')
    assert kind_of_model("runs/captioner") == "huggingface"


def test_help_and_docs_show_all_short_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    shown = capsys.readouterr().out
    docs = (Path(__file__).parents[1] / "docs" / "captioners.md").read_text()
    for row in preset_rows():
        assert row[0] in shown and row[1] in shown
        assert " | ".join([f"`{row[0]}`", *row[1:]]) in docs
