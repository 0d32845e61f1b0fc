"""Finishing: every caption obeys, the raw caption stays, and twice is as good as once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import long_descriptions

from raycap.errors import UserError
from raycap.finishing import Finish, Finishing, finish_text, without_reasoning
from raycap.finishing.lengths import sentence_ends, token_count, word_count

WORDS = ["dog", "Dog.", "a", "The image shows", "a photo of", "ohwx", "Mr.", "runs!", "photo of"]
WORDS += [
    ", best",
    "\n",
    "  ",
    "狗。",
    "ß",
    "I",
    "1.",
    "e.g.",
    "İstanbul",
    "In this image,",
    "...",
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join),
    st.text(max_size=60),
    st.sampled_from(long_descriptions(20)),
)
ADDED = st.sampled_from(["", "ohwx", "photo of", "The image shows", "A", "x, y", "ohwx, photo of"])


@st.composite
def finishes(draw: st.DrawFn) -> Finish:
    try:
        return Finish(
            strip_openings=draw(st.booleans()),
            openings=draw(st.sampled_from([(), ("a",), ("The", "photo of")])),
            replace=draw(st.sampled_from([(), ("dog=>cat",), ("a=>", "cat=>d g")])),
            replace_regex=draw(st.sampled_from([(), (r"\s+([.,])=>\1",), ("[0-9]+=>n",)])),
            one_line=draw(st.booleans()),
            first_sentence=draw(st.booleans()),
            lower=draw(st.booleans()),
            max_words=draw(st.sampled_from([None, 8, 20])),
            max_tokens=draw(st.sampled_from([None, 12, 30])),
            trigger=draw(st.sampled_from(["", "ohwx", "TOK"])),
            prepend=draw(ADDED),
            append=draw(st.sampled_from(["", ", best quality", "(c)", "dog"])),
        )
    except UserError:  # the texts around the caption leave no room
        return Finish(one_line=True)


@given(TEXTS, finishes())
def test_every_caption_obeys_and_twice_is_as_once(text: str, options: Finish) -> None:
    found = Finishing(options).complete(text)
    caption = found.caption
    raw = caption if found.raw_caption is None else found.raw_caption
    assert raw == text, "the raw caption is not the model's"
    assert finish_text(caption, options) == caption
    assert finish_text(text, options) == finish_text(text, options)
    if options == Finish():
        assert caption == without_reasoning(text)[0]
        return
    if not caption:
        assert "empty" in found.flags
        return
    if options.one_line:
        assert "\n" not in caption and "  " not in caption
    if options.max_words is not None:
        assert word_count(caption) <= options.max_words
    if options.max_tokens is not None:
        assert token_count(caption) <= options.max_tokens
    if options.trigger:
        assert options.trigger in caption
    if options.append:
        assert caption.endswith(options.append)
    added = options.trigger and caption.startswith(f"{options.trigger}, ")
    if options.prepend and not added:
        assert caption.startswith(options.prepend)
    if options.lower and not (options.trigger or options.prepend or options.append):
        assert caption == caption.lower()


@pytest.mark.parametrize(
    "text, options, expected",
    [
        ("The image shows a dog. It runs.", Finish(strip_openings=True), "A dog. It runs."),
        ("This is a beautiful picture of the sea.", Finish(strip_openings=True), "The sea."),
        ("the photo depicts rain", Finish(strip_openings=True), "rain"),
        ("Sure! Here is a caption: A cat.", Finish(strip_openings=True), "A cat."),
        ("Das Bild zeigt einen Hund.", Finish(strip_openings=True), "Einen Hund."),
        ("A black and white photo of a dog.", Finish(strip_openings=True), None),
        ("The image shows", Finish(strip_openings=True), None),
        ("We find a dog.", Finish(openings=("We find",)), "A dog."),
        ("Mr. Smith waves. He smiles.", Finish(first_sentence=True), "Mr. Smith waves."),
        ("It is 3.5 m long. So what?", Finish(first_sentence=True), "It is 3.5 m long."),
        ("狗在跑。猫在睡。", Finish(first_sentence=True), "狗在跑。"),
        ("One two. Three four. Five six.", Finish(max_words=5), "One two. Three four."),
        ("One two three, four five.", Finish(max_words=3), "One two three"),
        ("A dog.", Finish(append=", high quality"), "A dog, high quality"),
        ("A dog", Finish(trigger="ohwx", prepend="photo of"), "ohwx, photo of A dog"),
        ("ohwx dog", Finish(trigger="ohwx"), "ohwx dog"),
        ("A grey dog", Finish(replace=("grey=>gray",)), "A gray dog"),
        ("5 km away", Finish(replace_regex=(r"(\d+) ?km=>\1 kilometres",)), "5 kilometres away"),
        ("A\n dog", Finish(one_line=True), "A dog"),
        ("A Dog", Finish(lower=True, trigger="TOK"), "TOK, a dog"),
        ("", Finish(trigger="ohwx"), ""),
        (" kept  as it\nis ", Finish(), None),
    ],
)
def test_what_finishing_makes(text: str, options: Finish, expected: str | None) -> None:
    assert finish_text(text, options) == (text if expected is None else expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"replace": ("grey",)}, "give OLD=>NEW"),
        ({"replace": ("a=>aa",)}, "its own result"),
        ({"replace_regex": ("(=>x",)}, "missing closing|missing \\)"),
        ({"replace_regex": (r"(?=a)b=>x",)}, "without lookahead"),
        ({"replace_regex": (r"a=>\2",)}, "RE2"),
        ({"replace_regex": (r"\b=>x",)}, "empty text"),
        ({"replace_regex": ("a*=>x",)}, "empty text"),
        ({"replace_regex": ("dog=>dogs",)}, "its own result"),
        ({"replace_regex": ("a" * 2000 + "=>x",)}, "2,000 characters"),
        ({"max_words": 0}, "at least 1"),
        ({"max_words": 2, "prepend": "a photo of"}, "allow more"),
        ({"append": "a\nb"}, "line break"),
        ({"trigger": " "}, "spaces only"),
        ({"openings": ("",)}, "empty text"),
    ],
)
def test_options_that_cannot_be_obeyed_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Finish(**options)  # type: ignore[arg-type]


def test_no_pattern_hangs() -> None:
    """These take Python's own `re` longer than the age of the universe."""
    for pattern in (r"(a+)+$", r"(a|aa)+$", r"(.*)(.*)(.*)(.*)(.*)x$", r"(\w+\s?)+!$"):
        assert finish_text("a" * 20_000 + "!?", Finish(replace_regex=(f"{pattern}=>b",)))


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    text = "Dr. Who vs. the U.S. flag, No. 5. He wins."
    assert [text[:end] for end in sentence_ends(text)] == [text]


def test_an_answer_that_is_all_reasoning_is_empty() -> None:
    found = Finishing(Finish(trigger="ohwx")).complete("<think>A dog", None, "length")
    assert found.caption == "" and found.raw_caption == "<think>A dog"
    assert found.flags == ["cut_off", "empty", "thinking"]
