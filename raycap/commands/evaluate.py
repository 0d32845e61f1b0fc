"""`raycap evaluate`: captions beside references, in numbers. Tables need neither Ray nor torch, and start at once;
captioners caption first, as `raycap caption` does."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from raycap import __version__
from raycap.config import Config, dumps
from raycap.errors import UserError
from raycap.evaluation import alignment, captions, references, telling
from raycap.evaluation.references import References
from raycap.evaluation.scores import Scores, as_table, judge
from raycap.options import kind_of
from raycap.shipped import place_of
from raycap.sources import SOURCES
from raycap.storage import check_stays, whole_file, write_json
from raycap.storage.location import locate
from raycap.terminal import printable, write_out


def evaluate(config: Config) -> int:
    """Exit code 0 when every row and picture was judged, 1 when some failed, are missing or belong to nothing."""
    options = config.evaluate
    if not options.tables:
        raise UserError(
            "which captions? Give tables of captions, or captioners: raycap evaluate TABLE... --references SOURCE"
        )
    out = Path(options.out)
    pictures = out.with_suffix(".pictures.parquet")
    check_stays(out)  # before anything is captioned for it
    _refuse_overwriting((out, pictures), options.tables)
    known = references.read(config.source)
    assert config.source is not None
    alignment.wanted(known, options.split)  # before anything is captioned for it
    named = [(name, place_of(path)) for name, path in captions.names_and_paths(options.tables)]
    captioners = {name: path for name, path in named if _is_captioner(path)}
    made = _captioned(config, captioners, known) if captioners else {}
    tables = [
        captions.read(made.get(name, path), name, options.key_column, options.caption_column)
        for name, path in named
    ]
    lineup = alignment.align(tables, known, options)
    scores = judge(lineup, options, config.metric)
    with whole_file(pictures) as file:
        pq.write_table(as_table(scores), file.buffer)
    source = {
        "kind": kind_of(config.source, SOURCES),
        "path": config.source.path,
        "split": options.split,
    }
    told = {"raycap": __version__, "references": source, "captioners": captioners}
    write_json(out, {**told, **telling.as_data(scores, options)})
    write_out(telling.as_text(scores, options))
    write_out(f"\nwritten: {out}, and each picture's scores: {pictures}\n")
    if "glove_mean" in scores.names:
        _draw_similarities(scores, out.with_suffix(".similarities.png"))
    return 0 if lineup.complete else 1


def _is_captioner(path: str) -> bool:
    place = locate(path)
    return all((place / name).is_file() for name in ("config.json", "model.safetensors"))


def _captioned(config: Config, captioners: Mapping[str, str], known: References) -> dict[str, str]:
    """By name the table of each captioner's captions, made now or found where an earlier run has made it."""
    from raycap.bulk.captions import captions_job
    from raycap.bulk.job import in_cache
    from raycap.bulk.precision import choose_run_precision, with_precision
    from raycap.bulk.run import run_job
    from raycap.cluster.session import session
    from raycap.commands.caption import read_captioner

    source = references.with_captions(config.source)
    source.check()
    options = dataclasses.replace(
        config.caption,
        split=config.evaluate.split,
        true_words=True,
        dedup=False,
        also=(),
        columns=(),
        dry_run=False,
    )
    tables = {}
    with session(config.cluster):
        precision = choose_run_precision(options, config.cluster)
        for name, path in captioners.items():
            write_out(f"captions of {printable(name)}:\n")
            named = dataclasses.replace(config, caption=dataclasses.replace(options, model=path))
            captioner = read_captioner(named)
            job = captions_job(
                captioner, source, named.caption, config.fetch, config.reading, config.cluster
            )
            # The table also says how well human captions are predicted, and those may have been corrected.
            identity = {**job.identity, "references": known.digest()}
            job = dataclasses.replace(job, identity=identity, config=dumps(named))
            job = with_precision(job, precision)
            job = in_cache(job, config.evaluate.cache, "evaluate.cache")
            run_job(job, {"model": path})
            tables[name] = f"{job.options.out}/{job.table}"
    write_out("\n")
    return tables


def _refuse_overwriting(written: Iterable[Path], tables: Sequence[str]) -> None:
    """results.json is a usual name, for captions and for scores."""
    read = {Path(path).absolute() for _, path in captions.names_and_paths(tables)}
    for path in written:
        if path.absolute() in read:
            raise UserError(
                f"{path} is a table of captions, and the scores would replace it: give another --out"
            )


def _draw_similarities(scores: Scores, path: Path) -> None:
    from raycap import plots  # matplotlib takes a second that other metrics need not wait for

    tables = zip(scores.lineup.tables, scores.answers, strict=True)
    series = {table.name: answers["glove_mean"].scores for table, answers in tables}
    plots.save(plots.histogram(series, "similarity of caption and references (GloVe)"), path)
    write_out(f"drawn: {path}\n")
