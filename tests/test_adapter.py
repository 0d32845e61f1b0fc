"""A LoRA adapter of peft on the tiny model that describes `shapes`."""

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from packages import need

from raycap.captioners.huggingface.options import HuggingFaceModel
from raycap.sources import Shapes

pytestmark = need("transformers", "peft")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an adapter with large random weights."""
    import peft
    import transformers

    folder = str(tmp_path_factory.mktemp("adapter"))
    torch.manual_seed(1)
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny_models.trained())
    layers = r".*language_model.*\.(q_proj|v_proj|o_proj)"
    how = peft.LoraConfig(r=4, lora_alpha=32, target_modules=layers, init_lora_weights=False)
    peft.get_peft_model(model, how).save_pretrained(folder)
    return folder


def opened(adapter: str = "") -> Any:
    asked = HuggingFaceModel(max_tokens=10, adapter=adapter)
    return asked.captioner(tiny_models.trained(), None, "fp32")


def test_an_adapter_changes_what_the_model_says(adapter: str) -> None:
    import peft
    import transformers

    source = Shapes(count=8)
    [table] = source.tables()
    files = [data for data in source.embedded_pictures(table) if data]
    plain, adapted = opened().open("cpu", None), opened(adapter).open("cpu", None)
    before = [each.caption for each in plain.caption(files)]
    after = [each.caption for each in adapted.caption(files)]
    assert before != after
    # Its weights are those of the adapter, put into the model as peft does it.
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny_models.trained())
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    ours = adapted.model.state_dict()
    assert ours.keys() == merged.keys()
    assert all(torch.equal(ours[name], merged[name]) for name in merged)


def test_an_adapter_is_part_of_the_identity(adapter: str, tmp_path: Path) -> None:
    assert opened(adapter).identity() != opened().identity()
