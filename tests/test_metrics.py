"""Metrics: equal to the reference implementation and to slow plain ones; what any score does."""

import json
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path
from random import Random

import nltk
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_cider import plain_cider

from raycap.errors import UserError
from raycap.metrics import (
    METRICS,
    CiderReward,
    Corpus,
    DocumentFrequencies,
    Score,
    compare,
    frequencies,
    interval,
    tokenise,
)
from raycap.metrics.rouge import longest_common
from raycap.storage import sorted_runs
from raycap.vocabulary import END, PAD, START

words = st.sampled_from(["a", "dog", "cat", "runs", "on", "the", "red", "grass"])
texts = st.lists(words, max_size=9).map(" ".join)
pictures = st.lists(
    st.tuples(texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=6
)
Pictures = list[tuple[str, list[str]]]


def corpus_of(rows: Pictures) -> Corpus:
    return Corpus([caption for caption, _ in rows], [references for _, references in rows])


def judged(corpus: Corpus, *metrics: str) -> dict[str, Score]:
    return {
        answer.name: answer for metric in metrics for answer in METRICS[metric]().compute(corpus)
    }


# --- the reference implementation


@pytest.fixture(scope="module")
def human(shared_data: Path) -> tuple[Corpus, dict]:
    """5,000 human captions and their scores by the COCO caption evaluation."""
    names = {
        part: shared_data / "reference-scores" / f"coco_val2017_human_{part}.json"
        for part in ("cands", "refs", "scores")
    }
    parts = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in names.items()}
    captions = {row["image_id"]: row["caption"] for row in parts["cands"]}
    references: dict[int, list[str]] = {}
    for row in parts["refs"]["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    keys = parts["scores"]["image_ids"]
    return Corpus([captions[key] for key in keys], [references[key] for key in keys]), parts[
        "scores"
    ]


@pytest.mark.parametrize(
    ("name", "theirs", "metric"),
    [
        *((f"bleu_{n}", f"Bleu_{n}", "bleu") for n in (1, 2, 3, 4)),
        ("rouge_l", "ROUGE_L", "rouge_l"),
        ("cider_d", "CIDEr", "cider_d"),  # the COCO evaluation's CIDEr is CIDEr-D
    ],
)
def test_the_reference_scores_are_reproduced(
    human: tuple[Corpus, dict], name: str, theirs: str, metric: str
) -> None:
    corpus, scores = human
    answer = judged(corpus, metric)[name]
    assert abs(answer.value - scores["overall"][theirs]) < 1e-9
    np.testing.assert_allclose(answer.per_picture, scores["per_image"][theirs], rtol=0, atol=1e-9)


@given(pictures)
def test_scores_equal_pycocoevalcap(rows: Pictures) -> None:
    reason = "needs pycocoevalcap: pip install 'raycap[coco-metrics]'"
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=reason)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason=reason)
    cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=reason)
    ours = {key: [caption] for key, (caption, _) in enumerate(rows)}
    theirs = {key: references for key, (_, references) in enumerate(rows)}
    answers = judged(corpus_of(rows), "bleu", "rouge_l", "cider_d")
    overall, each = bleu.Bleu(4).compute_score(theirs, ours, verbose=0)
    for n in range(4):
        assert answers[f"bleu_{n + 1}"].value == pytest.approx(overall[n], abs=1e-9)
        np.testing.assert_allclose(answers[f"bleu_{n + 1}"].per_picture, each[n], atol=1e-9)
    np.testing.assert_allclose(
        answers["rouge_l"].per_picture, rouge.Rouge().compute_score(theirs, ours)[1], atol=1e-9
    )
    # Else it fails on the empty maximum.
    if any(text for references in theirs.values() for text in references):
        np.testing.assert_allclose(
            answers["cider_d"].per_picture, cider.Cider().compute_score(theirs, ours)[1], atol=1e-9
        )


