"""The table of docs/speed.md is written by benchmarks/all.py."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import speed_table
from speed_table import BEGIN, END, Measured, Row

# Not `import all`: that would hide Python's own function here.
everything: Any = importlib.import_module("all")

ONE = Row("decode", "Pillow", "{ratio:.2f} (PSNR at least {psnr:.0f} dB)")
TWO = Row("train", "a plain loop", "{loop:.1f}")
THREE = Row("train", "a slow loop", "{slow:.0f}")
PAGE = f"""# How fast

By hand, above.

{BEGIN}
| what | against | ratio | rounds | machine | command |
| --- | --- | --- | --- | --- | --- |
| decode | Pillow | 1.50 (PSNR at least 50 dB) | 3 | an old one; 2020-01-01 | `old` |
| train | a plain loop | 0.9 | 3 | an old one; 2020-01-01 | `train` |
| train | a slow loop | 20 | 3 | an old one; 2020-01-01 | |
| by hand | nothing | 7 | 1 | an old one; 2020-01-01 | |
{END}

## By hand, below

| what | against |
| --- | --- |
"""
DECODED: list[dict[str, float | str]] = [
    {"ratio": 1.5, "psnr": 51.0},
    {"ratio": 1.7, "psnr": 53.0},
    {"ratio": 1.6, "psnr": 52.0},
]


def test_rows_that_were_measured_are_written_and_all_others_stay() -> None:
    trained = Measured((TWO, THREE), [{"loop": 1.04}], "`new train`")
    written = speed_table.updated(
        PAGE, [Measured((ONE,), DECODED, "`new`"), trained], "this machine; today"
    )
    before, _, rest = written.partition(BEGIN)
    table, _, after = rest.partition(END)
    assert table.strip().splitlines()[2:] == [
        "| decode | Pillow | 1.60 (PSNR at least 52 dB) | 3: 1.50 to 1.70 | this machine; today "
        "| `new` |",
        "| train | a plain loop | 1.0 | 1 | this machine; today | `new train` |",
        "| train | a slow loop | 20 | 3 | an old one; 2020-01-01 | |",
        "| by hand | nothing | 7 | 1 | an old one; 2020-01-01 | |",
    ]
    assert (before, after) == (PAGE.partition(BEGIN)[0], PAGE.partition(END)[2])
    again = speed_table.updated(
        written, [Measured((ONE,), [], ""), Measured((TWO, THREE), [], "")], "later"
    )
    assert again == written


def test_a_page_without_the_marks_is_not_written() -> None:
    with pytest.raises(SystemExit, match="needs the lines"):
        speed_table.updated(PAGE.replace(END, ""), [], "here")


def test_each_row_of_the_page_has_a_benchmark_and_each_benchmark_its_rows() -> None:
    names = [row.name for each in everything.BENCHMARKS.values() for row in each.rows]
    assert len(set(names)) == len(names)
    page = everything.PAGE.read_text()
    assert list(speed_table._rows_of(speed_table.table_of(page))) == names
    for name in everything.BENCHMARKS:
        assert (everything.HERE.parent / everything.command_of(name, {})[0]).exists()
        assert everything.command_text(name) in page


def test_a_benchmark_that_lacks_something_says_what(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def reason(**needs: Any) -> str:
        benchmark = everything.Benchmark((ONE,), **needs)
        return str(everything.reason_to_skip(benchmark, {"photos": "here"}))

    monkeypatch.setenv("RAYCAP_DATA", str(tmp_path))
    (tmp_path / "there").mkdir()
    assert reason(needs=("photos",), packages=("json",), programs=("sh",), data="there") == ""
    assert reason(needs=("photos", "peer")) == "give --peer VENV/bin/img2dataset"
    assert reason(packages=("no_such_package",)) == "no_such_package is not installed"
    assert "no program no-such-program" in reason(programs=("no-such-program",))
    assert reason(data="far") == "RAYCAP_DATA has no folder far"


def test_the_machine_is_named(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "model name\t: A Processor\nflags\t\t: sse avx2 avx512f\n\nmodel name: other\n"
    )
    assert " x A Processor, avx512f; 20" in speed_table.machine(info)
    assert "; 20" in speed_table.machine(tmp_path / "none")


def test_a_benchmark_that_fails_says_so_and_its_row_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = everything.Benchmark((ONE,), ("--no-such-option",), file="json_figures")
    monkeypatch.setattr(everything, "BENCHMARKS", {"decode": broken})
    page = tmp_path / "speed.md"
    page.write_text(PAGE)
    monkeypatch.setattr(everything, "PAGE", page)
    assert everything.main(["--write", "--out", str(tmp_path / "out")]) == 1
    assert "decode: failed: it ended with 0" in capsys.readouterr().out
    assert page.read_text() == PAGE


@pytest.mark.thorough
def test_short_forms_measure_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = everything.PAGE.read_text()
    assert everything.main(["--quick", "--out", str(tmp_path), "--only", "step", "endpoint"]) == 0
    said = capsys.readouterr().out
    assert everything.PAGE.read_text() == page
    for name in ("step", "endpoint"):
        figures = json.loads((tmp_path / f"{name}-1.json").read_text())
        assert (tmp_path / f"{name}-1.txt").stat().st_size
        for row in everything.BENCHMARKS[name].rows:
            assert all(figures[figure] > 0 for figure in row.names())
            [line] = [line for line in said.splitlines() if line.startswith(f"| {row.what} |")]
            assert f"| 1 | {speed_table.machine()} |" in line


def test_short_forms_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        everything.main(["--quick", "--write"])
    assert "--quick measures nothing" in capsys.readouterr().err
