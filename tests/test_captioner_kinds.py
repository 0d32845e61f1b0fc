"""What every kind of captioner must do: one set of tests for all of them, through the commands."""

import asyncio
import contextvars
import gc
import hashlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hostile
import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import serving
from PIL import Image
from small_captioner import photos, save_captioner
from test_kill_points import killed_everywhere

from raycap.captioners import Captioner
from raycap.captioners.kinds import CAPTIONERS, kind_of_model
from raycap.captioners.presets import preset_rows
from raycap.captioners.trained import TrainedCaptioner
from raycap.cli import main
from raycap.schema import CAPTIONS

pytestmark = pytest.mark.usefixtures("no_ray")

KINDS = ("trained", "huggingface", "endpoint", "vllm")


class Engine:
    """Stands for vLLM's, which needs a GPU: answers with the digest of the picture."""

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        picture = prompt["multi_modal_data"]["image"]
        text = f"picture {hashlib.sha256(picture.tobytes()).hexdigest()[:8]}"
        output = SimpleNamespace(
            text=text, token_ids=[1, 2], cumulative_logprob=-4.0, finish_reason="stop"
        )
        yield SimpleNamespace(outputs=[output], prompt_token_ids=[1, 2, 3])

    def shutdown(self) -> None: ...


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, wherever a captioner starts vLLM's engine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)

    async def start(options: Any) -> Engine:
        return Engine()

    monkeypatch.setattr("raycap.captioners.vllm.captioner._start_engine", start)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """What --model says for each kind."""
    folder = tmp_path_factory.mktemp("models")
    save_captioner(folder / "trained")
    with serving() as server:
        server.keeps_requests = False

        def model(kind: str) -> str:
            if kind == "endpoint":
                return server.url
            if kind in ("huggingface", "vllm"):
                pytest.importorskip("transformers")
                import tiny_models

                return tiny_models.trained()
            return str(folder / kind)

        yield model


@pytest.fixture(params=KINDS)
def flags(request: pytest.FixtureRequest, model_of: Callable[[str], str]) -> list[str]:
    """The options of the command that choose a captioner."""
    model = model_of(request.param)
    chosen = ["--model", model, "--batch", "4", "--device", "cpu"]
    if request.param == "vllm":  # the stand-in works without a GPU
        chosen += ["--captioner", "vllm", "--gpus", "0"]
    else:
        chosen += ["--precision", "fp32"]
        assert kind_of_model(model) == request.param, "the kind is found from the model"
    return chosen if request.param == "trained" else [*chosen, "--captioner.max-tokens", "6"]


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


# These take seconds: one kind in each run of the tests, all of them with `-m slow`.
SLOWLY = pytest.mark.parametrize(
    "flags",
    [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "endpoint")) for kind in KINDS],
    indirect=True,
)
# Two kinds in the default tests, the others with the thorough ones.
THOROUGHLY = pytest.mark.parametrize(
    "flags",
    [
        pytest.param(kind, marks=() if kind in ("trained", "endpoint") else pytest.mark.thorough)
        for kind in KINDS
    ],
    indirect=True,
)


class Captions:
    """The command, as `killed_everywhere` takes it."""

    def __init__(self, *words: str) -> None:
        self.words = ["caption", *words]

    def run(self, out: Path) -> int:
        return main([*self.words, "--out", str(out)])


