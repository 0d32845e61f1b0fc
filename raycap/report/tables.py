"""The content of a page about caption tables: scores, the gallery, failures and histograms."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raycap.evaluation.captions import CaptionTable
from raycap.evaluation.options import Evaluate
from raycap.evaluation.references import References
from raycap.evaluation.scoring import Evaluation
from raycap.report.gallery import CONFIDENCE, LENGTH, GalleryMaker, PictureMeasure, confidence
from raycap.report.options import Report
from raycap.report.pictures import PagePictures, panels_of_tables

HISTOGRAM_PICTURES = 50  # fewer are better looked at one by one
BINS = 40
MOST_FLAGS = 50  # to choose from: a table of somebody else may hold anything


def table_values(
    tables: Sequence[CaptionTable],
    references: References | None,
    evaluation: Evaluation | None,
    options: Report,
    evaluate: Evaluate,
    pictures: PagePictures,
) -> dict[str, Any]:
    """The values for the template."""
    gallery = GalleryMaker(tables, references, evaluation).gallery(options.pictures)
    uris = [None if entry.is_unreadable else entry.uri for entry in gallery.entries]
    panels, notes = panels_of_tables(tables, options.panels, options.model, pictures)
    thumbnails = pictures.thumbnails(uris)
    labels = []
    for measure in gallery.measures:
        of_table = f" of {measure.table}" if measure.table and len(tables) > 1 else ""
        labels.append(f"{measure.facts.label}{of_table}")
    shown = [
        facts for entry in gallery.entries for one in entry.captions for facts, _ in one.scores
    ]
    histograms = []
    if gallery.pictures >= HISTOGRAM_PICTURES:
        histograms = _histograms(gallery.measures)
    return {
        "tables": tables,
        "panels": panels,
        "notes": notes,
        "gallery": gallery,
        "entries": list(zip(gallery.entries, thumbnails, strict=True)),
        "measures": labels,
        "legend": list(dict.fromkeys(shown)),
        "flags": sorted(
            {
                flag
                for entry in gallery.entries
                for caption in entry.captions
                for flag in caption.flags
            }
        )[:MOST_FLAGS],
        "statuses": sorted({status for own in gallery.statuses.values() for status in own}),
        "histograms": histograms,
        "scores": _score_rows(evaluation) if evaluation else None,
        "pictures_judged": len(evaluation.alignment.keys) if evaluation else 0,
        "evaluate": evaluate,
        # Alternatives have the captioner's own score only.
        "confidence_text": _confidence_text,
    }


def _confidence_text(score: float | None) -> str:
    percent = float(confidence(np.nan if score is None else score))
    return "" if np.isnan(percent) else CONFIDENCE.shown(percent)


def _histograms(measures: Sequence[PictureMeasure]) -> list[dict[str, Any]]:
    """One histogram for each measure, with all tables in it and a description in words."""
    from raycap.plots import histogram

    histograms = []
    for facts in dict.fromkeys(measure.facts for measure in measures):
        series = {
            measure.table or facts.label: measure.values
            for measure in measures
            if measure.facts == facts
        }
        known = {table: values[np.isfinite(values)] for table, values in series.items()}
        words = []
        for table, values in known.items():
            if len(values):
                low, middle, high = map(facts.shown, np.quantile(values, (0.25, 0.5, 0.75)))
                half = f"half of {len(values):,} pictures between {low} and {high}"
                words.append(f"{table}: {half}, median {middle}")
        if not words:
            continue
        bins = BINS
        if facts == LENGTH:
            bins = int(min(BINS, max(float(np.ptp(np.concatenate(list(known.values())))), 1)))
        plot = histogram(series, facts.label, bins)
        histograms.append({"name": facts.label, "plot": plot, "words": "; ".join(words)})
    return histograms


def _score_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """A row for each score with a cell for each table."""
    rows = []
    for name, facts in evaluation.facts.items():
        best = evaluation.best.get(name)
        cells = []
        for number, scores in enumerate(evaluation.scores):
            score = scores.get(name)
            bounds = evaluation.intervals[number].get(name)
            is_best = best is not None and best.table == number
            cell: dict[str, Any] = {
                "score": "",
                "between": f"{facts.shown(bounds[0])} to {facts.shown(bounds[1])}"
                if bounds
                else "",
                "is_best": is_best,
                "beyond_chance": is_best and best is not None and best.beyond_chance,
                "signature": score.signature if score else "",
            }
            if score and not np.isnan(score.value):
                cell["score"] = facts.shown(score.value)
            cells.append(cell)
        rows.append({"facts": facts, "cells": cells})
    return rows
