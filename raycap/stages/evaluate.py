"""`raycap evaluate`: captions beside references, in numbers. Needs neither Ray nor torch, and starts at once."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from raycap import __version__
from raycap.config import Config, kind_of
from raycap.evaluation import alignment, captions, references, telling
from raycap.evaluation.scores import Scores, as_table, judge
from raycap.refusal import Refusal
from raycap.runs import whole_file, write_json


def evaluate(config: Config) -> int:
    """Exit code 0 when every row and picture was judged, 1 when some failed, are missing or belong to nothing."""
    options = config.evaluate
    if not options.tables:
        raise Refusal("which captions? Give a table of captions: raycap evaluate TABLE... --references SOURCE")
    out = Path(options.out)
    pictures = out.with_suffix(".pictures.parquet")
    _refuse_overwriting((out, pictures), options.tables)
    known = references.read(config.source)
    assert config.source is not None
    tables = captions.read_all(options.tables, options.key_column, options.caption_column)
    lineup = alignment.align(tables, known, options)
    scores = judge(lineup, options, config.metric)
    with whole_file(pictures) as file:
        pq.write_table(as_table(scores), file.buffer)
    source = {"kind": kind_of("source", config.source), "path": config.source.path, "split": options.split}
    write_json(out, {"raycap": __version__, "references": source, **telling.as_data(scores, options)})
    sys.stdout.write(telling.as_text(scores, options))
    sys.stdout.write(f"\nwritten: {out}, and each picture's scores: {pictures}\n")
    if "glove_mean" in scores.answers[0]:
        _draw_similarities(scores, out.with_suffix(".similarities.png"))
    return 0 if lineup.complete else 1


def _refuse_overwriting(written: Iterable[Path], tables: Sequence[str]) -> None:
    """results.json is a usual name, for captions and for scores."""
    read = {Path(path).absolute() for _, path in captions.names_and_paths(tables)}
    for path in written:
        if path.absolute() in read:
            raise Refusal(f"{path} is a table of captions, and the scores would replace it: give another --out")


def _draw_similarities(scores: Scores, path: Path) -> None:
    from raycap import plots  # matplotlib takes a second that other metrics need not wait for

    tables = zip(scores.lineup.tables, scores.answers, strict=True)
    series = {table.name: answers["glove_mean"].scores for table, answers in tables}
    plots.save(plots.histogram(series, "similarity of caption and references (GloVe)"), path)
    sys.stdout.write(f"drawn: {path}\n")
