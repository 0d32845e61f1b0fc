"""METEOR and SPICE through Java: equal to the reference; what is missing is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raycap.errors import UserError
from raycap.metrics import METRICS, Corpus

pytest.importorskip(
    "pycocoevalcap", reason="needs pycocoevalcap: pip install 'raycap[coco-metrics]'"
)


@pytest.fixture
def java() -> None:
    if not shutil.which("java"):
        pytest.skip("needs Java: METEOR is a Java program")


@pytest.mark.usefixtures("java")
def test_meteor_equals_the_reference(shared_data: Path) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    parts = {
        part: json.loads(
            (shared_data / "reference-scores" / f"coco_val2017_human_{part}.json").read_text()
        )
        for part in ("cands", "refs", "scores")
    }
    keys = parts["scores"]["image_ids"][:200]
    captions = {row["image_id"]: row["caption"] for row in parts["cands"]}
    references: dict[int, list[str]] = {}
    for row in parts["refs"]["annotations"]:
        references.setdefault(row["image_id"], []).append(row["caption"])
    corpus = Corpus(
        [captions[key] for key in keys] + ["a dog runs", "", "||| dog", "zzz"],
        [references[key] for key in keys]
        + [["a dog runs"], ["a dog"], ["the | dog", "cat"], ["a dog"]],
    )
    (answer,) = METRICS["meteor"]().compute(corpus)
    np.testing.assert_allclose(
        answer.per_picture[:200], parts["scores"]["per_image"]["METEOR"][:200], rtol=0, atol=1e-9
    )
    assert answer.per_picture[200] == pytest.approx(1)
    assert answer.per_picture[201] == answer.per_picture[203] == 0
    ours = {row: [tokens] for row, tokens in enumerate(corpus.tokens)}
    overall, each = Meteor().compute_score(dict(enumerate(corpus.reference_tokens)), ours)
    assert answer.value == pytest.approx(overall, abs=1e-12)
    np.testing.assert_allclose(answer.per_picture, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["meteor", "spice"])
def test_without_java_the_remedy_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install a Java runtime"):
        METRICS[name]().compute(Corpus(["a dog"], [["a dog"]]))


@pytest.mark.usefixtures("java")
def test_spice_scores_or_names_what_it_lacks() -> None:
    corpus = Corpus(
        ["a dog runs on the grass", "a red car"], [["a dog runs on the grass"], ["two cats sleep"]]
    )
    try:
        (answer,) = METRICS["spice"]().compute(corpus)
    except UserError as refusal:
        assert "get_stanford_models" in str(refusal)
        pytest.skip("needs Stanford CoreNLP: python -m pycocoevalcap.spice.get_stanford_models")
    assert answer.per_picture.tolist() == [1, 0]
