"""`raycap caption`: all pictures of a source into a table, on Ray; or single photos, in this
process, printed."""

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from raycap import __version__
from raycap.bulk.selection import filter_of_source
from raycap.captioners.kinds import Trained
from raycap.commands.source import checked_source
from raycap.config import Config, dumps
from raycap.errors import UserError
from raycap.fetch import Fetcher
from raycap.fetch.trust import ANYTHING
from raycap.finishing import Finishing
from raycap.flags import flags_in_words
from raycap.images.guard import start_early
from raycap.row_filter import RowFilter
from raycap.schema import SUCCESS
from raycap.sources import Folder, Source, Urls
from raycap.storage import RunFolder, check_stays, output_folder
from raycap.storage.location import locate
from raycap.terminal import printable, write_err, write_out
from raycap.uris import is_web

if TYPE_CHECKING:
    from raycap.captioners import Caption, Captioner, CaptionerOptions
    from raycap.images.loading import LoadedPicture

OUT = "captions"  # in the working folder, for tables without --out
# What only a table can have.
OF_TABLES = (
    *("also", "columns", "only", "also_only", "retry", "overwrite", "dry_run", "estimate"),
    *("true_words", "jpegs_on_device"),
)


def caption(config: Config) -> int:
    """Returns 0 if every picture has a caption, 1 if some have none."""
    options = config.caption
    if not options.model:
        raise UserError(
            "which captioner? Give --model DIR, or leave it out for the one that ships with raycap"
        )
    if not options.out and (photos := _single_photos(config)):
        return _caption_photos(config, photos)
    if options.photos:
        raise UserError(
            "a table is made of one source: give the photos' folder or a list of them, or leave "
            "out --out"
        )
    options = dataclasses.replace(options, out=options.out or _default_out(config.source))
    folder = output_folder(options.out)  # it may be refused: before Ray is started
    if options.show and not folder.is_local:
        raise UserError(
            f"--show draws into {options.out}/drawn, a folder on this machine: leave it out, and "
            "see the pictures with `raycap report`"
        )
    return _caption_table(dataclasses.replace(config, caption=options))


def _caption_table(config: Config) -> int:
    options = config.caption
    source = _with_columns(checked_source(config.source, "caption"), options.columns)
    if not options.retry:
        filter_of_source(source, options.only)  # refuses what does not fit

    # While the model is loaded, what decodes pictures of a small job starts too.
    if config.cluster.local_rows and not (config.cluster.address or options.dry_run):
        start_early(config.reading)
    # These load Ray and torch, which takes seconds.
    write_err("raycap: loading the captioner\n")
    from raycap.bulk.captions import captions_job
    from raycap.bulk.exports import write_exports
    from raycap.bulk.run import run_job
    from raycap.commands.show_table import draw_table, show_table
    from raycap.sinks import SinkSettings

    captioner = read_captioner(config)
    if options.estimate:
        write_out(_estimate(config, captioner, source))
        return 0
    job = captions_job(
        captioner,
        source,
        options,
        config.fetch,
        config.reading,
        config.cluster,
        config.finish,
        config.flags,
    )
    out = RunFolder(options.out)
    beside = options.txt_beside
    if options.also_only:
        columns = _columns_of(job.layout.schema, source)
        RowFilter(options.also_only, columns, option="--also-only")  # refuses what does not fit
    settings = SinkSettings(
        out,
        options.txt_mode,
        beside,
        config.fetch,
        source.trust,
        source,
        only=options.also_only,
    )
    job = dataclasses.replace(
        job,
        config=dumps(dataclasses.replace(config, source=source, reading=job.reading)),
        export=functools.partial(
            write_exports, table=job.table, names=options.also, settings=settings
        ),
    )
    code = run_job(job, {"model": options.model})
    if not options.dry_run:
        show_table(config)
        if options.show:
            draw_table(config, source)
    return code


