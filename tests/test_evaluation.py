"""Evaluation: every form of table is read alike, nothing is dropped silently, and the better
captions win."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.cli import main
from raycap.config import dumps, loads
from raycap.errors import UserError
from raycap.evaluation import Evaluate, MetricOptions
from raycap.evaluation.alignment import (
    EXTRA,
    FAILED,
    JUDGED,
    MISSING,
    WITHOUT_REFERENCES,
    align,
)
from raycap.evaluation.captions import ROWS, CaptionTable, names_and_paths, read_captions
from raycap.evaluation.output import evaluation_as_table, evaluation_as_text
from raycap.evaluation.references import References, read_references
from raycap.evaluation.scoring import score_tables
from raycap.schema import CAPTIONS, SUCCESS
from raycap.sources import SOURCES

WORDS = [
    "a",
    "the",
    "red",
    "brown",
    "dog",
    "cat",
    "child",
    "runs",
    "sits",
    "jumps",
    "on",
    "under",
    "grass",
    "road",
]


def sentence(seed: int, words: int = 8) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def spoilt(text: str, share: float, seed: int) -> str:
    """The text with a share of its words changed."""
    chance = random.Random(seed)
    return " ".join(
        chance.choice(WORDS) if chance.random() < share else word for word in text.split()
    )


def caption_row(key: str, caption: str, status: str = SUCCESS, reason: str = "") -> dict[str, Any]:
    row = (
        dict.fromkeys(CAPTIONS.names, "")
        | {"flags": [], "attempt": 0}
        | {
            "key": key,
            "uri": f"/p/{key}",
            "caption": caption,
            "status": status,
        }
    )
    alternatives = [{"caption": f"{caption} again", "score": -2.0}]
    return row | {
        "error_message": reason,
        "score": -1.5,
        "alternatives": alternatives,
        "width": 4,
        "height": 3,
    }


def write_captions(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), path)
    return str(path)


def write_references(path: Path, keys: list[str], split: str = "dev") -> str:
    lines = [
        {
            "file_name": key,
            "split": split,
            "references": [sentence(place), spoilt(sentence(place), 0.3, place)],
        }
        for place, key in enumerate(keys)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def table_of(rows: list[tuple[str, str, str]], name: str = "ours") -> CaptionTable:
    columns = [caption_row(key, caption, status) for key, caption, status in rows]
    return CaptionTable(name, name, pa.Table.from_pylist(columns, ROWS))


# --- every form of table


CAPTION_OF = {"12": "a dog, a cat", "7": 'says "no"', "300": "ein Hund läuft", "0": ""}


def in_form(form: str, folder: Path) -> Path:
    rows = [caption_row(key, caption) for key, caption in CAPTION_OF.items()]
    path = folder / f"table.{form.split('-')[-1]}"
    if form == "parts-parquet":
        write_captions(folder / "table" / "captions" / "part-0.parquet", rows[:2])
        write_captions(folder / "table" / "captions" / "part-1.parquet", rows[2:])
        # A run that goes on.
        write_captions(folder / "table" / "_staged" / "x" / "part-2.parquet", rows[2:])
        return folder / "table"
    if form == "parquet":
        write_captions(path, rows)
    elif form == "coco-json":
        path.write_text(
            json.dumps(
                [{"image_id": int(key), "caption": text} for key, text in CAPTION_OF.items()]
            )
        )
    elif form == "lines-json" or form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        delimiter = "\t" if form == "tsv" else ","
        written = pa.table(
            {"Image_Name": list(CAPTION_OF), "prediction": list(CAPTION_OF.values())}
        )
        pyarrow.csv.write_csv(written, path, pyarrow.csv.WriteOptions(delimiter=delimiter))
    return path


@pytest.mark.parametrize(
    "form", ["parquet", "parts-parquet", "coco-json", "lines-json", "jsonl", "csv", "tsv"]
)
def test_every_form_reads_alike(form: str, tmp_path: Path) -> None:
    table = read_captions(str(in_form(form, tmp_path)), "t")
    assert table.rows.schema == ROWS
    assert (
        dict(zip(table.rows["key"].to_pylist(), table.rows["caption"].to_pylist(), strict=True))
        == CAPTION_OF
    )
    assert set(table.rows["status"].to_pylist()) == {SUCCESS}
    if form in ("parquet", "parts-parquet", "jsonl", "lines-json"):
        assert table.rows["score"].to_pylist() == [-1.5] * len(CAPTION_OF)
        assert table.rows["alternatives"].to_pylist()[0] == [
            {"caption": "a dog, a cat again", "score": -2.0}
        ]


def test_columns_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("photo,words\na.jpg,a dog\n")
    table = read_captions(str(path), "t", "photo", "words")
    assert table.rows.select(["key", "caption"]).to_pylist() == [
        {"key": "a.jpg", "caption": "a dog"}
    ]


def test_malformed_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"key": "a", "caption": "a dog"}\nnonsense\n{"key": "b", "caption": null}\n')
    table = read_captions(str(path), "t")
    assert table.rows["caption"].to_pylist() == ["a dog", ""]
    assert table.notes == ("1 malformed line left out (t.jsonl line 2: 'nonsense')",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "picture_id,caption\n1,a dog\n", ["keys", "--key-column", "picture_id"]),
        ("a.csv", "key,said\n1,a dog\n", ["captions", "--caption-column", "said"]),
        ("a.csv", "key,caption\n1,a dog\n1,a cat\n", ["are there twice", "(1"]),
        ("a.csv", "key,caption\n", ["no rows"]),
        ("a.json", '{"annotations": []}', ["list of objects", "image_id"]),
        ("a.json", "[1, 2", ["not JSON"]),
        (
            "a.jsonl",
            '{"key": "a", "caption": "x", "score": "high"}',
            ["line 1", "'high'", "score"],
        ),
        ("a.xyz", "key,caption\n1,a dog\n", ["a.xyz", "does not say its format"]),
    ],
)
def test_what_is_no_caption_table_is_refused(
    tmp_path: Path, name: str, text: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_captions(str(tmp_path / name), "a")
    for word in words:
        assert word in str(error.value)


def test_tables_have_names_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_captions(tmp_path / folder / "captions.parquet", [caption_row("1", "a dog")])
    paths = [str(tmp_path / folder / "captions.parquet") for folder in ("a", "b")]
    assert [name for name, _ in names_and_paths(paths)] == paths
    assert [name for name, _ in names_and_paths([f"x={paths[0]}", paths[1]])] == [
        "x",
        "captions",
    ]
    with pytest.raises(UserError, match="twice"):
        names_and_paths([f"x={paths[0]}", f"x={paths[1]}"])


# --- what is judged and what is not

keys = st.lists(
    st.sampled_from([f"{number}.jpg" for number in range(12)]), unique=True, max_size=12
)
statuses = st.sampled_from([SUCCESS, SUCCESS, "failed_to_fetch", "failed_to_decode"])


@given(st.lists(st.tuples(keys, st.data()), min_size=1, max_size=3), keys, keys, st.booleans())
def test_every_row_and_picture_has_one_outcome(
    drawn: list, known: list[str], uncaptioned: list[str], empty: bool
) -> None:
    tables = [
        table_of([(key, f"caption of {key}", data.draw(statuses)) for key in own], f"table{place}")
        for place, (own, data) in enumerate(drawn)
    ]
    references = References(
        {key: ["a dog"] for key in known},
        {key: ("train", "dev")[place % 2] for place, key in enumerate(known)},
        uncaptioned=frozenset(uncaptioned) - set(known),
    )
    options = Evaluate(absent_as_empty=empty, match="key")
    try:
        alignment = align(tables, references, options)
    except UserError:
        rows = [
            set(
                each.rows.filter(pa.compute.equal(each.rows["status"], SUCCESS))["key"].to_pylist()
            )
            for each in tables
        ]
        assert not known or (not empty and not set(known).intersection(*rows))
        return
    for table, outcomes in zip(tables, alignment.outcomes, strict=True):
        rows = set(table.rows["key"].to_pylist())
        assert sorted(outcome.key for outcome in outcomes) == sorted(rows | set(known))
        for outcome in outcomes:
            assert (outcome.outcome == MISSING) == (
                outcome.key in known and outcome.key not in rows
            )
            assert (outcome.outcome in (EXTRA, WITHOUT_REFERENCES)) == (outcome.key not in known)
    judged = {
        outcome.key
        for outcomes in alignment.outcomes
        for outcome in outcomes
        if outcome.outcome == JUDGED
    }
    assert judged <= set(alignment.keys) <= set(known)
    for number, found in enumerate(alignment.captions):
        absent = {
            outcome.key
            for outcome in alignment.outcomes[number]
            if outcome.outcome in (FAILED, MISSING)
        }
        for key, caption in zip(alignment.keys, found, strict=True):
            assert caption == ("" if key in absent else f"caption of {key}")


@pytest.mark.parametrize(
    ("row", "picture", "numbers", "rule"),
    [
        ("a.jpg", "a.jpg", {}, "key"),
        ("Images/a.jpg", "a.jpg", {}, "name"),
        ("a", "train2014/a.jpg", {}, "stem"),
        ("139", "000000000139.jpg", {}, "number"),
        ("139", "COCO_val2014_000000000139.jpg", {}, "number"),
        ("139", "beach.jpg", {"beach.jpg": 139}, "number"),
    ],
)
def test_rows_find_their_pictures(
    row: str, picture: str, numbers: dict[str, int], rule: str
) -> None:
    references = References(
        {picture: ["a dog"], "zebra.jpg": ["a cat"]}, {picture: "", "zebra.jpg": ""}, {}, numbers
    )
    alignment = align([table_of([(row, "a dog", SUCCESS)])], references, Evaluate())
    assert (alignment.keys, alignment.matched_by) == ((picture,), (rule,))
    assert not alignment.complete
    if rule != "key":
        with pytest.raises(UserError, match=f"its keys are {row}"):
            align([table_of([(row, "a dog", SUCCESS)])], references, Evaluate(match="key"))


def test_names_that_mean_two_pictures_mean_none() -> None:
    references = References(
        {"a/1.jpg": ["x"], "b/1.jpg": ["y"], "2.jpg": ["z"]},
        dict.fromkeys(["a/1.jpg", "b/1.jpg", "2.jpg"], ""),
    )
    alignment = align(
        [table_of([("c/1.jpg", "x", SUCCESS), ("c/2.jpg", "z", SUCCESS)])], references, Evaluate()
    )
    assert alignment.keys == ("2.jpg",)
    with pytest.raises(UserError, match="both mean the picture"):
        align(
            [table_of([("c/2.jpg", "x", SUCCESS), ("d/2.jpg", "z", SUCCESS)])],
            references,
            Evaluate(),
        )


def test_training_captions_are_known_only_when_others_are_judged() -> None:
    references = References({"a": ["a dog"], "b": ["a cat"]}, {"a": "train", "b": "dev"})
    table = table_of([("a", "x", SUCCESS), ("b", "a dog", SUCCESS)])
    assert align([table], references, Evaluate(split="dev")).training_captions == {"a dog"}
    assert align([table], references, Evaluate(split="val")).training_captions == {"a dog"}, (
        "another word for it"
    )
    assert align([table], references, Evaluate()).training_captions == frozenset()
    with pytest.raises(UserError, match="dev, train"):
        align([table], references, Evaluate(split="test"))


# --- scores


@pytest.fixture(scope="module")
def sixty() -> tuple[list[str], References]:
    names = [f"{number}.jpg" for number in range(60)]
    captions = {
        name: [sentence(place), spoilt(sentence(place), 0.3, place)]
        for place, name in enumerate(names)
    }
    return names, References(captions, dict.fromkeys(names, ""))


def captioned(references: References, share: float, name: str, seed: int) -> CaptionTable:
    rows = [
        (key, spoilt(texts[0], share, seed + place), SUCCESS)
        for place, (key, texts) in enumerate(references.captions.items())
    ]
    return table_of(rows, name)


def test_the_better_table_wins_and_equals_tie(sixty: tuple[list[str], References]) -> None:
    good, bad = captioned(sixty[1], 0.1, "good", 1), captioned(sixty[1], 0.6, "bad", 2)
    options = Evaluate(samples=300)
    evaluation = score_tables(align([bad, good], sixty[1], options), options, MetricOptions())
    for name in ("bleu_4", "rouge_l", "cider_d"):
        assert evaluation.best[name].table == 1 and evaluation.best[name].beyond_chance
        assert evaluation.comparisons[name][0, 1].high < 0
    same = score_tables(align([good, good], sixty[1], options), options, MetricOptions())
    assert not same.best
    near = captioned(sixty[1], 0.12, "near", 1)
    close = score_tables(align([good, near], sixty[1], options), options, MetricOptions())
    assert any(not best.beyond_chance for best in close.best.values())


def test_a_table_alone_scores_as_in_company(sixty: tuple[list[str], References]) -> None:
    tables = [captioned(sixty[1], share, str(share), 3) for share in (0.2, 0.4)]
    options = Evaluate(samples=0)
    together = score_tables(align(tables, sixty[1], options), options, MetricOptions())
    for number, table in enumerate(tables):
        alone = score_tables(align([table], sixty[1], options), options, MetricOptions())
        assert {name: score.value for name, score in alone.scores[0].items()} == {
            name: score.value for name, score in together.scores[number].items()
        }
    assert together.intervals == ({}, {}) and together.comparisons == {}


def test_the_picture_table_has_every_outcome(sixty: tuple[list[str], References]) -> None:
    names, references = sixty
    rows = [(name, references.captions[name][0], SUCCESS) for name in names[2:]]
    table = table_of([(names[0], "", "failed_to_fetch"), *rows, ("stranger", "a dog", SUCCESS)])
    options = Evaluate(samples=0)
    evaluation = score_tables(align([table], references, options), options, MetricOptions())
    pictures = {row["key"]: row for row in evaluation_as_table(evaluation).to_pylist()}
    assert len(pictures) == 61
    assert pictures[names[0]]["outcome"] == FAILED and pictures[names[0]]["bleu_4"] is None
    assert pictures[names[1]]["outcome"] == MISSING
    assert pictures["stranger"]["outcome"] == EXTRA and pictures["stranger"]["cider_d"] is None
    judged = [row for row in pictures.values() if row["outcome"] == JUDGED]
    assert len(judged) == 58
    mean = sum(row["cider_d"] for row in judged) / len(judged)
    assert mean == pytest.approx(evaluation.scores[0]["cider_d"].value)
    filled = Evaluate(samples=0, absent_as_empty=True)
    evaluation = score_tables(align([table], references, filled), filled, MetricOptions())
    assert evaluation.scores[0]["rouge_l"].value == pytest.approx(58 / 60)


def test_text_from_outside_cannot_steer_the_terminal(sixty: tuple[list[str], References]) -> None:
    table = table_of(
        [(sixty[0][0], "a dog", SUCCESS), ("\x1b[2Jevil\n", "x", SUCCESS)], "\x1b[31mred"
    )
    options = Evaluate(samples=0)
    text = evaluation_as_text(
        score_tables(align([table], sixty[1], options), options, MetricOptions()), options
    )
    assert "\x1b" not in text and "evil" in text


# --- the command


def test_the_command_writes_scores_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number}.jpg" for number in range(30)]
    references = write_references(tmp_path / "references.jsonl", names)
    tables = [
        write_captions(
            tmp_path / f"{name}.parquet",
            [
                caption_row(key, spoilt(sentence(place), share, place))
                for place, key in enumerate(names)
            ],
        )
        for name, share in (("good", 0.0), ("bad", 0.7))
    ]
    out = tmp_path / "deep" / "scores.json"
    flags = [
        "--references",
        references,
        "--source.split-column",
        "split",
        "--out",
        str(out),
        "--samples",
        "200",
    ]
    assert (
        main(["evaluate", *tables, *flags, "--split", "dev", "--metric.cider-d.sigma", "5"]) == 0
    )
    shown = capsys.readouterr().out
    assert "30 pictures judged, 2 references each" in shown and "** best" in shown
    scores = json.loads(out.read_text())
    assert scores["best"]["bleu_4"] == {"table": "good", "beyond_chance": True}
    assert scores["tables"][0]["scores"]["bleu_1"]["score"] == pytest.approx(1)
    assert "sigma:5.0" in scores["tables"][0]["scores"]["cider_d"]["signature"]
    assert scores["references"]["split"] == "dev"
    assert {comparison["metric"] for comparison in scores["comparisons"]} >= {"bleu_4", "cider_d"}
    pictures = pq.read_table(out.with_suffix(".pictures.parquet"))
    assert len(pictures) == 60 and set(pictures["table"].to_pylist()) == {"good", "bad"}
    rows = pq.read_table(tables[0]).to_pylist()[1:]
    shorter = write_captions(tmp_path / "shorter.parquet", [*rows, caption_row("else.jpg", "x")])
    assert main(["evaluate", shorter, *flags]) == 1
    shown = capsys.readouterr().out
    assert (
        "missing" in shown and "0.jpg" in shown and "else.jpg" in shown and "--split dev" in shown
    )


def written_dataset(folder: Path, kind: str) -> None:
    """Four pictures' captions and splits; the last is in no split file."""
    folder.mkdir()
    captions = {f"{number}.jpg": [sentence(number), sentence(number + 9)] for number in range(4)}
    if kind == "flickr":
        lines = [
            f"{name}#{place}\t{text}\n"
            for name, own in captions.items()
            for place, text in enumerate(own)
        ]
        (folder / "Flickr8k.token.txt").write_text("".join(lines))
        (folder / "Flickr_8k.trainImages.txt").write_text("0.jpg\n")
        (folder / "Flickr_8k.devImages.txt").write_text("1.jpg\n2.jpg\n")
    else:
        images = [
            {
                "filename": name,
                "split": "train" if name == "0.jpg" else "val",
                "sentences": [{"raw": t} for t in own],
            }
            for name, own in captions.items()
        ]
        (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))


