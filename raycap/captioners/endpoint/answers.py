"""Checks and reads what a chat server answers. Nothing of it is believed unchecked."""

import math
import re
from dataclasses import dataclass
from typing import Any, Self

from raycap.captioners.endpoint.faults import Fault, Kind, quoted
from raycap.captioners.endpoint.key import ApiKey
from raycap.plainjson import loads

UNUSABLE = "the server's answer cannot be used"
HELD_BACK = "the server held the caption back"
NO_TEXT = "the server answered without a text"
OTHER_MODEL = "another model answered"
MOST_TOKENS = 2**40
# The most bytes of an answer: the texts, and beside each token its log-probability.
BYTES_PER_TOKEN, BYTES_BESIDE = 1024, 1 << 20
_WORD = re.compile(r"[a-z_]{1,32}")


@dataclass(frozen=True)
class Choice:
    """One text of an answer, or why it has none."""

    text: str
    score: float | None
    """Mean log-probability of its tokens, where the server gives them."""
    finish_reason: str
    error: str = ""


@dataclass(frozen=True)
class ServerAnswer:
    """One paid call."""

    choices: tuple[Choice, ...]
    tokens_in: int | None
    tokens_out: int | None
    seconds: float = 0.0
    attempts: int = 1

    def to_plain(self) -> dict[str, Any]:
        choices = [
            [choice.text, choice.score, choice.finish_reason, choice.error]
            for choice in self.choices
        ]
        counts = [self.tokens_in, self.tokens_out, self.seconds, self.attempts]
        return {"choices": choices, "counts": counts}

    @classmethod
    def from_plain(cls, data: Any) -> Self:
        """Raises ValueError or TypeError, KeyError, IndexError if it is not what `to_plain`
        makes."""
        tokens_in, tokens_out, seconds, attempts = data["counts"]
        choices = tuple(Choice(*choice) for choice in data["choices"])
        return cls(choices, tokens_in, tokens_out, float(seconds), int(attempts))


def most_bytes(max_tokens: int, captions: int) -> int:
    """The size from which on an answer is not read."""
    return BYTES_BESIDE + max_tokens * captions * BYTES_PER_TOKEN


def read_answer(body: bytes, name: str, key: ApiKey | None, start: str = "") -> ServerAnswer:
    """The answer in the body of a response with status 200. `name` is the model that was asked;
    "" takes an answer of any. `start` are the first words of the answer, which were sent."""
    data = _object(body, key)
    if name and not _names_match(name, data.get("model")):
        answered = quoted(str(data["model"]), key)
        raise Fault(Kind.BAD_ANSWER, f"{OTHER_MODEL}: {answered!r} instead of {name!r}")
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices:
        said = data.get("error") or data.get("message") or "no choices in it"
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: {quoted(str(said), key)}")
    usage = data.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return ServerAnswer(
        tuple(_choice(choice, key, start) for choice in choices),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _object(body: bytes, key: ApiKey | None) -> dict[str, Any]:
    try:
        data = loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: it is not UTF-8 text") from None
    except ValueError as error:
        if body.lstrip()[:1] == b"<":
            raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: it is an HTML page") from None
        reason = "it is empty" if not body.strip() else f"it is not JSON ({error})"
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: {reason}") from None
    if not isinstance(data, dict):
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: it is no JSON object")
    return data


def _names_match(asked: str, answered: Any) -> bool:
    """Servers add a date (gpt-4o-2024-08-06), a tag (llava:latest) or an owner; some name no
    model."""
    if not isinstance(answered, str) or not answered:
        return True
    one, other = asked.lower(), answered.lower()
    return (
        one.startswith(other)
        or other.startswith(one)
        or one.rstrip("/").rpartition("/")[2] == other.rstrip("/").rpartition("/")[2]
    )


def _choice(choice: Any, key: ApiKey | None, start: str) -> Choice:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: a choice without a message")
    whole = _text(message.get("content"))
    text = whole.strip()
    finish = choice.get("finish_reason")
    finish = finish if isinstance(finish, str) and _WORD.fullmatch(finish) else ""
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return Choice("", None, finish, f"{HELD_BACK}: {quoted(refusal, key)}")
    if finish == "content_filter":
        return Choice("", None, finish, f"{HELD_BACK}: its content filter")
    if not text and finish == "length":
        return Choice(
            "", None, finish, f"{NO_TEXT}: --captioner.max-tokens ran out before the caption began"
        )
    if not text:
        return Choice("", None, finish, NO_TEXT)
    if start:
        text = _joined(start, whole)
    if key is not None:
        text = key.removed_from(text)
    return Choice(text, _score(choice.get("logprobs")), finish)


def _text(content: Any) -> str:
    """The text of a message, which some servers divide into parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    if content is None:
        return ""
    if not isinstance(content, str):
        raise Fault(Kind.BAD_ANSWER, f"{UNUSABLE}: its content is no text")
    # Half a character, written as \ud83d, is JSON and no text.
    return content.encode("utf-8", "replace").decode()


def _joined(start: str, rest: str) -> str:
    """The whole answer. Some servers repeat its start; some leave out the space behind it."""
    if rest.lstrip().startswith(start.strip()):
        return rest.strip()
    is_gap_lost = start[-1].isalnum() and rest[:1].isalnum()
    return f"{start}{' ' if is_gap_lost else ''}{rest}".strip()


def _score(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    found = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
    # Rounding makes some a little larger than 0; servers write -9999 for minus infinity.
    numbers = [each for each in found if isinstance(each, int | float) and -1e6 < each < 1e-3]
    if len(numbers) < len(found):
        return None
    return min(0.0, math.fsum(numbers) / len(numbers))


def _count(tokens: Any) -> int | None:
    is_number = isinstance(tokens, int) and not isinstance(tokens, bool)
    return tokens if is_number and 0 <= tokens < MOST_TOKENS else None
