"""The finished ones of many trainings: in memory, as histories in one JSON file, or as networks in a folder."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nadkit import files, identity, storage
from nadkit.training.fitting import History

Weights = dict[int, dict[str, Tensor]]
"""Epoch -> state dict."""

Result = tuple[int, History, Weights]
"""A network's number in its run, what its training measured, and the weights that were kept."""

Settings = Mapping[str, Any]
"""What a training depends on, in numbers and words that JSON holds."""

KIND = "trained network"


class Memory:
    """Finished trainings by their number, kept only until the run ends."""

    def __init__(self) -> None:
        self.finished: dict[int, tuple[History, Weights]] = {}

    def add(self, results: Iterable[Result]) -> None:
        """Add networks that are finished."""
        self.finished |= {i: (history, weights) for i, history, weights in results}


class HistoryFile(Memory):
    """Histories in one JSON file, written at once: a file that cannot be written should fail before the training.

    Raises:
        ValueError: the path is a folder; the file is damaged or of a run with other settings.
        DataError: it cannot be written.
    """

    def __init__(self, path: str | Path, settings: Settings) -> None:
        super().__init__()
        self.path, self.settings = Path(path), settings
        if self.path.is_dir():
            raise ValueError(f"{path}: expected a file, found a folder")
        if self.path.exists():
            try:
                content = json.loads(self.path.read_bytes())
                other = identity.differences(content["settings"], settings)
                self.finished = {int(i): (History(**history), {}) for i, history in content["networks"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: a damaged checkpoint; delete it to start afresh ({error})") from error
            if other:
                raise ValueError(f"{path}: a checkpoint of another run, name another file ({other})")
        self._write()

    def add(self, results: Iterable[Result]) -> None:
        """Add networks that are finished, and write all."""
        super().add(results)
        self._write()

    def _write(self) -> None:
        networks = {i: vars(self.finished[i][0]) for i in sorted(self.finished)}
        with files.atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps({"settings": self.settings, "networks": networks}))


class NetworkFolder(Memory):
    """Networks in a folder, each in a safetensors file of its own with its history and its settings.

    Raises:
        ValueError: the path is a file; a network's file is damaged, or of a training with other settings.
        DataError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, settings: Mapping[int, Settings]) -> None:
        super().__init__()
        self.folder, self.settings = Path(folder), settings
        if self.folder.is_file():
            raise ValueError(f"{folder}: expected a folder, found a file")
        with files.atomic_write(self.folder / "writable") as temporary:  # should fail before the training, if at all
            temporary.touch()
        (self.folder / "writable").unlink()
        self.finished = {i: self._read(i) for i in settings if self.path(i).exists()}

    def path(self, i: int) -> Path:
        """Return the file of network i."""
        return self.folder / f"network-{i}.safetensors"

    def add(self, results: Iterable[Result]) -> None:
        """Add networks that are finished, and write their files."""
        results = list(results)
        super().add(results)
        for i, history, weights in results:
            tensors = {f"{epoch}/{name}": t for epoch, state in weights.items() for name, t in state.items()}
            facts = {"settings": self.settings[i], "history": vars(history)}
            storage.write(self.path(i), KIND, tensors, facts)

    def _read(self, i: int) -> tuple[History, Weights]:
        tensors, facts = storage.read(self.path(i), KIND)
        weights: Weights = {}
        try:
            other = identity.differences(facts["settings"], self.settings[i])
            history = History(**facts["history"])
            for key in sorted(tensors, key=lambda key: int(key.partition("/")[0])):
                epoch, _, name = key.partition("/")
                weights.setdefault(int(epoch), {})[name] = tensors[key]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path(i)}: a damaged checkpoint; delete it to train anew ({error})") from error
        if other:
            raise ValueError(f"{self.path(i)}: a checkpoint of another run, name another folder ({other})")
        return history, weights
