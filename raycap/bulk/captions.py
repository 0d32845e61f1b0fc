"""Every picture of a source through a trained captioner, into a table with a row for each."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import Dataset

from raycap import __version__
from raycap.bulk.also import write_also
from raycap.bulk.options import Caption
from raycap.bulk.passes import perform
from raycap.bulk.publish import Parts
from raycap.bulk.shape import on_actors, pictures, shape
from raycap.bulk.shown import show
from raycap.bulk.todo import Todo
from raycap.bulk.work import Work, reading_identity, source_identity, source_of
from raycap.captioners.trained import Captioner, folder
from raycap.captioners.trained.caption import Seen
from raycap.captioners.trained.folder import CONFIG, WORDS
from raycap.cluster.nodes import add_maker
from raycap.cluster.session import session
from raycap.config import Config, part_to_plain
from raycap.errors import UserError
from raycap.images import Square
from raycap.schema import CAPTIONS, FAILED_TO_CAPTION, SUCCESS, TRUE_WORDS
from raycap.search import Hypothesis, SearchChoice
from raycap.shipped import place_of
from raycap.sinks import Sinks
from raycap.sources import Source
from raycap.storage import RunFolder

ALTERNATIVES = CAPTIONS.field("alternatives").type
LOOKED = pa.schema(
    [("words", pa.list_(pa.string())), ("attention", pa.list_(pa.list_(pa.float16())))]
)  # [T, P]
MARKED = pa.schema([("low_score", pa.bool_())])
# Captions that an actor remembers by the digest of their pictures.
REMEMBERED = 100_000

Answer = Seen | MemoryError


def caption_pile(config: Config) -> int:
    """Exit code 0 when every picture has a caption, 1 when some have none."""
    options = config.caption
    config = dataclasses.replace(config, source=_carrying(config.source, options.columns))
    source = source_of(config, "caption")
    work = captions_work(config, source)
    with session(config.cluster):
        code = perform(work, {"model": options.model})
    if not options.dry_run:
        show(config)
    return code


def captions_work(config: Config, source: Source) -> Work:
    """The captions of the captioner that the options name."""
    options = config.caption
    parts = folder.load(options.model, options.encoder_weights)
    # How pictures are shown is a part of what was learned; which are accepted is for this run to say.
    reading = dataclasses.replace(config.reading, background=parts[0].reading.background)
    config, search = (
        dataclasses.replace(config, reading=reading),
        options.search(config.search, parts[0].search),
    )
    config_file = RunFolder(place_of(options.model)).read(CONFIG) or b"{}"
    digest = hashlib.sha256(config_file).hexdigest()
    vocabulary = json.loads(config_file)["sha256"][WORDS]
    return Work(
        act="caption",
        table="captions",
        config=config,
        source=source,
        options=options,
        identity={
            "source": source_identity(source, options),
            "reading": reading_identity(reading),
            "captioner": digest,
            "search": part_to_plain("search", search),
            "attention": options.attention,
            "min_score": options.min_score,
            **({"true_words": True} if options.true_words else {}),
        },
        parts=Parts(
            rows=options.part_rows,
            seconds=options.part_seconds,
            schema=_schema(options),
            carry=source.carried,
            metadata={"raycap": __version__, "captioner": digest, "vocabulary": vocabulary},
        ),
        stream=lambda todo: _stream(config, parts, search, todo),
        runs_model=True,
        also=lambda out: write_also(out, "captions", options.also, _sinks(config, source, out)),
    )


def _sinks(config: Config, source: Source, folder: RunFolder) -> Sinks:
    options = config.caption
    return Sinks(folder, options.txt_mode, options.txt_beside, config.fetch, source.trust)


def _carrying(source: Source | None, columns: tuple[str, ...]) -> Source | None:
    if source is None or not columns:
        return source
    if not hasattr(source, "columns"):
        raise UserError(
            "--columns carries columns of a table through, and this source is none: leave it out"
        )
    return dataclasses.replace(source, columns=columns)  # type: ignore[type-var]


def _schema(options: Caption) -> pa.Schema:
    asked = {
        LOOKED: options.attention,
        TRUE_WORDS: options.true_words,
        MARKED: options.min_score is not None,
    }
    return pa.schema(
        [*CAPTIONS, *(column for schema, wanted in asked.items() if wanted for column in schema)]
    )


def _stream(config: Config, parts: folder.Parts, search: SearchChoice, todo: Todo) -> Dataset:
    options, intake = (
        dataclasses.replace(config.caption, precision=todo.choice.precision),
        parts[2].intake,
    )
    square = Square(intake.size, intake.resize, intake.interpolation)
    pool = shape(options, config.cluster, todo.few)
    rows = pictures(todo, config, options.batch, config.reading, square)
    arguments = {
        "parts": ray.put(parts),
        "search": search,
        "options": options,
        "threads": pool.threads,
    }
    return on_actors(rows, Describe, pool, options.batch, arguments)


class Describe:
    """An actor: opened pictures in; out the same rows with captions instead of pixels."""

    def __init__(self, parts: Any, search: SearchChoice, options: Caption, threads: int) -> None:
        torch.set_num_threads(threads)  # Ray gives an actor one
        held: folder.Parts = ray.get(parts)
        where = {"device": options.device, "precision": options.precision, "batch": options.batch}
        self._captioner = Captioner(*held, **where)  # type: ignore[arg-type]
        self._search, self._options = search, options
        self._known: dict[str, Seen] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        pixels = table["pixels"].combine_chunks().to_numpy_ndarray()  # [R, S, S, 3]
        readable = np.flatnonzero(table["status"].to_numpy() == SUCCESS)
        chosen = table.take(readable)
        digests, references = chosen["sha256"].to_pylist(), chosen["references"].to_pylist()
        answers: list[Answer | None] = [None] * len(table)
        for row, answer in zip(
            readable, self._found(pixels[readable], digests, references), strict=True
        ):
            answers[row] = answer
        return add_maker(self._told(table.drop_columns(["pixels"]), answers))

    def _found(
        self, pixels: np.ndarray, digests: Sequence[str], references: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """What is seen in each picture [R, S, S, 3]; where asked for, once for the same bytes."""
        if not self._options.dedup:
            return self._searched(pixels, references)
        new = {digest: row for row, digest in enumerate(digests) if digest not in self._known}
        for digest, answer in zip(
            new, self._searched(pixels[list(new.values())], ()), strict=True
        ):
            if not isinstance(answer, MemoryError):
                self._known[digest] = answer
        again: list[Answer] = [
            self._known.get(digest) or MemoryError("too little memory for this picture")
            for digest in digests
        ]
        for digest in list(itertools.islice(self._known, max(0, len(self._known) - REMEMBERED))):
            del self._known[digest]
        return again

    def _searched(self, pixels: np.ndarray, references: Sequence[Sequence[str]]) -> list[Answer]:
        """Batches have always the same size: arithmetic that rounds by it would let a caption depend on company."""
        if not len(pixels):
            return []
        missing = -len(pixels) % self._options.batch
        squares = [*pixels, *np.zeros((missing, *pixels.shape[1:]), np.uint8)]
        own = [*references, *[()] * missing] if self._options.true_words else None
        answers = self._captioner.look(squares, self._search, self._options.attention, own)[
            : len(pixels)
        ]
        if (
            self._options.precision != "fp32"
            and self._captioner.room.pictures < self._options.batch
        ):
            raise UserError(
                f"the device's memory is too small for batches of {self._options.batch}, and in "
                f"{self._options.precision} captions depend on the size of the batch: give a smaller one, such as "
                f"--batch {self._captioner.room.pictures}, or --precision fp32"
            )
        return list(answers)

    def _told(self, table: pa.Table, answers: Sequence[Answer | None]) -> pa.Table:
        seen = [answer if isinstance(answer, Seen) else Seen([]) for answer in answers]
        found = [each.hypotheses for each in seen]
        words = self._captioner.vocabulary
        said: list[list[dict[str, Any]]] = [
            [{"caption": words.decode(one.words), "score": one.score} for one in each]
            for each in found
        ]
        best: list[dict[str, Any]] = [
            each[0] if each else {"caption": "", "score": None} for each in said
        ]
        columns: dict[str, pa.Array] = {
            "caption": pa.array([one["caption"] for one in best], pa.string()),
            "score": pa.array([one["score"] for one in best], pa.float32()),
            "alternatives": pa.array([each[1:] for each in said], ALTERNATIVES),
        }
        if self._options.attention:
            columns["words"] = pa.array(
                [_words(each, words.words) for each in found], LOOKED.field("words").type
            )
            columns["attention"] = pa.array(
                [_looked(each) for each in found], LOOKED.field("attention").type
            )
        if self._options.true_words:
            for place, kind in enumerate(TRUE_WORDS):
                figures = [each.foretold[place] if each.foretold else None for each in seen]
                columns[kind.name] = pa.array(figures, kind.type)
        if self._options.min_score is not None:
            low = [
                one["score"] is not None and one["score"] < self._options.min_score for one in best
            ]
            columns["low_score"] = pa.array(low, pa.bool_())
        for name, column in columns.items():
            table = table.append_column(name, column)
        return _with_faults(table, answers)


def _with_faults(table: pa.Table, answers: Sequence[Answer | None]) -> pa.Table:
    """Pictures that were readable and could not be captioned say why."""
    status, reason = table["status"].to_pylist(), table["error_message"].to_pylist()
    for row, answer in enumerate(answers):
        if answer is not None and not (isinstance(answer, Seen) and answer.hypotheses):
            fault = (
                str(answer) if isinstance(answer, MemoryError) else "the search found no caption"
            )
            status[row], reason[row] = FAILED_TO_CAPTION, fault
    for name, column in (("status", status), ("error_message", reason)):
        table = table.set_column(
            table.column_names.index(name), name, pa.array(column, pa.string())
        )
    return table


def _words(found: list[Hypothesis], words: Sequence[str]) -> list[str]:
    return [words[word] for word in found[0].words] if found else []


def _looked(found: list[Hypothesis]) -> list[list[np.float16]]:
    if not found or found[0].attention is None:
        return []
    return [list(row) for row in found[0].attention.half().numpy()]
