"""torchvision's networks with their ImageNet weights, where the user has the file.

`torch.hub.load_state_dict_from_url` checks a file that it downloads, but not one that is already there. A user may have
put that one there, or a full disk may have cut it short. So a file is verified here every time before it is read. It is
downloaded as all data are (`files.fetch`), into the user's data folder and with a limit on the server's silence.
"""

import pickle
import re
from enum import EnumType
from pathlib import Path

import torch
from torch import Tensor, nn

from nadkit import checks, files
from nadkit.files import DataError
from nadkit.names import hint

FOLDER = "weights"
"""The folder of weights below a data folder."""

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations of ImageNet's red, green and blue in units of [0, 1], by which ``"resnet50"`` and most others
expect their inputs to be standardised."""

_CONVERTED = ("densenet", "googlenet", "inception")


@checks.typed
def pretrained(name: str = "resnet50", *, weights: str | Path | None = None, download: bool = False) -> nn.Module:
    """Return a torchvision network with ImageNet weights, in eval mode: (B, 3, H, W) float32 -> (B, 1000) logits.

    Inputs are RGB, from 0 to 1 and then standardised by `IMAGENET_STATISTICS`, mostly of 224x224 pixels; logits are in
    the order of the classes' WordNet ids. The file of weights is looked for under torchvision's name for it, for
    instance ``resnet50-0676ba61.pth``: in ``weights`` below the data folders, then among torch.hub's checkpoints. The
    digits in its name begin its SHA-256, which is verified every time.

    Args:
        name: a classification network of torchvision; not a DenseNet, GoogLeNet or Inception.
        weights: torchvision's name for a set of weights, such as ``"IMAGENET1K_V2"``, or the path of a file, which
            is verified if its name ends in such digits. None is the first set, for ``"resnet50"`` ``"IMAGENET1K_V1"``.
        download: whether missing weights are downloaded to the first data folder that can be written to.

    Raises:
        ValueError: torchvision has no such network, or no such weights for it; near misses are suggested.
        DataError: the file is missing, cannot be fetched, is damaged, or belongs to another network.
    """
    from torchvision import models  # takes a second to import, and few runs need it

    name = name.removeprefix("torchvision:")
    names = [n for n in models.list_models(module=models) if not n.startswith(_CONVERTED)]
    if name.startswith(_CONVERTED):
        raise ValueError(f"{name}: torchvision converts these weights itself; use torchvision.models.get_model")
    if name not in names:
        raise ValueError(f"torchvision has no classification model {name!r}{hint(name, names)}")
    url = _url(name, models.get_model_weights(name), weights)
    path = Path(weights) if url is None else _find(url) or _fetch(name, url, download)
    state = _read(path)
    with torch.random.fork_rng([]):  # the initial weights are drawn, then overwritten
        model = models.get_model(name, weights=None)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"{path} does not hold weights of {name}: {error}") from error
    return model.eval()


def _url(name: str, known: EnumType, weights: str | Path | None) -> str | None:
    """Return where the named weights come from, or None where ``weights`` is the path of a file."""
    if weights is None:
        return next(iter(known)).url
    if weights in known.__members__:
        return known[weights].url
    if not Path(weights).is_file():
        sets = ", ".join(known.__members__)
        raise ValueError(
            f"weights: expected a file or one of {sets}, got {str(weights)!r}, which is neither"
            f"{hint(str(weights), known.__members__)} ({name})"
        )
    return None


def _find(url: str) -> Path | None:
    """Return the file that torchvision would download from ``url``, or None."""
    file = _file(url)
    in_hub = _checkpoints() / file
    return files.find(f"{FOLDER}/{file}") or (in_hub if in_hub.is_file() else None)


def _fetch(name: str, url: str, download: bool) -> Path:
    looked_for = f"{files.describe_search([f'{FOLDER}/{_file(url)}'])} and {_file(url)} in {_checkpoints()}"
    if not download:
        raise DataError(
            f"no weights of {name}: {looked_for}; call pretrained(..., download=True), or fetch {url} by hand"
        )
    try:
        path = files.fetch(url, files.download_folder() / FOLDER / _file(url))
    except DataError as error:
        raise DataError(f"no weights of {name}: {looked_for}; {error}") from error
    if fault := _fault(path):
        path.unlink()
        raise DataError(f"the download of {url} {fault}; try again, or fetch it by hand and put it at {path}")
    return path


def _read(path: Path) -> dict[str, Tensor]:
    """Verify a file of weights, and only then read it; tensors alone are accepted, no code."""
    if fault := _fault(path):
        raise DataError(f"{path} {fault}; delete it and run again, or put a good copy in its place")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: expected a file of weights that torch.save wrote: {error}") from error


def _fault(path: Path) -> str | None:
    """Say what is wrong with a file whose name ends in the first digits of its SHA-256, or return None."""
    digits = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if digits is None or (found := files.sha256(path)).startswith(digits[1]):
        return None
    return f"is damaged: expected a SHA-256 that begins with {digits[1]}, got {found}"


def _file(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _checkpoints() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
