"""--estimate: what a job will take, from 200 of its pictures: hours, tokens, money, failures.

The sample is loaded and captioned as a worker of the job would do it. Nothing is written. Each
quantity is a mean over the sample with a 95% interval (normal, with the quantile of Student's t;
Wilson's for the share of failures). How many workers there will be, and that they do not slow each
other down, is assumed, and said.
"""

import functools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raycap.bulk.counts import count_rows
from raycap.bulk.facts import reason_lines
from raycap.bulk.identity import differences_from, origin
from raycap.bulk.job import FACTS, RUN, TableJob
from raycap.bulk.machines import Machines
from raycap.bulk.options import CaptionOptions
from raycap.bulk.pictures import load_table
from raycap.bulk.precision import as_recorded, resolve_precision
from raycap.bulk.sampling import DrawnRows, draw_rows
from raycap.bulk.table import OutputTable
from raycap.bulk.work import AsyncRowMaker
from raycap.captioners.protocol import CHUNK
from raycap.errors import UserError
from raycap.fetch.hosts import FETCHED
from raycap.schema import SUCCESS
from raycap.storage import RunFolder, output_folder
from raycap.terminal import write_err
from raycap.uris import is_web

PICTURES = 200
# Pictures that are loaded together while their time is taken.
LOADED_TOGETHER = 8
QUANTILE = 1.96  # of the normal distribution, for 95%
# Of the requests that may be in flight: fewer say that the server is not what limits the rate.
SATURATED = 0.7
# Where --dry-run looks for an earlier run with the same captioner, and what it reads of it.
FOLDERS_BESIDE, FILES_READ = 200, 8
LEAST_ROWS = 50  # of a run whose rate says something


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> "Interval":
        return Interval(*(value * factor for value in self))


@dataclass(frozen=True)
class Deployment:
    """The workers that the job will have."""

    workers: int
    threads: int  # of each worker
    processors: int  # which load pictures, on all machines
    gpus: float  # of each worker
    machines: int
    how: str  # for people


