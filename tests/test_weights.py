"""How the weights of a captioner lie in model.safetensors."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from small_captioner import save_captioner
from torch import Tensor

from raycap import Captioner
from raycap.captioners.trained.weights import SCALE, pack, unpack
from raycap.errors import UserError

torch.set_num_threads(1)


def some_weights() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 30, generator=chance) * torch.logspace(-4, 3, 40)[:, None]
    rows[7] = 0
    rows[8, 5] = 100 * rows[8].abs().max()
    return {
        "decoder.words.weight": rows,
        "encoder.conv.weight": torch.randn(20, 3, 5, 5, generator=chance),
        "encoder.norm.bias": torch.randn(20, generator=chance),
        "encoder.norm.num_batches_tracked": torch.tensor(9),
    }


def test_int8_is_at_most_half_a_step_of_the_row_away_and_a_quarter_of_the_size() -> None:
    weights = some_weights()
    packed = pack(weights, "int8")
    found = unpack(packed, "file")
    assert found.keys() == weights.keys()
    for name in ("decoder.words.weight", "encoder.conv.weight"):
        rows, rounded = weights[name].flatten(1), found[name].flatten(1)
        step = rows.abs().amax(1, keepdim=True) / 127
        plain = ((rows / step.clamp(min=1e-30)).round() * step - rows).square().sum(1)
        assert ((rounded - rows).square().sum(1) <= plain * 1.001).all()
        assert (plain <= rows.shape[1] * (step.squeeze(1) / 2) ** 2 * 1.001).all()
    assert torch.equal(found["encoder.norm.bias"], weights["encoder.norm.bias"].half())
    assert torch.equal(
        found["encoder.norm.num_batches_tracked"], weights["encoder.norm.num_batches_tracked"]
    )
    assert len(packed) < 0.35 * len(pack(weights, "float32"))


@pytest.mark.parametrize("numbers", ["float32", "float16"])
def test_other_numbers_are_stored_as_they_are(numbers: str) -> None:
    weights = {name: part.half() for name, part in some_weights().items() if part.ndim}
    weights = {name: part.to(getattr(torch, numbers)) for name, part in weights.items()}
    found = unpack(pack(weights, numbers), "file")  # type: ignore[arg-type]
    assert all(torch.equal(found[name], part) for name, part in weights.items())


WHOLE = torch.ones(4, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": WHOLE}, "'a' lacks its scale"),
        ({f"a{SCALE}": torch.ones(4)}, "is no scale"),
        ({"a": WHOLE, f"a{SCALE}": torch.ones(3)}, "is no scale"),
        ({"a": WHOLE, f"a{SCALE}": torch.ones(4, 1)}, "is no scale"),
        ({"a": WHOLE, f"a{SCALE}": torch.ones(4, dtype=torch.int32)}, "is no scale"),
        ({"a": WHOLE.float(), f"a{SCALE}": torch.ones(4)}, "is no scale"),
        ({"a": WHOLE, f"a{SCALE}": torch.full((4,), torch.nan)}, "'a' holds values that are no"),
        ({"a": WHOLE * 100, f"a{SCALE}": torch.full((4,), 3e38)}, "'a' holds values that are no"),
        ({"a": torch.full((4,), torch.inf)}, "'a' holds values that are no"),
    ],
    ids=range(9),
)
def test_files_that_do_not_fit_are_refused(tensors: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(UserError, match=f"^file.*{reason}"):
        unpack(safetensors.torch.save(tensors), "file")


def test_a_folder_in_int8_captions_and_older_versions_say_that_they_cannot_read_it(
    tmp_path: Path,
) -> None:
    captioner = save_captioner(tmp_path / "float32")
    captioner.save(tmp_path / "int8", numbers="int8")
    formats = [
        json.loads((tmp_path / name / "config.json").read_text())["format"]
        for name in ("float32", "int8")
    ]
    assert formats == [1, 2], "versions before int8 read format 1"
    again = Captioner.load(tmp_path / "int8", device="cpu")
    found = [one.caption for one in again.caption([Image.new("RGB", (30, 20), "red")])]
    rounded = unpack((tmp_path / "int8" / "model.safetensors").read_bytes(), "file")
    captioner.decoder.load_state_dict(
        {name.removeprefix("decoder."): part for name, part in rounded.items()}, strict=False
    )
    expected = captioner.caption([Image.new("RGB", (30, 20), "red")])
    assert found == [one.caption for one in expected]
