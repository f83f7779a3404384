"""NADs: against slow float64 oracles, closed forms, and the published array."""

import functools
import json
import os
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import SHAPE, decaying, network, point, relu_network, slow_secant, tanh_network, wide
from torch import nn

from nadkit import storage
from nadkit.data.published import published_nads
from nadkit.files import DataError
from nadkit.inputs import covariance as covariances
from nadkit.inputs import population
from nadkit.inputs.basis import pixel_basis
from nadkit.inputs.covariance import BLOCK, GradientCovariance, compute_nads, gradient_covariance, merged
from nadkit.inputs.spectra import (
    overlap_ceiling,
)

DATA = Path(os.environ.get("NADKIT_DATA", "."))


SIX = range(6)


def covariance(networks=SIX, **options):
    return gradient_covariance(tanh_network, **{"shape": SHAPE, "networks": networks, "device": "cpu"} | options)


@pytest.mark.parametrize("scale", [0.5, 100.0])
def test_covariance_of_secants_against_a_slow_oracle(scale):
    g = np.stack([slow_secant(network(i), point(), scale).numpy() for i in range(6)])
    found = covariance(scale=scale)
    assert found.count == 6
    np.testing.assert_allclose(found.covariance().numpy(), np.cov(g.T), rtol=1e-3, atol=1e-7 * np.abs(g).max())
    np.testing.assert_allclose(found.covariance(centred=False), g.T @ g / 6, rtol=1e-3, atol=1e-7 * np.abs(g).max())


def test_covariance_of_gradients_against_finite_differences():
    g = np.stack([slow_secant(network(i), point(), 1e-4).numpy() for i in range(6)])
    np.testing.assert_allclose(covariance(method="gradient").covariance(), np.cov(g.T), rtol=1e-3, atol=1e-6)


def test_memory_does_not_grow_with_the_networks():
    few, many = (
        sum(t.nbytes for t in vars(covariance(range(n))).values() if isinstance(t, torch.Tensor)) for n in (3, 30)
    )
    assert few == many == 2 * 8 * (16 + 16 * 16)  # of all networks, and of those of even number


def test_a_known_covariance_gives_its_known_directions():
    """Weights w_i ~ N(0, 4^-i) have the pixels as NADs; their eigenvalues are 4^-i, and 1 by mixed derivatives."""
    pixels = pixel_basis(SHAPE)
    for method in ("secant", "gradient"):
        nads = compute_nads(decaying, shape=SHAPE, n_networks=2000, method=method, scale=1.0, device="cpu")
        assert nads.overlap(pixels, 1) > 0.99
        assert nads.eigenvalues[:5] == pytest.approx([4.0**-i for i in range(5)], rel=0.15)
    linear = compute_nads(decaying, shape=SHAPE, n_networks=1, method="mixed", device="cpu")
    assert linear.eigenvalues == pytest.approx([1.0] * 16)  # d^2 f / dx dw is the identity


def test_blocks_parts_and_order_do_not_matter(monkeypatch):
    whole = covariance(range(7))
    monkeypatch.setitem(BLOCK, "secant", 2)
    late, early = covariance(range(3, 7)), covariance(range(3))
    joined = merged([late, early])
    assert joined.networks == [(0, 7)]
    assert late.networks == [(3, 7)]
    for other in (joined, covariance(range(7))):
        torch.testing.assert_close(other.total, whole.total)
        torch.testing.assert_close(other.second, whole.second)


def equal(one, other):
    facts = [(c.shape, c.settings, c.networks) for c in (one, other)]
    return facts[0] == facts[1] and torch.equal(one.total, other.total) and torch.equal(one.second, other.second)


@pytest.mark.parametrize("method", ["secant", "gradient", "mixed"])
def test_workers_give_what_one_process_gives(two_processes, small_parts, method):
    options = {"method": method, "x": torch.ones(SHAPE), "seed": 3}
    for networks in (range(7), range(3, 6)):
        assert equal(covariance(networks, executor=two_processes, **options), covariance(networks, **options))


def test_workers_take_what_a_notebook_defines(two_processes, small_parts):
    def defined_here(shape, classes):
        return nn.Sequential(tanh_network(shape, classes), nn.Tanh())

    options = {"shape": SHAPE, "n_networks": 5, "device": "cpu"}
    nads = compute_nads(defined_here, executor=two_processes, **options)
    assert torch.equal(nads.vectors, compute_nads(defined_here, **options).vectors)


