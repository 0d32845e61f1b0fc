"""Tiny models of the families that people caption with, made here: no weights are downloaded.

    tiny_models.build("blip", folder)         random weights, about 100 KB
    tiny_models.trained()                     a Qwen2-VL that describes `shapes`; see train_tiny.py

Each folder is what `from_pretrained` opens: config, weights, tokenizer, processor.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from raycap.sources.shapes import COLOURS, SHAPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAINED = Path(__file__).parent / "data" / "tiny-qwen2-vl"
WORDS = ["a", "above", "below", "on", "top", "and", "at", "the", "bottom", *COLOURS, *SHAPES]
QUESTION = ["Describe", "this", "picture", "in", "one", "sentence", ".", "What", "is", "it", "?"]
ROLES = ["system", "user", "assistant", "User", "Assistant", ":"]

QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
IMAGE_TEMPLATE = (
    "<bos>{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(
    special: Sequence[str] = (), around: tuple[str, str] | None = None, **names: str
) -> "PreTrainedTokenizerFast":
    """One token for each word that the tests use. `names` are such as bos_token and eos_token;
    `around` begins and ends each text."""
    # Here and below, imported late: all test workers collect the files that import this one.
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    named = {"unk_token": "<unk>", "pad_token": "<pad>", **names}
    words = list(dict.fromkeys([*named.values(), *special, *ROLES, *QUESTION, *WORDS]))
    numbers = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        first, last = around
        made.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}",
            special_tokens=[(word, numbers[word]) for word in dict.fromkeys(around)],
        )
    extra = {name: word for name, word in named.items() if name == "image_token"}
    named = {name: word for name, word in named.items() if name not in extra}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, extra_special_tokens=extra or None, **named
    )
    fast.add_special_tokens({"additional_special_tokens": list(special)}, False)
    return fast


def build(family: str, folder: Path, seed: int = 0) -> str:
    """The folder, with a new model of this family."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family]()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def trained() -> str:
    """The folder of a Qwen2-VL that describes the pictures of `shapes`."""
    return str(TRAINED)


def qwen2_vl(hidden: int = 32, layers: int = 2, spread: float = 0.5) -> tuple[Any, Any]:
    """`spread` is of the first weights: large ones say something without training."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    words = tokenizer([*special, "<|video_pad|>"], eos_token="<|im_end|>", pad_token="<pad>")
    ids = {word: words.convert_tokens_to_ids(word) for word in words.get_vocab()}
    pixels = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    size = {"shortest_edge": 32 * 32, "longest_edge": 160 * 160}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **pixels),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(size=size, **pixels),
        chat_template=QWEN_TEMPLATE,
    )
    third = hidden // 2 // 2 // 3  # of the frequencies of a head
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "initializer_range": spread,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<pad>"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,  # a picture has some 3 rows of tokens
                "mrope_section": [hidden // 2 // 2 - 2 * third, third, third],
            },
        },
        vision_config={
            "depth": layers,
            "embed_dim": hidden,
            "hidden_size": hidden,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": spread,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<pad>"]
    return model, processor


def blip() -> tuple[Any, Any]:
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = tokenizer(
        around=("[CLS]", "[SEP]"), cls_token="[CLS]", sep_token="[SEP]", bos_token="[DEC]"
    )
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.sep_token_id,
        "sep_token_id": words.sep_token_id,
        "pad_token_id": words.pad_token_id,
        "initializer_range": 0.5,
    }
    config = BlipConfig(text_config=text, vision_config={**VISION, "initializer_range": 0.3})
    side = {"height": 32, "width": 32}
    processor = BlipProcessor(BlipImageProcessor(size=side), words)
    return BlipForConditionalGeneration(config), processor


def git() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    words = tokenizer(
        around=("[CLS]", "[SEP]"), cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )
    config = GitConfig(
        vision_config=VISION,
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id,
        initializer_range=0.5,
    )
    return GitForCausalLM(config), GitProcessor(_clip_pixels(CLIPImageProcessor), words)


def vision_encoder_decoder() -> tuple[Any, Any]:
    """Like ViT-GPT2: it has no processor, but a tokenizer and an image processor."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    words = tokenizer(bos_token="<end>", eos_token="<end>")
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    decoder = GPT2Config(
        vocab_size=len(words),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.5,
        add_cross_attention=True,
        is_decoder=True,
        **ends,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id = words.bos_token_id
    config.pad_token_id = words.pad_token_id
    config.eos_token_id = words.eos_token_id
    model = VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = words.bos_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    pixels = ViTImageProcessor(size={"height": 32, "width": 32})
    return model, SimpleNamespace(
        save_pretrained=lambda folder: [each.save_pretrained(folder) for each in (pixels, words)]
    )


def idefics3() -> tuple[Any, Any]:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    words = tokenizer([*marks, *places], bos_token="<bos>", eos_token="<eos>")
    config = Idefics3Config(
        vision_config=VISION,
        text_config=_llama(words),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=words.pad_token_id,
        scale_factor=2,
    )
    pixels = Idefics3ImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(pixels, words, image_seq_len=4, chat_template=IMAGE_TEMPLATE)
    return Idefics3ForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer(["<image>"], bos_token="<bos>", eos_token="<eos>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=_llama(words),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    processor = LlavaProcessor(
        _clip_pixels(CLIPImageProcessor),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=IMAGE_TEMPLATE,
    )
    return LlavaForConditionalGeneration(config), processor


def florence2() -> tuple[Any, Any]:
    from transformers import (
        BartConfig,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    tasks = ["<CAPTION>", "<DETAILED_CAPTION>"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    words = tokenizer(tasks, **names)
    text = BartConfig(
        vocab_size=len(words),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.5,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        decoder_start_token_id=words.eos_token_id,
        forced_eos_token_id=None,
    )
    vision = Florence2VisionConfig(
        depths=(1, 1),
        patch_size=(7, 3),
        patch_stride=(4, 2),
        patch_padding=(3, 1),
        patch_prenorm=(False, True),
        embed_dim=(16, 32),
        num_heads=(2, 4),
        num_groups=(2, 4),
        window_size=4,
        projection_dim=32,
        initializer_range=0.5,
    )
    config = Florence2Config(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )
    pixels = CLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    pixels.image_seq_length = 17
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.min_new_tokens = 3  # its first word would be the end
    return model, Florence2Processor(pixels, words)


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.3,
}


def _llama(words: "PreTrainedTokenizerFast") -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.5,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def _clip_pixels(kind: Any) -> Any:
    return kind(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2-vl": qwen2_vl,
    "idefics3": idefics3,
    "llava": llava,
    "blip": blip,
    "git": git,
    "vision-encoder-decoder": vision_encoder_decoder,
    "florence2": florence2,
}
