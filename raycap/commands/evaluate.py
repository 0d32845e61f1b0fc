"""`raycap evaluate`: scores of captions against references. Tables need neither Ray nor torch;
captioners caption first, as `raycap caption` does."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from raycap import __version__
from raycap.captioners.huggingface.fine_tuned import is_fine_tuned
from raycap.captioners.huggingface.options import HuggingFaceModel
from raycap.captioners.kinds import is_of_hugging_face, is_of_raycap, read_model_config
from raycap.config import Config, dumps
from raycap.errors import UserError
from raycap.evaluation.alignment import align
from raycap.evaluation.captions import names_and_paths, read_captions
from raycap.evaluation.output import evaluation_as_json, evaluation_as_table, evaluation_as_text
from raycap.evaluation.references import References, read_references, with_captions
from raycap.evaluation.scoring import Evaluation, score_tables
from raycap.options import kind_of
from raycap.shipped import place_of
from raycap.sources import SOURCES
from raycap.storage import check_stays, whole_file, write_json
from raycap.storage.location import locate
from raycap.terminal import printable, write_out


def evaluate(config: Config) -> int:
    """Exit code 0 when every row and picture was judged, 1 when some failed, are missing or have
    no counterpart."""
    options = config.evaluate
    if not options.tables:
        raise UserError(
            "which captions? Give tables of captions, or captioners: "
            "raycap evaluate TABLE... --references SOURCE"
        )
    out = Path(options.out)
    pictures = out.with_suffix(".pictures.parquet")
    check_stays(out)
    named = [(name, place_of(path)) for name, path in names_and_paths(options.tables)]
    # results.json is a usual name, for captions and for scores.
    tables_given = {Path(path).absolute() for _, path in named}
    for path in (out, pictures):
        if path.absolute() in tables_given:
            raise UserError(
                f"{path} is a table of captions, and the scores would replace it: give another "
                "--out"
            )
    references = read_references(config.source)
    assert config.source is not None
    references.keys_of_split(options.split)  # refused before anything is captioned for it

    captioners = {name: path for name, path in named if _is_captioner(path)}
    table_paths = dict(named)
    if captioners:
        table_paths |= _write_captions(config, captioners, references)
    tables = [
        read_captions(path, name, options.key_column, options.caption_column, options.only)
        for name, path in table_paths.items()
    ]
    alignment = align(tables, references, options)
    evaluation = score_tables(alignment, options, config.metric)

    with whole_file(pictures) as file:
        pq.write_table(evaluation_as_table(evaluation), file.buffer)
    source = {
        "kind": kind_of(config.source, SOURCES),
        "path": config.source.path,
        "split": options.split,
    }
    facts = {"raycap": __version__, "references": source, "captioners": captioners}
    write_json(out, {**facts, **evaluation_as_json(evaluation, options)})
    write_out(evaluation_as_text(evaluation, options))
    write_out(f"\nwritten: {out}, and each picture's scores: {pictures}\n")
    if "glove_mean" in evaluation.facts:
        _draw_similarities(evaluation, out.with_suffix(".similarities.png"))
    return 0 if alignment.complete else 1


def _is_captioner(path: str) -> bool:
    """Whether this is a captioner folder of raycap's. Raises UserError for another model."""
    if is_fine_tuned(path):
        return True
    fields = read_model_config(path)
    if fields is None or is_of_raycap(fields):
        return fields is not None
    if is_of_hugging_face(fields):
        kind = printable(str(fields.get("model_type") or fields["architectures"]))[:60]
        what = f"a Hugging Face model ({kind})"
    elif (locate(path) / "model.safetensors").is_file():
        what = "a model whose config.json raycap did not write"
    else:
        return False
    raise UserError(
        f"{path} is {what}, no captioner that raycap trained: write its captions into a table "
        f"(raycap caption SOURCE --model {path} --out DIR), and evaluate that"
    )


def _write_captions(
    config: Config, captioners: Mapping[str, str], references: References
) -> dict[str, str]:
    """By name the table of each captioner's captions, made now or found from an earlier
    evaluation."""
    from raycap.bulk.captions import captions_job
    from raycap.bulk.job import in_cache
    from raycap.bulk.machines import Machines
    from raycap.bulk.precision import with_precision
    from raycap.bulk.run import run_job
    from raycap.commands.caption import read_captioner

    source = with_captions(config.source)
    source.check()
    options = dataclasses.replace(
        config.caption,
        split=config.evaluate.split,
        true_words=True,
        dedup=False,
        also=(),
        also_only="",
        columns=(),
        only="",
        dry_run=False,
    )
    tables = {}
    with Machines(config.cluster) as machines:
        precision = machines.choose_precision(options)
        for name, path in captioners.items():
            write_out(f"captions of {printable(name)}:\n")
            is_tuned = is_fine_tuned(path)
            asked = dataclasses.replace(options, model=path, true_words=not is_tuned)
            kind = HuggingFaceModel() if is_tuned else None
            named = dataclasses.replace(config, caption=asked, captioner=kind)
            captioner = read_captioner(named)
            job = captions_job(
                captioner, source, named.caption, config.fetch, config.reading, config.cluster
            )
            # The table has the likelihood of the references too, so it belongs to these.
            identity = {**job.identity, "references": references.digest()}
            job = dataclasses.replace(job, identity=identity, config=dumps(named))
            job = with_precision(job, precision)
            job = in_cache(job, config.evaluate.cache, "evaluate.cache")
            run_job(job, {"model": path}, machines)
            tables[name] = f"{job.options.out}/{job.table}"
    write_out("\n")
    return tables


def _draw_similarities(evaluation: Evaluation, path: Path) -> None:
    from raycap import plots  # matplotlib takes a second, which other metrics do not need

    tables = zip(evaluation.alignment.tables, evaluation.scores, strict=True)
    series = {table.name: scores["glove_mean"].per_picture for table, scores in tables}
    plots.save(plots.histogram(series, "similarity of caption and references (GloVe)"), path)
    write_out(f"drawn: {path}\n")