def test_threads_give_what_one_process_gives(small_parts):
    """They share torch's global generators, from which the weights come."""
    with ThreadPoolExecutor(3) as pool:
        assert equal(covariance(range(9), executor=pool), covariance(range(9)))


def backwards(executor, function, tasks):
    """In place of `gather`: the last first."""
    return (function(*task) for task in reversed(list(tasks)))


def test_it_does_not_matter_which_worker_is_first(monkeypatch, small_parts):
    monkeypatch.setattr(covariances, "gather", backwards)
    assert equal(covariance(range(9), executor=Executor()), covariance(range(9)))


def test_an_interrupt_keeps_what_workers_have_finished(tmp_path, monkeypatch, small_parts):
    path, asked = tmp_path / "moments.safetensors", []

    def interrupted(executor, function, tasks):
        for task in reversed(list(tasks)):
            if task == (range(2, 4),) and len(asked) < 9:
                raise KeyboardInterrupt
            asked.append(task[0])
            yield function(*task)

    monkeypatch.setattr(covariances, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        covariance(range(9), executor=Executor(), checkpoint=path)
    assert GradientCovariance.load(path).networks == [(4, 9)]
    asked.extend(["later"] * 9)
    resumed = covariance(range(9), executor=Executor(), checkpoint=path)
    assert asked[-2:] == [range(2, 4), range(2)]
    assert equal(GradientCovariance.load(path), resumed)
    whole = covariance(range(9))
    torch.testing.assert_close(resumed.second, whole.second, rtol=0, atol=1e-14 * whole.second.abs().max().item())
    torch.testing.assert_close(resumed.total, whole.total, rtol=0, atol=1e-14 * whole.total.abs().max().item())


def test_workers_save_when_the_parts_before_are_there_too(tmp_path, monkeypatch, small_parts):
    def shuffled(executor, function, tasks):
        tasks = list(tasks)
        return (function(*tasks[i]) for i in ([1, 0, 3, 2] if len(tasks) == 4 else [0]))

    counts, save = [], GradientCovariance.save
    monkeypatch.setattr(GradientCovariance, "save", lambda self, p: (counts.append(self.count), save(self, p)))
    monkeypatch.setattr(covariances, "gather", shuffled)
    covariance(range(8), executor=Executor(), checkpoint=tmp_path / "moments.safetensors")
    assert counts == [0, 4, 8]


def test_one_checkpoint_serves_one_process_and_workers(tmp_path, two_processes, small_parts):
    path = tmp_path / "moments.safetensors"
    with pytest.raises(KeyboardInterrupt):
        interrupted_covariance(path)
    assert GradientCovariance.load(path).networks == [(0, 4)]
    assert equal(covariance(range(7), executor=two_processes, checkpoint=path), covariance(range(7)))
    with pytest.raises(ValueError, match="of another run"):
        covariance(range(7), executor=two_processes, checkpoint=path, seed=1)


def test_a_checkpoint_knows_networks_that_differ_in_a_plain_function_alone(tmp_path):
    class Activated(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.flatten, self.linear, self.activation = nn.Flatten(), nn.Linear(16, 1), activation

        def forward(self, x):
            return self.activation(self.linear(self.flatten(x)))

    def run(activation):
        def network(shape, classes):
            return Activated(activation)

        return gradient_covariance(
            network, shape=(1, 4, 4), networks=range(2), device="cpu", checkpoint=tmp_path / "moments.safetensors"
        )

    run(torch.tanh)
    with pytest.raises(ValueError, match="of another run"):
        run(torch.sigmoid)


class Switched(nn.Module):
    """Its layers say nothing of its activation."""

    activation = staticmethod(torch.relu)

    def __init__(self, shape, classes):
        super().__init__()
        self.hidden, self.out = nn.Linear(16, 5), nn.Linear(5, classes)

    def forward(self, x):
        return self.out(self.activation(self.hidden(x.flatten(1))))


@pytest.mark.parametrize("method", ["secant", "gradient", "mixed"])
@pytest.mark.parametrize("activation", [torch.tanh, nn.functional.relu6, nn.functional.leaky_relu])
def test_a_checkpoint_knows_what_networks_do(tmp_path, monkeypatch, method, activation):
    options = {"shape": SHAPE, "n_networks": 3, "method": method, "device": "cpu"}
    run = functools.partial(compute_nads, Switched, checkpoint=tmp_path / "moments.safetensors", **options)
    first = run()
    assert torch.equal(run().vectors, first.vectors)
    before = gradient_covariance(Switched, shape=SHAPE, networks=range(3), device="cpu")
    monkeypatch.setattr(Switched, "activation", staticmethod(activation))
    with pytest.raises(ValueError, match=r"of another run, name another file \(outputs differ by .* of the largest\)"):
        run()
    with pytest.raises(ValueError, match="equal settings, but outputs differ"):
        before.merge(gradient_covariance(Switched, shape=SHAPE, networks=range(3, 6), device="cpu"))


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    path = tmp_path / "moments.safetensors"
    old = covariance(range(4))
    del old.settings["outputs"]
    old.save(path)
    with pytest.raises(ValueError, match=r"another file \(outputs were not noted by the older version that wrote it\)"):
        covariance(range(4), checkpoint=path)


def interrupted_covariance(path):
    built = []

    def interrupted(shape, classes):
        built.append(shape)
        if len(built) == 1 + 6:
            raise KeyboardInterrupt
        return tanh_network(shape, classes)

    interrupted.__name__ = "tanh_network"
    return gradient_covariance(interrupted, shape=SHAPE, networks=range(7), device="cpu", checkpoint=path)


def test_an_error_of_a_worker_arrives(two_processes, small_parts):
    with pytest.raises(ValueError, match="expected 1 logit, got 10"):
        compute_nads(lambda shape, classes: tanh_network(shape, 10), shape=SHAPE, device="cpu", executor=two_processes)
    with pytest.raises(ValueError, match="did you mean 'lenet'"):
        compute_nads("lenot", executor=two_processes)
    with pytest.raises(ValueError, match="device 'tpu'"):
        compute_nads("lenet", device="tpu", executor=two_processes)


def test_the_bar_counts_networks(small_parts, capsys):
    with ThreadPoolExecutor(1) as pool:
        covariance(range(5), executor=pool, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "networks"), [((5, 16), (0, 10)), ((5, 16), (0, 4)), ((5, 9), (0, 5)), ((16,), (0, 1))]
)
def test_derivatives_that_are_not_one_for_each_network_are_refused(shape, networks):
    moments = covariance(range(2))
    with pytest.raises(ValueError, match=r"derivatives: expected \d+ of 16 numbers"):
        moments.update(torch.zeros(shape), (2 + networks[0], 2 + networks[1]))
    assert moments.count == 2


def test_merging_refuses_what_would_count_twice_or_differ():
    with pytest.raises(ValueError, match="at least one"):
        merged([])
    with pytest.raises(ValueError, match="seen before"):
        covariance(range(4)).merge(covariance(range(3, 6)))
    with pytest.raises(ValueError, match="equal settings"):
        covariance(range(2)).merge(covariance(range(2, 4), seed=1))
    with pytest.raises(ValueError, match="equal settings"):
        covariance(range(2)).merge(covariance(range(2, 4), x=torch.ones(SHAPE)))


@pytest.mark.parametrize(
    "pair",
    [
        (lambda shape, classes: wide(shape, classes), lambda shape, classes: tanh_network(shape, classes)),
        # as many weights, other layers
        (lambda shape, classes: relu_network(shape, classes), lambda shape, classes: tanh_network(shape, classes)),
    ],
)
def test_factories_of_one_name_are_not_merged(pair):
    one, other = (gradient_covariance(f, shape=SHAPE, networks=range(1), device="cpu") for f in pair)
    assert one.settings["architecture"] == other.settings["architecture"]
    json.dumps(one.settings)
    with pytest.raises(ValueError, match="equal settings"):
        one.merge(other)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, monkeypatch):
    path = tmp_path / "moments.safetensors"
    monkeypatch.setitem(BLOCK, "secant", 2)
    built = []

    def interrupted(shape, classes):
        built.append(shape)
        if len(built) == 7:
            raise KeyboardInterrupt
        return tanh_network(shape, classes)

    interrupted.__name__ = "tanh_network"
    options = {"shape": SHAPE, "networks": range(7), "device": "cpu", "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        gradient_covariance(interrupted, **options)
    assert GradientCovariance.load(path).networks == [(0, 4)]
    resumed = gradient_covariance(interrupted, **options)
    assert len(built) == 7 + 1 + 3  # only the missing three; network 0 once, to know the run again
    torch.testing.assert_close(resumed.second, covariance(range(7)).second)
    assert gradient_covariance(interrupted, **options).count == 7
    assert len(built) == 11 + 1


def test_mixed_derivatives_are_saved_every_16_networks(tmp_path, monkeypatch):
    path, counts = tmp_path / "moments.safetensors", []
    save = GradientCovariance.save
    monkeypatch.setattr(GradientCovariance, "save", lambda self, p: (counts.append(self.count), save(self, p)))
    covariance(range(35), method="mixed", checkpoint=path)
    assert counts == [0, 16, 32, 35]


def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(population, "secant", pytest.fail)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        covariance(checkpoint=tmp_path / "file" / "moments.safetensors")
    with pytest.raises(ValueError, match="expected a file, found a folder"):
        covariance(checkpoint=tmp_path)


@pytest.mark.parametrize("missing", ["shape", "settings", "networks"])
def test_a_checkpoint_without_its_description_is_damaged(tmp_path, missing):
    path = tmp_path / "moments.safetensors"
    plain = {"shape": SHAPE, "settings": {}, "networks": []}
    del plain[missing]
    tensors = {"total": torch.zeros(16), "second": torch.zeros(16, 16)}
    storage.write(path, "GradientCovariance", tensors, plain)
    with pytest.raises(ValueError, match="damaged"):
        GradientCovariance.load(path)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "moments.safetensors"
    covariance(range(4), checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="of another run"):
        covariance(range(4), checkpoint=path, seed=1)
    with pytest.raises(ValueError, match="holds networks 0 to 3"):
        covariance(range(2), checkpoint=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:50])
    with pytest.raises(ValueError, match="damaged"):
        covariance(range(4), checkpoint=path)


