"""Sources that are listed in parts: together they give what the whole gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_captioner import photos, save_captioner
from tables import keys

from raycap.bulk.plan import newest_plan, read_plan
from raycap.cli import main
from raycap.sources import Folder, Notes, Source
from raycap.sources.folder import MOST_TOP_ENTRIES
from raycap.storage import RunFolder

NAMES = st.sampled_from(["a", "b.jpg", "c.png", "d.txt", ".hidden", "e.jpg", "__MACOSX", "ü"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


def listed(source: Source, unit: str | None = None) -> list[tuple[str, str]]:
    notes = Notes()
    tables = source.tables(notes) if unit is None else source.tables_of_unit(unit, notes)
    return [
        (row["key"], row["error"])
        for table in tables
        for row in table.select(["key", "error"]).to_pylist()
    ]


@given(st.sets(PATHS, min_size=1, max_size=12), st.booleans())
def test_the_parts_of_a_folder_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], has_link: bool
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    for path in sorted(paths):
        file = folder / path
        if any(parent.is_file() for parent in [file, *file.parents]) or file.exists():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "z.jpg").touch()
    if has_link:  # to a file of another part, and to a folder
        (folder / "a").mkdir(exist_ok=True) if not (folder / "a").exists() else None
        if (folder / "a").is_dir():
            (folder / "a" / "link.jpg").symlink_to(folder / "z.jpg")
        (folder / "link").symlink_to(folder)
    source: Any = Folder(str(folder))
    units = source.units()
    assert len(set(units)) == len(units) and units[0] == ""
    if len(units) > 1:
        parts = [row for unit in units for row in listed(source, unit)]
        assert sorted(parts) == sorted(listed(source))


def test_a_folder_with_very_many_entries_is_one_part(tmp_path: Path) -> None:
    for number in range(MOST_TOP_ENTRIES + 1):
        (tmp_path / f"{number}").mkdir()
    assert Folder(str(tmp_path)).units() == ("",)
    (tmp_path / "0").rmdir()
    assert len(Folder(str(tmp_path)).units()) == MOST_TOP_ENTRIES + 1


@pytest.mark.usefixtures("no_ray")
def test_new_pictures_and_new_folders_are_found_and_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a", "b"):
        photos(source / name, range(3))
    save_captioner(tmp_path / "model")
    command = ["caption", str(source), "--model", str(tmp_path / "model"), "--out", str(out)]
    assert main([*command, "--batch", "4"]) == 0
    plan = read_plan(RunFolder(str(out)), 1)
    assert plan is not None and plan.units == ("", "a/", "b/")
    photos(source / "b", range(5))
    photos(source / "c", range(2))
    shutil.copy(source / "a" / "00000.png", source / "top.png")
    capsys.readouterr()
    assert main([*command, "--batch", "4"]) == 0
    assert "11 rows, 0 failed; 5 made now" in capsys.readouterr().out
    wanted = [str(path.relative_to(source)) for path in source.rglob("*.png")]
    assert sorted(keys(out)) == sorted(wanted)


@pytest.mark.usefixtures("no_ray")
def test_a_folder_without_pictures_says_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "notes.txt").touch()
    save_captioner(tmp_path / "model")
    command = ["caption", str(tmp_path / "photos"), "--source", "folder"]
    command += ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "other files are there: 2 with .txt" in capsys.readouterr().err
    assert newest_plan(RunFolder(str(tmp_path / "out"))) is None