def _estimate(config: Config, captioner: "CaptionerOptions", source: Source) -> str:
    """The text of --estimate. Without --out the captioner keeps no answers: nothing is written."""
    from raycap.bulk.captions import captions_job
    from raycap.bulk.estimate import estimate_job

    options = dataclasses.replace(config.caption, out="")
    job = captions_job(captioner, source, options, config.fetch, config.reading, config.cluster)
    kind = config.captioner
    limits = (
        getattr(kind, "requests_per_minute", 0.0),
        getattr(kind, "tokens_per_minute", 0.0),
    )
    return estimate_job(job, RunFolder(config.caption.out), options, limits)


def _columns_of(schema: "pa.Schema", source: Source) -> "pa.Schema":
    """The columns of the finished table: these, and those that are carried."""
    own = source.own_columns()
    for name in source.carried:
        schema = schema.append(pa.field(name, own[name] or pa.string()))
    return schema


def _with_columns(source: Source, columns: tuple[str, ...]) -> Source:
    if not columns:
        return source
    if not hasattr(source, "columns"):
        raise UserError(
            "--columns carries columns of a table through, and this source is none: leave it out"
        )
    return dataclasses.replace(source, columns=columns)  # type: ignore[type-var]


def _check_photos(captioner: "CaptionerOptions") -> None:
    """Raise UserError if prompts need values that single photos do not have."""
    if names := captioner.columns_read():
        raise UserError(
            f"the prompts need {', '.join(names)}, which rows of a table have and single photos "
            "do not: give a table and --out DIR, or leave them out"
        )


# What only captioners that raycap trained have.
OF_TRAINED = ("encoder_weights", "beam", "attention", "true_words", "jpegs_on_device")


def read_captioner(config: Config, fixed_batch: bool = True) -> "CaptionerOptions":
    """The captioner that the options name."""
    options, kind = config.caption, config.captioner
    if isinstance(kind, Trained | None):
        from raycap.captioners.trained import TrainedOptions
        from raycap.captioners.trained.folder import plan_of

        return TrainedOptions.read(
            options.model,
            options.encoder_weights,
            options.search(config.search, plan_of(options.model).search),
            batch=options.batch_size,
            attention=options.attention,
            true_words=options.true_words,
            precision=options.precision,
            fixed_batch=fixed_batch,
            jpegs_on_device=options.jpegs_on_device,
        )
    if given := [f"--{name.replace('_', '-')}" for name in OF_TRAINED if getattr(options, name)]:
        raise UserError(f"{', '.join(given)}: only captioners that raycap trained have that")
    if config.search is not None:
        raise UserError(
            "--search: only captioners that raycap trained have that; other models have "
            "--captioner.temperature and --num-captions"
        )
    return kind.captioner(options.model, options.num_captions, options.precision)


def _default_out(source: Source | None) -> str:
    """A folder for each source, so that the next one does not meet the rows of the last."""
    name = getattr(source, "path", "").rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^\w.-]+", "_", name).strip(".")
    return f"{OUT}/{name}" if name else OUT


def _single_photos(config: Config) -> Sequence[str]:
    """The photos that were named one by one; none if the source is to become a table."""
    source = config.source
    if config.caption.photos or source is None:
        return config.caption.photos
    is_url = isinstance(source, Urls) and is_web(source.path)
    is_file = isinstance(source, Folder) and locate(source.path).is_file()
    return (source.path,) if is_url or is_file else ()