def test_the_same_seed_gives_the_same_nads():
    nads = [compute_nads("lenet", shape=(1, 16, 16), n_networks=3, seed=s, device="cpu") for s in (0, 0, 1)]
    assert torch.equal(nads[0].vectors, nads[1].vectors)
    assert not torch.equal(nads[0].vectors, nads[2].vectors)


def test_windows_do_not_change_the_numbers(two_processes):
    plain, local, on_workers = (
        gradient_covariance("lenet", shape=(1, 16, 16), networks=range(3), device="cpu", **options)
        for options in ({}, {"local": True}, {"local": True, "executor": two_processes})
    )
    largest = plain.second.abs().max().item()
    torch.testing.assert_close(local.second, plain.second, rtol=1e-4, atol=1e-5 * largest)
    assert not torch.equal(local.second, plain.second)
    assert torch.equal(local.second, on_workers.second)


def test_many_networks_are_taken_in_windows(monkeypatch):
    def second(**options):
        return gradient_covariance("lenet", shape=(1, 16, 16), networks=range(3), device="cpu", **options).second

    assert torch.equal(second(), second(local=False))
    monkeypatch.setattr("nadkit.inputs.covariance.LOCAL_FROM", 3)
    assert torch.equal(second(), second(local=True))


def test_eval_mode_and_no_gradients_in_the_networks():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 1)

        def forward(self, x):
            seen.append((self.training, self.linear.weight.requires_grad))
            return self.linear(x.flatten(1))

    gradient_covariance(lambda shape, classes: Spy(), shape=SHAPE, networks=range(2), device="cpu")
    assert set(seen) == {(False, False)}


