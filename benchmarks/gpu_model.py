"""The sections of `gpu.py` about the model: encoder, search, worker, training, Hugging Face."""

import queue
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_tools import Report, Setting, profiled, rate, release_memory, synchronise

from raycap.captioners.trained import CaptionerPlan, TrainedCaptioner
from raycap.captioners.trained.batches import largest_batch
from raycap.decoders import DecoderChoice, Recurrent, TopDown, Transformer
from raycap.decoders.decoder import Decoder, Tensors
from raycap.decoders.teacher_forcing import score_words
from raycap.device import PrecisionName, choose_precision
from raycap.encoders import EncoderOptions, Pixels, ResNet18, ResNet50
from raycap.search import Beam
from raycap.vocabulary import END, PAD, START, Vocabulary, VocabularyOptions

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")
FP32: tuple[PrecisionName, ...] = ("fp32",)
BOTH: tuple[PrecisionName, ...] = ("fp32", "bf16")
POSITIONS, WIDTH, REFERENCES = 49, 2_048, 5
BEAM = Beam(width=3, min_length=7)


def make_captioner(folder: Path, short: bool) -> TrainedCaptioner:
    """ResNet-50, the top-down decoder and beam 3, with random weights. Its captions end at various
    lengths."""
    words = 100 if short else 10_000
    vocabulary = Vocabulary.build(
        [f"word{number}" for number in range(words)], VocabularyOptions(min_count=1)
    )
    encoding: EncoderOptions = Pixels(size=64) if short else ResNet50(weights="random")
    decoding = decoders(short)["top-down"]
    plan = CaptionerPlan(encoding, decoding, search=BEAM)
    torch.manual_seed(0)
    encoder = plan.encoder.build()
    decoder = decoding.build(len(vocabulary), encoder.positions, encoder.width)
    make_livelier(decoder)
    captioner = TrainedCaptioner(plan, vocabulary, encoder, decoder, device="cpu")
    captioner.save(folder, include_encoder=True)
    return captioner


def make_livelier(decoder: Decoder) -> None:
    """Captions depend on the picture, and end at different times."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        decoder.vocabulary_bias[END] += 1.5


def decoders(short: bool) -> dict[str, DecoderChoice]:
    if short:
        return {
            "lstm with attention": Recurrent(
                hidden_width=32, embedding_width=16, attention_width=16
            ),
            "top-down": TopDown(
                hidden_width=32, embedding_width=16, attention_width=16, projection_width=16
            ),
            "transformer": Transformer(hidden_width=32, heads=4),
        }
    return {
        "lstm with attention": Recurrent(),
        "top-down": TopDown(),
        "transformer": Transformer(),
    }


def encoder(report: Report, setting: Setting) -> None:
    """Pictures on the device, without copies: raycap's encoder and bare torchvision."""
    from torchvision.models import get_model

    name = "resnet18" if setting.short else "resnet50"
    kind = ResNet18 if setting.short else ResNet50
    side = 64 if setting.short else 224
    built = kind(weights="random", size=side).build()
    batches = (2,) if setting.short else (64, 256, 512)
    compiled: list[tuple[str, Any, torch.Tensor]] = []
    for precision in PRECISIONS:
        with report.part(f"{name} in {precision}"):
            chosen = choose_precision(str(setting.device), precision)
            ours = built.for_inference(chosen)
            bare = get_model(name, weights=None).eval().to(chosen.device, chosen.dtype)
            bare = torch.nn.Sequential(*list(bare.children())[:-2])
            bare = bare.to(memory_format=torch.channels_last)
            for batch in batches:
                pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
                pixels = pixels.to(chosen.device).permute(0, 3, 1, 2)
                colours = pixels.to(chosen.dtype, memory_format=torch.channels_last) / 255
                with torch.inference_mode():
                    for who, run, given in (
                        ("raycap, from uint8", ours, pixels),
                        ("bare torchvision, from its own numbers", bare, colours),
                    ):

                        def encode(run: Any = run, given: torch.Tensor = given) -> object:
                            return run(given)

                        value = rate(encode, batch, setting.seconds)
                        report.add(
                            f"{name} {precision}, batch {batch}: {who}", value, "pictures/s"
                        )
                if batch == batches[-1] and precision != "fp16":
                    compiled.append((f"{name} {precision}, batch {batch}: compiled", ours, pixels))
    for what, run, given in compiled[:1] if setting.short else compiled:
        with report.part(what), torch.inference_mode():
            fast = torch.compile(run, backend="eager" if setting.short else "inductor")

            def encode_fast(fast: Any = fast, given: torch.Tensor = given) -> object:
                return fast(given)

            report.add(what, rate(encode_fast, len(given), setting.seconds), "pictures/s")
    release_memory()


