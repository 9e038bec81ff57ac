"""An adapter folder in the making: plain at first, then changed bit by bit, then written.

The trap guarded against is a folder that only looks like what people have: config and weights are written byte by byte
as PEFT, torch and the safetensors library write them, so that a real engine reads them as well. All weights are zeros.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from tests.support.adapters import CONFIG, MODULES, WEIGHTS, adapter_config

BYTES = {"BF16": 2, "F32": 4, "F64": 8, "I8": 1, "F8_E4M3": 1, "F8_E4M3FNUZ": 1, "F8_E8M0": 1, "C64": 8}
HIDDEN, INNER, LAYERS, RANK, VOCABULARY = 128, 256, 2, 8, 260
STEM = "base_model.model.model"

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor."""


def _plain() -> Tensors:
    """The tensors of an adapter of rank 8 for every linear module of the tiny model of `support.tiny_model`."""
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for module in MODULES:
            inner = INNER if module.endswith("down_proj") else HIDDEN
            outer = INNER if module.endswith(("gate_proj", "up_proj")) else HIDDEN
            stem = f"{STEM}.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = ("BF16", (RANK, inner))
            tensors[f"{stem}.lora_B.weight"] = ("BF16", (outer, RANK))
    return tensors


def header_of(tensors: Tensors, metadata: object = None) -> dict[str, Any]:
    """The header that the safetensors library writes for these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    return header


def safetensors_file(header: Mapping[str, Any], padding: int = 0) -> bytes:
    """A file of weights with this header, and zeros for its tensors."""
    text = json.dumps(header).encode() + b" " * padding
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return struct.pack("<Q", len(text)) + text + bytes(max(ends, default=0))


def torch_file(tensors: Tensors) -> bytes:
    """What `torch.save` writes for these tensors, which are all of bfloat16: a pickle and their bytes in an archive."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    pickled = b"\x80\x02}("
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for number, (name, (_, shape)) in enumerate(tensors.items()):
            count = math.prod(shape)
            strides = tuple(math.prod(shape[at + 1 :]) for at in range(len(shape)))
            storage = text("storage") + b"ctorch\nBFloat16Storage\n" + text(str(number)) + text("cpu")
            storage = b"(" + storage + b"J" + struct.pack("<i", count) + b"tQ"
            hooks = b"ccollections\nOrderedDict\n)R"
            tensor = b"(" + storage + b"J" + struct.pack("<i", 0) + numbers(shape) + numbers(strides) + b"\x89" + hooks
            pickled += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"tR"
            file.writestr(f"archive/data/{number}", bytes(count * BYTES["BF16"]))
        file.writestr("archive/data.pkl", pickled + b"u.")
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
    return archive.getvalue()


class Draft:
    """A plain adapter that is changed by one call after another, and then written."""

    def __init__(self) -> None:
        self.config = adapter_config()
        self.tensors = _plain()
        self._metadata: object = None
        self._padding = 0
        self._in_order = True
        self._text: Callable[[bytes], bytes] = bytes
        self._weights: Callable[[bytes], bytes] = bytes
        self._after: list[Callable[[Path], object]] = []

    def say(self, **settings: Any) -> Self:
        """Have these settings in the config."""
        self.config |= settings
        return self

    def target(self, *modules: str) -> Self:
        """Name further target modules in the config."""
        return self.say(target_modules=[*self.config["target_modules"], *modules])

    def unsay(self, *settings: str) -> Self:
        """Leave these settings out."""
        for setting in settings:
            del self.config[setting]
        return self

    def text(self, change: Callable[[bytes], bytes]) -> Self:
        """Change the bytes of the config."""
        self._text = change
        return self

    def add(self, *shape: int, dtype: str = "BF16", **named: str) -> Self:
        """Have one more tensor: its `name` is below the model's stem, its `full` name is as it is."""
        self.tensors[named.get("full") or f"{STEM}.{named['name']}"] = (dtype, shape)
        return self

    def keep(self, wanted: Callable[[str], bool]) -> Self:
        """Drop the tensors with other names."""
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if wanted(name)}
        return self

    def rename(self, change: Callable[[str], str]) -> Self:
        """Have the tensors called otherwise."""
        self.tensors = {change(name): tensor for name, tensor in self.tensors.items()}
        return self

    def reshape(self, change: Callable[[str, tuple[int, ...]], tuple[int, ...]]) -> Self:
        """Give the tensors other shapes."""
        self.tensors = {name: (dtype, change(name, shape)) for name, (dtype, shape) in self.tensors.items()}
        return self

    def widen(self, times: int, only: str = "") -> Self:
        """Give the tensors with `only` in their name a rank that is so many times as high."""

        def wider(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
            if only not in name:
                return shape
            return (shape[0] * times, shape[1]) if "lora_A" in name else (shape[0], shape[1] * times)

        return self.reshape(wider)

    def typed(self, dtype: str) -> Self:
        """Have all tensors of another type."""
        self.tensors = {name: (dtype, shape) for name, (_, shape) in self.tensors.items()}
        return self

    def with_each_b(self, suffix: str, dtype: str = "BF16") -> Self:
        """Have a vector beside each lora_B, as long as its outputs."""
        for name, (_, shape) in list(self.tensors.items()):
            if name.endswith("lora_B.weight"):
                self.tensors[name.removesuffix("lora_B.weight") + suffix] = (dtype, shape[:1])
        return self

    def header(self, metadata: object = None, *, padding: int = 0, in_order: bool = True) -> Self:
        """Have another header: other metadata, spaces at its end, or its entries in another order."""
        self._metadata, self._padding, self._in_order = metadata, padding, in_order
        return self

    def weights(self, change: Callable[[bytes], bytes]) -> Self:
        """Change the bytes of the weights."""
        self._weights = change
        return self

    def then(self, change: Callable[[Path], object]) -> Self:
        """Change the folder after it was written."""
        self._after.append(change)
        return self

    def as_torch(self, name: str) -> Self:
        """Have the weights as a pickle of that name and not as safetensors."""
        return self.weightless().file(name, torch_file(self.tensors))

    def weightless(self) -> Self:
        """Have no safetensors file."""
        return self.then(lambda folder: (folder / WEIGHTS).unlink())

    def file(self, name: str, content: bytes) -> Self:
        """Have one more file."""
        return self.then(lambda folder: (folder / name).write_bytes(content))

    def write(self, folder: Path) -> Path:
        """Write it into `folder`, which is made."""
        header = header_of(self.tensors, self._metadata)
        if not self._in_order:
            header = dict(sorted(header.items(), reverse=True))
        folder.mkdir(parents=True)
        (folder / CONFIG).write_bytes(self._text(json.dumps(self.config, indent=1).encode()))
        (folder / WEIGHTS).write_bytes(self._weights(safetensors_file(header, self._padding)))
        for change in self._after:
            change(folder)
        return folder
