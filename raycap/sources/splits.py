"""The names of splits (train, dev, test), and splits drawn for pictures that have none."""

import hashlib
import re
from collections.abc import Sequence

from raycap.errors import UserError

# Of train, dev and test.
Fractions = tuple[float, float, float]

# Whatever a dataset calls them. Other words (restval, testA) stay as they are.
_WORDS = {
    "training": "train",
    **dict.fromkeys(("val", "valid", "validation", "development", "eval"), "dev"),
    "testing": "test",
}


def split_word(name: str) -> str:
    """Returns raycap's word for a dataset's word: "dev" for "Validation"."""
    plain = name.strip().lower()
    return _WORDS.get(plain, plain)


def split_in(name: str) -> str:
    """Returns the split that a file name begins with (train-00000.parquet), "" for none."""
    first = split_word(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])
    return first if first in ("train", "dev", "test") else ""


def check_fractions(fractions: Fractions | None) -> None:
    """Raises UserError unless the fractions add up to 1."""
    if not fractions:
        return
    if any(not 0 <= each <= 1 for each in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"--source.fractions is {fractions}: give train, dev and test as numbers from 0 to 1 "
            "that add up to 1"
        )


def seeded_split(key: str, fractions: Fractions, seed: int) -> str:
    """Draws the split of one picture from its key and the seed alone.

    So counts are near the fractions, not equal to them. In return a picture keeps its split when
    others are added: none moves from test to train.
    """
    salted = f"{seed}:{key}".encode("utf-8", "surrogatepass")
    draw = int.from_bytes(hashlib.blake2b(salted, digest_size=8).digest(), "big") / 2**64
    train, dev, _ = fractions
    if draw < train:
        return "train"
    return "dev" if draw < train + dev else "test"


def drawn_splits(names: Sequence[str], fractions: Fractions | None) -> list[str]:
    """Draws the split of each picture by its name; returns none without fractions."""
    return [seeded_split(name, fractions, seed=0) for name in names] if fractions else []
