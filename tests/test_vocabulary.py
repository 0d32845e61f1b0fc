"""Words and numbers: cleaning, the vocabulary and its file, GloVe vectors."""

import gzip
import json
import pickle
import sys
import zipfile
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.errors import UserError
from raycap.vocabulary import (
    END,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNK,
    Cleaning,
    Vocabulary,
    VocabularyOptions,
    load_glove,
    tokenisers,
)

EVERY_WORD = VocabularyOptions(min_count=1)
cleanings = st.builds(
    Cleaning,
    lowercase=st.booleans(),
    remove_punctuation=st.booleans(),
    keep_joined=st.booleans(),
    drop_single_letters=st.booleans(),
    drop_numbers=st.booleans(),
    max_words=st.none() | st.integers(1, 9),
)
captions = st.text() | st.lists(
    st.sampled_from(["A", "man's", "t-shirt", ".", "(2)", "Dogs,", "'s", "é"])
).map(" ".join)


@given(captions, cleanings)
def test_cleaned_words_are_clean(caption: str, cleaning: Cleaning) -> None:
    words = cleaning.words(caption)
    assert cleaning.words(" ".join(words)) == words
    assert all(word.split() == [word] for word in words)
    assert cleaning.max_words is None or len(words) <= cleaning.max_words


@given(st.lists(captions, min_size=1), cleanings)
def test_decode_undoes_encode(texts: list[str], cleaning: Cleaning) -> None:
    if not any(cleaning.words(text) for text in texts):
        return
    vocabulary = Vocabulary.build(texts, VocabularyOptions(cleaning=cleaning, min_count=1))
    for text in texts:
        numbers = vocabulary.encode(text)
        assert numbers[0] == START and numbers[-1] == END and UNK not in numbers
        assert vocabulary.decode(numbers) == " ".join(cleaning.words(text))
        assert vocabulary.decode([*numbers, PAD, 4]) == vocabulary.decode(numbers)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert (
        Vocabulary.build(reversed(texts), VocabularyOptions(cleaning=cleaning, min_count=1))
        == vocabulary
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["a", "man's", "t-shirt", "says", "2", "red", "blue", "dogs"]),
        ({"lowercase": False}, ["A", "man's", "T-shirt", "says", "2", "red", "blue", "dogs"]),
        ({"keep_joined": False}, ["a", "mans", "tshirt", "says", "2", "redblue", "dogs"]),
        ({"drop_single_letters": True}, ["man's", "t-shirt", "says", "red", "blue", "dogs"]),
        ({"drop_numbers": True, "max_words": 3}, ["a", "man's", "t-shirt"]),
        (
            {"remove_punctuation": False},
            ["a", "man's", "t-shirt", "says", ":", '"', "2", "red", ",", "blue", "dogs", "!", '"'],
        ),
    ],
)
def test_each_option_does_what_its_name_says(options: dict[str, bool], words: list[str]) -> None:
    assert Cleaning(**options).words('A man’s T-shirt says: "2 red,blue dogs!"') == words


def test_other_scripts_keep_their_signs() -> None:
    assert Cleaning().words("एक कुत्ता दौड़ रहा है।") == ["एक", "कुत्ता", "दौड़", "रहा", "है"]


def test_words_are_in_falling_count_and_rare_ones_unknown() -> None:
    vocabulary = Vocabulary.build(["b b a a c", "c b rare"], VocabularyOptions(min_count=2))
    assert vocabulary.words == (*SPECIAL_TOKENS, "b", "a", "c")
    assert vocabulary.encode("a rare b") == [START, 5, UNK, 4, END]
    assert vocabulary.decode([START, 5, UNK, 4, END]) == "a b"
    assert (
        len(Vocabulary.build(["b b a a c"], VocabularyOptions(min_count=1, max_size=2)))
        == len(SPECIAL_TOKENS) + 2
    )


def test_special_tokens_cannot_be_written_in_a_caption() -> None:
    for options in (
        VocabularyOptions(min_count=1),
        VocabularyOptions(Cleaning(remove_punctuation=False), min_count=1),
    ):
        vocabulary = Vocabulary.build(["<end> <unk> <start> <pad>"], options)
        assert min(vocabulary.encode("<end> <unk>")[1:-1]) > UNK