def test_tokens_equal_those_of_java() -> None:
    tokenizer = pytest.importorskip(
        "pycocoevalcap.tokenizer.ptbtokenizer",
        reason="needs pycocoevalcap: pip install 'raycap[coco-metrics]'",
    )
    if not shutil.which("java"):
        pytest.skip("needs Java: the reference tokeniser is a Java program")
    random = Random(5)
    parts = "A man woman's t-shirt isn't they'll St. U.S. 5:30 1/2 3 10,000 can't cannot o'clock "
    parts += "no. 'red' \"stop\" ( )"
    ends = [" "] * 12 + [", ", ". ", "! ", "-", "/", "?! ", "... ", " & ", ": ", "'s ", "--", "; "]
    lines = [
        "".join(
            random.choice(parts.split()) + random.choice(ends)
            for _ in range(random.randint(1, 14))
        )
        + "dog"
        for _ in range(2000)
    ]
    rows = {key: [{"caption": line}] for key, line in enumerate(lines)}
    theirs = tokenizer.PTBTokenizer().tokenize(rows)
    assert tokenise(lines) == [theirs[key][0] for key in rows]


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [  # as Stanford's PTBTokenizer 3.4.1 and the COCO evaluation's list of punctuation give them
        ("A man's T-shirt isn't red, is it?", "a man 's t-shirt is n't red is it"),
        (
            "They can't; it’s “closed” … I cannot – gonna",
            "they ca n't it 's closed i can not gon na",
        ),
        (
            "Corner of 8th Ave. and 22 3/4 St. at 5:54pm!!",
            "corner of 8th ave. and 22\xa03/4 st. at 5:54 pm !!",
        ),
        (
            "A T.V. in the U.S. (old) by Mr. No. 5.",
            "a t.v. in the u.s. -lrb- old -rrb- by mr. no. 5",
        ),
        ("say no.", "say no"),
        ("a case.next to b/w and/or A&P r&b", "a case.next to b/w and/or a&p r & b"),
        ("$5 #1 50% <3 :) &amp; naïve 🙂", "$ 5 # 1 50 % < 3 :-rrb- & naïve"),
        ("plan A. The dog, a sign that reads K.", "plan a the dog a sign that reads k"),
        (
            "rock 'n' roll o'clock y'all ma'am 'quoted' '90s dogs'",
            "rock 'n' roll o'clock y' all ma'am quoted '90s dogs",
        ),
        ("two\nlines\tand \r\n spaces ", "two lines and spaces"),
        ("", ""),
    ],
)
def test_known_habits_of_the_tokeniser(caption: str, tokens: str) -> None:
    assert tokenise([caption]) == [tokens]


@given(st.lists(st.text(max_size=40)))
def test_tokens_do_not_depend_on_neighbours(captions: list[str]) -> None:
    assert tokenise(captions) == [tokenise([caption])[0] for caption in captions]
    assert all(token.lower() == token for tokens in tokenise(captions) for token in tokens.split())


# --- slow plain implementations


@given(pictures)
def test_cider_equals_the_plain_one(rows: Pictures) -> None:
    ours, theirs = (
        [row[0].split() for row in rows],
        [[text.split() for text in row[1]] for row in rows],
    )
    answers = judged(corpus_of(rows), "cider", "cider_d")
    cider_d = answers["cider_d"].per_picture
    np.testing.assert_allclose(cider_d, plain_cider(ours, theirs), atol=1e-9)
    np.testing.assert_allclose(
        answers["cider"].per_picture, plain_cider(ours, theirs, sigma=None), atol=1e-9
    )


encoded = st.lists(st.integers(3, 8), max_size=8)
ended = st.builds(lambda numbers, end: numbers + [END] * end, encoded, st.booleans())