@pytest.mark.parametrize("kind", ["flickr", "karpathy"])
def test_references_need_no_pictures(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written_dataset(tmp_path / "captions", kind)
    written_dataset(tmp_path / "whole", kind)
    for number in range(4):
        (tmp_path / "whole" / f"{number}.jpg").write_bytes(b"looked for by name only")
    known = SOURCES[kind](path=str(tmp_path / "captions"))
    bare, whole = (
        read_references(replace(known, path=str(tmp_path / name)))
        for name in ("captions", "whole")
    )
    assert (bare.captions, bare.splits) == (whole.captions, whole.splits)
    assert whole.uris and not bare.uris
    table = write_captions(
        tmp_path / "t.parquet", [caption_row(f"{number}.jpg", "a dog") for number in (1, 2)]
    )
    arguments = [
        "evaluate",
        table,
        "--references",
        str(tmp_path / "captions"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    assert main([*arguments, "--samples", "0", "--split", "dev"]) == (0 if kind == "flickr" else 1)
    assert "2 pictures judged, 2 references each" in capsys.readouterr().out
    # A folder that was named must hold them.
    with pytest.raises(UserError, match=r"--source\.pictures"):
        read_references(replace(known, pictures=str(tmp_path)))


def test_scores_never_replace_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = write_references(tmp_path / "references.jsonl", ["1"])
    for name, out in (("results.json", "results.json"), ("s.pictures.parquet", "s.json")):
        table = tmp_path / name
        if name.endswith(".json"):
            table.write_text('[{"image_id": 1, "caption": "a dog"}]')
        else:
            write_captions(table, [caption_row("1", "a dog")])
        before = table.read_bytes()
        assert (
            main(
                [
                    "evaluate",
                    f"x={table}",
                    "--references",
                    references,
                    "--out",
                    str(tmp_path / out),
                ]
            )
            == 2
        )
        assert table.read_bytes() == before
        assert "give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--references", "R"], ["which captions?"]),
        (["T"], ["which references?", "--references"]),
        (
            ["T", "--references", "R", "--metrics", "bleu", "cidre"],
            ["'cidre'", "did you mean 'cider'"],
        ),
        (["T", "--references", "R", "--out", "scores"], [".json"]),
        (["T", "--references", "R", "--level", "95"], ["level is 95"]),
        (["T", "--references", "R", "--samples", "3"], ["samples is 3"]),
        (
            ["T", "--references", "R", "--metrics", "glove_similarity"],
            ["glove_similarity", "GloVe file"],
        ),
        (["T", "--references", "folder"], ["no captions", "--references"]),
        (["nowhere.parquet", "--references", "R"], ["nowhere.parquet", "no such file"]),
    ],
)
def test_refusals_name_the_remedy(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"")
    places = {
        "R": write_references(tmp_path / "references.jsonl", ["1"]),
        "T": write_captions(tmp_path / "t.parquet", [caption_row("1", "a dog")]),
        "folder": str(tmp_path / "folder"),
    }
    assert main(["evaluate", *(places.get(argument, argument) for argument in arguments)]) == 2
    shown = capsys.readouterr().err
    for word in words:
        assert word in shown


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "blip", "architectures": ["Blip"]}, ["a Hugging Face model (blip)"]),
        ({"architectures": ["GitForCausalLM"]}, ["a Hugging Face model", "GitForCausalLM"]),
        ({"hidden_size": 7}, ["a model whose config.json raycap did not write"]),
        ([], ["a model whose config.json raycap did not write"]),
    ],
)
def test_another_model_is_no_captioner(
    config: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = write_references(tmp_path / "references.jsonl", ["1"])
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(b"")
    assert main(["evaluate", str(model), "--references", references]) == 2
    shown = capsys.readouterr().err
    for word in [*words, "no captioner that raycap trained", "write its captions into a table"]:
        assert word in shown


def test_the_reference_scores_come_out_of_the_command(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """COCO results and annotations without the pictures: 5,000 human captions."""
    human = shared_data / "reference-scores" / "coco_val2017_human"
    out = tmp_path / "scores.json"
    arguments = [
        f"{human}_cands.json",
        "--references",
        f"{human}_refs.json",
        "--out",
        str(out),
        "--samples",
        "0",
    ]
    assert main(["evaluate", *arguments, "--metrics", "bleu", "rouge_l", "cider_d"]) == 0
    assert "5,000 pictures judged" in capsys.readouterr().out
    ours = json.loads(out.read_text())["tables"][0]["scores"]
    theirs = json.loads(Path(f"{human}_scores.json").read_text())["overall"]
    for name, their_name in [("bleu_4", "Bleu_4"), ("rouge_l", "ROUGE_L"), ("cider_d", "CIDEr")]:
        assert ours[name]["score"] == pytest.approx(theirs[their_name], abs=1e-9)


def test_evaluating_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    references = write_references(tmp_path / "references.jsonl", ["1"])
    table = write_captions(tmp_path / "t.parquet", [caption_row("1", "a dog")])
    program = (
        "import sys; from raycap.cli import main\n"
        f"main(['evaluate', {table!r}, '--references', {references!r}, '--out', "
        f"{str(tmp_path / 's.json')!r}])\n"
        "heavy = ('torch', 'ray', 'torchvision', 'nltk', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "[]"


def test_the_config_has_the_evaluation_too() -> None:
    config = loads(
        "evaluate: {tables: [a.parquet], metrics: [bleu]}\n"
        "metric: {glove_similarity: {glove: g.txt}}\n"
    )
    assert config.metric.glove_similarity.glove == "g.txt"
    assert loads(dumps(config)) == config
