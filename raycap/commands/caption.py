"""`raycap caption`: a pile of pictures into a table, on Ray; or single photos, in this process, and said."""

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raycap import __version__
from raycap.config import Config
from raycap.errors import UserError
from raycap.fetch import Fetched, Fetcher
from raycap.fetch.trust import ANYTHING
from raycap.sources import Folder, Urls
from raycap.storage import check_stays, output_folder
from raycap.storage.location import locate
from raycap.terminal import printable, write_err, write_out
from raycap.uris import is_web

if TYPE_CHECKING:
    from raycap.captioners.trained import Caption, Captioner

OUT = "captions"  # in the working folder, for piles without --out
# What only a table can have.
OF_TABLES = ("also", "columns", "retry", "overwrite", "dry_run", "true_words")


def caption(config: Config) -> int:
    """Exit code 0 when every picture has a caption, 1 when some have none."""
    options = config.caption
    if not options.model:
        raise UserError(
            "which captioner? Give --model DIR, or leave it out for the one that ships with raycap"
        )
    if not options.out and (photos := _photos(config)):
        return _caption_photos(config, photos)
    if options.photos:
        raise UserError(
            "a table is made of one source: give the photos' folder or a list of them, or leave out --out"
        )
    if options.show:
        raise UserError(
            "--show draws single photos; of a table, `raycap report` makes a page: leave it out"
        )
    options = dataclasses.replace(options, out=options.out or _own_folder(config))
    output_folder(options.out)  # which may be refused: before Ray is started
    from raycap.bulk.captions import (
        caption_pile,  # with Ray, which single photos need not wait for
    )

    return caption_pile(dataclasses.replace(config, caption=options))


def _own_folder(config: Config) -> str:
    """Of each pile one of its own, so that the next does not meet the rows of the last."""
    name = getattr(config.source, "path", "").rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^\w.-]+", "_", name).strip(".")
    return f"{OUT}/{name}" if name else OUT


def _photos(config: Config) -> Sequence[str]:
    """The photos that were named one by one; none where the source is a pile."""
    source = config.source
    if config.caption.photos or source is None:
        return config.caption.photos
    one = isinstance(source, Urls) and is_web(source.path)
    return (
        (source.path,)
        if one or (isinstance(source, Folder) and locate(source.path).is_file())
        else ()
    )


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
    if options.show or options.attention:
        check_stays("a drawing", "--out FOLDER, and see the pictures with `raycap report FOLDER`")
    # Threads would wait for each other longer than they work on one photo, and on a busy machine for seconds.
    captioner, good = (
        _captioner(config, threads=options.threads or (1 if len(photos) == 1 else None)),
        True,
    )
    # Who names a photo on the command line means it, wherever it is.
    with Fetcher(config.fetch, ANYTHING) as fetcher, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", category=UserWarning, module=r"PIL\."
        )  # remarks about metadata
        for start in range(0, len(photos), options.batch):
            some = photos[start : start + options.batch]
            fetched = fetcher.fetch_all(some)
            for photo, each, said in zip(
                some, fetched, _captions(captioner, fetched), strict=True
            ):
                _tell(photo if len(photos) > 1 else "", said, config)
                good = good and said.succeeded
                if said.succeeded and (options.show or options.attention):
                    _draw(photo, each.data, said, captioner, config)
    return 0 if good else 1


def _captioner(config: Config, threads: int | None) -> "Captioner":
    import torch

    from raycap.captioners.trained import Captioner, folder

    options = config.caption
    if threads:
        torch.set_num_threads(threads)
    plan, words, encoder, decoder, facts = folder.load(options.model, options.encoder_weights)
    # How pictures are shown is a part of what was learned; which are accepted is for this run to say.
    reading = dataclasses.replace(config.reading, background=plan.reading.background)
    plan = dataclasses.replace(
        plan, reading=reading, search=options.search(config.search, plan.search)
    )
    return Captioner(
        plan, words, encoder, decoder, facts, options.device, options.precision, options.batch
    )


def _captions(captioner: "Captioner", fetched: Sequence[Fetched]) -> "list[Caption]":
    from raycap.captioners.trained import Caption
    from raycap.schema import FAILED_TO_FETCH

    found = iter(captioner.caption([each.data for each in fetched if not each.error]))
    return [
        Caption.failed(FAILED_TO_FETCH, each.error) if each.error else next(found)
        for each in fetched
    ]


def _tell(name: str, said: "Caption", config: Config) -> None:
    """The caption; with --num-captions each with its score, best first; or the reason, apart."""
    options, named = config.caption, f"{printable(name)}: " if name else ""
    if not said.succeeded:
        write_err(f"raycap: {named}{printable(said.status)}: {printable(said.error_message)}\n")
        return
    caption = printable(said.caption)
    low = (
        " (low score)" if options.min_score is not None and said.score < options.min_score else ""
    )
    if options.num_captions is None:
        write_out(f"{named}{caption}{low}\n")
        return
    write_out(f"{named.rstrip()}\n" if named else "")
    write_out(f"{said.score:8.3f}  {caption}{low}\n")
    for other in said.alternatives:
        write_out(f"{other.score:8.3f}  {printable(other.caption)}\n")


def _draw(
    photo: str, data: bytes, said: "Caption", captioner: "Captioner", config: Config
) -> None:
    from raycap.images.guard import read_guarded
    from raycap.report import drawing as captioned

    digest = hashlib.sha256(data).hexdigest()
    notes = {captioned.PHOTO: digest, "Title": said.caption, "Software": f"raycap {__version__}"}
    drawn = []
    try:
        if config.caption.show:
            whole = read_guarded(data, captioner.plan.reading, None)
            if whole.pixels is None:  # its caption was made of a smaller version
                raise UserError(f"cannot draw {photo}: {whole.error}")
            drawn.append(captioned.free_path(photo, digest, "captioned"))
            others = [other.caption for other in said.alternatives]
            captioned.save(captioned.draw(whole.pixels, said.caption, others), drawn[-1], notes)
        if config.caption.attention:
            explained = captioner.explain(data)
            drawn.append(captioned.free_path(photo, digest, "attention"))
            explained.save(drawn[-1], notes)
    except OSError as error:
        raise UserError(f"cannot write {drawn[-1]} here: {error.strerror or error}") from error
    write_out(f"drawn: {', '.join(map(str, drawn))}\n")
