"""Random draws have addresses."""

import numpy as np
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


def test_seeding_one_device_leaves_the_others_alone(monkeypatch):
    """torch.manual_seed would reseed every GPU of the machine."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)
    monkeypatch.setattr(torch, "manual_seed", pytest.fail)
    with seeds.seeded(5, "weights", device="cpu"):
        torch.rand(3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpus_generator_is_seeded_and_given_back():
    draws = {}
    for device in ("cpu", "cuda"):
        torch.cuda.manual_seed(11)
        with seeds.seeded(5, device=device):
            draws[device] = torch.randn(3, device="cuda")
        draws[f"after {device}"] = torch.randn(3, device="cuda")
    torch.cuda.manual_seed(11)
    first, second = torch.randn(3, device="cuda"), torch.randn(3, device="cuda")
    assert torch.equal(draws["cpu"], first)
    assert torch.equal(draws["after cpu"], second)
    assert not torch.equal(draws["cuda"], first)
    assert torch.equal(draws["after cuda"], first)


def test_the_generator_comes_back_after_an_error():
    torch.manual_seed(11)
    expected = torch.get_rng_state()
    with pytest.raises(KeyError), seeds.seeded(5):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None])
def test_an_impossible_seed_is_explained(seed):
    with pytest.raises(ValueError, match="seed: expected an integer, at least 0, got"):
        seeds.derive(seed, "x")


def test_numpy_integers_are_seeds():
    assert seeds.derive(np.int64(3), "x") == seeds.derive(3, "x")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu0", "meta", "xpu", None])
def test_an_unusable_device_is_named(name):
    with pytest.raises(ValueError, match="device"):
        devices.pick(name)
