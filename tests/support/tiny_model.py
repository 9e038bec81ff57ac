"""Writes the tiny random Llama model that a real vLLM serves in the tests: without torch, and the same each time.

The trap guarded against is a model that depends on who makes it. Making it with torch and transformers took a minute of
each run, and each version of vLLM, which has its own of both, would have been tested with another model.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.adapters import safetensors_bytes

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
_HEADS = 4
# The upper byte of a bfloat16 is its sign and most of its exponent: of each byte the sign is kept, and with any lower
# byte the number lies between 0.125 and 0.5. Weights that large make different prompts answer differently.
_UPPER = bytes(byte & 0x80 | 0x3E for byte in range(256))
_ONE = b"\x80\x3f"


def write_tiny_model(folder: Path, hidden: int = 128, layers: int = 2) -> Path:
    """Write the model and its tokenizer, one token for each byte, into `folder` (made where absent)."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = _byte_letters()
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *letters))}
    (folder / "model.safetensors").write_bytes(_weights(len(vocabulary), hidden, layers))
    for name, value in {
        "config.json": _config(len(vocabulary), hidden, layers),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
        },
    }.items():
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False))
    return folder


def _config(vocabulary: int, hidden: int, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": hidden // _HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        # transformers reads the first up to version 4, and the second since version 5.
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "torch_dtype": "bfloat16",
    }


def _weights(vocabulary: int, hidden: int, layers: int) -> bytes:
    chance = random.Random(0)
    feed = 2 * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        stem = f"model.layers.{layer}"
        shapes |= {f"{stem}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{stem}.mlp.{name}_proj.weight": (feed, hidden) for name in ("gate", "up")}
        shapes |= {f"{stem}.mlp.down_proj.weight": (hidden, feed)}
        shapes |= {f"{stem}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    tensors = {name: (shape, _tensor(shape, chance)) for name, shape in shapes.items()}
    # A special token scores 0 at every place, so it is never the likeliest: no answer ends before its time.
    shape, scores = tensors["lm_head.weight"]
    silent = 2 * hidden * len(SPECIAL_TOKENS)
    tensors["lm_head.weight"] = shape, bytes(silent) + scores[silent:]
    return safetensors_bytes(tensors)


def _tensor(shape: tuple[int, ...], chance: random.Random) -> bytes:
    match shape:
        case (rows, columns):
            data = bytearray(2 * rows * columns)
            data[::2] = chance.randbytes(rows * columns)
            data[1::2] = chance.randbytes(rows * columns).translate(_UPPER)
            return bytes(data)
        case _:
            # The scale of a normalisation.
            return _ONE * shape[0]


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, object]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spread = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token} | plain for number, token in enumerate(SPECIAL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": spread,
        "post_processor": None,
        "decoder": spread | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _byte_letters() -> list[str]:
    """The printable letter that a byte-level tokenizer writes for each of the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    return sorted(map(chr, [*printable, *range(256, 256 + 256 - len(printable))]))