def test_nads_are_complete_ordered_and_carry_their_settings():
    nads = compute_nads(tanh_network, shape=SHAPE, n_networks=30, seed=4, device="cpu")
    assert nads.vectors.shape == (16, 16)
    assert (nads.eigenvalues.diff() <= 0).all()
    assert nads.n_networks == 30
    assert nads.settings["architecture"] == "tanh_network"
    assert nads.settings["seed"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "secand"}, "expected one of secant, gradient, mixed"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("inf")}, "scale"),
        ({"x": torch.zeros(1, 4, 5)}, "expected shape"),
        ({"x": torch.full(SHAPE, torch.nan)}, "NaN"),
        ({"n_networks": 1}, "at least 2"),
        ({"n_networks": 0, "method": "mixed"}, "at least 1"),
        ({"n_networks": 2.5}, "n_networks: expected an integer"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"device": "tpu9"}, "device"),
    ],
)
def test_impossible_requests_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        compute_nads(tanh_network, **{"shape": SHAPE, "n_networks": 3} | options)


def test_too_few_networks_are_refused_before_any_work():
    with pytest.raises(ValueError, match="at least 2"):
        compute_nads(lambda **_: pytest.fail("built a network"), shape=SHAPE, n_networks=1, device="cpu")


def test_a_network_of_many_logits_is_refused():
    with pytest.raises(ValueError, match="'<lambda>': expected 1 logit, got 10"):
        compute_nads(lambda shape, classes: tanh_network(shape, 10), shape=SHAPE, n_networks=3, device="cpu")