@SLOWLY
def test_a_run_killed_between_its_steps_is_finished_by_the_next(
    tmp_path: Path, flags: list[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(9)), tmp_path / "out"
    (folder / "bad.png").write_bytes(b"<html>")
    command = Captions(str(folder), *flags)
    steps = killed_everywhere(command, out, tmp_path / "copies")  # type: ignore[arg-type]
    expected = rows(out)
    assert len(expected) == 10 and len(steps) > 10
    for step in steps[:: len(steps) // 3]:
        again = shutil.copytree(step, tmp_path / "again")
        assert command.run(again) == 1
        found = rows(again)
        assert found.keys() == expected.keys()
        for key, row in found.items():
            wanted = expected[key]
            assert row["score"] == pytest.approx(wanted["score"], abs=1e-4)
            # Scores are rounded by batches; seconds are from a request to its answer.
            measured = {"score": None, "seconds": None}
            assert row | measured == wanted | measured
        left = {path.name for path in again.iterdir() if path.name[0] == "_"}
        assert left == {"_lease.lock", "_plan"}
        shutil.rmtree(again)


@SLOWLY
def test_every_bad_picture_has_a_row_with_its_reason(tmp_path: Path, flags: list[str]) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    # Of each reason one, and some that can be read.
    files = {file.error: file for file in hostile.hostile() if file.data and not file.options}
    files |= {str(number): file for number, file in enumerate(hostile.plain())}
    expected = {file.name: file.error for file in files.values()}
    for file in files.values():
        (corpus / file.name).write_bytes(file.data)
    (corpus / "gone.png").symlink_to("nowhere")
    command = ["caption", str(corpus), *flags, "--out", str(out), "--source.glob", "*"]
    assert main(command) == 1
    found = rows(out)
    assert found.pop("gone.png")["status"] == "failed_to_fetch"
    assert found.keys() == expected.keys() and len(set(expected.values())) > 5
    for key, row in found.items():
        assert row["status"] == ("failed_to_decode" if expected[key] else "success"), key
        assert row["error_message"].startswith(expected[key]), key
        assert bool(row["caption"]) != bool(expected[key])


# asyncio keeps the timers of requests that have ended, up to some hundred.
TIMERS = (asyncio.TimerHandle, contextvars.Context, weakref.ReferenceType)


@pytest.mark.parametrize(
    "kind",
    ("trained", pytest.param("huggingface", marks=pytest.mark.thorough), "endpoint", "vllm"),
)
def test_pictures_are_not_kept(kind: str, model_of: Callable[[str], str]) -> None:
    with opened(kind, model_of(kind)) as captioner:
        [sample] = captioner.load_pictures([np.zeros((40, 60, 3), np.uint8)])
        assert sample.pixels is not None
        seen: list[weakref.ref[Any]] = []
        after = {}
        for number in range(48):
            picture = np.roll(sample.pixels, number)
            seen.append(weakref.ref(picture))
            row = {"sha256": f"{number:064x}", "width": 60, "height": 40}
            assert len(captioner.predict([picture], [row])) == 1
            del picture
            if number in (23, 47):
                gc.collect()
                after[number] = sum(not isinstance(each, TIMERS) for each in gc.get_objects())
        assert not [each for each in seen if each() is not None]
        assert after[47] - after[23] < 24, "nothing is kept of each picture"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_pictures(kind: str, model_of: Callable[[str], str]) -> None:
    with opened(kind, model_of(kind)) as captioner:
        chance = np.random.default_rng(0)
        used = []
        for _ in range(3):
            for _ in range(25):
                noise = chance.integers(0, 255, (16, 96, 128, 3), np.uint8)
                loaded = captioner.load_pictures(list(noise))
                assert len(captioner.caption_loaded(loaded)) == 16
            used.append(resident())
        # 400 pictures between: so many that were kept would take more.
        assert used[2] - used[1] < 8 * 2**20


def resident() -> int:
    """Memory of this process in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def opened(kind: str, model: str) -> Captioner:
    few = {} if kind == "trained" else {"max_tokens": 6}
    precision = {} if kind == "vllm" else {"precision": "fp32"}
    return Captioner.load(model, kind, device="cpu", **precision, **few)


def test_a_caption_does_not_depend_on_its_neighbours(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(7)), tmp_path / "out"
    assert main(["caption", str(folder), *flags, "--out", str(out)]) == 0
    capsys.readouterr()
    for key, row in list(rows(out).items())[::3]:
        assert main(["caption", str(folder / key), *flags]) == 0
        shown = capsys.readouterr().out.strip()
        assert shown.partition(" (")[0] == row["caption"], key  # without remarks: (cut off)


def test_another_prompt_is_another_run(
    tmp_path: Path, model_of: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(tmp_path / "photos", range(2)), tmp_path / "out"
    command = ["caption", str(folder), "--model", model_of("endpoint"), "--out", str(out)]
    assert main([*command, "--prompt", "What is this?"]) == 0
    assert main([*command, "--prompt=Who is this?"]) == 2
    assert "prompt was 'What is this?', now 'Who is this?'" in capsys.readouterr().err
    assert len(rows(out)) == 2


@THOROUGHLY
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
    kind: str, tmp_path: Path, model_of: Callable[[str], str]
) -> None:
    folder = photos(tmp_path / "photos", range(2))
    with opened(kind, model_of(kind)) as captioner:
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
