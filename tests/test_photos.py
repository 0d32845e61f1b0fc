"""`raycap caption PHOTO`: captions without Ray, printed at once; and drawings."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from server import serving
from small_captioner import photos, save_captioner

from raycap import Captioner
from raycap.cli import main
from raycap.report import drawing as captioned


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "captioner"
    save_captioner(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return photos(tmp_path / "photos", range(3))


def test_a_photo_is_captioned_without_ray(folder: Path, model: Path) -> None:
    program = (
        "import sys; from raycap.cli import main; code = main(sys.argv[1:])\n"
        "print([name for name in ('ray', 'torchvision', 'matplotlib', 'pyarrow.dataset') if name "
        "in sys.modules])\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "caption", "photos/00001.png", "--model", str(model)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    alone = Captioner.load(model).caption([folder / "00001.png"])[0]
    assert answer.stdout == f"{alone.caption}\n[]\n" and answer.stderr == ""
    assert [path.name for path in Path().iterdir()] == ["photos"], "nothing is written"


def test_the_next_best_are_printed_with_their_scores(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "photos/00000.png", "--model", str(model), "--num-captions", "3"]) == 0
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    alone = Captioner.load(model).caption([folder / "00000.png"])[0]
    scores = [float(score) for score, _ in printed]
    assert len(printed) == 3 and scores == sorted(scores, reverse=True)
    assert printed[0][1] == alone.caption and scores[0] == pytest.approx(alone.score, abs=1e-3)


def test_of_several_a_bad_one_costs_only_itself(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad\n.png").write_bytes(b"<html>")
    names = ["photos/00000.png", "photos/bad\n.png", "photos/none.png", "photos/00002.png"]
    assert main(["caption", *names, "--model", str(model), "--batch", "2"]) == 1
    printed = capsys.readouterr()
    expected = Captioner.load(model).caption([names[0], names[3]])
    lines = printed.out.splitlines()
    assert len(lines) == 2
    for line, name, caption in zip(lines, (names[0], names[3]), expected, strict=True):
        assert line.startswith(f"{name}: {caption.caption}")  # flags may stand behind it
    reasons = printed.err.splitlines()
    assert reasons[0].startswith("raycap: photos/bad\\n.png: failed_to_decode: not a picture")
    assert reasons[1] == "raycap: photos/none.png: failed_to_fetch: no such file: photos/none.png"


def test_a_url_is_fetched_as_politely_as_ever(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving({"/a photo.png": (folder / "00000.png").read_bytes()}) as server:
        url = [server.url("/a%20photo.png"), "--model", str(model)]
        assert main(["caption", *url]) == 1
        assert "private" in capsys.readouterr().err
        assert main(["caption", *url, "--fetch.allow-private", "--show"]) == 0
    assert capsys.readouterr().out.endswith("drawn: a_photo.captioned.png\n")


def test_drawings_are_of_the_photo_and_replace_only_their_own_kind(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["caption", "photos/00000.png", "--model", str(model), "--show", "--attention"]
    Path("00000.attention.png").write_bytes(b"mine")
    for _ in range(2):
        assert main(command) == 0
        assert "drawn: 00000.captioned.png, 00000-2.attention.png" in capsys.readouterr().out
    assert Path("00000.attention.png").read_bytes() == b"mine"
    photo = Image.open(folder / "00000.png").convert("RGB")
    with Image.open("00000.captioned.png") as drawing:
        assert (
            drawing.info["Title"]
            == Captioner.load(model).caption([folder / "00000.png"])[0].caption
        )
        left, top = (drawing.width - photo.width) // 2, captioned.LEAST_WIDTH // 24
        shown = drawing.crop((left, top, left + photo.width, top + photo.height))
        assert np.array_equal(np.asarray(shown), np.asarray(photo))
        below = np.asarray(
            drawing.crop((0, top + photo.height, drawing.width, drawing.height)).convert("L")
        )
        assert below.min() < 60 and (below == 255).mean() > 0.8, "ink on paper"
    with Image.open("00000-2.attention.png") as panel:
        assert panel.format == "PNG" and panel.width > 500
    other = Path("elsewhere/00000.png")
    other.parent.mkdir()
    (folder / "00001.png").rename(other)
    before = Path("00000.captioned.png").read_bytes()
    assert main(["caption", str(other), "--model", str(model), "--show"]) == 0
    assert "drawn: 00000-2.captioned.png" in capsys.readouterr().out
    assert Path("00000.captioned.png").read_bytes() == before


@pytest.mark.parametrize(
    "source", ["folder", pytest.param("embedded", marks=pytest.mark.thorough)]
)
def test_the_first_pictures_of_a_table_are_drawn(
    source: str, folder: Path, model: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """From files, and from a source that holds its pictures itself."""
    Path("shapes.yaml").write_text("source: {kind: shapes, count: 5}\n")
    named = ["photos"] if source == "folder" else ["--config", "shapes.yaml"]
    (folder / "00000.png").write_bytes(b"no picture")
    command = ["caption", *named, "--model", str(model), "--out", "out", "--show"]
    assert main([*command, "--show-most", "2"]) == (1 if source == "folder" else 0)
    assert "drawn: 2 pictures in" in capsys.readouterr().out
    files = sorted(path.name for path in Path("out/drawn").iterdir())
    table = pq.read_table("out/captions", columns=["key", "caption"]).to_pylist()
    captions = {row["key"].partition(".")[0]: row["caption"] for row in table if row["caption"]}
    assert files == [f"{name}.captioned.png" for name in sorted(captions)[:2]]
    for file in files:
        with Image.open(Path("out/drawn", file)) as drawing:
            assert drawing.info["Title"] == captions[file.partition(".")[0]]


@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=30), min_size=1, max_size=30),
    st.integers(60, 600),
)
def test_lines_hold_every_word_in_its_order_and_fit(words: list[str], width: int) -> None:
    font = captioned._font(18)
    lines = captioned._wrapped(" ".join(words), font, width)
    assert " ".join(lines).split() == words
    assert all(font.getlength(line) <= width for line in lines if " " in line)
    assert isinstance(font, ImageFont.FreeTypeFont)


@pytest.mark.parametrize("size", [(3000, 40), (40, 3000), (1, 1), (2000, 1500)])
def test_every_shape_of_photo_is_drawn(size: tuple[int, int]) -> None:
    drawn = captioned.draw(
        np.zeros((size[1], size[0], 3), np.uint8), "una persona y un niño", ["кошка спит"] * 3
    )
    assert max(drawn.size) < captioned.LONGEST_SIDE + 400


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos/00000.png", "--also", "jsonl"], "only a table has that; give --out"),
        (["photos/00000.png", "--split", "dev", "--true-words"], "only a table"),
        (["photos/00000.png", "photos/00001.png", "--out", "x"], "leave out --out"),
        (["photos", "--out", "s3://bucket/x", "--show"], "`raycap report`"),
        (["photos/00000.png", "photos"], "is a folder"),
        (["photos/none.png"], "no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(
    folder: Path, model: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", *arguments, "--model", str(model)]) == 2
    assert words in capsys.readouterr().err
