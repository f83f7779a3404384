"""Sites of torchvision's classification networks: the oracle of `benchmarks.families` on small members of each."""

import pytest
import torch

from benchmarks.families import SMALL, compare, network
from nadkit.activations.sites import find_sites


@pytest.mark.parametrize("name", SMALL)
def test_units_impact_and_selectivity_are_the_oracles(name):
    row = compare(name)
    assert row.met == row.found == row.right > 0
    assert row.effect > 1e-5
    assert row.loss < min(1e-4, row.effect / 100)
    assert row.accuracy == row.auroc == 0
    assert row.mean < 1e-5


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16"])
def test_hidden_units_of_the_last_block_are_units_and_no_rows_or_tokens(name):
    model, (x, _) = network(name)
    assert find_sites(model, x.shape[1:])[-1].units == 3072


def test_a_family_in_half_precision_has_the_same_sites():
    model, (x, _) = network("swin_t")
    assert find_sites(model.to(torch.bfloat16), x.shape[1:]) == find_sites(model.float(), x.shape[1:])
