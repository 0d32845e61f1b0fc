"""What a page tells of caption tables, one or several: scores, histograms, failures and the gallery."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from raycap.evaluation import telling
from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.options import Evaluate
from raycap.evaluation.references import References
from raycap.evaluation.scoring import Scores
from raycap.fetch import Fetch, Trust
from raycap.images import Reading
from raycap.plots import histogram
from raycap.report import attention
from raycap.report.gallery import DISPUTE, LENGTH, SURENESS, Collection, Gallery, Measure
from raycap.report.options import Report
from raycap.report.html import brief
from raycap.report.thumbnails import PageBudget, thumbnails

NAMES = {
    **{f"bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    **{f"bleu_nltk_{n}": f"BLEU-{n} (NLTK)" for n in (1, 2, 3, 4)},
    "cider_d": "CIDEr-D",
    "cider": "CIDEr",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "meteor_nltk": "METEOR (NLTK)",
    "spice": "SPICE",
    "glove_mean": "GloVe similarity, mean",
    "glove_best": "GloVe similarity, best",
    SURENESS: "sureness",
    LENGTH: "length in words",
    "distinct": "distinct captions (share)",
    "vocabulary": "words used",
    "cut_off": "cut off (share)",
    "repetitive": "repetitive (share)",
    "loss": "loss by the true words (nats a word)",
    "perplexity": "perplexity by the true words",
    "token_accuracy": "token accuracy by the true words",
    "novel": "not a training caption (share)",
    DISPUTE: "difference between tables",
}


def told(
    tables: Sequence[CaptionTable],
    references: References | None,
    scores: Scores | None,
    options: Report,
    evaluate: Evaluate,
    room: PageBudget,
    fetch: Fetch,
    trust: Trust,
    reading: Reading,
) -> dict[str, Any]:
    """What the template asks for."""
    gallery = Collection(tables, references, scores).gallery(options.pictures, options.seed)
    uris = [None if entry.is_unreadable else entry.uri for entry in gallery.entries]
    panels, notes = attention.panels(
        tables, options.panels, options.model, room, fetch, trust, reading
    )
    pictures = thumbnails(uris, options.thumbnail, room, fetch, trust, reading)
    return {
        "panels": panels,
        "notes": notes,
        "gallery": gallery,
        "entries": list(zip(gallery.entries, pictures, strict=True)),
        "measures": [_label(measure, len(tables)) for measure in gallery.measures],
        "names": NAMES,
        "statuses": sorted({status for counts in gallery.statuses.values() for status in counts}),
        "histograms": _histograms(gallery),
        "scores": _table_of_scores(scores) if scores else None,
        "pictures_judged": len(scores.alignment.keys) if scores else 0,
        "evaluate": evaluate,
    }


def _label(measure: Measure, tables: int) -> str:
    name = NAMES[measure.name]
    return f"{name} of {measure.table}" if measure.table and tables > 1 else name


def _histograms(gallery: Gallery) -> list[dict[str, Any]]:
    """One for each measure, the tables over one another, with what it shows in words."""
    found = []
    for name in dict.fromkeys(measure.name for measure in gallery.measures):
        series = {
            each.table or NAMES[name]: each.values
            for each in gallery.measures
            if each.name == name
        }
        known = {table: values[np.isfinite(values)] for table, values in series.items()}
        middles = [
            f"{table}: half of {len(values):,} pictures between {_quantiles(values)}"
            for table, values in known.items()
            if len(values)
        ]
        if middles:
            whole = name == LENGTH
            bins = (
                int(min(40, max(float(np.ptp(np.concatenate(list(known.values())))), 1)))
                if whole
                else 40
            )
            found.append(
                {
                    "name": NAMES[name],
                    "plot": histogram(series, NAMES[name], bins),
                    "words": "; ".join(middles),
                }
            )
    return found


def _quantiles(values: Any) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{brief(low)} and {brief(high)}, median {brief(middle)}"


def _table_of_scores(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    for name in scores.names:
        best = scores.best.get(name)
        cells = []
        for number, answers in enumerate(scores.answers):
            bounds = scores.intervals[number].get(name)
            between = (
                f"{telling.figure(bounds[0])} to {telling.figure(bounds[1])}" if bounds else ""
            )
            won = best is not None and best.table == number
            score = answers[name].score if name in answers else math.nan
            cells.append(
                {
                    "score": "" if math.isnan(score) else telling.figure(score),
                    "between": between,
                    "won": won,
                    "sure": won and best is not None and best.beyond_chance,
                    "signature": answers[name].signature if name in answers else "",
                }
            )
        rows.append({"name": NAMES.get(name, name), "cells": cells})
    return rows
