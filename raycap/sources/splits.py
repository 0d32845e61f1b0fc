"""The words for splits (train, dev, test), and a seeded split for pictures that come without one."""

import hashlib
import re
from collections.abc import Sequence

from raycap.errors import UserError

# Of train, dev and test.
Fractions = tuple[float, float, float]

# train, dev, test everywhere, whatever a dataset calls them; other words (restval, testA) stay as they are.
_WORDS = {
    "training": "train",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "development": "dev",
    "eval": "dev",
    "testing": "test",
}


def split_word(name: str) -> str:
    """A dataset's word for a split as raycap says it."""
    plain = name.strip().lower()
    return _WORDS.get(plain, plain)


def split_in(name: str) -> str:
    """The split that a file's or folder's name begins with (train-00000-of-00002.parquet), "" for none."""
    first = split_word(re.split(r"[^a-z]", name.lower(), maxsplit=1)[0])
    return first if first in ("train", "dev", "test") else ""


def check_fractions(fractions: Fractions | None) -> None:
    """Refuse what cannot be a split."""
    if fractions and (
        any(not 0 <= fraction <= 1 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6
    ):
        raise UserError(
            f"fractions are {fractions}: give train, dev and test as numbers from 0 to 1 that add up to 1"
        )


def seeded_split(key: str, fractions: Fractions, seed: int) -> str:
    """The split of one picture, drawn from its key and the seed alone.

    Counts are therefore near the fractions, not equal to them; in return a picture never moves from dev to train
    when others are added, which would show a trained captioner its own test.
    """
    digest = hashlib.blake2b(
        f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8
    ).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    train, dev, _ = fractions
    return "train" if draw < train else "dev" if draw < train + dev else "test"


def drawn_splits(names: Sequence[str], fractions: Fractions | None) -> list[str]:
    """The split of each picture by its name, the same for a name that comes twice; none without fractions."""
    return [seeded_split(name, fractions, seed=0) for name in names] if fractions else []
