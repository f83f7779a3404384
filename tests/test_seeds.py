"""Random draws have addresses."""

import pytest
import torch

from nadkit import devices, seeds


def test_the_same_address_gives_the_same_numbers():
    first, second = (torch.randn(5, generator=seeds.generator(3, "noise", 7)) for _ in range(2))
    assert torch.equal(first, second)


def test_other_seeds_and_paths_give_other_numbers():
    addresses = [(0,), (1,), (0, 0), (0, 1), (0, "a"), (0, "b"), (0, "a", 1), (1, "a", 0)]
    assert len({seeds.derive(*address) for address in addresses}) == len(addresses)


def test_derived_seeds_fit_where_torch_takes_them():
    for i in range(100):
        torch.Generator().manual_seed(seeds.derive(i, "x"))
        assert 0 <= seeds.derive(i, "x") < 2**63


def test_seeded_gives_the_global_generator_back():
    torch.manual_seed(11)
    expected = torch.randn(3)
    torch.manual_seed(11)
    with seeds.seeded(5, "weights"):
        first = torch.randn(3)
    assert torch.equal(torch.randn(3), expected)
    torch.rand(17)
    with seeds.seeded(5, "weights"):
        assert torch.equal(torch.randn(3), first)


def test_auto_picks_a_device_that_works():
    assert torch.zeros(1, device=devices.pick("auto")).item() == 0


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu0"])
def test_an_unusable_device_is_named(name):
    with pytest.raises(ValueError, match="device"):
        devices.pick(name)
