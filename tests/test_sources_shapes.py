"""The made pictures: the captions describe what is drawn."""

import io

import numpy as np
from PIL import Image
from source_rows import rows

from raycap.sources import Shapes
from raycap.sources.shapes import COLOURS, SIDE


def test_captions_describe_what_is_drawn() -> None:
    for row in rows(Shapes(count=60)):
        pixels = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")).astype(int)
        above, below = row["references"][0].split(" above ")
        for half, words in ((pixels[: SIDE // 2], above), (pixels[SIDE // 2 :], below)):
            _, colour, _ = words.split()
            drawn = {
                name
                for name, value in COLOURS.items()
                if (abs(half - value).sum(axis=2) < 6).sum() > 200
            }
            assert drawn == {colour}


def test_pictures_stay_when_more_are_made_and_change_with_the_seed() -> None:
    few, many, others = (
        rows(Shapes(count=20)),
        rows(Shapes(count=40)),
        rows(Shapes(count=20, seed=1)),
    )
    assert many[:20] == few
    assert [row["bytes"] for row in others] != [row["bytes"] for row in few]
    assert [sum(row["split"] == split for row in few) for split in ("train", "dev", "test")] == [
        16,
        2,
        2,
    ]
