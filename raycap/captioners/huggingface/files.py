"""Which model exactly: the digest of a folder's files, or a commit of the hub."""

import hashlib
from pathlib import Path

from raycap.errors import UserError

# Files that determine captions. Others, such as README.md and logs, may change.
_SUFFIXES = {".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}


def model_files(folder: Path, with_pickle: bool, with_code: bool) -> list[Path]:
    """The files of a model's folder that determine what it says, by name."""
    suffixes = _SUFFIXES | (_PICKLES if with_pickle else set()) | ({".py"} if with_code else set())
    return sorted(each for each in folder.iterdir() if each.is_file() and each.suffix in suffixes)


def digest_of(files: list[Path]) -> str:
    """SHA-256 of the names and contents of these files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def sizes_of(files: list[Path]) -> tuple[tuple[str, int], ...]:
    return tuple((path.name, path.stat().st_size) for path in files)


def check_weights(folder: Path, allow_pickle: bool) -> None:
    """Raises UserError if a folder has no weights that may be opened."""
    suffixes = {path.suffix for path in folder.iterdir()}
    if ".safetensors" in suffixes:
        return
    if not suffixes & _PICKLES:
        raise UserError(f"there are no weights (*.safetensors) in {folder}")
    if not allow_pickle:
        raise UserError(
            f"the weights in {folder} are not safetensors but pickle files, which can run code: "
            "convert them (model.save_pretrained writes safetensors), or give "
            "--captioner.allow-pickle if you trust them"
        )


def check_same(folder: Path, sizes: tuple[tuple[str, int], ...]) -> None:
    """Raises UserError on a worker whose folder is not the one that the run began with."""
    for name, size in sizes:
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{path} is not on this machine: each worker needs the model's folder at the same "
                "path. Use a shared disk, or a name on the hub"
            )
        if path.stat().st_size != size:
            raise UserError(
                f"{path} is another file than the one with which the run began: give each machine "
                "the same folder"
            )
