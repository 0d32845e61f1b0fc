"""Reads state dicts from a file, a URI or torchvision, and loads them into a network."""

import io
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from raycap.errors import UserError
from raycap.storage import read_uri

MOST_BYTES = 16 * 2**30  # in a file of weights


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Within this context, random weights are the same in every process with this version of
    torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def torchvision_weights(name: str, weights: str) -> dict[str, Tensor]:
    """The state dict for `weights`: torchvision, torchvision:VERSION or a file. Downloads are
    cached in TORCH_HOME."""
    source, _, version = weights.partition(":")
    if source != "torchvision":
        return read_weights(weights)
    import torchvision

    versions = torchvision.models.get_model_weights(name).__members__
    if version and version not in versions:
        raise UserError(
            f"torchvision has no weights {version} of {name}: it has {', '.join(versions)}"
        )
    try:
        # V1 by default, as in published captioners. Later weights were trained with label
        # smoothing, whose features transfer worse (Kornblith et al. 2021, "Why do better loss
        # functions ...").
        chosen = versions[version or "IMAGENET1K_V1"]
        return dict(chosen.get_state_dict(progress=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise download_error(name, error) from error


def download_error(name: str, error: Exception) -> UserError:
    """The error for weights that could not be downloaded."""
    return UserError(
        f"the weights of {name} could not be downloaded ({error}): give a file with "
        "--encoder.weights FILE, or try the encoder `pixels`, which needs none"
    )


def read_weights(uri: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict saved by torch.save. Runs no code from
    the file."""
    try:
        content = read_uri(uri, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(f"cannot read the weights {uri}: {reason}") from error
    try:
        # safetensors: the header's length in 8 bytes, then the header in JSON
        if content[8:9] == b"{":
            state = safetensors.torch.load(content)
        elif content.startswith((b"PK", b"\x80")):  # torch's zip, and its old pickle
            _check_unpacked(content)
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            raise ValueError("its first bytes are of neither")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{uri} holds more than tensors, and loading it could run any code: if you trust it, "
            "load it yourself and save the tensors alone, with torch.save(model.state_dict(), "
            "FILE)"
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
            f"{uri} is not a whole safetensors file or torch state dict: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        kind = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            kind = f"a mapping of {_few(state)}"
        raise UserError(
            f"{uri} holds {kind}, not a state dict: save the tensors alone, model.state_dict()"
        )
    return dict(state)


def _check_unpacked(content: bytes) -> None:
    """Raise ValueError for a zip file that is too large when unpacked."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"unpacked it is larger than {MOST_BYTES:,} bytes")


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], source: str, heads: tuple[str, ...]
) -> None:
    """Load all weights of `network` from `state`, except those of the classifier (`heads`). Raises
    UserError if they do not fit."""
    prefixes = tuple(f"{head}." for head in heads)
    body = {key: value for key, value in state.items() if not key.startswith(prefixes)}
    own = network.state_dict()
    for key in own:
        if key in body and body[key].shape != own[key].shape:
            theirs, ours = list(body[key].shape), list(own[key].shape)
            raise UserError(f"{source} is not of this encoder: its {key} is {theirs}, not {ours}")
    missing, unexpected = network.load_state_dict(body, strict=False)
    # Old and converted files lack num_batches_tracked, which inference does not need.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        faults = []
        if missing:
            faults.append(f"lacks {_few(missing)}")
        if unexpected:
            faults.append(f"has also {_few(unexpected)}")
        raise UserError(f"{source} is not of this encoder: it {' and '.join(faults)}")


def _few(names: Iterable[object], limit: int = 4) -> str:
    words = [str(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more