@dataclass(frozen=True)
class Measured:
    """What the sample took one worker."""

    made: pa.Table  # its rows, without the pictures
    load_seconds: Sequence[float]  # of a processor, for one picture
    fetch_seconds: Sequence[float]  # of requests to the web, for one picture
    model_seconds: Sequence[float]  # of the worker, for one picture
    open_seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is expected of all rows of a job."""

    rows: int
    hours: Interval
    tokens_in: Interval | None
    tokens_out: Interval | None
    failed: Interval  # a share
    money: Interval | None


def estimate_job(
    job: TableJob,
    out: RunFolder,
    prices: CaptionOptions,
    limits: tuple[float, float] = (0, 0),
) -> str:
    """Caption a sample of the source; the text about what the whole job will take.

    `out` may hold rows of it already. `limits` are the most requests and the most tokens in a
    minute, of all workers; 0 for none.
    """
    drawn = draw_rows(job.source, job.options, PICTURES)
    if not len(drawn.rows):
        narrowed = f" that fits --only {job.options.only}" if job.options.only else ""
        raise UserError(f"{job.source.path} holds no row{narrowed}")
    record = out.read_json(RUN)
    held = 0
    if record is not None and not differences_from(as_recorded(job, record), record):
        held = sum(file.rows for file in OutputTable(out / job.table).files())
    rows = max(0, drawn.total - held)
    with Machines(job.cluster) as machines:
        job = resolve_precision(job, None, out, machines.choose_precision)
        write_err(
            f"raycap: captions {len(drawn.rows)} pictures, drawn over the whole source; nothing "
            "is written\n"
        )
        deployment, measured = machines.on_worker(job, drawn.rows, rows)
    estimate = estimated(measured, deployment, rows, prices, limits)
    return _text(job, out, drawn, held, measured, deployment, estimate, prices)


def measure(job: TableJob, rows: pa.Table, threads: int) -> Measured:
    """Load and caption these rows as one worker with so many threads."""
    nowhere = RunFolder(os.devnull)  # nothing is written
    order = job.order(nowhere, nowhere)
    loaded, load_seconds = [], []
    together = len(rows) if job.source.names_urls else LOADED_TOGETHER
    for start in range(0, len(rows), together):
        some = rows.slice(start, together)
        began = time.monotonic()
        loaded.append(load_table(some, **order.loading()))
        load_seconds += [(time.monotonic() - began) / len(some)] * len(some)
    table = pa.concat_tables(loaded, promote_options="permissive")
    transfers = zip(table["uri"].to_pylist(), table[FETCHED.name].to_pylist(), strict=True)
    fetch_seconds = [each["seconds"] for uri, each in transfers if each and is_web(uri)]
    table = table.append_column(CHUNK, pa.array([""] * len(table), pa.string()))

    began = time.monotonic()
    make_rows = job.open_model(job.options, threads)
    open_seconds = time.monotonic() - began
    try:
        if isinstance(make_rows, AsyncRowMaker):
            made, model_seconds = _ask_all(make_rows, table)
        else:
            made, model_seconds = _in_batches(make_rows, table, job.options.batch)
    finally:
        if (close := getattr(make_rows, "close", None)) is not None:
            close()
    if fetch_seconds:  # what it takes to load a picture from the web is mostly waiting
        load_seconds = []
    return Measured(made, load_seconds, fetch_seconds, model_seconds, open_seconds)


def _in_batches(make_rows: Any, table: pa.Table, batch: int) -> tuple[pa.Table, list[float]]:
    """The rows, and the seconds of one picture in each batch."""
    table = table.combine_chunks()
    make_rows(table.slice(0, 1))  # whatever happens only once
    made, seconds = [], []
    for start in range(0, len(table), batch):
        some = table.slice(start, batch)
        began = time.monotonic()
        made.append(make_rows(some))
        seconds.append((time.monotonic() - began) / len(some))
    if len(seconds) > 2 and len(table) % batch:
        seconds.pop()  # a batch that is not full takes longer for each picture
    return pa.concat_tables(made, promote_options="permissive"), seconds


def _ask_all(make_rows: Any, table: pa.Table) -> tuple[pa.Table, list[float]]:
    """The rows, and the seconds of one picture if as many are in flight as in a long job."""
    began = time.monotonic()
    made = make_rows.submit(table.combine_chunks())()
    wall = time.monotonic() - began
    answered = (
        [] if "seconds" not in made.column_names else made["seconds"].drop_null().to_pylist()
    )
    flight = min(make_rows.in_flight, len(table))
    # With 64 in flight, 200 pictures come in four waves, of which the last is not full.
    waves = math.ceil(len(table) / flight)
    is_saturated = sum(answered) / wall > SATURATED * len(table) / waves
    if not answered or not is_saturated:
        return made, [wall / len(table)]
    return made, [seconds / flight for seconds in answered]


def estimated(
    measured: Measured,
    deployment: Deployment,
    rows: int,
    prices: CaptionOptions,
    limits: tuple[float, float] = (0, 0),
) -> Estimate:
    """What `rows` rows will take."""
    tokens = [_tokens(measured.made, name) for name in ("tokens_in", "tokens_out")]
    per_row = [None if each is None else mean_interval(each) for each in tokens]
    model = mean_interval(measured.model_seconds).times(1 / deployment.workers)
    load = mean_interval(measured.load_seconds or [0.0]).times(1 / deployment.processors)
    if deployment.gpus or _is_waiting(measured.made):
        seconds = Interval(*map(max, model, load))  # at the same time, on other hardware
    else:
        seconds = Interval(*(sum(pair) for pair in zip(model, load, strict=True)))
    requests, tokens_a_minute = limits
    if requests:
        seconds = Interval(*(max(value, 60 / requests) for value in seconds))
    if tokens_a_minute and per_row[0] and per_row[1]:
        both = [sum(pair) for pair in zip(*per_row, strict=True) if None not in pair]
        least = [60 * value / tokens_a_minute for value in both]
        seconds = Interval(*map(max, seconds, least))
    hours = seconds.times(rows / 3600)
    failed = sum(status != SUCCESS for status in measured.made["status"].to_pylist())
    tokens_in, tokens_out = (None if each is None else each.times(rows) for each in per_row)
    units = deployment.workers * deployment.gpus or deployment.machines
    money = _money(hours.times(units), tokens_in, tokens_out, prices)
    share = wilson_interval(failed, len(measured.made))
    return Estimate(rows, hours, tokens_in, tokens_out, share, money)


def _is_waiting(made: pa.Table) -> bool:
    """Whether the captions come from a server: the worker itself needs no processor."""
    return "seconds" in made.column_names


def _tokens(made: pa.Table, name: str) -> list[float] | None:
    """For each row; 0 where nothing was asked. None if the captioner does not count them."""
    if name not in made.column_names or made[name].null_count == len(made):
        return None
    return [float(count or 0) for count in made[name].to_pylist()]


def _money(
    hours: Interval,
    tokens_in: Interval | None,
    tokens_out: Interval | None,
    prices: CaptionOptions,
) -> Interval | None:
    parts = []
    for tokens, price in ((tokens_in, prices.price_in), (tokens_out, prices.price_out)):
        if price is not None:
            if tokens is None:
                return None  # nobody counts them
            parts.append(tokens.times(price / 1e6))
    if prices.price_hour is not None:
        parts.append(hours.times(prices.price_hour))
    return Interval(*map(sum, zip(*parts, strict=True))) if parts else None


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, with its 95% interval (Student's t). Of one value there is
    no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean)
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, max(0.0, mean - half), mean + half)


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by the first terms of its expansion in 1 / freedom."""
    z = QUANTILE
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    if freedom == 1:
        return 12.71
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def wilson_interval(hits: int, count: int) -> Interval:
    """A share with its 95% interval, which is right near 0 and 1 too."""
    share, z2 = hits / count, QUANTILE**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = QUANTILE * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    half /= 1 + z2 / count
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def deployment_here(job: TableJob, rows: int) -> Deployment:
    """The workers of a job on this machine alone."""
    options, processors = job.options, os.cpu_count() or 1
    if rows <= job.cluster.local_rows:
        threads = options.threads or processors
        return Deployment(1, threads, processors, 0, 1, "in this process, as small jobs are")
    gpus = _gpus_here() if job.runs_model and options.device != "cpu" else 0
    if gpus and options.gpus != 0:
        workers = options.actors or gpus
        threads = options.threads or max(1, processors // workers)
        return Deployment(workers, threads, processors, gpus / workers, 1, "on this machine")
    workers = options.actors or max(1, processors // (options.threads or 1))
    threads = options.threads or max(1, processors // workers)
    no_gpu = ", which has no GPU" if job.runs_model and not gpus else ""
    return Deployment(workers, threads, processors, 0, 1, f"on this machine{no_gpu}")


def on_cluster(job: TableJob, rows: pa.Table, total: int) -> tuple[Deployment, Measured]:
    """The workers that the job will have on the cluster as it is now, and what the rows took one
    of them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raycap.bulk.placement import worker_places
    from raycap.cluster.nodes import alive_nodes

    places = worker_places(job.options, job.cluster, math.ceil(total / job.options.batch))
    nodes = alive_nodes()
    processors = int(sum(node["Resources"].get("CPU", 0) for node in nodes))
    first = places[0]
    used = len({place.node for place in places})
    deployment = Deployment(
        len(places), first.threads, max(1, processors), first.gpus, used, "on the cluster as it is"
    )
    where = NodeAffinitySchedulingStrategy(first.node, soft=False)
    processor = 0 if first.gpus else 1
    task = ray.remote(measure).options(
        num_cpus=processor, num_gpus=first.gpus, scheduling_strategy=where, max_retries=0
    )
    return deployment, ray.get(task.remote(job, rows, first.threads))


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


# From an earlier run.


def estimate_of_facts(
    job: TableJob, out: RunFolder, rows: int, prices: CaptionOptions
) -> list[str]:
    """Lines about what `rows` rows will take, if an earlier run with the same captioner, in this
    folder or one beside it, says so; else how to find out."""
    found = next(_earlier_runs(job, out), None)
    if found is None:
        return ["what they will take is not known yet: --estimate captions 200 of them"]
    folder, facts = found
    table = _some_rows(folder / job.table)
    seconds = Interval(*[1 / facts["rows_per_second"]] * 3)
    hours = seconds.times(rows / 3600)
    per_row = [_tokens(table, name) for name in ("tokens_in", "tokens_out")]
    tokens_in, tokens_out = (
        None if each is None else mean_interval(each).times(rows) for each in per_row
    )
    workers = sum(node.get("processes", 1) for node in facts["nodes"].values())
    options = facts.get("options", {})
    units = workers * (options.get("gpus") or 0) or max(1, len(facts["nodes"]))
    estimate = Estimate(
        rows,
        hours,
        tokens_in,
        tokens_out,
        wilson_interval(facts["failed"], facts["rows"]),
        _money(hours.times(units), tokens_in, tokens_out, prices),
    )
    plural = "s" * (workers != 1)
    return [
        f"as the run in {folder} ({facts['made_in_this_run']:,} rows in "
        f"{facts['seconds']:,.0f} s, {workers} worker{plural}) they will take, with 95% "
        "intervals:",
        *estimate_lines(estimate, prices),
    ]


def _earlier_runs(job: TableJob, out: RunFolder) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    """Folders with runs of the same captioner that have made rows, and their facts."""
    parent, _, name = out.uri.rstrip("/").rpartition("/")
    beside = output_folder(parent).folders() if parent else []
    others = [each for each in sorted(beside)[:FOLDERS_BESIDE] if each != name]
    for folder in (out, *(output_folder(f"{parent}/{each}") for each in others)):
        try:
            facts = folder.read_json(FACTS)
        except (OSError, ValueError):
            continue
        if not isinstance(facts, dict) or facts.get("act") != job.command:
            continue
        identity = facts.get("identity", {})
        recorded = as_recorded(job, {"identity": identity})
        is_same = _captioner_of(identity) == _captioner_of(origin(recorded))
        is_long = facts.get("made_in_this_run", 0) >= LEAST_ROWS
        if is_same and is_long and facts.get("rows_per_second"):
            yield folder, facts


def _captioner_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    others = ("act", "source", "reading", "min_score", "batch")
    return {name: value for name, value in identity.items() if name not in others}


def _some_rows(table: RunFolder) -> pa.Table:
    """The token counts of a table, of some of its files."""
    parts = []
    for file in OutputTable(table).files()[:FILES_READ]:
        names = table.reading(file.path, pq.read_schema).names
        columns = [name for name in ("status", "tokens_in", "tokens_out") if name in names]
        read = functools.partial(pq.read_table, columns=columns)
        parts.append(table.reading(file.path, read))
    return pa.concat_tables(parts)


# The text.


def estimate_lines(estimate: Estimate, prices: CaptionOptions) -> list[str]:
    """The lines about each quantity."""
    is_single = estimate.hours.low == estimate.hours.high
    remark = " (measured once: no interval)" if is_single else ""
    lines = [f"  time      {_hours(estimate.hours)}{remark}"]
    if estimate.tokens_in is not None and estimate.tokens_out is not None:
        lines.append(f"  tokens    in  {_between(estimate.tokens_in, '{:,.0f}')}")
        lines.append(f"            out {_between(estimate.tokens_out, '{:,.0f}')}")
    if estimate.money is not None:
        lines.append(f"  money     {_between(estimate.money, _money_format(estimate.money.mean))}")
    elif prices.has_prices:
        lines.append(
            "  money     not known: this captioner does not count tokens; --price-hour has the "
            "price of a GPU or machine"
        )
    share = _between(estimate.failed.times(100), "{:.1f}%")
    expected = estimate.failed.mean * estimate.rows
    lines.append(f"  failures  {share}, about {expected:,.0f} rows")
    return lines


def _text(
    job: TableJob,
    out: RunFolder,
    drawn: DrawnRows,
    held: int,
    measured: Measured,
    deployment: Deployment,
    estimate: Estimate,
    prices: CaptionOptions,
) -> str:
    about = "" if drawn.is_exact else "about "
    total = f"{about}{drawn.total:,} pictures in {job.source.path} ({drawn.how})"
    counts = count_rows(measured.made)
    rate = estimate.rows / max(estimate.hours.mean * 3600, 1e-9)
    waiting = _is_waiting(measured.made)
    lines = [
        total,
        *([f"{held:,} of them are in {out} already"] if held else []),
        f"{len(measured.made)} captioned, {counts.failed} failed",
        *reason_lines(counts),
        f"for {estimate.rows:,} pictures, with 95% intervals:",
        *estimate_lines(estimate, prices),
        "assumed:",
        f"  {_workers(deployment)}: {rate:,.3g} pictures/s in all",
    ]
    if waiting and deployment.workers > 1:
        lines.append(
            f"  the server answers {deployment.workers} workers as quickly as the one of the "
            "sample (--actors 1 has one)"
        )
    if measured.fetch_seconds:
        mean = float(np.mean(measured.fetch_seconds))
        lines.append(
            f"  downloads keep up: a picture took {mean:.2f} s, and each process has "
            f"{job.fetch.threads} in flight"
        )
    lines.append(f"  {_seconds(measured.open_seconds)} to load the model come on top")
    return "\n".join(lines) + "\n"


def _workers(deployment: Deployment) -> str:
    count = f"{deployment.workers} worker" + "s" * (deployment.workers > 1)
    threads = f"{deployment.threads} thread" + "s" * (deployment.threads > 1)
    gpus = f", {deployment.gpus:g} GPU" if deployment.gpus else ""
    each = " each" if deployment.workers > 1 else ""
    return f"{count} {deployment.how}, {threads}{gpus}{each}"


def _hours(hours: Interval) -> str:
    if hours.mean >= 1:
        return _between(hours, "{:,.1f} hours")
    if hours.mean >= 1 / 60:
        return _between(hours.times(60), "{:.1f} minutes")
    return _between(hours.times(3600), "{:.1f} seconds")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"


def _money_format(amount: float) -> str:
    return "{:,.0f}" if amount >= 1000 else "{:,.2f}" if amount >= 1 else "{:.3g}"


def _between(interval: Interval, format: str) -> str:
    """A mean with its interval; without one, the mean alone."""
    mean, low, high = (format.format(value) for value in interval)
    number = low.partition(" ")[0]
    return mean if low == high == mean else f"{mean} ({number} to {high.partition(' ')[0]})"
