"""An estimate as the lines that are printed."""

import numpy as np

from raycap.bulk.counts import count_rows
from raycap.bulk.extrapolation import Estimate, waits_for_server
from raycap.bulk.facts import reason_lines
from raycap.bulk.intervals import Interval
from raycap.bulk.job import TableJob
from raycap.bulk.measuring import Deployment, Measured
from raycap.bulk.options import CaptionOptions
from raycap.bulk.sampling import DrawnRows
from raycap.sources.manifest import counted
from raycap.storage import RunFolder


def text_of(
    job: TableJob,
    out: RunFolder,
    drawn: DrawnRows,
    measured: Measured,
    deployment: Deployment,
    estimate: Estimate,
    prices: CaptionOptions,
) -> str:
    """The whole text of --estimate."""
    about = "" if drawn.is_exact else "about "
    counts = count_rows(measured.made)
    rate = estimate.rows / max(estimate.hours.mean * 3600, 1e-9)
    lines = [
        f"{about}{drawn.total:,} pictures in {job.source.path} ({drawn.how})",
        *([f"{about}{drawn.held:,} of them are in {out} already"] if drawn.held else []),
        f"{len(measured.made)} captioned, {counts.failed} failed",
        *reason_lines(counts),
        f"for {estimate.rows:,} pictures, with 95% intervals:",
        *estimate_lines(estimate, prices),
        "assumed:",
        f"  {_workers(deployment)}: {rate:,.3g} pictures/s in all",
    ]
    if waits_for_server(measured.made) and deployment.workers > 1:
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
    lines.append(f"  {measured.open_seconds:.1f} s to load the model come on top")
    return "\n".join(lines) + "\n"


def estimate_lines(estimate: Estimate, prices: CaptionOptions) -> list[str]:
    """The lines about each quantity."""
    is_single = estimate.hours.low == estimate.hours.high
    remark = " (measured once: no interval)" if is_single else ""
    lines = [f"  time      {_time(estimate.hours)}{remark}"]
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


def _workers(deployment: Deployment) -> str:
    workers = counted(deployment.workers, "worker", "workers")
    threads = counted(deployment.threads, "thread", "threads")
    gpus = f", {deployment.gpus:g} GPU" if deployment.gpus else ""
    each = " each" if deployment.workers > 1 else ""
    return f"{workers} {deployment.how}, {threads}{gpus}{each}"


def _time(hours: Interval) -> str:
    if hours.mean >= 1:
        return _between(hours, "{:,.1f} hours")
    if hours.mean >= 1 / 60:
        return _between(hours.times(60), "{:.1f} minutes")
    return _between(hours.times(3600), "{:.1f} seconds")


def _money_format(amount: float) -> str:
    if amount >= 1000:
        return "{:,.0f}"
    return "{:,.2f}" if amount >= 1 else "{:.3g}"


def _between(interval: Interval, form: str) -> str:
    """A mean with its interval; without one, the mean alone."""
    mean, low, high = (form.format(value) for value in interval)
    number = low.partition(" ")[0]
    return mean if low == high == mean else f"{mean} ({number} to {high.partition(' ')[0]})"
