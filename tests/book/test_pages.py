"""Tests of the pieces of pages."""

import base64
import io
import re

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from nadkit.book import pages


def test_a_packed_image_is_words_that_give_it_back_to_8_bits():
    images = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    words = [pages.packed(image) for image in images]
    assert all(isinstance(word, str) for word in words)
    scaled = images / images.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(pages.unpacked(words), scaled.double(), atol=0.5 / 127 + 1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, -1e6])
def test_packing_forgets_the_scale_and_keeps_the_sign(scale):
    image = torch.tensor([[0.0, 1.0], [-0.4, 0.2]])
    assert pages.packed(image.double() * scale) == pages.packed(image * (1 if scale > 0 else -1))


def test_an_image_of_zeros_stays_one():
    assert not pages.unpacked([pages.packed(torch.zeros(4, 4))]).any()


def test_a_duration_has_the_unit_that_suits_it():
    said = [pages.duration(seconds) for seconds in (0.4, 45, 119, 120, 3840, 7200, 9000, 54_000)]
    assert said == ["0 s", "45 s", "119 s", "2 min", "64 min", "2 h", "2.5 h", "15 h"]


def test_the_first_of_some_tabs():
    page = pages.tabs([("recorded: 3 < 4", "<p>best</p>\n<div>inside</div>"), ("this run", "<p>live</p>")])
    assert pages.first_panel(page) == ("recorded: 3 &lt; 4", "<p>best</p>\n<div>inside</div>")
    assert pages.first_panel("<p>live</p>") == ("this run", "<p>live</p>")


def test_a_figure_is_drawn_as_matplotlib_saves_it_tightly():
    def figure():
        made, axes = plt.subplots(1, 2, figsize=(6, 2), layout="constrained")
        axes[0].plot([0, 1], [1, 300], label="a long name")
        axes[0].legend(bbox_to_anchor=(1, 1), loc="upper left")
        axes[1].imshow(np.arange(6).reshape(2, 3))
        axes[1].set(title="An image", yscale="symlog")
        return made

    page, pdf = pages.drawn(figure(), "What it shows")
    (ours,) = re.findall('base64,([^"]+)', page)
    expected = io.BytesIO()
    figure().savefig(expected, format="png", dpi=pages.SHARPNESS * plt.rcParams["figure.dpi"], bbox_inches="tight")
    assert np.array_equal(
        *map(matplotlib.image.imread, (io.BytesIO(base64.b64decode(ours)), io.BytesIO(expected.getvalue())))
    )
    assert base64.b64decode(pdf).startswith(b"%PDF")
    plt.close("all")
