"""Results on disk: tensors and a few plain facts in one safetensors file, which is data and never code."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nadkit.files import atomic_write


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-plain facts, whole or not at all; ``kind`` says what they are.

    Raises:
        DataError: the file cannot be written (no space, no permission).
    """
    metadata = {"nadkit": json.dumps({"kind": kind, **facts})}
    content = safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata)
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(content)


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and facts of a file that `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, a damaged file, or one of another kind.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a file, found a folder")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("nadkit", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: a damaged file, or not a safetensors file; delete it ({error})") from error
    found = facts.pop("kind", None)
    if found != kind:
        raise ValueError(f"{path}: expected a saved {kind}, found {found or 'something else'}")
    return tensors, facts


def digest(*parts: str | Tensor, digits: int = 12) -> str:
    """Return the first hexadecimal digits of the SHA-256 of texts and of the numbers in tensors, one after another.

    Of a tensor, only the bytes count; `described` adds its type and shape.
    """
    checksum = hashlib.sha256()
    for part in parts:
        checksum.update(part.encode() if isinstance(part, str) else _bytes(part))
    return checksum.hexdigest()[:digits]


def described(tensors: Iterable[Tensor], between: str = "") -> Iterator[str | Tensor]:
    """Give each tensor after its type and shape as text: the parts of a `digest` in which these count, too."""
    for values in tensors:
        yield f"{values.dtype}{between}{tuple(values.shape)}"
        yield values


def _bytes(values: Tensor) -> memoryview:
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
