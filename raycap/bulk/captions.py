"""Every picture of a source through a captioner, into a table with a row for each."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycap import __version__
from raycap.bulk.finishing import with_finishing
from raycap.bulk.job import ANSWERS, TableJob, reading_identity, source_identity
from raycap.bulk.options import CaptionOptions
from raycap.bulk.picture_column import PIXELS, pictures_of
from raycap.bulk.work import FINISHING, FileLayout, FindRows, GiveRows
from raycap.captioners import AsyncCaptioner, Captioner, CaptionerOptions, Prediction
from raycap.captioners.protocol import GivePredictions, caption_row
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.finishing import Finish, Finishing
from raycap.flags import Flags
from raycap.images import Reading
from raycap.schema import ATTEMPT, CAPTIONS, SUCCESS
from raycap.sources import Source
from raycap.sources.own_columns import with_columns
from raycap.sources.table import reserved_names
from raycap.storage import output_folder

# The columns of CAPTIONS that a captioner's answer decides.
DECIDED = (
    "caption",
    "score",
    "alternatives",
    "status",
    "error_message",
    "flags",
    "raw_caption",
)
# Captions that a worker remembers by the digest of their pictures, for --dedup.
REMEMBERED = 100_000


def captions_job(
    captioner: CaptionerOptions,
    source: Source,
    options: CaptionOptions,
    fetch: Fetch,
    reading: Reading,
    cluster: Cluster,
    finish: Finish | None = None,
    flags: Flags | None = None,
) -> TableJob:
    """The captions that a captioner writes for the pictures of a source, finished and with
    flags."""
    finishing = Finishing(finish or Finish(), flags or Flags(), captioner.prompt_texts())
    placement = captioner.placement()
    # The rows of a run that has a precision of its own depend on it: see `precision`.
    precision = placement.precision
    if precision is not None:
        options = replace(options, precision=precision)
    if options.gpus is None:
        options = replace(options, gpus=placement.gpus)
    if options.actors is None:
        options = replace(options, actors=placement.workers)
    folder = str(output_folder(options.out) / ANSWERS) if options.out else ""
    in_run = captioner.in_run(folder)
    reading = captioner.reading(reading)
    columns = pa.schema([*CAPTIONS, *captioner.columns()])
    listed = with_columns(source, captioner.columns_read())
    check_names(columns, captioner, source)
    return TableJob(
        command="caption",
        table="captions",
        source=listed,  # prompts may read more columns than the table carries
        options=options,
        fetch=fetch,
        reading=reading,
        cluster=cluster,
        identity={
            "source": source_identity(source, options.split),
            "reading": reading_identity(reading),
            **captioner.identity(),
        },
        layout=FileLayout(
            rows=options.part_rows,
            schema=columns,
            carry=source.carried,
            metadata={
                "raycap": __version__,
                FINISHING: finishing.digest(),
                **captioner.metadata(),
            },
            finish=functools.partial(with_finishing, finishing=finishing),
        ),
        finishing=finishing,
        intake=captioner.intake(),
        open_model=functools.partial(_open_worker, in_run, finishing),
        keeps_answers=in_run is not captioner,
        holds_model=placement.holds_model,
        runs_model=precision is not None,
        largest_batch=functools.partial(_largest_batch, captioner),
        pictures_per_second=placement.pictures_per_second,
    )


def check_names(columns: pa.Schema, captioner: CaptionerOptions, source: Source) -> None:
    """Raise UserError if two columns, of the table or while it is made, have one name, with or
    without capitals."""
    read = set(captioner.columns_read()) - set(source.carried) - {"key", "references"}
    own = [name for name in columns.names if name not in CAPTIONS.names]
    seen: set[str] = set()
    for name in (*reserved_names(), *own, *source.carried, *read):
        if name.casefold() in seen:
            raise UserError(
                f"there would be two columns named {name!r}: rename the prompt, or your column"
            )
        seen.add(name.casefold())
    if repeated := set(captioner.columns().names) & set(CAPTIONS.names):
        raise UserError(f"a prompt cannot be named {repeated.pop()!r}, a column of every table")


def _largest_batch(captioner: CaptionerOptions, options: CaptionOptions) -> int | None:
    if captioner.placement().precision is None:
        return None
    captioner = captioner.in_precision(options.precision)
    return captioner.largest_batch(options.device, 1.0 if options.gpus is None else options.gpus)


def _open_worker(
    captioner: CaptionerOptions, finishing: Finishing, options: CaptionOptions, threads: int
) -> "CaptionWorker":
    if captioner.placement().precision is not None:
        captioner = captioner.in_precision(options.precision)
    captioner = captioner.in_batch(options.batch_size)
    opened = captioner.open(options.device, threads)
    columns, read = captioner.columns(), captioner.columns_read()
    if isinstance(opened, AsyncCaptioner):
        return AsyncCaptionWorker(opened, columns, finishing, options.dedup, read)
    return CaptionWorker(opened, columns, finishing, options.dedup, read)


class CaptionWorker:
    """Loaded pictures in; out the same rows with captions instead of pixels."""

    def __init__(
        self,
        captioner: Captioner,
        extra_columns: pa.Schema,
        finishing: Finishing,
        dedup: bool,
        columns_read: Sequence[str] = (),
    ) -> None:
        self._captioner, self._extra_columns = captioner, extra_columns
        self._finishing, self._dedup = finishing, dedup
        self._columns_read = columns_read
        self._known: dict[str, Prediction] = {}

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.begin(table)()()

    @property
    def batches_ahead(self) -> int:
        return self._captioner.batches_ahead

    def begin(self, table: pa.Table) -> FindRows:
        """As `Captioner.begin`; the last step gives the rows."""
        table, pictures, rows, readable = _readable_pictures(table)
        find_once = functools.partial(self._find_once, pictures, rows)
        find = find_once if self._dedup else self._captioner.begin(pictures, rows)

        def find_rows() -> GiveRows:
            give = find()

            def give_rows() -> pa.Table:
                predictions: list[Prediction | None] = [None] * len(table)
                for place, prediction in zip(readable, give(), strict=True):
                    predictions[place] = prediction
                return self._with_captions(table, predictions)

            return give_rows

        return find_rows

    def _find_once(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> GivePredictions:
        # At once: the next batch has to know the answers.
        predictions = self._predict_once(pictures, rows)
        return lambda: predictions

    def close(self) -> None:
        self._captioner.close()

    def _predict_once(
        self, pictures: Sequence[NDArray[np.uint8]], rows: Sequence[Mapping[str, Any]]
    ) -> list[Prediction]:
        """As `predict`; pictures with the same bytes are captioned once."""
        digests = [self._same(row) for row in rows]
        new = {digest: place for place, digest in enumerate(digests) if digest not in self._known}
        places = list(new.values())
        predictions = self._captioner.predict(
            [pictures[place] for place in places], [rows[place] for place in places]
        )
        fresh = dict(zip(new, predictions, strict=True))
        answers = [fresh[digest] if digest in fresh else self._known[digest] for digest in digests]
        self._remember(fresh)
        return answers

    def _same(self, row: Mapping[str, Any]) -> str:
        """Rows with the same text have the same caption: its picture, and what prompts read."""
        read = [row.get(name) for name in (*self._columns_read, ATTEMPT) if name in row]
        return f"{row['sha256']} {read}" if read else row["sha256"]

    def _remember(self, fresh: Mapping[str, Prediction]) -> None:
        # What failed may have failed for lack of memory: it is tried again.
        self._known.update({key: answer for key, answer in fresh.items() if not answer.error})
        excess = max(0, len(self._known) - REMEMBERED)
        for digest in list(itertools.islice(self._known, excess)):
            self._known.pop(digest, None)

    def _with_captions(
        self, table: pa.Table, predictions: Sequence[Prediction | None]
    ) -> pa.Table:
        loaded = zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True)
        rows = [
            caption_row(status, error, prediction, self._finishing)
            for (status, error), prediction in zip(loaded, predictions, strict=True)
        ]
        table = table.drop_columns(["status", "error_message"])
        for column in (*(CAPTIONS.field(name) for name in DECIDED), *self._extra_columns):
            values = [_arrow_value(row.get(column.name), column.type) for row in rows]
            table = table.append_column(column.name, pa.array(values, column.type))
        attempts = table[ATTEMPT] if ATTEMPT in table.column_names else pa.nulls(len(table))
        return table.append_column(
            CAPTIONS.field("attempt"), attempts.cast(pa.int32()).fill_null(0)
        )


class AsyncCaptionWorker(CaptionWorker):
    """The same for a captioner that has many pictures under way. One thread calls `submit`; others
    wait for the answers."""

    _captioner: AsyncCaptioner

    def __init__(
        self,
        captioner: AsyncCaptioner,
        extra_columns: pa.Schema,
        finishing: Finishing,
        dedup: bool,
        columns_read: Sequence[str] = (),
    ) -> None:
        super().__init__(captioner, extra_columns, finishing, dedup, columns_read)
        # By digest, for --dedup: pictures that are asked for, of any batch.
        self._under_way: dict[str, Future[Prediction]] = {}

    @property
    def in_flight(self) -> int:
        """Pictures that are under way at most."""
        return self._captioner.in_flight

    def __call__(self, table: pa.Table) -> pa.Table:
        return self.submit(table)()

    def submit(self, table: pa.Table) -> Callable[[], pa.Table]:
        """Begin with all pictures of a table. The function that is returned waits for the rows."""
        table, pictures, rows, readable = _readable_pictures(table)
        asked: dict[str, Future[Prediction]] = {}
        answers: dict[int, Future[Prediction]] = {}
        for place, picture, row in zip(readable, pictures, rows, strict=True):
            digest = self._same(row)
            answer = self._under_way.get(digest)
            if answer is None and digest in self._known:
                answer = Future()
                answer.set_result(self._known[digest])
            if answer is None:
                answer = self._captioner.submit(picture, row)
            if self._dedup and digest not in self._under_way:
                asked[digest] = self._under_way[digest] = answer
            answers[place] = answer

        def finish() -> pa.Table:
            predictions: list[Prediction | None] = [None] * len(table)
            for place, answer in answers.items():
                predictions[place] = answer.result()
            if self._dedup:
                self._remember({digest: answer.result() for digest, answer in asked.items()})
                for digest in asked:
                    del self._under_way[digest]
            return self._with_captions(table, predictions)

        return finish


def _readable_pictures(
    table: pa.Table,
) -> tuple[pa.Table, list[NDArray[np.uint8]], list[dict[str, Any]], list[int]]:
    """The table without its pixels; the pictures that could be read, their rows, and the places of
    these in the table."""
    readable = np.flatnonzero(table["status"].to_numpy() == SUCCESS)
    places = readable.tolist()
    pictures = pictures_of(table[PIXELS], places)
    table = table.drop_columns([PIXELS])
    return table, pictures, table.take(readable).to_pylist(), places


def _arrow_value(value: Any, kind: pa.DataType) -> Any:
    """A value as its column takes it: arrays as lists of their own numbers, an empty list where
    there is none."""
    if value is None and pa.types.is_list(kind):
        return []
    if isinstance(value, np.ndarray):
        numbers: Any = kind
        while pa.types.is_list(numbers):
            numbers = numbers.value_type
        return list(value.astype(numbers.to_pandas_dtype()))
    return value
