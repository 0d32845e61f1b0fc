"""What the user says about an endpoint, and what of it travels to the workers."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import pyarrow as pa

from raycap.captioners.generation import DEFAULT_PROMPT, Generation
from raycap.captioners.protocol import CaptionerOptions, Placement
from raycap.captioners.stages import (
    Stage,
    columns_of,
    columns_read,
    fixed_texts,
    identity_of,
    resolve_stages,
)
from raycap.errors import UserError
from raycap.images.intake import Encoded

if TYPE_CHECKING:
    from raycap.captioners.endpoint.captioner import EndpointCaptioner
    from raycap.device import PrecisionName

COLUMNS = pa.schema(
    [
        ("tokens_in", pa.int64()),  # of the picture and the prompt, as the server counts them
        ("tokens_out", pa.int64()),
        ("finish_reason", pa.string()),  # stop; length: the caption was cut off
        ("seconds", pa.float32()),  # from the request to its answer, without retries and waits
        ("attempts", pa.int32()),  # requests that it took, 1 where all went well
    ]
)
# A model of some billion parameters answers in about this time when its server is busy.
SECONDS_PER_ANSWER = 4.0
# Fields of a request that other options decide.
_DECIDED = ("messages", "model", "n", "seed", "stream")


@dataclass(frozen=True)
class Endpoint(Generation):
    """A model behind a URL that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp, LM Studio,
    Ollama, TGI, hosted services. --model is the URL: http://localhost:8000/v1, or several of them
    that serve the same model, divided by commas."""

    name: str = ""
    """Name of the model at the server. Empty: the one that it has."""
    max_side: int = 1024
    """Pictures are sent with at most this many pixels on their longer side."""
    format: Literal["jpeg", "png"] = "jpeg"
    """In which format pictures are sent."""
    quality: int = 90
    """Of JPEG, 1 to 100."""
    detail: str = ""
    """Tokens that the server spends on a picture: low, high or auto, for servers that know these
    words. Empty: as the server likes."""
    body: str = ""
    """More fields of each request, as JSON: {"top_k": 20}. null leaves a field out: {"seed":
    null}."""
    logprobs: bool = True
    """Ask for log-probabilities: they become the score. A server that has none is asked
    without."""
    check_name: bool = True
    """Refuse answers that name another model than the one asked. Off for gateways that rename
    models."""
    one_request: bool = True
    """Ask for all of --num-captions in one request, which pays for the picture once. Off: one
    request for each. What a server leaves out is asked for again in any case."""
    in_flight: int = 64
    """Requests at a time, of each worker. It sends fewer while the server is overloaded."""
    requests_per_minute: float = 0
    """The most requests of all workers together, 0 for no limit."""
    tokens_per_minute: float = 0
    """The most tokens in and out of all workers together, 0 for no limit."""
    request_timeout: float = 120
    """Seconds to wait for one answer."""
    deadline: float = 600
    """Seconds for one picture, with all retries; waiting for the limits above does not count."""
    retries: int = 3
    """Retries of one picture after faults that may be its own."""
    patience: float = 300
    """Seconds without any good answer after which the run ends; the same command resumes it."""
    key_env: str = ""
    """Environment variable that holds the API key. Empty: OPENAI_API_KEY, if it is set and the
    URL begins with https:// or names this machine."""
    key_file: str = ""
    """File that holds the API key, instead of a variable: a path or URI that all workers can
    read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_side", 16), ("quality", 1), ("in_flight", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{_flag(name)} is {getattr(self, name)}: give at least {least}")
        if self.quality > 100:
            raise UserError(f"--captioner.quality is {self.quality}: give 1 to 100")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{_flag(name)} is {getattr(self, name)}: give a number, or 0 for no limit"
                )
        for name in ("request_timeout", "deadline", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(
                    f"{_flag(name)} is {getattr(self, name)}: give a number of seconds above 0"
                )
        if self.key_env and self.key_file:
            raise UserError(
                "--captioner.key-env and --captioner.key-file both name the API key: give one"
            )
        self.more_fields()

    def more_fields(self) -> dict[str, Any]:
        """What `body` adds to each request."""
        try:
            fields = json.loads(self.body or "{}")
        except ValueError as error:
            raise UserError(f"--captioner.body is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError('--captioner.body must be an object such as {"top_k": 20}')
        for name in _DECIDED:
            if name in fields and not (name == "seed" and fields[name] is None):
                raise UserError(
                    f"--captioner.body holds {name!r}, which other options decide: leave it out"
                )
        return fields

    def captioner(
        self, model: str, num_captions: int | None, precision: PrecisionName | None
    ) -> EndpointOptions:
        """The captioner behind the URLs in `model`. Asks them which model they have."""
        stages = resolve_stages(self, DEFAULT_PROMPT)
        if num_captions is not None and num_captions > 1 and stages[-1].temperature == 0:
            raise UserError(
                f"--num-captions {num_captions} with --captioner.temperature 0 would give the "
                "same caption each time: give --captioner.temperature 0.7"
            )
        urls = base_urls(model)
        from raycap.captioners.endpoint.model_name import find_model_name

        name = find_model_name(self, urls)
        endpoint = replace(self, name=name)
        return EndpointOptions(urls, endpoint, num_captions or 1, stages=stages)


@dataclass(frozen=True)
class EndpointOptions(CaptionerOptions):
    """An endpoint with its URLs and the name of its model."""

    urls: tuple[str, ...]
    endpoint: Endpoint
    num_captions: int = 1
    journal: str = ""
    """The folder in which answers are kept until their rows are in the table; "": nowhere. It is
    also where workers see how many they are (see `members`)."""
    stages: tuple[Stage, ...] = ()
    """The prompts in order. Empty: as the endpoint says."""

    def __post_init__(self) -> None:
        if not self.stages:
            object.__setattr__(self, "stages", resolve_stages(self.endpoint, DEFAULT_PROMPT))

    def identity(self) -> dict[str, Any]:
        # Not the URLs: the same model may move to another machine, or to more of them, within a
        # run. Not limits, timeouts, journal and key: they decide when an answer comes, and not
        # which.
        endpoint, last = self.endpoint, self.stages[-1]
        return {
            "captioner": "endpoint",
            "model": endpoint.name,
            "prompt": last.text,
            "system": last.system,
            "max_tokens": last.max_tokens,
            "temperature": last.temperature,
            "top_p": last.top_p,
            "seed": endpoint.seed,
            "stop": list(last.stop),
            "max_side": endpoint.max_side,
            "format": endpoint.format,
            "quality": endpoint.quality if endpoint.format == "jpeg" else None,
            "detail": endpoint.detail,
            "body": endpoint.more_fields(),
            "num_captions": self.num_captions,
            "one_request": endpoint.one_request if self.num_captions > 1 else None,
            **identity_of(self.stages),
        }

    def intake(self) -> Encoded:
        endpoint = self.endpoint
        return Encoded(endpoint.max_side, endpoint.format, endpoint.quality)

    def columns(self) -> pa.Schema:
        return pa.schema([*columns_of(self.stages), *COLUMNS])

    def columns_read(self) -> tuple[str, ...]:
        return columns_read(self.stages)

    def prompt_texts(self) -> tuple[str, ...]:
        return fixed_texts(self.stages)

    def placement(self) -> Placement:
        rate = self.endpoint.in_flight / SECONDS_PER_ANSWER
        if self.endpoint.requests_per_minute:
            rate = min(rate, self.endpoint.requests_per_minute / 60)
        return Placement(gpus=0, pictures_per_second=rate / len(self.stages))

    def in_run(self, folder: str) -> Self:
        return replace(self, journal=folder)

    def open(self, device: str, threads: int | None) -> EndpointCaptioner:
        """The captioner. It computes nothing itself, so device and threads do not matter."""
        from raycap.captioners.endpoint.captioner import EndpointCaptioner

        return EndpointCaptioner(self)


def base_urls(model: str) -> tuple[str, ...]:
    """The URLs in --model, in one form."""
    urls = tuple(dict.fromkeys(url.strip().rstrip("/") for url in model.split(",") if url.strip()))
    if not urls:
        raise UserError("--model names no server: give its URL, such as http://localhost:8000/v1")
    for url in urls:
        _check_url(url)
    return urls


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_whole = False
    # Before anything is quoted: the message must not hold a password.
    if "@" in url or "?" in url or "#" in url:
        raise UserError(
            "--model is a URL with a user, a password or a query, and would be written into "
            "run.json: leave them out, and give the key with --captioner.key-env or "
            "--captioner.key-file"
        )
    if not is_whole or not url.isprintable() or " " in url:
        raise UserError(f"--model is {url!r}: give a URL such as http://localhost:8000/v1")
    if url.endswith("/chat/completions"):
        base = url.removesuffix("/chat/completions")
        raise UserError(f"--model is {url}: give the address before it, {base}")


def _flag(name: str) -> str:
    return f"--captioner.{name.replace('_', '-')}"