@pytest.mark.parametrize(
    ("texts", "options", "reason"),
    [
        ([], VocabularyOptions(), "no words"),
        (["...", ""], VocabularyOptions(), "no words"),
        (["a dog", "a cat"], VocabularyOptions(min_count=3), "'a', 2 times"),
    ],
)
def test_an_empty_vocabulary_is_refused(
    texts: list[str], options: VocabularyOptions, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        Vocabulary.build(texts, options)


def test_impossible_options_and_numbers_are_refused() -> None:
    for make in (
        lambda: Cleaning(max_words=0),
        lambda: VocabularyOptions(min_count=0),
        lambda: VocabularyOptions(max_size=0),
    ):
        with pytest.raises(UserError):
            make()
    with pytest.raises(ValueError, match="-1"):
        Vocabulary((*SPECIAL_TOKENS, "dog")).decode([-1])
    with pytest.raises(UserError, match="twice"):
        Vocabulary((*SPECIAL_TOKENS, "dog", "dog"))
    with pytest.raises(UserError, match="starts with"):
        Vocabulary(("dog",))


def test_a_file_that_is_not_what_was_saved_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    vocabulary = Vocabulary.build(["a dog’s été"], EVERY_WORD)
    vocabulary.save(path)
    whole = path.read_text(encoding="utf-8")
    assert Vocabulary.load(path) == vocabulary and list(tmp_path.iterdir()) == [path]
    changes = {
        "not whole": whole[:-20],
        "changed since": whole.replace('"a"', '"b"'),
        "format 99": json.dumps({**json.loads(whole), "format": 99}),
        "no format": "[]",
    }
    for reason, text in changes.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"vocabulary.json: .*{reason}"):
            Vocabulary.load(path)
    with pytest.raises(UserError, match="no such"):
        Vocabulary.load(tmp_path / "absent.json")


DOG_AND_CAT = Vocabulary.build(["dog dog cat yeti"], EVERY_WORD)  # dog is 4, cat 5, yeti 6
LINES = "the 9 9 9\ncat 1 2 3\n. . . 7 7 7\ndog -1 0.5 2e-1\ncat 8 8 8\n"


def written(folder: Path, text: str, name: str = "glove.txt") -> str:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    elif name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("glove.txt", text)
    else:
        path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["glove.txt", "glove.txt.gz", "glove.zip"])
@pytest.mark.parametrize("text", [LINES, "5 3\n" + LINES, LINES.replace("\n", " \r\n")])
def test_glove_rows_land_on_their_words(tmp_path: Path, name: str, text: str) -> None:
    glove = load_glove(written(tmp_path, text, name), DOG_AND_CAT)
    assert glove.matrix.shape == (7, 3) and glove.matrix.dtype == np.float32
    np.testing.assert_array_equal(glove.matrix[[4, 5]], np.float32([[-1, 0.5, 0.2], [1, 2, 3]]))
    assert not glove.matrix[PAD].any() and glove.matrix[UNK].any()
    assert (glove.found, glove.total, glove.missing, glove.malformed_count) == (2, 3, ("yeti",), 0)


def test_missing_words_get_seeded_rows_like_the_others(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    words = [f"w{place}" for place in range(600)]
    vectors = random.normal([5, -1], [0.1, 2], (300, 2))
    text = "".join(
        f"{word} {first} {second}\n" for word, (first, second) in zip(words, vectors, strict=False)
    )
    path, vocabulary = written(tmp_path, text), Vocabulary.build(words, EVERY_WORD)
    glove = load_glove(path, vocabulary, seed=1)
    absent = glove.matrix[[vocabulary.words.index(word) for word in glove.missing]]
    assert len(absent) == 300
    np.testing.assert_allclose(absent.mean(0), [5, -1], atol=0.5)
    np.testing.assert_allclose(absent.std(0), [0.1, 2], rtol=0.2)
    np.testing.assert_array_equal(glove.matrix, load_glove(path, vocabulary, seed=1).matrix)
    assert (glove.matrix != load_glove(path, vocabulary, seed=2).matrix).any()


def test_malformed_lines_are_named_and_many_refused(tmp_path: Path) -> None:
    good = "".join(f"w{place} 1 2 3\n" for place in range(3000))
    path = written(tmp_path, good + "short 1 2\ndog 1 x 3\ncat 1 2 nan\nyeti 1 2 3\n")
    glove = load_glove(path, DOG_AND_CAT)
    assert glove.found == 1 and glove.malformed_count == 3
    assert [fault.split(" ")[1] for fault in glove.malformed] == ["3001", "3002", "3003"]
    with pytest.raises(UserError, match=r"3000 of 3001 lines .*line 2 "):
        load_glove(written(tmp_path, "dog 1 2 3 4\n" + good), DOG_AND_CAT)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0", "first line"),
        (b"", "none of the vocabulary's 3 words"),
        (b"tree 1 2\n", "none of the vocabulary's 3 words"),
        (b"dog 1 2\n" + b"x" * 3_000_000, "line 2 is longer"),
    ],
)
def test_a_file_that_is_not_glove_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"glove.txt: .*{reason}"):
        load_glove(str(path), DOG_AND_CAT)


def test_unreadable_archives_and_places_are_refused(tmp_path: Path) -> None:
    path = Path(written(tmp_path, LINES * 50, "glove.txt.gz"))
    path.write_bytes(path.read_bytes()[:-20])
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK nothing")
    for place in (str(path), str(broken), str(tmp_path / "absent.txt"), "nowhere://glove.txt"):
        with pytest.raises(UserError, match=r"glove.txt|broken|absent"):
            load_glove(place, DOG_AND_CAT)


