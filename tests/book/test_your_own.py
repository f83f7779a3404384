"""The chapter about one's own network: it runs on what a user has, and says what does not fit before anything runs."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from nadkit.book.chapters import cell_source, load
from nadkit.book.cli import main
from nadkit.files import DataError

ROOT = Path(__file__).parents[2]
NAME = "practice/your-own"
CHAPTER = load(ROOT, NAME)
VISIBLE = 20
"""Lines of code, give or take a few, in which the measurements are made."""

MODULE = """\
import math

from torch import nn

def net(shape, classes):
    first = [nn.Conv2d(shape[0], 4, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(16, classes))

def ten(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.ReLU(), nn.Linear(8, 10))

def square(size):
    return nn.Flatten()

def linear(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))

def lazy(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.ReLU(), nn.LazyLinear(classes))

def double(shape, classes):
    return net(shape, classes).double()

class Pair(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.last = nn.Linear(3, classes)

    def forward(self, x):
        return self.last(x.mean((2, 3))), x

def pair(shape, classes):
    return Pair(classes)

class Broken(Pair):
    def forward(self, x):
        return self.last(x.flatten(1))

def broken(shape, classes):
    return Broken(classes)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A user's folder, outside the book: a module, and few small colour images of different sizes."""
    (tmp_path / "mine.py").write_text(MODULE)
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 128, (10 + i, 12, 3)) + 100 * label
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_it_runs_on_a_network_and_a_folder_of_the_user(work, capsys):
    own = ["-p", "network=mine:net", "-p", "images=folder:pictures", "-p", "size=8"]
    assert main(["run", NAME, "--profile", "smoke", "--root", str(ROOT), "--out", "out.ipynb", *own]) == 0
    assert "own-first-nad" in capsys.readouterr().out
    text = "".join(str(cell.get("outputs", "")) for cell in nbformat.read("out.ipynb", as_version=4).cells)
    for said in ("network: mine:net", "image folder", "12 and 6 of them", "AUROC"):  # no index is defined for GELU
        assert said in text


def test_the_measurements_take_about_twenty_visible_lines():
    shown = [c for c in CHAPTER.notebook["cells"] if c["cell_type"] == "code" and not c["metadata"].get("tags")]
    lines = [line for cell in shown for line in cell_source(cell).splitlines() if line.strip()]
    assert len(lines) <= 1.5 * VISIBLE


def begun(**values: object) -> dict:
    """Run the chapter up to its check, with these parameters, and return its variables."""
    state: dict = {}
    for cell in CHAPTER.notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(cell_source(cell), state)
            state |= values if cell["id"] == "parameters" else {}
        if cell["id"] == "check":
            return state
    raise AssertionError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "mine:ten"}, "'mine:ten': asked for 2 classes, it has 10 logits; let the last layer"),
        (
            {"network": "mine:double"},
            "'mine:double': expected weights in float32, got torch.float64; return network.float",
        ),
        ({"network": "mine:pair"}, "to logits .*, got tuple; let forward return the logits alone"),
        ({"network": "mine:broken"}, r"shapes cannot be multiplied .* \(mine.py, line \d+, in forward\)"),
        ({"network": "mine:square"}, r"'mine:square': expected a factory\(shape=\(C, H, W\), classes=K\), but"),
        ({"network": "mine:linear"}, "no activation in Sequential"),
        ({"network": "mine:lazy"}, "'mine:lazy': expected layers with weights, got lazy ones"),
        ({"network": "mine:nett"}, "'mine' has no 'nett'; did you mean 'net'"),
        ({"size": 64}, r"12,288 numbers here.*set size=32, or channels=1"),
        ({"indices": [0, 9], "n_networks": 10}, "10 networks have 9 NADs, got 9"),
        ({"n_test": 1}, r"an image of each of 2 classes, got \(12, 1\)"),
        ({"network": "lenet"}, "lenet: expected images of at least 16x16, got 8x8"),
    ],
)
def test_what_does_not_fit_is_said_at_once(work, values, said):
    with pytest.raises(ValueError, match=said):
        begun(**({"images": "folder:pictures", "network": "mine:net", "size": 8, "indices": [0]} | values))


def test_a_folder_that_does_not_fit_is_said_at_once(work, capsys):
    with pytest.raises(DataError, match=r"pixels, .*give a size to which all are resized"):
        begun(images="folder:pictures", size=None)
    for name in ("train", "test"):
        (work / "pictures" / name / "dog").rename(work / f"{name}-dog")
    with pytest.raises(ValueError, match=r"expected at least two classes, got \('cat',\): a folder for each class"):
        begun(images="folder:pictures", size=8)
    (work / "pictures" / "test").rename(work / "elsewhere")
    with pytest.raises(DataError, match="test: expected a folder of images per class; looked for test or val"):
        begun(images="folder:pictures", size=8)
    wrong = ["run", NAME, "--root", str(ROOT), "--out", "out.ipynb", "-p"]
    for folder, said in {"picture": "there is no folder", "pictures": "pictures/test: expected a folder"}.items():
        assert main([*wrong, f"images=folder:{folder}"]) == 2
        assert re.search(f"images: .*{said}", capsys.readouterr().err)
    assert main([*wrong, "network=mine"]) == 2
    assert "unknown architecture 'mine'" in capsys.readouterr().err
    assert not (work / "out.ipynb").exists()
