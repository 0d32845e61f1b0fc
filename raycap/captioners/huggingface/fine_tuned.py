"""The folder of a captioner that `raycap train --model` made: an adapter, and its base model.

captioner.json                the base model, and the options with which it was fine-tuned
adapter_config.json           the adapter, as peft writes it
adapter_model.safetensors
README.md                     the model card
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycap import __version__, plainjson
from raycap.errors import UserError
from raycap.options import from_plain
from raycap.storage import RunFolder, whole_path
from raycap.storage.location import locate
from raycap.uris import local_path

if TYPE_CHECKING:
    from raycap.captioners.huggingface.options import HuggingFaceModel, HuggingFaceOptions

POINTER, CARD = "captioner.json", "README.md"
FORMAT = 1
# The options that a folder names. What lets code run, or names other files, is the user's to say.
KEPT = (
    "prompt",
    "system",
    "dialect",
    "max_pixels",
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
)


@dataclass(frozen=True)
class Pointer:
    """What a folder says of its base model."""

    model: str
    """The folder in which it was, or its name on the hub."""
    revision: str
    """Commit on the hub; "" for a folder."""
    digest: str
    """Of the folder's files; "" for a model of the hub."""
    options: Mapping[str, Any]
    """Of the captioner: those in KEPT."""


def is_fine_tuned(model: str) -> bool:
    """Whether a path or URI is that of such a folder."""
    return (locate(model) / POINTER).is_file()


def put_folder(
    path: str, options: HuggingFaceOptions, adapter: Mapping[str, bytes], card: str
) -> None:
    """Write a captioner folder at a path or URI: no reader sees half of one. `adapter` are the
    files that peft writes."""
    of_caption = {"prompt": options.prompt, "dialect": options.dialect}
    pointer = {
        "format": FORMAT,
        "raycap": __version__,
        "base": {
            "model": options.model,
            "revision": options.revision if not options.digest else "",
            "digest": options.digest,
        },
        "options": {name: getattr(options.asked, name) for name in KEPT} | of_caption,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in adapter.items()},
    }
    text = json.dumps(pointer, indent=2, ensure_ascii=False) + "\n"
    files = {**adapter, CARD: card.encode(), POINTER: text.encode()}
    local = local_path(path)
    if local is None:
        # Files of a store cannot be replaced together. Without the pointer, it is no captioner.
        folder = RunFolder(path)
        folder.remove_file(POINTER)
        for name, content in files.items():  # the pointer last
            folder.write(name, content)
        return
    try:
        with whole_path(Path(local)) as part:
            part.mkdir()
            for name, content in files.items():
                (part / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write the captioner {local}: {error.strerror}") from error


def read_pointer(folder: Path) -> Pointer:
    """Raises UserError if a file of the folder is not as it was written."""
    try:
        data = plainjson.loads((folder / POINTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / POINTER}: {error}") from error
    data = data if isinstance(data, dict) else {}
    if data.get("format") != FORMAT:
        raise UserError(
            f"{folder / POINTER} has the format {data.get('format')!r}, and this raycap reads "
            f"{FORMAT}: use the version of raycap that wrote it, or a newer one"
        )
    base: Any = data.get("base")
    digests: Any = data.get("sha256")
    options: Any = data.get("options")
    is_whole = (
        isinstance(base, dict)
        and all(isinstance(base.get(name), str) for name in ("model", "revision", "digest"))
        and isinstance(digests, dict)
        and isinstance(options, dict)
    )
    if not is_whole:
        raise UserError(f"{folder / POINTER} is damaged: copy the folder again")
    for name, expected in digests.items():
        file = folder / Path(name).name
        content = file.read_bytes() if file.is_file() else b""
        if hashlib.sha256(content).hexdigest() != expected:
            raise UserError(
                f"{file} is missing, damaged or was changed: copy the folder again, or train the "
                "captioner again"
            )
    unknown = [name for name in options if name not in KEPT]
    if unknown:
        raise UserError(f"{folder / POINTER} has options that no captioner keeps: {unknown}")
    return Pointer(base["model"], base["revision"], base["digest"], options)


def resolve_base(asked: HuggingFaceModel, model: str) -> tuple[HuggingFaceModel, str, str]:
    """For a captioner folder: all options with the adapter among them, the base model, and the
    digest that it must have ("" on the hub). What the user asks for goes before what the folder
    says."""
    folder = Path(model).expanduser().resolve()
    pointer = read_pointer(folder)
    for name in ("adapter", "revision"):
        if getattr(asked, name):
            raise UserError(
                f"--captioner.{name}: {model} is an adapter for one revision of its base model: "
                "leave it out"
            )
    usual = from_plain(type(asked), {}, "captioner")
    given = {
        field.name: getattr(asked, field.name)
        for field in dataclasses.fields(asked)
        if getattr(asked, field.name) != getattr(usual, field.name)
    }
    kept = from_plain(type(asked), dict(pointer.options), str(folder / POINTER))
    if "prompt_column" in given or "prompts" in given:
        kept = dataclasses.replace(kept, prompt="")
    merged = dataclasses.replace(kept, **given)
    base = asked.base or pointer.model
    is_folder = Path(base).expanduser().is_dir()
    if pointer.digest and not is_folder:
        raise UserError(
            f"the base model of {model} is not in {base}: put it there again, or say where it is "
            "(--captioner.base FOLDER)"
        )
    revision = "" if is_folder else pointer.revision
    if asked.base and is_folder and not pointer.digest:
        raise UserError(
            f"--captioner.base is {asked.base}: the base model of {model} is that of the hub, "
            f"{pointer.model}, so leave it out"
        )
    merged = dataclasses.replace(merged, base="", adapter=str(folder), revision=revision)
    return merged, base, pointer.digest


def check_base(model: str, options: HuggingFaceOptions, digest: str) -> None:
    """Raises UserError if the base model is another one than that which was fine-tuned."""
    if options.digest != digest:
        raise UserError(
            f"the base model in {options.model} is not the one that {model} was made for, or has "
            "changed since: put the former files back, say where they are (--captioner.base "
            "FOLDER), or fine-tune again"
        )