def test_a_network_of_another_precision_is_refused():
    with pytest.raises(
        ValueError, match=r"expected weights in torch.float32, as the point x, got torch.float64; return"
    ):
        compute_nads(
            lambda shape, classes: tanh_network(shape, classes).double(), shape=SHAPE, n_networks=3, device="cpu"
        )


def test_networks_without_pooling_have_a_name():
    nads = compute_nads("lenet-nopool", shape=(1, 9, 9), n_networks=2, device="cpu")
    assert nads.settings["architecture"] == "lenet-nopool"


def test_networks_that_do_not_see_the_input_are_explained():
    def dead(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 1).apply(lambda m: nn.init.zeros_(m.weight)))

    with pytest.raises(ValueError, match="all input derivatives are zero"):
        compute_nads(dead, shape=SHAPE, n_networks=3, device="cpu")


@pytest.mark.parametrize("n_networks", [2, 7])
@pytest.mark.parametrize("method", ["secant", "gradient"])
def test_networks_that_are_all_the_same_are_explained(method, n_networks):
    def of_one_seed(shape, classes):
        torch.manual_seed(0)
        return tanh_network(shape, classes)

    weights = tanh_network(SHAPE, 1).state_dict()

    def loaded(shape, classes):
        model = tanh_network(shape, classes)
        model.load_state_dict(weights)
        return model

    for same in (of_one_seed, loaded):
        with pytest.raises(ValueError, match=f"the {n_networks} networks are all the same: .*neither sets a seed nor"):
            compute_nads(same, shape=SHAPE, n_networks=n_networks, method=method, device="cpu")


def test_networks_that_are_nearly_the_same_have_directions():
    """By 1e-4 of their weights, which is more than float32 rounds."""

    def near(shape, classes):
        model, own = tanh_network(shape, classes), tanh_network(shape, classes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            common = tanh_network(shape, classes)
        for w, v, c in zip(model.parameters(), own.parameters(), common.parameters(), strict=True):
            w.data = c.data + 1e-4 * v.data
        return model

    assert compute_nads(near, shape=SHAPE, n_networks=5, method="gradient", device="cpu").eigenvalues[0] > 0


@pytest.mark.parametrize(("method", "networks"), [("secant", "0 to 2"), ("gradient", "0 to 2"), ("mixed", "0 to 0")])
def test_networks_that_blow_up_are_named(method, networks):
    def broken(shape, classes):
        model = tanh_network(shape, classes)
        nn.init.constant_(model[3].weight, torch.nan)
        return model

    with pytest.raises(ValueError, match=f"networks {networks}.*NaN or infinite"):
        compute_nads(broken, shape=SHAPE, n_networks=3, method=method, device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_directions():
    """Other networks (the generators differ), the same covariance within sampling error."""
    cpu, gpu = (
        compute_nads("lenet", shape=(1, 16, 16), n_networks=1000, scale=100.0, device=device)
        for device in ("cpu", "cuda")
    )
    for nads in (cpu, gpu):
        expected = nads.reproducibility(10)
        assert abs(gpu.overlap(cpu, 10) - expected.value) <= expected.error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["secant", "gradient"])
def test_a_gpu_gives_the_same_numbers_again(method):
    one, two = (
        gradient_covariance("resnet18", shape=(1, 16, 16), networks=range(3), method=method, device="cuda")
        for _ in range(2)
    )
    assert torch.equal(one.second, two.second)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "published" / "LeNet_NADs.npy").exists(), reason="NADKIT_DATA has no published NADs")
def test_lenet_nads_approach_the_published_ones_up_to_sampling():
    published = published_nads("lenet")
    nads = compute_nads("lenet", n_networks=300, device="cpu")
    for k in (1, 10, 50):
        ceiling = overlap_ceiling(published.eigenvalues, k, n_networks=(300, published.n_networks))
        assert nads.overlap(published, k) > 0.85 * ceiling.mean
