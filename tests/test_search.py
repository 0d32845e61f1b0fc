"""Searches: they equal simple ones, in a batch or alone, and scores are the model's own."""

import dataclasses
import functools
import itertools
import subprocess
import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_search import slow_beam
from test_decoders import POSITIONS, VARIANTS, WIDTH, built, captions, pictures, train

from raycap.bulk.options import CaptionOptions
from raycap.decoders import Recurrent
from raycap.errors import UserError
from raycap.search import SEARCHES, Beam, Greedy, Sample, SearchOptions
from raycap.search.beam import _highest_of_few, highest
from raycap.vocabulary import END, PAD, START, UNK

variants = pytest.mark.parametrize("name", VARIANTS)
SMALL = Recurrent(hidden_width=16, embedding_width=8, attention_width=8)


def opinionated(seed=0, vocabulary=20, end=1.0):
    """A random decoder that prefers some words clearly, and `<end>` by so much more."""
    torch.manual_seed(seed)
    decoder = SMALL.build(vocabulary, POSITIONS, WIDTH).eval()
    with torch.no_grad():
        decoder.vocabulary.weight.mul_(25)
        decoder.vocabulary_bias.normal_(0, 1)
        decoder.vocabulary_bias[END] += end
    return decoder


@functools.cache
def half_trained(name):
    """A decoder that has begun to learn captions of different lengths for the pictures of
    `memory_of`."""
    decoder = built(VARIANTS[name])
    train(decoder, *pictures(16), *captions(16, 2), steps=40)
    return decoder.eval()


@torch.no_grad()
def memory_of(decoder, count, seed=1):
    return decoder.prepare(*pictures(count, seed))


def one(memory, picture):
    return {name: part[picture : picture + 1] for name, part in memory.items()}


def words_of(hypotheses):
    return [(hypothesis.words, hypothesis.finished) for hypothesis in hypotheses]


@torch.no_grad()
def teacher_forced(decoder, memory, hypothesis):
    """The log-probability of a caption and where the model looked, without any search."""
    caption = [*hypothesis.words, END] if hypothesis.finished else list(hypothesis.words)
    scores, attention = decoder(memory, torch.tensor([[[START, *caption[:-1]]]]))
    probable = torch.log_softmax(scores[0, 0], -1)
    return probable[torch.arange(len(caption)), caption].sum().item(), attention


beams = st.builds(
    lambda width, best, **others: Beam(width=width, best=min(width, best), **others),
    width=st.integers(1, 5),
    best=st.integers(1, 5),
    length_penalty=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    min_length=st.integers(0, 4),
    max_length=st.integers(5, 12),
    no_repeat_ngram=st.integers(0, 3),
    no_stutter=st.booleans(),
    allow_unknown=st.booleans(),
)


@settings(derandomize=True)
@given(beams, st.integers(0, 10_000), st.integers(5, 24), st.floats(-4, 4))
def test_beam_is_the_plain_one(options, seed, vocabulary, end):
    # In float64: in one of some thousands of cases two captions are too close for float32.
    decoder = opinionated(seed=seed, vocabulary=vocabulary, end=end).double()
    memory = memory_of(decoder, 3)
    for picture, found in enumerate(options.search(decoder, memory).hypotheses()):
        expected = slow_beam(options, decoder, one(memory, picture))
        assert words_of(found) == words_of(expected)
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
        assert [h.log_probability for h in found] == pytest.approx(
            [h.log_probability for h in expected], abs=1e-4
        )


@settings(derandomize=True)
@given(beams, st.integers(0, 10_000))
def test_stopping_when_nothing_can_be_overtaken_changes_nothing(options, seed):
    decoder = opinionated(seed=seed).double()
    memory = memory_of(decoder, 1)
    patient = slow_beam(options, decoder, memory, proven_stop=False)
    assert words_of(options.search(decoder, memory).hypotheses()[0]) == words_of(patient)


@variants
@pytest.mark.parametrize("no_repeat_ngram", [0, 2])
def test_a_beam_of_width_one_is_greedy(name, no_repeat_ngram):
    decoder = half_trained(name)
    memory = memory_of(decoder, 16)
    greedy = Greedy(no_repeat_ngram=no_repeat_ngram).search(decoder, memory)
    for length_penalty in (0.0, 1.0):
        beam = Beam(
            width=1, length_penalty=length_penalty, no_repeat_ngram=no_repeat_ngram
        ).search(decoder, memory)
        assert torch.equal(beam.words, greedy.words)
        assert torch.equal(beam.finished, greedy.finished)
        torch.testing.assert_close(beam.log_probability, greedy.log_probability)


