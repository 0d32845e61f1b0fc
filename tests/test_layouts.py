"""What `raycap inspect` says of well-known data sets that are not whole."""

from pathlib import Path

import pytest

from raycap.cli import main
from raycap.sources.layouts import layout_of

TOKEN = "1_a.jpg#0\ta dog\n"


def made(folder: Path, *files: str) -> Path:
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TOKEN)
    return folder


def missing(folder: Path) -> dict[str, str]:
    return {state.part: state.text for state in layout_of(str(folder)) if not state.is_there}


def test_a_whole_flickr8k_lacks_nothing(tmp_path: Path) -> None:
    lists = [f"text/Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")]
    folder = made(tmp_path / "data", "Flickr8k.token.txt", *lists)
    (folder / "Flicker8k_Dataset").mkdir()
    for number in range(8_091):
        (folder / "Flicker8k_Dataset" / f"{number}.jpg").touch()
    states = layout_of(str(folder))
    assert [state.is_there for state in states] == [True] * 3
    assert layout_of(str(folder / "Flickr8k.token.txt")) == states
    (folder / "Flicker8k_Dataset" / "0.jpg").unlink()
    (folder / lists[0]).unlink()
    found = missing(folder)
    assert set(found) == {"split lists", "pictures"}
    assert found["pictures"].startswith("8,090 of 8,091 in Flicker8k_Dataset")
    assert "only text/Flickr_8k.devImages.txt" in found["split lists"]


@pytest.mark.parametrize(
    "files, parts",
    [
        (["flickr8k/Images/1.jpg"], {"captions", "split lists", "pictures"}),
        (["flickr8k/captions.txt"], {"split lists", "pictures"}),
        (["flickr30k-images/1.jpg"], {"captions", "pictures"}),
        (["flickr_annotations_30k.csv"], {"pictures"}),
        (
            ["annotations/captions_val2017.json"],
            {"train captions", "train pictures", "val pictures"},
        ),
        (["dataset_coco.json", "val2014/1.jpg"], {"train pictures", "val pictures"}),
        (["holiday/1.jpg", "captions.txt"], set()),
    ],
)
def test_each_missing_part_is_named(files: list[str], parts: set[str], tmp_path: Path) -> None:
    found = missing(made(tmp_path / "here", *files))
    assert set(found) == parts
    for text in found.values():
        assert "missing" in text


def test_inspect_names_what_is_missing_before_it_needs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also the vectors that the config names."""
    folder = made(tmp_path / "flickr8k", "Flickr8k.token.txt")
    config = tmp_path / "run.yaml"
    config.write_text("vocabulary: {glove: no-such-glove.txt}\n")
    assert main(["inspect", str(folder), "--config", str(config)]) == 2
    shown = capsys.readouterr()
    assert "docs/data.md" in shown.out
    assert "Flickr8k: pictures: missing: a folder such as Flicker8k_Dataset" in shown.out
    assert "GloVe: vectors: missing: no-such-glove.txt" in shown.out
    assert "--source.pictures" in shown.err
