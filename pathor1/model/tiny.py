"""A small, randomly initialised Qwen2.5-VL: the real architecture, tokenizer, template and processor, in miniature.

It loads in transformers and vLLM like the published model, so everything that runs on it runs on that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pathor1.errors import DataError, ModelError
from pathor1.files import replacing
from pathor1.prompts import SYSTEM_PROMPTS, question_text, response_text
from pathor1.samples import LETTERS, read

# Qwen's special tokens in Qwen's order; the model's config refers to them by id.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Tokens of their own, but not special: decoding with skip_special_tokens keeps them.
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")

# The chat template of Qwen2.5-VL-Instruct, without its branch for videos.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2 splits text into words, single digits, punctuation and white space before merging bytes.
WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LEAST_PIXELS, MOST_PIXELS = 28 * 28, 1280 * 28 * 28


def make(
    out: Path,
    data: Sequence[Path],
    *,
    seed: int = 0,
    hidden: int = 128,
    layers: int = 2,
    vision_hidden: int = 64,
    vision_layers: int = 2,
) -> int:
    """Writes the model folder and returns the number of parameters.

    data: sample files whose texts the tokenizer is trained on. hidden: width of the language model, a multiple of 64;
    vision_hidden: width of the vision tower, a multiple of 32. The same arguments give the same weights. The
    folder appears whole or not at all. Raises DataError where the data hold no text or the sizes do not fit, and
    ModelError where `out` is a folder of something else, which would be lost.
    """
    out = Path(out).absolute()
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").exists():
        raise ModelError(f"{out}: holds something that is no model; give a folder that is not there yet")
    if hidden % 64 or vision_hidden % 32 or min(hidden, layers, vision_hidden, vision_layers) < 1:
        raise DataError("hidden has to be a multiple of 64, vision_hidden of 32, and layers at least 1")
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    processor = make_processor([text for path in data for text in texts_of(path)])
    tokenizer: Any = processor.tokenizer
    config = _config(tokenizer, hidden, layers, vision_hidden, vision_layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.pad_token_id
    )
    with replacing(out) as part:
        model.save_pretrained(part)
        processor.save_pretrained(part)
    return sum(parameter.numel() for parameter in model.parameters())


def texts_of(path: Path) -> Iterator[str]:
    """What a file's samples ask and answer, text by text: what a tokenizer is trained on."""
    wanted = ["id", "source", "task", "question", "options", "answer", "turns", "explanation", "split"]
    for sample in read(path, columns=wanted):
        yield question_text(sample)
        yield response_text(sample.explanation or "", sample.answer)
        yield from (turn.text for turn in sample.turns or ())


def make_processor(texts: Sequence[str]) -> Any:
    """A tokenizer trained on the texts, Qwen's image processor and the chat template, as one processor."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    if not texts:
        raise DataError("no text to train a tokenizer on; give sample files")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # A word that a text has once is wanted as a token too: every text is shown twice.
    fixed = [prompt for prompt in SYSTEM_PROMPTS.values() if prompt]
    fixed += ["system\nYou are a helpful assistant.\nuser\nassistant\n", "\n".join(f"{letter}." for letter in LETTERS)]
    plain = [_without_tags(text) for text in (*texts, *fixed)]
    words.train_from_iterator([*plain, *plain], trainer)
    words.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAG_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL_TOKENS[3:], "<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=32768,
    )
    pixels: dict[str, Any] = {"min_pixels": LEAST_PIXELS, "max_pixels": MOST_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )


def _without_tags(text: str) -> str:
    for tag in TAG_TOKENS:
        text = text.replace(tag, "\n")
    return text


def _config(tokenizer: Any, hidden: int, layers: int, vision_hidden: int, vision_layers: int) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids: dict[str, int] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    heads = hidden // 32  # vLLM's attention takes heads of 32 and more
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": hidden * 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 4096,
            "initializer_range": 0.05,
            # Published models turn over a million tokens; a few hundred are told apart sooner by a faster turn.
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": False,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": vision_layers,
            "hidden_size": vision_hidden,
            "intermediate_size": vision_hidden * 2,
            "num_heads": vision_hidden // 32,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [vision_layers - 1],
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
