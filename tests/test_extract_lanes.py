"""Features in the streams of a GPU: a batch is encoded while the one before it becomes rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from cuda_stand_in import StandInForCuda

from raycap.bulk.features import EncodeWorker
from raycap.bulk.options import ExtractOptions
from raycap.bulk.work import StagedRowMaker
from raycap.captioners.trained import lanes
from raycap.captioners.trained.lanes import CudaLanes
from raycap.encoders import Pixels
from raycap.schema import FAILED_TO_DECODE, SUCCESS

BATCH = 4


def loaded(first: int, statuses: list[str]) -> pa.Table:
    """Some rows as a loader gives them."""
    chance = np.random.default_rng(first)
    pixels = chance.integers(0, 256, (len(statuses), 64, 64, 3), np.uint8)
    return pa.table(
        {
            "key": [f"{first}-{number}" for number in range(len(statuses))],
            "status": statuses,
            "pixels": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels),
        }
    )


def worker() -> EncodeWorker:
    options = ExtractOptions(batch=BATCH, precision="fp32", device="cpu")
    return EncodeWorker(Pixels(size=64).build(), 1, options, None)


def work_in_streams(cuda: StandInForCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five batches, of which one is begun before another is finished."""
    made, expected = worker(), worker()
    made._lanes = CudaLanes(torch.device("cpu"), BATCH, cuda)
    assert isinstance(made, StagedRowMaker) and made.batches_ahead == 1
    fill, encode = lanes._fill, made._features
    encoded: list[Any] = []

    def fill_and_note(buffer: torch.Tensor, pictures: Any) -> None:
        cuda.note("fill", [], [buffer])  # NumPy writes it, which torch does not see
        fill(buffer, pictures)

    def encode_and_keep(*given: Any) -> Any:
        encoded.append(encode(*given))
        return encoded[-1]

    monkeypatch.setattr(lanes, "_fill", fill_and_note)
    monkeypatch.setattr(made, "_features", encode_and_keep)
    tables = [loaded(number, [SUCCESS, FAILED_TO_DECODE, SUCCESS]) for number in range(5)]
    rows = []
    with cuda.watching():
        finds = [made.begin(table) for table in tables]
        for find, (grid, vector, _) in zip(finds, encoded, strict=True):
            rows.append(find()())
            cuda.note("read", [grid, vector], [])  # by NumPy
    for table, found in zip(tables, rows, strict=True):
        assert found.equals(expected(table))


def test_streams_wait_for_what_they_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = StandInForCuda()
    work_in_streams(cuda, monkeypatch)
    assert cuda.races() == []
    assert {"copies", "encoder", "host"} <= {access.actor for access in cuda.accesses}


@pytest.mark.parametrize("ignores", ["copies waits", "encoder waits", "host waits"])
def test_without_one_of_the_waits_there_is_a_race(
    ignores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = StandInForCuda(ignores)
    work_in_streams(cuda, monkeypatch)
    assert cuda.races()
