"""Reads the files of a captioner folder that may be from anybody, and refuses what is odd.

Nothing outside of the folder is opened, no file is read beyond its limit, and nothing is built of
a size that its weights do not have.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch

from raycap import __version__, plainjson
from raycap.captioners.trained.weights import SCALE
from raycap.decoders import SAVED_DECODERS
from raycap.encoders import ENCODERS
from raycap.errors import UserError
from raycap.images import Reading
from raycap.search import SEARCHES
from raycap.storage import read_uri
from raycap.unset_weights import unset_weights

# Of the folder; raise it when the meaning of its files changes. Since 2, weights may be int8;
# since 3, there may be several decoders.
FORMAT = 3
FORMAT_OF_INT8 = 2
OLDEST_FORMAT = 1
CONFIG, MODEL, WORDS, CARD = "config.json", "model.safetensors", "vocabulary.json", "README.md"
NEIGHBOURS = "neighbours.safetensors"
# Its sections in config.json, and their options.
PARTS: dict[str, Any] = {
    "encoder": ENCODERS,
    "decoder": SAVED_DECODERS,
    "reading": Reading,
    "search": SEARCHES,
}
# What config.json must hold besides its format, and of which type.
WANTED = {
    **dict.fromkeys(PARTS, dict),
    "encoder_included": bool,
    "encoder_sha256": str,
    "facts": dict,
    "sha256": dict,
}

# The most that is read of each file, in bytes.
MOST_BYTES = {CONFIG: 2**24, WORDS: 2**26, MODEL: 16 * 2**30, NEIGHBOURS: 2**31}
MOST_WORDS = 1_000_000
LONGEST_WORD = 200
MOST_POSITIONS = 128 * 128  # of an encoder's grid
# Pixels. Up to this, a network of torchvision takes less than a gigabyte, whatever its options.
USUAL_SIZE = 512
# The largest numbers that a folder may ask for: it may be from anybody, and each of them costs
# memory or time.
MOST = {"size": 2048, "patch": 2048, "grid": 128, "layers": 256, "heads": 1024}
MOST |= {
    "width": 256,
    "best": 256,
    "samples": 256,
    "drawn": 256,
    "fusion": 1000,
    "max_length": 1000,
    "min_length": 1000,
}
MOST_OTHERWISE = 1_000_000

Shapes = dict[str, tuple[int, ...]]


def read_file(path: str, name: str, start: int = 0, length: int | None = None) -> bytes:
    """A file of the folder, or a part of it: a regular file that lies in the folder, and is not
    too large."""
    try:
        return read_uri(f"{path.rstrip('/')}/{name}", MOST_BYTES[name], start, length, inside=path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is no captioner folder: it has no {name}") from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(f"cannot read {path}/{name} of the captioner: {reason}") from error


def read_checked(path: str, name: str, digests: Mapping[str, str]) -> bytes:
    """A file with this digest."""
    content = read_file(path, name)
    if hashlib.sha256(content).hexdigest() != digests.get(name):
        raise UserError(
            f"{path}/{name} is not what was written: it is damaged or was changed; get the "
            "captioner folder again"
        )
    return content


def read_config(path: str) -> dict[str, Any]:
    """The content of config.json, as it was written."""
    try:
        config = plainjson.loads(read_file(path, CONFIG))
    except ValueError as error:
        raise UserError(f"{path}/{CONFIG} is not whole JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise UserError(f"{path}/{CONFIG} is not of a captioner: it has no format number")
    if not OLDEST_FORMAT <= config["format"] <= FORMAT:
        raise UserError(
            f"{path} has format {config['format']!s:.20}, this raycap {__version__} reads "
            f"{OLDEST_FORMAT} to {FORMAT}: use raycap {config.get('raycap', '(unknown)')!s:.20}, "
            "which wrote it, or train it again"
        )
    wrong = [name for name, kind in WANTED.items() if not isinstance(config.get(name), kind)]
    if wrong:
        raise UserError(
            f"{path}/{CONFIG} is not what was written: {', '.join(wrong)} missing or of another "
            "type"
        )
    try:
        digest = digest_of_config(config)
    except RecursionError:
        raise UserError(
            f"{path}/{CONFIG} is not of a captioner: it is nested too deeply"
        ) from None
    if config["sha256"].get(CONFIG) != digest:
        raise UserError(
            f"{path}/{CONFIG} is not what was written: it is damaged or was changed; get the "
            "captioner folder again"
        )
    return config


def digest_of_config(config: Mapping[str, Any]) -> str:
    """Of all but the digests of files."""
    content = {name: value for name, value in config.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_numbers(section: str, part: Any, name: str) -> None:
    """Raise UserError if an option of this part would cost too much memory or time."""
    for option in fields(part):
        value = getattr(part, option.name)
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or option.name == "seed"
            ):
                continue
            most = MOST.get(option.name, MOST_OTHERWISE)
            if abs(number) > most or 0 < abs(number) < 1e-6:
                raise UserError(
                    f"{name}: {section}.{option.name} is {number!s:.30}: a captioner folder may "
                    f"ask for at most {most:,} there, and for nothing below 0.000001"
                )


@contextmanager
def on_paper(path: str) -> Iterator[None]:
    """What is built inside has shapes and takes no memory; what cannot be built is refused."""
    try:
        with torch.device("meta"), unset_weights():
            yield
    except UserError:
        raise
    except (RuntimeError, ArithmeticError, TypeError, ValueError, AssertionError) as error:
        kind = type(error).__name__
        raise UserError(
            f"{path}/{CONFIG} describes a captioner that cannot be built ({kind})"
        ) from error


def read_shapes(path: str) -> Shapes:
    """Of every tensor in the weights but scales, from their header alone: its length in 8 bytes,
    then JSON."""
    length = int.from_bytes(read_file(path, MODEL, 0, 8), "little")
    if not 2 <= length <= MOST_BYTES[CONFIG]:
        raise UserError(
            f"{path}/{MODEL} is no whole safetensors file: get the captioner folder again"
        )
    try:
        header = plainjson.loads(read_file(path, MODEL, 8, length))
        return {
            name: tuple(map(int, of["shape"]))
            for name, of in header.items()
            if name != "__metadata__" and not name.endswith(SCALE)
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}/{MODEL} is no whole safetensors file: get the captioner folder again"
        ) from error


def check_shapes(network: torch.nn.Module, shapes: Shapes, prefix: str, path: str) -> None:
    """Raise UserError if the weights have another shape than this network."""
    wanted = {
        f"{prefix}{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()
    }
    found = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
    wrong = next((name for name in (*wanted, *found) if wanted.get(name) != found.get(name)), None)
    if wrong is not None:
        raise UserError(
            f"{path}/{MODEL} does not fit the {prefix[:-1]} that {CONFIG} describes: in the "
            f"weights {wrong[:100]!r} is {_said(found.get(wrong))}, by the config "
            f"{_said(wanted.get(wrong))}"
        )


def _said(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def shortened(message: str) -> str:
    return message if len(message) <= 500 else message[:499] + "…"