@given(
    st.lists(st.lists(ended, min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.tuples(ended, st.integers(0, 100), encoded), min_size=1, max_size=8),
    st.booleans(),
)
def test_the_reward_equals_plain_cider_d(references: list, rows: list, count_end: bool) -> None:
    def counted(numbers: list[int]) -> list[int]:
        return [number for number in numbers if count_end or number != END]

    places = np.array([place % len(references) for _, place, _ in rows])
    captions = np.full((len(rows), 20), PAD)
    for row, (numbers, _, rest) in enumerate(rows):
        # What comes after <end> must not count.
        written = [
            START,
            *numbers,
            *(rest if END in numbers else []),
        ]
        captions[row, : len(written)] = written
    frequencies = DocumentFrequencies.counted(references, count_end)
    with tempfile.TemporaryDirectory() as folder:
        frequencies.write(Path(folder) / "frequencies")
        frequencies = DocumentFrequencies.open(Path(folder) / "frequencies")
    rewards = CiderReward(frequencies)(captions, references, places)
    theirs = [[counted(numbers) for numbers in captions] for captions in references]
    for (numbers, _, _), place, reward in zip(rows, places, rewards, strict=True):
        ours = [[] for _ in theirs]
        ours[place] = counted(numbers)
        assert reward == pytest.approx(plain_cider(ours, theirs)[place], abs=1e-5)


@given(st.lists(st.lists(ended, min_size=1, max_size=3), min_size=1, max_size=12))
def test_document_frequencies_are_the_same_however_many_pictures_are_counted_at_once(
    references: list,
) -> None:
    whole = DocumentFrequencies.counted(references)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frequencies, "PICTURES_AT_ONCE", 2)
        patch.setattr(frequencies, "WAITING", 0)
        patch.setattr(sorted_runs, "PIECE", 3)
        patch.setattr(sorted_runs, "MOST_IN_MEMORY", 5)
        pieces = DocumentFrequencies.counted(references)
        patch.setattr(frequencies, "MOST_COUNTED", 2)
        few = DocumentFrequencies.counted(references, most=3)
    assert pieces.pictures == whole.pictures == len(references)
    for n in range(4):
        assert np.array_equal(pieces.hashes[n], whole.hashes[n])
        assert np.array_equal(pieces.counts[n], whole.counts[n])
        # Dropped n-grams are counted from zero again: a count may be too small, never too large.
        assert np.all(few.counts[n] <= whole.of(n + 1, few.hashes[n]))
        assert len(few.counts[n]) <= 3 or len({*few.counts[n].tolist()}) == 1
    single = [token for picture in references for token in {*chain.from_iterable(picture)}]
    assert sorted(whole.counts[0]) == sorted(n for n in Counter(single).values() if n > 1)


def test_memory_for_document_frequencies_does_not_grow_with_the_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frequencies, "PICTURES_AT_ONCE", 50)
    monkeypatch.setattr(frequencies, "WAITING", 2_000)
    monkeypatch.setattr(sorted_runs, "PIECE", 1_000)
    monkeypatch.setattr(sorted_runs, "MOST_IN_MEMORY", 2_000)
    chance, peaks = np.random.default_rng(0), []
    for count in (300, 6_000):
        references = (chance.integers(4, 500, (5, 10)).tolist() for _ in range(count))
        tracemalloc.start()
        try:
            found = DocumentFrequencies.counted(references)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert sum(map(len, found.hashes)) > 10_000
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_a_file_of_document_frequencies_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "frequencies"
    DocumentFrequencies.counted([[[4, 5]], [[4, 6]]]).write(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="not whole: delete it"):
        DocumentFrequencies.open(file)


