"""State dicts from a file, a URI or torchvision, never a pickled module, into a network with nothing missing."""

import io
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from raycap.errors import UserError
from raycap.storage import read_uri

MOST_BYTES = 16 * 2**30  # of a file of weights


@contextmanager
def repeatable() -> Iterator[None]:
    """Networks made inside have the same random weights in each process, as long as the same torch makes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def of_torchvision(name: str, weights: str) -> dict[str, Tensor]:
    """`weights` is torchvision, torchvision:VERSION or a file. Downloads go where torch keeps them (TORCH_HOME)."""
    source, _, version = weights.partition(":")
    if source != "torchvision":
        return read(weights)
    versions = torchvision.models.get_model_weights(name).__members__
    if version and version not in versions:
        raise UserError(
            f"torchvision has no weights {version} of {name}: it has {', '.join(versions)}"
        )
    try:
        # V1 where none is named, as published captioners use it: the label smoothing of later recipes classifies
        # better and makes features that transfer worse (Kornblith et al. 2021, "Why do better loss functions ...")
        return dict(
            versions[version or "IMAGENET1K_V1"].get_state_dict(progress=True, weights_only=True)
        )
    except (OSError, RuntimeError) as error:
        raise undelivered(name, error) from error


def undelivered(name: str, error: Exception) -> UserError:
    """What to say where a download failed."""
    return UserError(
        f"the weights of {name} could not be downloaded ({error}): give a file with --encoder.weights FILE, "
        "or try the encoder `pixels`, which needs none"
    )


def read(uri: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict saved by torch.save."""
    try:
        content = read_uri(uri, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(f"cannot read the weights {uri}: {reason}") from error
    try:
        if (
            content[8:9] == b"{"
        ):  # safetensors: the header's length in 8 bytes, then the header in JSON
            state = safetensors.torch.load(content)
        elif content.startswith((b"PK", b"\x80")):  # torch's zip, and its old pickle
            _check_unpacked(content)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            raise ValueError("it begins as neither of them does")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{uri} holds more than tensors, and loading that could run anything: where you trust it, load it "
            "yourself and save the tensors alone, with torch.save(model.state_dict(), FILE)"
        ) from error
    except (
        safetensors.SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{uri} is no whole safetensors file or torch state dict: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        kind = (
            f"a mapping of {_few(state)}"
            if isinstance(state, Mapping)
            else f"a {type(state).__name__}"
        )
        raise UserError(
            f"{uri} holds {kind}, not a state dict: save the tensors alone, model.state_dict()"
        )
    return dict(state)


def _check_unpacked(content: bytes) -> None:
    """torch unpacks what a zip holds, and a compressed one may hold a thousand times its own size."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"unpacked it is larger than {MOST_BYTES:,} bytes")


def fill(
    network: nn.Module, state: Mapping[str, Tensor], source: str, heads: tuple[str, ...]
) -> None:
    """Every weight of `network` from `state`, cast to its type; the classifier's (`heads`) are left out."""
    body = {
        key: value
        for key, value in state.items()
        if not key.startswith(tuple(f"{head}." for head in heads))
    }
    own = network.state_dict()
    wrong = next((key for key in own if key in body and body[key].shape != own[key].shape), None)
    if wrong:
        theirs, ours = list(body[wrong].shape), list(own[wrong].shape)
        raise UserError(f"{source} is not of this encoder: its {wrong} is {theirs}, not {ours}")
    missing, unexpected = network.load_state_dict(body, strict=False)
    # files from before batch norm counted its batches, or converted ones, lack the counts, and inference needs none
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        faults = [
            f"{what} {_few(keys)}"
            for what, keys in (("lacks", missing), ("has also", unexpected))
            if keys
        ]
        raise UserError(f"{source} is not of this encoder: it {' and '.join(faults)}")


def _few(names: Iterable[object], limit: int = 4) -> str:
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (
        f" and {len(words) - limit} more" if len(words) > limit else ""
    )
