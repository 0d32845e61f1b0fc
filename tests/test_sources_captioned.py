"""Flickr, COCO and Karpathy's splits in all forms that are shared, and their detection."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rows import column, noted, read, rows, write

from raycap.errors import UserError
from raycap.evaluation.references import read_references
from raycap.sources import Coco, Flickr, Karpathy, detect

CAPTIONS = {
    "1_a.jpg": ["A dog , running .", 'A sign says " stop " .', "Three"],
    "2_b.jpg": ['" Quoted " at the start', 'A, "b", c', "|"],
    "3_c.jpg": ["One", "Two", "Three"],
}


def token(captions: dict[str, list[str]] = CAPTIONS) -> str:
    return "".join(
        f"{name}#{n}\t{text}\n" for name, said in captions.items() for n, text in enumerate(said)
    )


def commas() -> str:
    return "image,caption\n" + "".join(
        f"{name},{text}\n" for name, said in CAPTIONS.items() for text in said
    )


def quoted() -> str:
    lines = [(name, text.replace('"', '""')) for name, said in CAPTIONS.items() for text in said]
    return '"image","caption"\r\n' + "".join(f'{name},"{text}"\r\n' for name, text in lines)


def numbered() -> str:
    lines = [
        f"{name},{n},{text}\n" for name, said in CAPTIONS.items() for n, text in enumerate(said)
    ]
    return "image_name,comment_number,comment\n" + "".join(lines)


def bars() -> str:
    lines = [
        f"{name}| {n}| {text}\n" for name, said in CAPTIONS.items() for n, text in enumerate(said)
    ]
    return "image_name| comment_number| comment\n" + "".join(reversed(lines))


def annotated() -> str:
    """Flickr30k on Hugging Face; its splits are its own."""
    lines = [["raw", "sentids", "split", "filename", "img_id"]]
    for number, (name, said) in enumerate(CAPTIONS.items()):
        lines.append([json.dumps(said), "[0, 1, 2]", "train", name, str(number)])
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()


def pictures(folder: Path, names: Any = CAPTIONS) -> None:
    for name in names:
        write(folder / name)


LAYOUTS = {
    "owners": ("Flickr8k.token.txt", token, "Images"),
    "owners, two folders": ("Flickr8k_text/Flickr8k.token.txt", token, "Flicker8k_Dataset"),
    "owners, nested": (
        "Flickr8k_text/Flickr8k.token.txt",
        token,
        "Flickr8k_Dataset/Flicker8k_Dataset",
    ),
    "owners, 30k": ("results_20130124.token", token, "flickr30k-images"),
    "kaggle 8k": ("captions.txt", commas, "Images"),
    "kaggle 8k, quoted": ("captions.txt", quoted, "images"),
    "kaggle 30k": ("flickr30k_images/results.csv", bars, "flickr30k_images/flickr30k_images"),
    "hugging face 30k": ("flickr_annotations_30k.csv", annotated, "flickr30k-images"),
    "kaggle 30k, commas": ("captions.txt", numbered, "flickr30k_images"),
    "flat": ("captions.txt", commas, "."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_flickr_gives_the_same(layout: str, tmp_path: Path) -> None:
    file, content, folder = LAYOUTS[layout]
    captions = write(tmp_path / file, content())
    pictures(tmp_path / folder)
    for path in (tmp_path, captions):
        assert detect(str(path)) == "flickr"
        found = rows(Flickr(str(path), fractions=(1.0, 0.0, 0.0)))
        assert {row["key"]: row["references"] for row in found} == CAPTIONS
        assert all(Path(row["uri"]) == (tmp_path / folder / row["key"]) for row in found)
        assert {row["split"] for row in found} == {"train"}
        assert noted(Flickr(str(path))).lines() == []


def test_flickr30k_of_hugging_face_has_splits_of_its_own(tmp_path: Path) -> None:
    """A line that cannot be read costs its captions, and is noted."""
    text = annotated().replace(",train,2_b", ",val,2_b").replace(",train,3_c", ",test,3_c")
    write(tmp_path / "flickr_annotations_30k.csv", text + "[broken,[3],train,4_d.jpg,3\r\n")
    pictures(tmp_path / "flickr30k-images", [*CAPTIONS, "4_d.jpg"])
    flickr = Flickr(str(tmp_path))
    splits = {row["key"]: row["split"] for row in rows(flickr)}
    assert splits == {"1_a.jpg": "train", "2_b.jpg": "dev", "3_c.jpg": "test", "4_d.jpg": ""}
    assert "flickr_annotations_30k.csv line 5: '4_d.jpg'" in str(noted(flickr).lines())
    drawn = rows(Flickr(str(tmp_path), split_files=False, fractions=(0.0, 1.0, 0.0)))
    assert {row["split"] for row in drawn if row["references"]} == {"dev"}


def test_known_oddities_are_counted(tmp_path: Path) -> None:
    said = {**CAPTIONS, "2258277193_586949ec62.jpg.1": ["x"] * 5}
    write(tmp_path / "Flickr8k.token.txt", token(said) + "not a caption\n")
    pictures(tmp_path / "Images", [*CAPTIONS, "silent.jpg", ".hidden.jpg", "Thumbs.db"])
    flickr = Flickr(str(tmp_path), fractions=(1.0, 0.0, 0.0))
    found = {row["key"]: row for row in rows(flickr)}
    missing = "2258277193_586949ec62.jpg.1"
    assert set(found) == {*CAPTIONS, "silent.jpg", missing}
    assert found[missing]["error"] == f"no such file: {tmp_path}/Images/{missing}"
    assert [row["error"] for key, row in found.items() if key != missing] == [""] * 4
    assert (found["silent.jpg"]["references"], found["silent.jpg"]["split"]) == ([], "")
    assert noted(flickr).lines() == [
        "1 malformed line was left out (Flickr8k.token.txt line 15: 'not a caption')",
        "1 picture that is not there (2258277193_586949ec62.jpg.1)",
        "1 picture without captions (silent.jpg)",
    ]


def test_the_lost_bar_of_kaggle_is_repaired(tmp_path: Path) -> None:
    lost = "2199200615.jpg| 4   A dog runs across the grass .\n2199200615.jpg| 0| First .\n"
    write(tmp_path / "results.csv", bars() + lost)
    pictures(tmp_path / "images", [*CAPTIONS, "2199200615.jpg"])
    found = {row["key"]: row["references"] for row in rows(Flickr(str(tmp_path)))}
    assert found["2199200615.jpg"] == ["First .", "A dog runs across the grass ."]
    assert noted(Flickr(str(tmp_path))).lines() == [
        "1 line with a lost bar was repaired (results.csv line 11)"
    ]


def test_split_files(tmp_path: Path) -> None:
    write(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt", token({**CAPTIONS, "4_d.jpg": ["x"]}))
    write(tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt", "1_a.jpg\r\n\r\n")
    write(tmp_path / "Flickr8k_text" / "Flickr_8k.devImages.txt", "2_b.jpg \n")
    write(tmp_path / "Flickr8k_text" / "Flickr_8k.testImages.txt", "3_c\nunknown.jpg\n")
    pictures(tmp_path / "Flicker8k_Dataset", [*CAPTIONS, "4_d.jpg"])
    for path in (tmp_path, tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"):
        assert column(Flickr(str(path)), "split") == ["train", "dev", "test", ""]
        assert noted(Flickr(str(path))).lines() == [
            "1 picture of the split files has no caption (unknown.jpg)"
        ]
    assert "" not in column(Flickr(str(tmp_path), split_files=False), "split")
    write(tmp_path / "Flickr8k_text" / "Flickr_8k.testImages.txt", "1_a.jpg\n")
    with pytest.raises(UserError, match=r"1_a\.jpg is in the split files of test and of train"):
        Flickr(str(tmp_path)).check()


def test_splits_are_drawn_by_picture(tmp_path: Path) -> None:
    said = {f"{number}.jpg": ["a", "b"] for number in range(300)}
    write(
        tmp_path / "captions.txt",
        "image,caption\n" + "".join(f"{n},{t}\n" for n in said for t in said[n]),
    )
    pictures(tmp_path / "Images", said)
    first = read(Flickr(str(tmp_path), fractions=(0.5, 0.5, 0.0), seed=3)).to_pylist()
    assert set(Counter(row["split"] for row in first)) == {"train", "dev"}
    half = dict(list(said.items())[::2])
    write(
        tmp_path / "captions.txt",
        "image,caption\n" + "".join(f"{n},{t}\n" for n in half for t in said[n]),
    )
    second = {
        row["key"]: row["split"]
        for row in rows(Flickr(str(tmp_path), fractions=(0.5, 0.5, 0.0), seed=3))
    }
    assert all(second[row["key"]] == row["split"] for row in first if row["key"] in half)
    with pytest.raises(UserError, match="add up to 1"):
        Flickr("x", fractions=(0.5, 0.5, 0.5))


words = st.text(
    st.characters(codec="utf-8", categories=["L", "P", "N", "S", "Zs"]), min_size=1
).map(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words.filter(bool), min_size=1, max_size=5))
def test_flickr_captions_survive_the_round_trip(tmp_path: Path, said: list[str]) -> None:
    pictures(tmp_path / "Images", ["a.jpg"])
    write(tmp_path / "Flickr8k.token.txt", token({"a.jpg": said}))
    write(
        tmp_path / "b" / "captions.txt",
        "image,caption\n" + "".join('a.jpg,"' + t.replace('"', '""') + '"\n' for t in said),
    )
    assert next(Flickr(str(tmp_path)).tables())["references"].to_pylist() == [said]
    quoted_too = Flickr(str(tmp_path / "b"), pictures=str(tmp_path / "Images"))
    assert next(quoted_too.tables())["references"].to_pylist() == [said]


def test_flickr_names_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Flickr8k\.token\.txt, captions\.txt"):
        Flickr(str(tmp_path)).check()
    write(tmp_path / "captions.txt", token())
    with pytest.raises(UserError, match=r"none of the pictures .*1_a\.jpg.*--source\.pictures"):
        Flickr(str(tmp_path)).check()
    with pytest.raises(UserError, match="no Flickr caption file: its first line is 'hello'"):
        Flickr(str(write(tmp_path / "x.txt", "hello\n"))).check()


# --- COCO ---


def coco(names: list[str], captions: int = 2) -> str:
    images = [
        {"id": number, "file_name": name, "coco_url": "http://h/"}
        for number, name in enumerate(names)
    ]
    said = [
        {"image_id": image["id"], "caption": f"{n} \n"}
        for n in range(captions)
        for image in images
    ]
    return json.dumps({"info": {}, "images": images, "annotations": said})


def test_coco_as_it_ships(tmp_path: Path) -> None:
    write(tmp_path / "annotations" / "captions_train2017.json", coco(["1.jpg", "2.jpg"]))
    write(tmp_path / "annotations" / "captions_val2017.json", coco(["3.jpg", "4.jpg"]))
    write(tmp_path / "annotations" / "instances_val2017.json", '{"images": []}')
    pictures(tmp_path / "train2017", ["1.jpg", "2.jpg"])
    pictures(tmp_path / "val2017", ["3.jpg"])
    assert detect(str(tmp_path)) == "coco"
    found = rows(Coco(str(tmp_path)))
    assert [(row["key"], row["split"], row["references"]) for row in found] == [
        ("1.jpg", "train", ["0", "1"]),
        ("2.jpg", "train", ["0", "1"]),
        ("3.jpg", "dev", ["0", "1"]),
        ("4.jpg", "dev", ["0", "1"]),
    ]
    assert [Path(row["uri"]).parent.name for row in found] == [
        "train2017",
        "train2017",
        "val2017",
        "val2017",
    ]
    assert [row["error"] for row in found] == [
        "",
        "",
        "",
        f"no such file: {tmp_path}/val2017/4.jpg",
    ]
    assert noted(Coco(str(tmp_path))).lines() == ["1 picture that is not there (4.jpg)"]
    one = tmp_path / "annotations" / "captions_val2017.json"
    assert detect(str(one)) == "coco"
    assert column(Coco(str(one), split="test"), "split") == ["test", "test"]
    drawn = Coco(str(tmp_path), fractions=(0.5, 0.5, 0.0))
    splits = {row["key"]: row["split"] for row in rows(drawn)}
    assert splits != {row["key"]: row["split"] for row in found}
    # Who judges captions draws the same, also of a picture that is not there.
    assert read_references(drawn).splits | splits == read_references(drawn).splits


def test_ids_in_cocos_form_need_not_be_numbers(tmp_path: Path) -> None:
    """Who trains on such a file judges by it too."""
    document = json.loads(coco(["1.jpg", "2.jpg"], captions=1))
    for record, field in [(image, "id") for image in document["images"]] + [
        (said, "image_id") for said in document["annotations"]
    ]:
        record[field] = f"picture {record[field]}"
    file = write(tmp_path / "captions.json", json.dumps(document))
    pictures(tmp_path / "images", ["1.jpg", "2.jpg"])
    known = read_references(Coco(str(file)))
    assert known.captions == {row["key"]: row["references"] for row in rows(Coco(str(file)))}
    assert known.numbers == {}


def test_coco_with_folders_in_its_names_and_pictures_elsewhere(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a" / "captions.json", coco(["val2014/COCO_val2014_1.jpg"], captions=0)
    )
    pictures(tmp_path / "b" / "val2014", ["COCO_val2014_1.jpg"])
    with pytest.raises(UserError, match=r"--source\.pictures"):
        list(Coco(str(file)).tables())
    there = Coco(str(file), pictures=str(tmp_path / "b"))
    assert column(there, "references") == [[]]
    assert noted(there).lines() == ["1 picture without captions (val2014/COCO_val2014_1.jpg)"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"images": [', "is not JSON"),
        ("[1]", "holds a JSON list"),
        ('{"annotations": [], "x": 1}', "no list 'images'; it has annotations, x"),
        ('{"images": [{"id": 1}]}', "'images' number 0 has no file_name"),
        (
            '{"images": [], "annotations": [{"image_id": 1, "bbox": []}]}',
            "number 0 has no caption",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}',
            "have the id 1: a and b",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}',
            "a occurs twice",
        ),
        ('{"images": [{"id": 1, "file_name": "../a"}]}', "has to lie below the picture folder"),
        ('{"images": []}', "names no picture"),
    ],
)
def test_coco_files_that_are_wrong(tmp_path: Path, content: str, reason: str) -> None:
    write(tmp_path / "a")
    with pytest.raises(UserError, match=reason):
        list(Coco(str(write(tmp_path / "captions.json", content))).tables())


# --- Karpathy ---


def test_karpathy(tmp_path: Path) -> None:
    kinds = ["train", "restval", "val", "test"]
    images = [
        {
            "filename": f"COCO_{number}.jpg",
            "filepath": "val2014" if number else "train2014",
            "split": kind,
            "sentids": [number],
            "sentences": [{"tokens": ["a"], "raw": "A. "}, {"tokens": ["b"], "raw": "B"}],
        }
        for number, kind in enumerate(kinds)
    ]
    file = write(tmp_path / "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    for name in ("train2014/COCO_0.jpg", "val2014/COCO_1.jpg", "val2014/COCO_2.jpg"):
        write(tmp_path / name)
    for path in (str(tmp_path), str(file)):
        assert detect(path) == "karpathy"
        found = rows(Karpathy(path))
        assert [(row["key"], row["split"]) for row in found] == [
            ("COCO_0.jpg", "train"),
            ("COCO_1.jpg", "train"),
            ("COCO_2.jpg", "dev"),
            ("COCO_3.jpg", "test"),
        ]
        assert all(row["references"] == ["A.", "B"] for row in found)
        assert [row["error"] == "" for row in found] == [
            Path(row["uri"]).is_file() for row in found
        ]
        assert [row["error"] == "" for row in found] == [True, True, True, False]
        assert noted(Karpathy(path)).lines() == [
            "1 picture that is not there (val2014/COCO_3.jpg)"
        ]
    assert column(Karpathy(str(file), restval_is_train=False), "split")[1] == "restval"
    pictures(tmp_path / "all", [image["filename"] for image in images])
    flat = Karpathy(str(file), pictures=str(tmp_path / "all"))
    assert column(flat, "split") == ["train", "train", "dev", "test"]


def test_karpathy_without_filepath(tmp_path: Path) -> None:
    image = {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "x"}]}
    file = write(tmp_path / "dataset_flickr8k.json", json.dumps({"images": [image]}))
    write(tmp_path / "Images" / "1.jpg")
    assert column(Karpathy(str(file)), "uri") == [str(tmp_path / "Images" / "1.jpg")]
    write(tmp_path / "dataset_coco.json", "{}")
    with pytest.raises(
        UserError, match=r"several: dataset_coco\.json, dataset_flickr8k\.json; give one"
    ):
        Karpathy(str(tmp_path)).check()


# --- which kind of source it is ---


def test_a_folder_of_photos_with_a_dataset_far_down_is_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    write(tmp_path / "old" / "captions.txt", token())
    write(tmp_path / "captions" / "part-0.parquet", b"whatever")
    assert detect(str(tmp_path)) == "folder"
    write(tmp_path / "captions.txt", "some notes of mine")
    assert detect(str(tmp_path)) == "folder"


def test_two_datasets_in_one_folder_are_not_guessed_between(tmp_path: Path) -> None:
    write(tmp_path / "Flickr8k.token.txt", token())
    write(tmp_path / "dataset_flickr8k.json", "{}")
    pictures(tmp_path / "Images")
    with pytest.raises(UserError, match=r"\(flickr\).*\(karpathy\).*--source KIND"):
        detect(str(tmp_path))


@pytest.mark.parametrize("name", ["a.docx", "noending", "a.json"])
def test_what_nothing_fits_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot tell what"):
        detect(str(write(tmp_path / name, "something\n")))


# --- real data ---


def test_the_real_flickr8k(shared_data: Path) -> None:
    path = str(shared_data / "flickr8k")
    assert detect(path) == "flickr"
    table = read(Flickr(path))
    assert Counter(table["split"].to_pylist()) == {"train": 6000, "dev": 1000}
    assert {len(references) for references in table["references"].to_pylist()} == {5}
    assert noted(Flickr(path)).lines() == []


def test_the_real_coco_mini(shared_data: Path) -> None:
    path = str(shared_data / "coco-mini")
    assert detect(path) == "coco"
    found = rows(Coco(path))
    assert len(found) == 60 and sum(len(row["references"]) for row in found) == 300
    assert all(Path(row["uri"]).is_file() for row in found)
