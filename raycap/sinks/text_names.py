"""Names of text files.

A name never depends on other rows of the table, so rows that are added later change no name. All
names end in .txt, and no folder does.
"""

import hashlib
import os
import re
import urllib.parse
from collections.abc import Callable

from raycap.sources.folder import PICTURE_ENDINGS

# File systems take names of 255 bytes and paths of 4096; some room for endings and folders.
LONGEST_NAME, LONGEST_PATH = 200, 1000
LONGEST_NAME_OF_A_DISK = 255
# As listings have them; in another case, an ending counts as a part of the name.
_CASED = frozenset(case for ending in PICTURE_ENDINGS for case in (ending, ending.upper()))
_DIGESTED = re.compile(r".*-[0-9a-f]{20}", re.DOTALL)


def text_name(key: str) -> str:
    """The path of a key's text file below a folder: KEY.txt, with odd characters percent-encoded.
    A key that is no plain path (a URL, or one with empty steps, '..' or long names) has a digest
    in its last name."""
    steps = [urllib.parse.quote(step, safe=" ", errors="surrogatepass") for step in key.split("/")]
    *folders, last = steps
    is_plain = all(step.strip(".") and len(step) <= LONGEST_NAME for step in steps)
    is_plain = is_plain and not any(step.lower().endswith(".txt") for step in folders)
    path = "/".join(steps)
    if is_plain and len(path) <= LONGEST_PATH and not _DIGESTED.fullmatch(last):
        return f"{path}.txt"
    *folders, last = [_shown(step) for step in steps if step] or ["%"]
    if len("/".join(folders)) > LONGEST_PATH:
        folders = []
    digest = _short_digest(key.encode(errors="surrogatepass"))
    return "/".join([*folders, f"{last}-{digest}.txt"])


def _shown(step: str) -> str:
    """A step of a path, short, that leads nowhere else and is no name of a text file."""
    step = step[:100]
    if not step.strip("."):
        return step.replace(".", "%2E")
    return f"{step[:-4]}%2E{step[-3:]}" if step.lower().endswith(".txt") else step


def name_beside(name: str, is_there: Callable[[str], bool]) -> tuple[str, bool]:
    """The name of a text file beside the picture `name`, and whether it differs from the usual one
    because of a neighbour. `is_there` tells whether a file is in the picture's folder.

    a.txt for a.jpg; a.jpg.txt if there is an a.png too; a name without a picture's ending has a
    digest behind it.
    """
    stem, dot, ending = name.rpartition(".")
    has_neighbour = False
    if stem and dot + ending in _CASED:
        of_other = any(stem.endswith(other) for other in _CASED) or _DIGESTED.fullmatch(stem)
        others = _CASED - {dot + ending}
        has_neighbour = not of_other and any(is_there(stem + other) for other in sorted(others))
        if not of_other and not has_neighbour:
            return f"{stem}.txt", False
        if len(os.fsencode(f"{name}.txt")) <= LONGEST_NAME_OF_A_DISK:
            return f"{name}.txt", has_neighbour
    encoded = os.fsencode(name)
    shown = os.fsdecode(encoded[:LONGEST_NAME])
    if len(encoded) > LONGEST_NAME:  # a character may be cut in two
        shown = encoded[:LONGEST_NAME].decode(errors="ignore")
    return f"{shown}-{_short_digest(encoded)}.txt", has_neighbour


def _short_digest(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()[:20]
