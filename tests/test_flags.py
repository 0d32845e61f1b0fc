"""The flags of answers: what is planted is found, and ordinary captions get none."""

import time
from pathlib import Path

import planted
import pytest

from raycap.errors import UserError
from raycap.finishing import Finishing
from raycap.flags import Flags, JudgedAnswer, flags_of
from raycap.flags.languages import LANGUAGES
from raycap.schema import FLAGS

LEAST_RECALL, MOST_FALSE_ALARMS = 0.98, 0.005
FINISHING = Finishing()
REFUSALS = planted.REFUSALS + planted.HELD_OUT_REFUSALS + planted.MORE_HELD_OUT_REFUSALS
PLANTED: dict[str, list[tuple[str, Finishing]]] = {
    "repeats": [(text, FINISHING) for text in planted.loops()],
    "refusal": [(text, FINISHING) for text in REFUSALS],
    "empty": [(text, FINISHING) for text in planted.nothings()],
    "thinking": [(text, FINISHING) for text in planted.thoughts()],
    "echo": [(text, Finishing(prompts=(prompt,))) for text, prompt in planted.echoes()],
    "wrong_language": [
        (text, Finishing(flags=Flags(language=wanted))) for text, wanted in planted.foreign()
    ],
}


@pytest.mark.parametrize("flag", sorted(PLANTED))
def test_what_is_planted_is_found(flag: str) -> None:
    missed = [
        text for text, finishing in PLANTED[flag] if flag not in finishing.complete(text).flags
    ]
    assert len(PLANTED[flag]) >= 100
    assert len(missed) <= (1 - LEAST_RECALL) * len(PLANTED[flag]), missed


JUDGES_ALL = Finishing(
    flags=Flags(language="en", min_score=-100),
    prompts=(planted.PROMPT, planted.LONG_PROMPT),
)


def false_alarms(texts: list[str]) -> list[tuple[str, list[str]]]:
    judged = [(text, JUDGES_ALL.complete(text, -1.0, "stop").flags) for text in texts]
    return [(text, flags) for text, flags in judged if flags]


def test_ordinary_long_descriptions_get_no_flag() -> None:
    texts = planted.long_descriptions()
    assert len(texts) >= 100 and min(map(len, texts)) > 200
    assert false_alarms(texts) == []


def test_captions_in_their_own_language_get_no_flag() -> None:
    for text, language in planted.native():
        found = Finishing(flags=Flags(language=language)).complete(text)
        assert found.flags == [], (text, language)


def flickr8k(shared_data: Path) -> list[str]:
    lines = (shared_data / "flickr8k" / "Flickr8k.token.txt").read_text("utf-8").splitlines()
    return [line.split("\t", 1)[1] for line in lines]


def test_human_captions_get_hardly_any_flag(shared_data: Path) -> None:
    texts = flickr8k(shared_data)[::20]
    alarms = false_alarms(texts)
    assert len(texts) > 1000 and len(alarms) <= MOST_FALSE_ALARMS * len(texts), alarms


@pytest.mark.slow
def test_all_human_captions_get_hardly_any_flag(shared_data: Path) -> None:
    texts = flickr8k(shared_data)
    alarms = false_alarms(texts)
    assert len(alarms) <= MOST_FALSE_ALARMS * len(texts), alarms


def test_flags_that_are_not_in_the_text() -> None:
    good = JudgedAnswer("A dog runs along the beach.", score=-1.0)
    assert flags_of(good, Flags(min_score=-1.0)) == []
    assert flags_of(good, Flags(min_score=-0.9)) == ["low_score"]
    assert flags_of(JudgedAnswer("A dog"), Flags(min_score=-0.9)) == [], "without a score"
    assert flags_of(JudgedAnswer("A dog", finish_reason="length"), Flags()) == ["cut_off"]
    assert flags_of(JudgedAnswer("A dog", finish_reason="stop"), Flags()) == []


def test_flags_are_sorted_known_words() -> None:
    everything = Finishing(flags=Flags(min_score=0.0, language="de"), prompts=(planted.PROMPT,))
    text = f"<think>{planted.PROMPT}</think> I'm sorry, I can't describe this. {planted.PROMPT} "
    text += "the dog " * 9
    found = everything.complete(text, -1.0, "length", ["zebra"]).flags
    assert found == sorted(found) and set(found) - {"zebra"} <= set(FLAGS)
    assert {"cut_off", "echo", "low_score", "refusal", "repeats", "thinking", "zebra"} <= set(
        found
    )


@pytest.mark.parametrize(
    "text",
    [
        "A sign reads \"I'm sorry, I can't help you\" above a shop.",
        "A woman holds a card that says “Unable to process the image”.",
        "A red, a green, a blue and a white balloon rise, and a boy lets go of a fifth one.",
        "The score is 3:3, 4:4, 5:5 and 6:6 on the boards.",
        "Row upon row of chairs, row upon row of lamps.",
        "Zzz: a cat sleeps.",
        "A man with no picture on his shirt is not able to reach the shelf.",
        "2",
    ],
)
def test_texts_that_look_like_a_fault_get_no_flag(text: str) -> None:
    assert JUDGES_ALL.complete(text).flags == []


def test_a_short_text_has_no_other_language() -> None:
    for language in LANGUAGES:
        assert Finishing(flags=Flags(language=language)).complete("OK 7").flags == []


@pytest.mark.parametrize(
    "options, message",
    [
        ({"min_score": float("nan")}, "give a number"),
        ({"language": "english"}, "give one of ar, cs"),
        ({"many": 1}, "at least 2, or 0"),
        ({"many_share": 0.0}, "0.001 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Flags(**options)  # type: ignore[arg-type]


def test_the_time_for_a_long_loop_grows_with_its_length_only() -> None:
    """No pattern may take quadratic time on what a model can write."""

    def seconds(text: str) -> float:
        start = time.process_time()
        JUDGES_ALL.complete(text)
        return time.process_time() - start

    for piece in ("ha", "the dog ", "<think>", "i am ", '"', "1. dog\n", "sorry ", "图"):
        short, long = (min(seconds(piece * count) for _ in range(2)) for count in (500, 4000))
        assert long < 40 * max(short, 0.01), piece
