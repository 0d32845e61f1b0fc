"""Training runs without Ray that are killed, or overtaken by another start of the same run."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feature_tables import features, source_flags, store_of, write
from test_train import CONFIG, DECODER, curve
from test_training import options, run

from raycap.cli import main
from raycap.commands.training_run import FILES, RUN, is_finished
from raycap.errors import UserError
from raycap.storage import Lease, RunFolder, files
from raycap.storage.training_log import METRICS, RunLog, read_log
from raycap.training import Optimiser, SelfCritical, run_files
from raycap.training.run_files import Leadership
from raycap.training.store import PictureStore
from raycap.vocabulary import Vocabulary, VocabularyOptions

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PictureStore:
    folder = tmp_path_factory.mktemp("tables")
    return store_of(write(folder / "table", features(48)), folder / "cache")


@pytest.fixture(scope="module")
def vocabulary(store: PictureStore) -> Vocabulary:
    references = store.captions["references"].to_pylist()
    captions = [caption for of_picture in references for caption in of_picture]
    return Vocabulary.build(captions, VocabularyOptions(min_count=1))


class KilledError(BaseException):
    """Stands for `kill -9`: nothing catches it."""


class Kill:
    """Ends a run before its `number`-th change of a file, and before all that follow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: float) -> None:
        self._left, self._patch = number, monkeypatch
        # All changes of files of a training run come down to these.
        for owner, name in (
            (os, "replace"),
            (os, "rename"),
            (files, "_remove"),
            (RunLog, "add"),
            (RunFolder, "remove"),
            (RunFolder, "remove_file"),
        ):
            self._patch.setattr(owner, name, self._mortal(getattr(owner, name)))

    def _mortal(self, change: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left <= 0:
                raise KilledError
            return change(*arguments, **options)

        return changed


@contextlib.contextmanager
def killed_before(number: float) -> Iterator[list[bool]]:
    """Whether what is done in the block was killed."""
    was_killed = [False]
    with pytest.MonkeyPatch.context() as patch:
        Kill(patch, number)
        try:
            yield was_killed
        except KilledError:
            was_killed[0] = True


def result(out: Path) -> dict[str, Any]:
    """What a run leaves behind, without its times."""
    [*_, last] = sorted(out.glob("checkpoints/*/state.json"))
    captioner = {file.name: file.read_bytes() for file in (out / "captioner").iterdir()}
    captioner.pop("config.json"), captioner.pop("README.md")
    steps = [line for line in read_log(out / METRICS) if line["kind"] == "step"]
    return {
        "epochs": curve(out),
        "steps": [line["step"] for line in steps],
        "validation": read_log(out / "validation.jsonl"),
        "captioner": captioner,
        "last": last.parent.name,
        "tensors": (last.parent / "state.safetensors").read_bytes(),
        "names": sorted(file.name for file in out.iterdir()),
    }


@pytest.mark.parametrize(
    "minutes, every",
    [
        pytest.param(0.0, 7, marks=pytest.mark.thorough),
        pytest.param(0.0, 1, marks=pytest.mark.slow),
        pytest.param(1e-9, 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_before_any_of_its_writes_ends_as_if_nothing_had_happened(
    minutes: float,
    every: int,
    store: PictureStore,
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both phases, with checkpoints after each epoch or after each step."""
    monkeypatch.setattr("raycap.training.resume.SECONDS_TO_WRITE", 0.0)
    train = options(
        epochs=2,
        batch=18,
        log_steps=1,
        checkpoint_minutes=minutes,
        neighbours=8,
        optimiser=Optimiser(averaging=0.9),
        self_critical=SelfCritical(epochs=2, samples=2, max_length=6),
    )
    assert run(store, vocabulary, tmp_path / "whole", train)
    expected = result(tmp_path / "whole")
    number, killed = 1, [True]
    while killed[0]:
        out = tmp_path / str(number)
        with killed_before(number) as killed:
            run(store, vocabulary, out, train)
        if killed[0]:
            assert run(store, vocabulary, out, train)
        found = result(out)
        for name, value in expected.items():
            assert found[name] == value, f"{name}, killed before change {number}"
        number += every
    assert number > 30


def test_a_checkpoint_of_the_last_step_of_an_epoch_is_older_than_the_line_of_the_epoch(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = options(epochs=2, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:

        def add(log: RunLog, line: dict[str, Any], original: Any = RunLog.add) -> None:
            original(log, line)
            if line["kind"] == "epoch":
                raise KilledError

        patch.setattr(RunLog, "add", add)
        with pytest.raises(KilledError):
            run(store, vocabulary, tmp_path, train)
    assert [line["epoch"] for line in curve(tmp_path)] == [1]
    assert run(store, vocabulary, tmp_path, train)
    assert [line["epoch"] for line in curve(tmp_path)] == [1, 2]


def test_self_critical_training_that_is_killed_starts_from_the_same_captioner(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Its first epoch replaces the captioner that it began with. Then it is killed, before there
    is a checkpoint of that epoch."""
    train = options(
        epochs=3, self_critical=SelfCritical(epochs=1, samples=4, max_length=10, lr=1e-2)
    )
    assert run(store, vocabulary, tmp_path / "whole", train)
    assert curve(tmp_path / "whole")[-1]["best"]
    killed = tmp_path / "killed"
    with pytest.raises(KilledError):
        run(store, vocabulary, killed, train, report=_die_in("self_critical"))
    checkpoints = sorted((killed / "checkpoints").iterdir())
    for file in checkpoints[-1].iterdir():
        file.unlink()
    assert run(store, vocabulary, killed, train)
    assert curve(killed) == curve(tmp_path / "whole")


def _die_in(phase: str) -> Any:
    def report(line: dict[str, Any]) -> None:
        if line["phase"] == phase:
            raise KilledError

    return report


def test_a_start_that_was_overtaken_ends_at_its_next_write(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    train = options(epochs=3, log_steps=1)
    assert run(store, vocabulary, tmp_path / "whole", train)

    def overtake(line: dict[str, Any]) -> None:
        assert line["epoch"] == 1, "the first start goes on"
        assert run(store, vocabulary, tmp_path / "run", train)

    with pytest.raises(UserError, match="another start of this run goes on"):
        run(store, vocabulary, tmp_path / "run", train, report=overtake)
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_who_has_lost_the_lease_does_not_take_the_run_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_files, "SECONDS_FOR_LEASE", 0.1)
    folder = RunFolder(str(tmp_path))
    with Lease(folder) as lease:
        mine = Leadership(folder, lease.run)
        mine.take()
        with pytest.raises(UserError, match="another start"):
            Leadership(folder, "of another driver").take()
        mine.check()
        Leadership(folder, lease.run).take()  # Ray Train has replaced the worker
        with pytest.raises(UserError, match="another start"):
            mine.check()


def test_a_line_that_was_cut_within_a_character_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    for step, word in enumerate(("un", "été"), start=1):
        RunLog(folder).add({"kind": "samples", "step": step, "samples": [word]})
    content = (tmp_path / METRICS).read_bytes()
    (tmp_path / METRICS).write_bytes(content[: content.rindex("é".encode()) + 1])
    assert [line["step"] for line in read_log(tmp_path / METRICS)] == [1]
    RunLog(folder).forget_after(1, 0)
    assert (tmp_path / METRICS).read_bytes() == content[: content.index(b"\n") + 1]


def test_a_fresh_start_that_is_killed_leaves_no_nameless_files(tmp_path: Path) -> None:
    """Without run.json, another run would go on with the checkpoints of the one before."""
    out = tmp_path / "run"
    for number in range(1, len(FILES) + 1):
        for name in FILES:
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_text("{}")
        with killed_before(number) as killed:
            is_finished(RunFolder(str(out)), {}, fresh=True)
        assert killed[0] and (out / RUN).exists()
    is_finished(RunFolder(str(out)), {}, fresh=True)
    assert not list(out.iterdir())


def test_captions_that_were_joined_before_a_refusal_are_not_learned_from(tmp_path: Path) -> None:
    table = write(tmp_path / "table", features(48), group=5)
    (tmp_path / "run.yaml").write_text(CONFIG % DECODER)
    config = ["--config", str(tmp_path / "run.yaml"), "--features", table]
    where = ["--train.cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    how = ["--train.data", "stream", "--workers.count", "0", "--epochs", "1"]
    command = ["train", *source_flags(table), *config, *where, *how]
    assert main([*command, "--vocabulary.min-count", "999"]) == 2
    assert (tmp_path / "run" / "rows").exists()
    source = Path(table) / "source.jsonl"
    source.write_text(source.read_text().replace("boat", "ship"))
    assert main(command) == 0
    words = (tmp_path / "run" / "vocabulary.json").read_text()
    assert "ship" in words and "boat" not in words
    learned = read_log(tmp_path / "run" / "validation.jsonl")
    assert "boat" not in json.dumps([line["references"] for line in learned])
