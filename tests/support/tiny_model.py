"""Makes the tiny random Llama model that a real vLLM serves in the tests.

torch and transformers live only in the vLLM environment, so the model is made by running this file with that
environment's interpreter; nothing here needs them to be importable otherwise.

    VLLM_PYTHON tests/support/tiny_model.py FOLDER
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")


def make_tiny_model(folder: Path, hidden: int = 128, layers: int = 2) -> None:
    """Write the model and its tokenizer into `folder`; needs torch, transformers and tokenizers."""
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
    tokenizers = importlib.import_module("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *letters))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        dtype="bfloat16",
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def ensure_tiny_model(python: Path, folder: Path) -> Path:
    """Have `python` make the model in `folder` unless it is there already; a half-made one is never left behind."""
    if not (folder / "config.json").exists():
        part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        subprocess.run([python, __file__, part], check=True, timeout=180, stdout=subprocess.DEVNULL)
        part.rename(folder)
    return folder


if __name__ == "__main__":
    make_tiny_model(Path(sys.argv[1]))
