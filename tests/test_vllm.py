"""The vLLM captioner.

vLLM needs a GPU to run. What is checked against the package itself, where it is installed, are the
names and arguments that are called. Everything around the engine runs here with a stand-in engine
that has vLLM's interface.
"""

import asyncio
import dataclasses
import inspect
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
from packages import need

from raycap.captioners.kinds import CAPTIONERS, kind_of_model
from raycap.captioners.prompts import Prompt
from raycap.captioners.vllm import captioner as opened
from raycap.captioners.vllm.options import Vllm, VllmOptions
from raycap.errors import UserError

pytestmark = need("transformers")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The hub's client may have been imported, and have read the variable, before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.build("qwen2-vl", tmp_path_factory.mktemp("models") / "qwen")


def options(model: str, num_captions: int | None = None, **chosen: Any) -> VllmOptions:
    return Vllm(**{"max_tokens": 8, **chosen}).captioner(model, num_captions, "auto")


def test_the_package_takes_what_is_passed_to_it(model: str) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    full = options(
        model, 2, temperature=0.5, quantization="fp8", max_length=99, stop=("x",), gpus=2
    )
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert set(full.engine_arguments()) | {"revision", "enable_lora"} <= known
    for chosen in (full, options(model), options(model, tags=("dog",))):
        question = chosen.model.stages[-1].sample_question()
        SamplingParams(
            **chosen.sampling_arguments(question, "ab"),
            **opened._guide(question.stage),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
    call = inspect.signature(AsyncLLM.generate)
    call.bind(None, {"prompt": ""}, SamplingParams(), "0", lora_request=None)
    engine = AsyncEngineArgs(**options(model).engine_arguments())
    inspect.signature(AsyncLLM.from_engine_args).bind(engine)
    inspect.signature(AsyncLLM.shutdown).bind(None)
    inspect.signature(LoRARequest).bind("adapter", 1, "folder")
    of_request = set(inspect.signature(RequestOutput.__init__).parameters)
    assert {"outputs", "prompt_token_ids"} <= of_request
    of_output = {field.name for field in dataclasses.fields(CompletionOutput)}
    assert {"text", "token_ids", "cumulative_logprob", "finish_reason"} <= of_output


class StandIn:
    """An engine that answers with the size of the picture, the last request first."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, Any, str, Any]] = []
        self.is_shut_down = False
        self.dies_at = -1

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, lora_request: Any = None
    ) -> AsyncIterator[Any]:
        number = len(self.requests)
        self.requests.append((prompt, sampling_params, request_id, lora_request))
        if number == self.dies_at:
            raise RuntimeError("the engine is dead")
        await asyncio.sleep(0.05 / (number + 1))
        picture = prompt["multi_modal_data"]["image"]
        if picture.width < picture.height:
            raise ValueError("the prompt is longer than the model allows")
        outputs = [
            SimpleNamespace(
                text=f" {picture.width}x{picture.height} {each}",
                token_ids=[1, 2],
                cumulative_logprob=-4.0 + each,
                finish_reason="stop",
            )
            for each in range(sampling_params.n)
        ]
        yield SimpleNamespace(outputs=outputs, prompt_token_ids=[1, 2, 3])

    def shutdown(self) -> None:
        self.is_shut_down = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()

    async def start(_options: Any) -> StandIn:
        return stand_in

    package, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY="final")  # type: ignore[attr-defined]
    sampling.StructuredOutputsParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(opened, "_start_engine", start)
    return stand_in


def test_answers_are_in_order_with_their_scores(model: str, engine: StandIn) -> None:
    pictures = [np.full((56, 56 + 56 * number, 3), 9, np.uint8) for number in range(5)]
    with options(model, 2, temperature=0.7, in_flight=3).open("auto", None) as captioner:
        found = captioner.caption([*pictures, np.zeros((90, 30, 3), np.uint8)])
    widths = [int(each.caption.split("x")[0]) for each in found[:5]]
    assert widths == sorted(widths) and len(set(widths)) == 5
    assert [each.score for each in found[:5]] == [-1.5] * 5, "the likelier one is the caption"
    assert found[0].alternatives[0].score == -2.0
    assert found[5].status == "failed_to_caption"
    assert found[5].error_message.startswith("vLLM refused the picture: ")
    assert engine.is_shut_down
    prompts = {request[0]["prompt"] for request in engine.requests}
    assert len(prompts) == 1 and "<|image_pad|>" in prompts.pop()
    seeds = {request[1].seed for request in engine.requests}
    assert len(seeds) == 6, "each picture has its own"
    assert len({request[2] for request in engine.requests}) == 6, "and its own number"


def test_prompts_are_asked_in_order_and_guided(model: str, engine: StandIn) -> None:
    prompts = {"size": "What is {title} ?", "caption": Prompt("Is it {size} ?", start="It is")}
    picture = np.full((56, 112, 3), 9, np.uint8)
    with options(model, prompts=prompts).open("auto", None) as captioner:
        [found, missing] = captioner.caption([picture, picture], values=[{"title": "a"}, {}])
    size = found.answers["size"]
    assert size and found.caption == f"It is {size}"
    assert missing.error_message == "prompt size: column title is empty"
    [one, two] = [request[0]["prompt"] for request in engine.requests]
    assert "What is a ?" in one and f"Is it {size} ?" in two and two.endswith("It is")

    with options(model, tags=("dog",), tries=2).open("auto", None) as captioner:
        [failed] = captioner.caption([picture])
    assert failed.error_message.startswith("prompt caption: the answer holds none of the tags")
    [first, second] = [request[1] for request in engine.requests[2:]]
    assert json.loads(first.structured_outputs.json)["items"]["enum"] == ["dog"]
    assert (first.temperature, second.temperature) == (0, 0.7) and second.seed


def test_a_dead_engine_is_no_fault_of_a_picture(model: str, engine: StandIn) -> None:
    engine.dies_at = 1
    with (
        options(model).open("auto", None) as captioner,
        pytest.raises(RuntimeError, match="the engine is dead"),
    ):
        captioner.caption([np.zeros((56, 56, 3), np.uint8)] * 3)


def test_what_changes_captions_is_in_the_identity(model: str) -> None:
    first = options(model).identity()
    assert first["captioner"] == "vllm"
    for chosen in (
        {"prompt": "Count."},
        {"dtype": "float16"},
        {"quantization": "fp8"},
        {"max_tokens": 9},
        {"engine": '{"enforce_eager": true}'},
        {"max_pixels": 28 * 28 * 8},
    ):
        assert options(model, **chosen).identity() != first, chosen
    for chosen in ({"in_flight": 3}, {"memory": 0.5}, {"gpus": 2}):
        assert options(model, **chosen).identity() == first, chosen


def test_workers_hold_as_many_gpus_as_asked_for(model: str) -> None:
    chosen = options(model, gpus=2)
    assert chosen.placement().gpus == 2
    assert chosen.engine_arguments()["tensor_parallel_size"] == 2


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"engine": "{"}, "--captioner.engine is not JSON"),
        ({"engine": "[1]"}, "must be an object"),
        ({"engine": '{"model": "x"}'}, "which other options decide"),
        ({"memory": 2}, "--captioner.memory is 2"),
        ({"gpus": 0}, "--captioner.gpus is 0: give at least 1"),
        ({"in_flight": 0}, "--captioner.in-flight is 0: give at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Vllm(**chosen)


def test_models_that_do_not_chat_are_refused(tmp_path: Path) -> None:
    folder = tiny_models.build("blip", tmp_path / "blip")
    with pytest.raises(UserError, match="not asked in a chat: give --captioner huggingface"):
        options(folder)


def test_a_model_is_opened_by_vllm_only_if_asked(model: str) -> None:
    assert kind_of_model(model) == "huggingface" and "vllm" in CAPTIONERS


def test_without_vllm_the_message_says_what_to_install(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", None)
    with pytest.raises(UserError, match=r"pip install 'raycap\[vllm\]'"):
        options(model).open("auto", None)