@variants
@pytest.mark.parametrize(
    "search", [Greedy(), Beam(width=3, best=3), Sample(samples=3)], ids=SEARCHES
)
def test_a_picture_alone_is_the_picture_in_a_batch(name, search):
    decoder = half_trained(name)
    memory, seeds = memory_of(decoder, 8), list(range(100, 108))
    together = search.search(decoder, memory, seeds=seeds).hypotheses()
    assert len({len(hypotheses[0].words) for hypotheses in together}) > 1, (
        "they should not all end together"
    )
    for picture, hypotheses in enumerate(together):
        (alone,) = search.search(
            decoder, one(memory, picture), seeds=[seeds[picture]]
        ).hypotheses()
        assert words_of(alone) == words_of(hypotheses)
        assert [h.score for h in alone] == pytest.approx([h.score for h in hypotheses], abs=1e-4)


@variants
@pytest.mark.parametrize(
    "search",
    [Greedy(min_length=3), Beam(width=4, best=4, no_repeat_ngram=1), Sample(samples=4, top_k=5)],
    ids=SEARCHES,
)
def test_scores_and_attention_are_those_of_teacher_forcing(name, search):
    decoder = half_trained(name)
    memory = memory_of(decoder, 6)
    for picture, hypotheses in enumerate(
        search.search(decoder, memory, attention=True).hypotheses()
    ):
        for hypothesis in hypotheses:
            expected, attention = teacher_forced(decoder, one(memory, picture), hypothesis)
            assert hypothesis.log_probability == pytest.approx(expected, abs=1e-4)
            length = len(hypothesis.words) + hypothesis.finished
            penalty = search.length_penalty if isinstance(search, Beam) else 1.0
            assert hypothesis.score == pytest.approx(expected / length**penalty, abs=1e-4)
            if attention is None:
                assert hypothesis.attention is None
            else:
                looked = attention[0, 0, : len(hypothesis.words)]
                torch.testing.assert_close(hypothesis.attention, looked, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_as_wide_as_all_captions_finds_the_best_and_no_other_beats_it(seed, length_penalty):
    decoder = opinionated(seed=seed, vocabulary=7, end=-1.0)
    memory = memory_of(decoder, 1)
    limits = {"max_length": 4, "min_length": 1, "length_penalty": length_penalty}
    spoken = [
        words for length in (1, 2, 3) for words in itertools.product((4, 5, 6), repeat=length)
    ]
    with torch.no_grad():
        scored = {
            words: teacher_forced(decoder, memory, _Closed(words))[0]
            / (len(words) + 1) ** length_penalty
            for words in spoken
        }
    best_words = max(scored, key=scored.__getitem__)
    (widest,) = Beam(width=150, best=len(spoken), **limits).search(decoder, memory).hypotheses()
    assert widest[0].words == best_words
    assert [h.score for h in widest] == pytest.approx(
        sorted(scored.values(), reverse=True), abs=1e-4
    )
    for width in (1, 2, 3, 8):
        (narrow,) = Beam(width=width, **limits).search(decoder, memory).hypotheses()
        assert not narrow[0].finished or narrow[0].score <= widest[0].score + 1e-5


class _Closed:
    finished = True

    def __init__(self, words):
        self.words = words


def test_wider_beams_find_more_probable_captions_on_the_whole():
    """On average: for a single picture a wider beam may drop the start of the best caption."""
    means = []
    for width in (1, 2, 4, 8):
        search = Beam(width=width, length_penalty=0.0, max_length=12)
        totals = []
        for seed in range(8):
            decoder = opinionated(seed=seed)
            totals.append(search.search(decoder, memory_of(decoder, 16)).log_probability[:, 0])
        means.append(torch.cat(totals).mean().item())
    assert means == sorted(means) and means[0] < means[-1]


@pytest.mark.parametrize(
    "search",
    [Greedy(max_length=6), Beam(max_length=6, best=3), Sample(max_length=6)],
    ids=SEARCHES,
)
def test_captions_that_never_finish_are_returned_as_far_as_they_came(search):
    decoder = opinionated(end=-100.0)
    for hypotheses in search.search(decoder, memory_of(decoder, 3)).hypotheses():
        assert len(hypotheses) == (3 if isinstance(search, Beam) else 1)
        assert all(not h.finished and len(h.words) == 6 for h in hypotheses)


def test_finished_captions_stand_before_cut_ones_and_each_before_a_worse_one():
    mixed = 0
    for seed in range(30):
        decoder = opinionated(seed=seed, end=-1.0)
        for hypotheses in (
            Beam(width=4, best=4, max_length=6).search(decoder, memory_of(decoder, 4)).hypotheses()
        ):
            ranks = [(h.finished, h.score) for h in hypotheses]
            assert ranks == sorted(ranks, reverse=True)
            mixed += len({h.finished for h in hypotheses}) == 2
    assert mixed


@settings(derandomize=True)
@given(
    st.sampled_from(list(SEARCHES)),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 6),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_rules_are_kept(kind, no_repeat_ngram, no_stutter, min_length, seed, allow_unknown):
    search = SEARCHES[kind](
        no_repeat_ngram=no_repeat_ngram,
        no_stutter=no_stutter,
        min_length=min_length,
        max_length=15,
        allow_unknown=allow_unknown,
    )
    decoder = opinionated(seed=seed, vocabulary=12, end=0.0)
    for (hypothesis,) in search.search(decoder, memory_of(decoder, 4)).hypotheses():
        words = hypothesis.words
        ngrams = [words[i : i + no_repeat_ngram] for i in range(len(words) - no_repeat_ngram + 1)]
        assert not no_repeat_ngram or len(set(ngrams)) == len(ngrams)
        assert not no_stutter or all(word != after for word, after in itertools.pairwise(words))
        assert len(words) >= min_length and len(words) + hypothesis.finished <= 15
        assert not {PAD, START, END} & set(words)
        assert allow_unknown or UNK not in words


@pytest.mark.parametrize("kind", SEARCHES)
def test_unknown_is_written_only_when_asked_for(kind):
    decoder = opinionated(end=-3.0)
    with torch.no_grad():
        decoder.vocabulary_bias[UNK] = 50.0
    memory = memory_of(decoder, 2)
    for allow in (False, True):
        found = (
            SEARCHES[kind](allow_unknown=allow, max_length=5).search(decoder, memory).hypotheses()
        )
        assert all((UNK in hypothesis.words) is allow for (hypothesis,) in found)


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_caption_without_any_allowed_word_is_closed(kind):
    decoder = opinionated(vocabulary=6)  # two words, each of which may stand there once
    search = SEARCHES[kind](no_repeat_ngram=1, min_length=5, max_length=8)
    for (hypothesis,) in search.search(decoder, memory_of(decoder, 3)).hypotheses():
        assert sorted(hypothesis.words) == [4, 5] and hypothesis.finished


def test_of_equals_the_first_word_is_taken():
    decoder = opinionated()
    with torch.no_grad():
        decoder.vocabulary.weight.zero_()
        decoder.vocabulary_bias.zero_()
    memory = memory_of(decoder, 3)
    for search in (Greedy(), Beam(width=1)):
        assert [h[0].words for h in search.search(decoder, memory).hypotheses()] == [(4,)] * 3
    found = Beam(width=3, best=3, max_length=3, min_length=2).search(decoder, memory).hypotheses()
    assert [[h.words for h in hypotheses] for hypotheses in found] == [
        [(4, 4), (4, 4, 4), (4, 4, 5)]
    ] * 3


@settings(derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([2, 30, 10**6]), st.booleans())
def test_the_highest_of_few_are_those_of_a_sort(seed, count, different, has_impossible):
    """Also where values are equal: among two or thirty different ones, most are."""
    source = torch.Generator().manual_seed(seed)
    values = torch.randint(different, (3, 700), generator=source).float()
    if has_impossible:
        values[:, count - 1 :] = -torch.inf
    expected, places = torch.sort(values, dim=1, descending=True, stable=True)
    for find in (highest, _highest_of_few):
        found, where = find(values, count)
        assert torch.equal(found, expected[:, :count])
        assert torch.equal(where, places[:, :count])


@pytest.mark.parametrize(
    "limits",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.9}],
    ids=str,
)
def test_words_are_drawn_as_often_as_they_are_probable(limits):
    decoder = opinionated(seed=3)
    memory = memory_of(decoder, 1)
    with torch.no_grad():
        scores = decoder.step(
            torch.tensor([[START]]), decoder.initial_state(memory, 1), memory
        ).logits[0, 0]
    scores[[PAD, START, UNK]] = -torch.inf
    scores = scores / limits.get("temperature", 1.0)
    order = torch.argsort(scores, descending=True)[: limits.get("top_k", 20)]
    probable = torch.softmax(scores[order], 0)
    order = order[(probable.cumsum(0) - probable < limits.get("top_p", 1.0)) & (probable > 0)]
    expected = torch.zeros(20).index_copy(0, order, torch.softmax(scores[order], 0))

    search = Sample(samples=4000, max_length=1, min_length=0, **limits)
    drawn = search.search(decoder, memory, seeds=[7]).words.flatten().tolist()
    often = torch.tensor([Counter(drawn)[word] / len(drawn) for word in range(20)])
    assert (often - expected).abs().max() < 0.03  # four standard errors of 4,000 draws
    assert set(drawn) <= set(order.tolist())
    assert len(set(drawn)) > 1