@given(st.lists(words, max_size=12), st.lists(words, max_size=12))
def test_the_longest_common_subsequence_equals_the_table(
    ours: list[str], theirs: list[str]
) -> None:
    table = [[0] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    for row, mine in enumerate(ours):
        for column, other in enumerate(theirs):
            table[row + 1][column + 1] = (
                table[row][column] + 1
                if mine == other
                else max(table[row][column + 1], table[row + 1][column])
            )
    assert longest_common(ours, theirs) == table[-1][-1]


@given(pictures)
def test_bleu_nltk_equals_nltk(rows: Pictures) -> None:
    from nltk.translate.bleu_score import corpus_bleu

    answers = judged(corpus_of(rows), "bleu_nltk")
    weights = [tuple([1 / n] * n) for n in (1, 2, 3, 4)]
    ours, theirs = (
        [row[0].split() for row in rows],
        [[text.split() for text in row[1]] for row in rows],
    )
    with warnings.catch_warnings(action="ignore"):  # NLTK warns of every precision of 0
        overall = corpus_bleu(theirs, ours, weights)
        each = [
            corpus_bleu([references], [caption], weights)
            for caption, references in zip(ours, theirs, strict=True)
        ]
    for n in range(4):
        answer = answers[f"bleu_nltk_{n + 1}"]
        assert answer.value == pytest.approx(overall[n], abs=1e-12)
        np.testing.assert_allclose(answer.per_picture, [scores[n] for scores in each], atol=1e-12)


# --- what must hold of any score


@given(pictures, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: Pictures, random: Random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    names = ("bleu", "rouge_l", "cider", "cider_d", "bleu_nltk", "health")
    first, second = (
        judged(corpus_of(rows), *names),
        judged(corpus_of([rows[place] for place in order]), *names),
    )
    for name, answer in first.items():
        assert second[name].value == pytest.approx(answer.value, abs=1e-9)
        np.testing.assert_allclose(second[name].per_picture, answer.per_picture[order], atol=1e-9)


@given(
    st.lists(
        st.lists(words, min_size=4, max_size=9).map(" ".join), min_size=2, max_size=6, unique=True
    )
)
def test_a_caption_scores_highest_against_itself(captions: list[str]) -> None:
    answers = judged(
        corpus_of([(caption, [caption]) for caption in captions]), "bleu", "rouge_l", "cider_d"
    )
    for n in (1, 2, 3, 4):
        np.testing.assert_allclose(answers[f"bleu_{n}"].per_picture, 1, atol=1e-6)
    np.testing.assert_allclose(answers["rouge_l"].per_picture, 1)
    cider_d = answers["cider_d"].per_picture
    assert (cider_d <= 10 + 1e-9).all() and cider_d.max() > 0


@given(pictures)
def test_one_picture_scores_as_in_the_corpus(rows: Pictures) -> None:
    together = judged(corpus_of(rows), "bleu", "rouge_l")
    for place, row in enumerate(rows):
        for name, answer in judged(corpus_of([row]), "bleu", "rouge_l").items():
            assert answer.value == pytest.approx(together[name].per_picture[place], abs=1e-12)


# --- the answer form, intervals


def test_signatures_contain_how_a_score_was_made() -> None:
    corpus = Corpus(["a dog"], [["a dog", "the dog"]])
    assert (
        judged(corpus, "bleu")["bleu_4"].signature
        == "tokens:ptb|end:no|references:2|pictures:1|length:closest"
    )
    uneven = Corpus(["a dog", "a cat"], [["a dog"], ["the cat"] * 3])
    assert "references:1-3|pictures:2" in judged(uneven, "cider_d")["cider_d"].signature


def noisy(pictures: int, seed: int, quality: float) -> Corpus:
    """Captions of which a share `quality` of the words is right."""
    random = Random(seed)
    vocabulary = [f"word{number}" for number in range(60)]
    references = [[random.choices(vocabulary, k=8)] for _ in range(pictures)]
    captions = [
        [word if random.random() < quality else random.choice(vocabulary) for word in reference[0]]
        for reference in references
    ]
    return Corpus(
        [" ".join(caption) for caption in captions],
        [[" ".join(each) for each in reference] for reference in references],
    )


@pytest.mark.parametrize("name", ["bleu_4", "rouge_l", "cider_d"])
def test_intervals_hold_the_score_and_narrow_with_more_pictures(name: str) -> None:
    metric = name.split("_4")[0]
    widths = []
    for pictures in (50, 800):
        answer = judged(noisy(pictures, 1, 0.7), metric)[name]
        low, high = interval(answer, samples=300)
        assert low < answer.value < high
        assert (
            interval(answer, samples=300) == (low, high) != interval(answer, samples=300, seed=1)
        )
        widths.append((high - low) / answer.value)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("name", ["bleu_4", "rouge_l"])
def test_the_paired_bootstrap_separates_better_from_equal(name: str) -> None:
    metric = name.split("_4")[0]
    good, bad = judged(noisy(300, 1, 0.8), metric)[name], judged(noisy(300, 1, 0.6), metric)[name]
    better = compare(good, bad, samples=300)
    assert 0 < better.low < better.difference < better.high and better.chance < 0.05
    same = compare(good, good, samples=300)
    assert (same.difference, same.low, same.high, same.chance) == (0, 0, 0, 1)
    assert compare(bad, good, samples=300).difference == -better.difference
    with pytest.raises(ValueError, match="do not compare"):
        compare(good, judged(noisy(200, 1, 0.8), metric)[name])


# --- the other metrics


def test_health_counts_what_its_names_promise() -> None:
    captions = [
        "A dog runs.",
        "a dog runs",
        "a man in a",
        "a a cat",
        "a red dog and a red dog sit",
        "",
    ]
    corpus = Corpus(captions, [["x"]] * len(captions), frozenset(["A dog runs!", "a a cat"]))
    answers = judged(corpus, "health")
    assert answers["distinct"].value == pytest.approx(5 / 6)
    assert answers["vocabulary"].value == pytest.approx(9)
    assert answers["length"].value == pytest.approx((3 + 3 + 4 + 3 + 8) / 6)
    assert answers["cut_off"].per_picture.tolist() == [0, 0, 1, 0, 0, 0]
    assert answers["repetitive"].per_picture.tolist() == [0, 0, 0, 1, 1, 0]
    assert answers["novel"].per_picture.tolist() == [0, 0, 1, 0, 1, 1]
    assert interval(answers["vocabulary"]) is None and interval(answers["length"]) is not None
    assert "novel" not in judged(Corpus(["a dog"], [["a dog"]]), "health")


def test_glove_similarity_is_the_cosine_of_mean_vectors(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("dog 1 0\ncat 0 2\npuppy 1 1\n", encoding="utf-8")
    corpus = Corpus(
        ["dog", "yeti", "dog cat"], [["dog yeti", "cat", "puppy"], ["dog"], ["cat dog"]]
    )
    metric = METRICS["glove_similarity"](glove=str(path))
    mean, best = metric.compute(corpus)
    np.testing.assert_allclose(best.per_picture, [1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(mean.per_picture, [(1 + 0 + 0.5**0.5) / 3, 0, 1], atol=1e-6)
    with pytest.raises(UserError, match="glove"):
        METRICS["glove_similarity"]().compute(corpus)


def test_meteor_prefers_the_nearer_caption() -> None:
    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        pytest.skip("needs WordNet: python -m nltk.downloader wordnet")
    references = [["a dog runs on the grass"]] * 4
    corpus = Corpus(
        ["a dog runs on the grass", "a canine runs on grass", "a red car", ""], references
    )
    same, near, far, nothing = judged(corpus, "meteor_nltk")["meteor_nltk"].per_picture
    assert 1 >= same > near > far >= nothing == 0


def test_meteor_without_wordnet_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(
        nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    )
    with pytest.raises(UserError, match=r"nltk\.downloader wordnet"):
        judged(Corpus(["a dog"], [["a dog"]]), "meteor_nltk")


# --- refusals and walls


@pytest.mark.parametrize(
    ("captions", "references", "reason"),
    [
        ([], [], "no captions"),
        (["a dog"], [["a dog"], ["a cat"]], "1 captions, but references for 2"),
        (["a dog", "a cat"], [["a dog"], []], r"rows 1\)"),
    ],
)
def test_a_corpus_that_cannot_be_judged_is_refused(
    captions: list, references: list, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        Corpus(captions, references)


def test_impossible_options_are_refused() -> None:
    for make in (
        lambda: METRICS["cider_d"](sigma=0),
        lambda: METRICS["rouge_l"](beta=-1),
        lambda: CiderReward(DocumentFrequencies.counted([]))(
            np.zeros((1, 1), int), [[]], np.zeros(1, int)
        ),
    ):
        with pytest.raises(UserError):
            make()


def test_metrics_start_without_torch_ray_and_nltk() -> None:
    code = (
        "import sys, raycap.metrics; print({'torch', 'ray', 'nltk', 'fsspec'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()
        == "set()"
    )