def test_an_archive_of_several_files_asks_for_one(tmp_path: Path) -> None:
    path = tmp_path / "glove.6B.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("glove.50d.txt", "dog 1 2\n")
        archive.writestr("glove.100d.txt", "dog 1 2 3\n")
    with pytest.raises(UserError, match=r"zip://glove\.50d\.txt::"):
        load_glove(str(path), DOG_AND_CAT)
    assert load_glove(f"zip://glove.100d.txt::{path}", DOG_AND_CAT).matrix.shape == (7, 3)


def test_glove_is_read_from_a_uri() -> None:
    with fsspec.open("memory://glove.txt", "wb") as file:
        file.write(LINES.encode())
    assert load_glove("memory://glove.txt", DOG_AND_CAT).found == 2


def test_real_captions_and_vectors(shared_data: Path) -> None:
    lines = (
        (shared_data / "flickr8k" / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    )
    vocabulary = Vocabulary.build((line.split("\t")[1] for line in lines), VocabularyOptions())
    glove = load_glove(str(shared_data / "glove" / "glove.6B.100d.subset.txt"), vocabulary)
    assert 2500 < len(vocabulary) < 3000 and vocabulary.words[4] == "a"
    assert glove.found / glove.total > 0.99 and glove.malformed_count == 0
    assert glove.matrix.shape == (len(vocabulary), 100)


# Tokenisers


CAPTIONS = [
    "A skateboarder rides his skateboard .",
    "two skateboarders on boards",
    "the rider boards a boat",
    "a boat and two riders",
]


def subwords(size=40):
    options = VocabularyOptions(tokeniser="subwords", min_count=1, max_size=size)
    return Vocabulary.build(CAPTIONS, options)


def test_subwords_give_back_every_caption_of_known_characters():
    vocabulary = subwords()
    assert len(vocabulary) <= 44
    longer = 0
    for caption in [*CAPTIONS, "boards ride a skater"]:
        words = vocabulary.cleaning.words(caption)
        numbers = vocabulary.encode(caption)
        longer += len(numbers) - 2 - len(words)
        assert vocabulary.decode(numbers[1:]) == " ".join(words)
    assert longer > 0  # some words are in pieces
    assert UNK in vocabulary.encode("жук")


def test_subwords_survive_their_file_and_the_way_to_a_worker():
    vocabulary = subwords()
    numbers = vocabulary.encode(CAPTIONS[0])
    again = Vocabulary.from_json(vocabulary.to_json())
    sent = pickle.loads(pickle.dumps(vocabulary))
    for other in (again, sent):
        assert other == vocabulary and other.encode(CAPTIONS[0]) == numbers
    assert json.loads(vocabulary.to_json())["format"] == 2
    words = Vocabulary.build(CAPTIONS, EVERY_WORD)
    assert json.loads(words.to_json())["format"] == 1  # as earlier versions wrote it


def test_subwords_do_not_depend_on_the_order_of_the_captions():
    options = VocabularyOptions(tokeniser="subwords", min_count=1, max_size=40)
    assert Vocabulary.build(reversed(CAPTIONS), options) == subwords()


def test_glove_has_vectors_of_whole_words_only(tmp_path):
    vocabulary = subwords()
    assert "\u2581a" in vocabulary.words and "board" not in vocabulary.whole_words()
    file = tmp_path / "glove.txt"
    file.write_text("a 1 2\nboard 3 4\n")
    vectors = load_glove(str(file), vocabulary)
    assert vectors.matrix[vocabulary.words.index("\u2581a")].tolist() == [1, 2]
    assert vectors.found == 1


def test_coverage_counts_words_that_become_unknown():
    vocabulary = Vocabulary.build(["a dog", "a cat", "a dog"], VocabularyOptions(min_count=2))
    counts = Counter(["a", "a", "dog", "cat", "bird", "bird"])
    assert vocabulary.coverage(counts) == (2, 2, 3)
    assert subwords().coverage(Counter({"board": 2, "skate": 1, "жук": 4})) == (2, 1, 4)


def test_spacy_splits_endings_off():
    pytest.importorskip("spacy", reason="raycap[spacy] is not installed")
    caption = "A man's t-shirt isn't 3.5 metres long!"
    options = VocabularyOptions(tokeniser="spacy", min_count=1)
    vocabulary = Vocabulary.build([caption], options)
    assert vocabulary.split(caption) == [
        *("a", "man", "'s", "t", "shirt", "is", "n't", "3.5", "metres", "long")
    ]
    assert Vocabulary.from_json(vocabulary.to_json()).encode(caption) == vocabulary.encode(caption)


@pytest.mark.parametrize("tokeniser, package", [("spacy", "spacy"), ("subwords", "tokenizers")])
def test_a_tokeniser_that_is_not_installed_names_its_extra(tokeniser, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    tokenisers._spacy.cache_clear()
    with pytest.raises(UserError, match=rf"raycap\[{tokeniser}\]"):
        Vocabulary.build(["a dog"], VocabularyOptions(tokeniser=tokeniser, min_count=1))
