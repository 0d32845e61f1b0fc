"""The command as a person types it: help, refusals, exit codes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from raycap import __version__
from raycap.cli import main
from raycap.commands import COMMANDS
from raycap.config import loads
from raycap.encoders import Timm


def test_help_shows_every_command_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "examples:" in shown
    for name in COMMANDS:
        assert name in shown


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from raycap.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'pyarrow', 'pydantic', 'PIL') if name in "
        "sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "--print-config" in capsys.readouterr().out


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    """As in `raycap ... | head`."""
    command = [sys.executable, "-m", "raycap", "train", "--print-config"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        error_output = process.stderr.read()
    assert process.returncode == 141
    assert error_output == "raycap: stopped: the output pipe was closed\n"


def test_another_broken_pipe_is_not_taken_for_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str]) -> int:
        raise BrokenPipeError("between two processes")

    monkeypatch.setattr("raycap.cli._run", broken)
    with pytest.raises(BrokenPipeError, match="between"):
        main(["inspect"])


def test_no_command_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["inspekt"], ["'inspekt'", "did you mean 'inspect'"]),
        (["inspect"], ["which pictures?"]),
        (["inspect", "no-such-folder"], ["no-such-folder"]),
        (["inspect", ".", "--source", "foldr"], ["'foldr'", "did you mean 'folder'"]),
        (["inspect", "--config", "no.yaml"], ["no.yaml"]),
        (["inspect", ".", "--run", "fine_tuned"], ["fine_tuned", "--config"]),
        (["inspect", ".", "--source", "folder", "--limit", "0"], ["limit is 0"]),
        (
            ["inspect", ".", "--source", "folder", "--out", "s3://bucket/i"],
            ["s3://bucket/", "give a path"],
        ),
    ],
)
def test_refusals_name_the_thing(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("raycap: ")
    for word in words:
        assert word in shown


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--fetch.dedline", "3"], ["--fetch.dedline", "--fetch.deadline"]),
        (["--fetch.deadline", "soon"], ["--fetch.deadline", "soon"]),
        (["--fetch.deadline", "-1"], ["fetch", "-1"]),
    ],
)
def test_wrong_flags_are_named(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["inspect", ".", "--source", "folder", *flags])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    for word in words:
        assert word in shown


def test_print_config_prints_yaml_that_loads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        main(["inspect", str(tmp_path), "--source", "folder", "--limit", "9", "--print-config"])
        == 0
    )
    config = loads(capsys.readouterr().out)
    assert config.inspect.limit == 9
    assert config.source is not None and config.source.path == str(tmp_path)


def test_a_kind_of_source_without_a_path_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--source", "shapes", "--print-config"]) == 0
    source = loads(capsys.readouterr().out).source
    assert source is not None and source.path == "shapes"


def test_the_version_is_one() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    assert "version" in project["dynamic"]
    answer = subprocess.run(
        [sys.executable, "-m", "raycap", "--version"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == f"raycap {__version__}"


def test_a_model_of_timm_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "--encoder", "timm:convnext_atto", "--print-config"]) == 0
    encoder = loads(capsys.readouterr().out).encoder
    assert isinstance(encoder, Timm) and encoder.model == "convnext_atto"
    assert main(["extract", "--encoder", "pixels:large", "--print-config"]) == 2
    assert "no models" in capsys.readouterr().err