def test_the_narrowest_draws_are_greedy():
    decoder = opinionated()
    memory = memory_of(decoder, 8)
    greedy = Greedy().search(decoder, memory).words
    for search in (Sample(top_k=1), Sample(top_p=1e-6), Sample(temperature=1e-4)):
        assert torch.equal(search.search(decoder, memory).words, greedy)


def test_a_seed_repeats_and_another_one_differs():
    decoder = opinionated()
    memory = memory_of(decoder, 4)
    first = Sample(samples=5, seed=1).search(decoder, memory).words
    assert torch.equal(first, Sample(samples=5, seed=1).search(decoder, memory).words)
    assert not torch.equal(first, Sample(samples=5, seed=2).search(decoder, memory).words)
    same_picture = {name: part[[0, 0]] for name, part in memory.items()}
    left, right = Sample(samples=5).search(decoder, same_picture, seeds=[1, 2]).words
    assert not torch.equal(left, right)


@pytest.mark.parametrize("search", [Greedy(), Beam(width=4), Sample(samples=4)], ids=SEARCHES)
def test_the_decoder_is_asked_once_a_word_and_only_about_pictures_that_need_it(
    search, monkeypatch
):
    decoder = half_trained("lstm_plain_deep")
    memory = memory_of(decoder, 16)
    asked = []
    step = decoder.step

    def counted(words, state, memory):
        asked.append(len(words))
        return step(words, state, memory)

    monkeypatch.setattr(decoder, "step", counted)
    found = search.search(decoder, memory)
    assert len(asked) <= search.max_length and asked[0] == 16
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] < 16
    assert found.words.shape[0] == 16


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Beam, {"width": 0}, "width"),
        (Beam, {"width": 2, "best": 3}, "widen the beam"),
        (Beam, {"length_penalty": -1.0}, "length_penalty"),
        (Greedy, {"max_length": 0}, "max_length"),
        (Greedy, {"max_length": 3, "min_length": 3}, "min_length"),
        (Sample, {"temperature": 0.0}, "temperature"),
        (Sample, {"top_p": 0.0}, "top_p"),
        (Sample, {"top_k": -1}, "top_k"),
        (Sample, {"samples": 0}, "samples"),
        (Beam, {"no_repeat_ngram": -1}, "no_repeat_ngram"),
    ],
)
def test_impossible_options_are_refused(kind, wrong, message):
    with pytest.raises(UserError, match=message):
        kind(**wrong)


def test_options_are_read_without_torch():
    code = "import raycap.decoders, raycap.search, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", SEARCHES.values(), ids=SEARCHES)
def test_a_beam_in_place_of_another_search_keeps_its_rules(kind):
    rules = {"no_repeat_ngram": 2, "no_stutter": True, "allow_unknown": True, "mirror": True}
    trained = kind(max_length=17, min_length=3, **rules)
    chosen = CaptionOptions(beam=4).search(None, trained)
    assert isinstance(chosen, Beam) and chosen.width == 4
    shared = {field.name for field in dataclasses.fields(SearchOptions)}
    assert {name: getattr(chosen, name) for name in shared} == {
        name: getattr(trained, name) for name in shared
    }