def search(report: Report, setting: Setting) -> None:
    """The search alone, batch by batch, from grids on the device."""
    words, width = (100, 32) if setting.short else (10_000, WIDTH)
    for name, options in decoders(setting.short).items():
        for precision in FP32 if setting.short else BOTH:
            with report.part(f"{name} in {precision}"):
                torch.manual_seed(0)
                chosen = choose_precision(str(setting.device), precision)
                decoder = options.build(words, POSITIONS, width).eval()
                make_livelier(decoder)
                decoder = decoder.to(chosen.device, chosen.dtype)
                for batch in (2,) if setting.short else (64, 256):
                    memory = _memory(decoder, batch, width, chosen.device, chosen.dtype)

                    def run(decoder: Decoder = decoder, memory: Tensors = memory) -> object:
                        with torch.inference_mode():
                            return BEAM.search(decoder, memory).words.cpu()

                    what = f"{name} {precision}, batch {batch}, beam 3"
                    report.add(what, rate(run, batch, setting.seconds), "pictures/s")
                    profiled(run).add_to(report, what)
    release_memory()


def _memory(
    decoder: Decoder, batch: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensors:
    grid = torch.randn(batch, POSITIONS, width).to(device, dtype)
    with torch.inference_mode():
        return decoder.prepare(grid, grid.mean(1))


def worker(report: Report, setting: Setting) -> None:
    """A model worker without loading: pixels in host memory to captions, through all steps."""
    folder = setting.path / "captioner"
    make_captioner(folder, setting.short)
    for precision in FP32 if setting.short else BOTH:
        with report.part(f"worker in {precision}"):
            _measure_worker(report, setting, folder, precision)


def _measure_worker(
    report: Report, setting: Setting, folder: Path, precision: PrecisionName
) -> None:
    def opened(batch: int) -> TrainedCaptioner:
        return TrainedCaptioner.read(folder, str(setting.device), precision, batch=batch)

    found = 2
    if not setting.short:
        found = largest_batch(lambda batch: opened(batch).try_batch())
        report.add(f"worker {precision}: largest batch", found, "pictures")
    for batch in sorted({2} if setting.short else {64, 256, found}):
        captioner = opened(batch)
        side = captioner.encoder.size
        noise = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        rows: list[dict[str, Any]] = [{"sha256": str(number)} for number in range(batch)]
        count = 4 if setting.short else max(4, 4096 // batch)

        def run(
            captioner: TrainedCaptioner = captioner, pictures: Any = noise, n: int = count
        ) -> None:
            in_steps(captioner, [list(pictures)] * n, rows)  # noqa: B023

        what = f"worker {precision}, batch {batch}"
        report.add(what, rate(run, batch * count, setting.seconds), "pictures/s")
        profiled(run, count).add_to(report, what)

        def one_by_one(captioner: TrainedCaptioner = captioner, pictures: Any = noise) -> None:
            captioner.predict(list(pictures), rows)  # noqa: B023

        report.add(
            f"{what}, without overlap", rate(one_by_one, batch, setting.seconds), "pictures/s"
        )
        del captioner
        release_memory()


def in_steps(
    captioner: TrainedCaptioner, batches: list[list[Any]], rows: list[dict[str, Any]]
) -> None:
    """As a worker of a table job does it: one thread encodes and searches, one makes captions."""
    found: queue.Queue[Any] = queue.Queue(1)
    faults: list[BaseException] = []

    def give() -> None:
        while (give_predictions := found.get()) is not None:
            try:
                give_predictions()
            except BaseException as error:  # noqa: BLE001 - raised by the caller
                faults.append(error)

    thread = threading.Thread(target=give)
    thread.start()
    begun: deque[Any] = deque()
    try:
        for pictures in batches:
            begun.append(captioner.begin(pictures, rows))
            if len(begun) > captioner.batches_ahead:
                found.put(begun.popleft()())
        while begun:
            found.put(begun.popleft()())
    finally:
        found.put(None)
        thread.join()
    if faults:
        raise faults[0]


def training(report: Report, setting: Setting) -> None:
    """Steps of a decoder on encoded pictures: forward, backward, Adam."""
    words, width, pictures = (100, 32, 2) if setting.short else (10_000, WIDTH, 64)
    for name, options in decoders(setting.short).items():
        for precision in FP32 if setting.short else BOTH:
            with report.part(f"{name} in {precision}"):
                torch.manual_seed(0)
                chosen = choose_precision(str(setting.device), precision)
                decoder = options.build(words, POSITIONS, width).to(chosen.device).train()
                weights = [part for part in decoder.parameters() if part.requires_grad]
                adam = torch.optim.Adam(weights, 1e-4)
                grid = torch.rand(pictures, POSITIONS, width, device=chosen.device)
                captions = made_captions(pictures, words).to(chosen.device)

                def step(
                    decoder: Decoder = decoder,
                    adam: torch.optim.Adam = adam,
                    autocast: Any = chosen.autocast,
                    given: tuple[torch.Tensor, ...] = (grid, captions),
                ) -> None:
                    adam.zero_grad()
                    with autocast():
                        memory = decoder.prepare(given[0], given[0].mean(1))
                        loss = score_words(decoder, memory, given[1]).objective
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()

                value = rate(step, pictures * REFERENCES, setting.seconds)
                report.add(f"{name} {precision}, {pictures} pictures", value, "captions/s")
                profiled(step).add_to(report, f"{name} {precision}, a step")
    release_memory()


def made_captions(pictures: int, words: int) -> torch.Tensor:
    """Captions [B, R, T + 1] about as long as Flickr8k's."""
    source = torch.Generator().manual_seed(0)
    lengths = torch.randn(pictures, REFERENCES, generator=source) * 3.9 + 10.8
    lengths = lengths.round().clamp(3, 30).long()
    longest = int(lengths.max()) + 2
    captions = torch.randint(END + 2, words, (pictures, REFERENCES, longest), generator=source)
    place, last = torch.arange(longest), lengths.unsqueeze(2) + 1
    captions = captions.masked_fill(place > last, PAD).masked_fill(place == last, END)
    captions[..., 0] = START
    return captions


def huggingface(report: Report, setting: Setting) -> None:
    """A tiny model, and BLIP in its usual size, from configs with random weights."""
    import tiny_models  # type: ignore[import-not-found]

    with report.part("tiny Qwen2-VL"):
        folder = tiny_models.build("qwen2-vl", setting.path / "tiny")
        _measure_huggingface(report, setting, "tiny Qwen2-VL", folder, (96, 64), 2)
    if setting.short:
        return
    with report.part("BLIP base"):
        folder = _real_blip(setting.path / "blip")
        for batch in (16, 64):
            _measure_huggingface(report, setting, "BLIP base", folder, (384, 384), batch)


def _measure_huggingface(
    report: Report, setting: Setting, name: str, folder: str, size: tuple[int, int], batch: int
) -> None:
    from raycap.captioners.huggingface.options import HuggingFaceModel

    tokens = 4 if setting.short else 20
    precision: PrecisionName = "auto" if setting.device.type == "cuda" else "fp32"
    captioner = HuggingFaceModel(max_tokens=tokens).captioner(folder, 1, precision)
    opened = captioner.open(str(setting.device), None)
    width, height = size
    pictures = [np.full((height, width, 3), 9 * number % 256, np.uint8) for number in range(batch)]
    rows: list[dict[str, Any]] = [
        {"sha256": str(number), "width": width, "height": height} for number in range(batch)
    ]
    value = rate(lambda: opened.predict(pictures, rows), batch, setting.seconds)
    report.add(f"{name}, batch {batch}, at most {tokens} tokens", value, "pictures/s")
    synchronise()


def _real_blip(folder: Path) -> str:
    import tiny_models
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    tiny_models.WORDS = [*tiny_models.WORDS, *(f"word{number}" for number in range(30_000))]
    words = tiny_models.tokenizer(
        around=("[CLS]", "[SEP]"), cls_token="[CLS]", sep_token="[SEP]", bos_token="[DEC]"
    )
    text = {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.sep_token_id,
        "sep_token_id": words.sep_token_id,
        "pad_token_id": words.pad_token_id,
    }
    torch.manual_seed(0)
    model: Any = BlipForConditionalGeneration(BlipConfig(text_config=text))
    model.eval().save_pretrained(folder)
    side = {"height": 384, "width": 384}
    processor: Any = BlipProcessor  # without annotations
    processor(BlipImageProcessor(size=side), words).save_pretrained(folder)
    return str(folder)