def _caption_photos(config: Config, photos: Sequence[str]) -> int:
    options = config.caption
    if given := [name for name in OF_TABLES if getattr(options, name)]:
        raise UserError(
            f"{', '.join(given)}: only a table has that; give --out DIR, or leave it out"
        )
    if folders := [photo for photo in photos if not is_web(photo) and locate(photo).is_folder()]:
        raise UserError(
            f"{folders[0]} is a folder: give it alone, with --out DIR, or name photos only"
        )
    draws = options.show or options.attention
    if draws:
        check_stays("a drawing", "--out FOLDER, and see the pictures with `raycap report FOLDER`")

    from raycap.images.loading import load_in_order

    captioner = read_captioner(config, fixed_batch=False)
    _check_photos(captioner)
    # Threads would wait for each other longer than they work on one photo, and on a busy machine
    # for seconds.
    threads = options.threads or (1 if len(photos) == 1 else None)
    opened = captioner.open(options.device, threads)
    reading = captioner.reading(config.reading)
    opened.reading = reading
    opened.finishing = Finishing(config.finish, config.flags, captioner.prompt_texts())
    all_succeeded = True
    # Who names a photo on the command line means it, wherever it is.
    with opened, Fetcher(config.fetch, ANYTHING) as fetcher, warnings.catch_warnings():
        # Remarks about metadata.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        for start in range(0, len(photos), options.batch_size):
            batch = photos[start : start + options.batch_size]
            loaded = load_in_order(batch, fetcher, reading, opened.intake, keep_bytes=draws)
            captions = opened.caption_loaded(loaded)
            for photo, picture, found in zip(batch, loaded, captions, strict=True):
                _print_caption(photo if len(photos) > 1 else "", found, config)
                all_succeeded = all_succeeded and found.status == SUCCESS
                if draws and found.succeeded:
                    _draw(photo, picture, found, opened, config)
    return 0 if all_succeeded else 1


def _print_caption(name: str, found: "Caption", config: Config) -> None:
    """The caption; with --num-captions each with its score, best first; or the reason, to
    stderr."""
    options, prefix = config.caption, f"{printable(name)}: " if name else ""
    if not found.succeeded:
        reason = f"{printable(found.status)}: {printable(found.error_message)}"
        write_err(f"raycap: {prefix}{reason}\n")
        return
    caption = printable(found.caption + flags_in_words(found.flags))
    for prompt, answer in list(found.answers.items())[:-1]:
        write_out(f"{prefix}{prompt}: {printable(answer)}\n")
    if len(found.answers) > 1:
        prefix = f"{prefix}caption: "
    if options.num_captions is None:
        write_out(f"{prefix}{caption}\n")
        return
    write_out(f"{prefix.rstrip()}\n" if prefix else "")
    scored: list[tuple[float | None, str]] = [(found.score, caption)]
    scored += [(other.score, printable(other.caption)) for other in found.alternatives]
    for score, text in scored:
        has_score = score is not None and math.isfinite(score)
        shown = f"{score:8.3f}" if has_score else f"{'-':>8}"
        write_out(f"{shown}  {text}\n")


def _draw(
    photo: str,
    picture: "LoadedPicture",
    found: "Caption",
    captioner: "Captioner",
    config: Config,
) -> None:
    from raycap.images.guard import read_guarded
    from raycap.report import drawing

    data = picture.fetched.data
    notes = {
        drawing.PHOTO: picture.sha256,
        "Title": found.caption,
        "Software": f"raycap {__version__}",
    }
    drawn = []
    try:
        if config.caption.show:
            whole = read_guarded(data, captioner.reading, None)
            if whole.pixels is None:  # its caption was made of a smaller version
                raise UserError(f"cannot draw {photo}: {whole.error}")
            drawn.append(drawing.free_path(photo, picture.sha256, "captioned"))
            others = [other.caption for other in found.alternatives]
            drawing.save(drawing.draw(whole.pixels, found.caption, others), drawn[-1], notes)
        if config.caption.attention:
            from raycap.captioners.trained import TrainedCaptioner

            assert isinstance(captioner, TrainedCaptioner)  # no other kind takes --attention
            explained = captioner.explain(data)
            drawn.append(drawing.free_path(photo, picture.sha256, "attention"))
            explained.save(drawn[-1], notes)
    except OSError as error:
        raise UserError(f"cannot write {drawn[-1]} here: {error.strerror or error}") from error
    write_out(f"drawn: {', '.join(map(str, drawn))}\n")
