"""NADs: against slow float64 oracles, closed forms, and the published array."""

import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nadkit import architectures, seeds, storage
from nadkit.files import DataError
from nadkit.inputs import anisotropy, directions
from nadkit.inputs.anisotropy import (
    GradientCovariance,
    compute_nads,
    gradient_covariance,
    leading_nads,
    with_batch_statistics,
)

SHAPE = (1, 4, 4)
DATA = Path(os.environ.get("NADKIT_DATA", "."))


def tanh_network(shape, classes):
    size = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, classes))


def decaying(shape, classes):
    """A linear network whose weight i is N(0, 4^-i): covariance and NADs are known in closed form."""
    size = shape[0] * shape[1] * shape[2]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, classes, bias=False))
    nn.init.normal_(model[1].weight)
    with torch.no_grad():
        model[1].weight *= 0.5 ** torch.arange(size)
    return model


SIX = range(6)


def covariance(networks=SIX, **options):
    return gradient_covariance(tanh_network, **{"shape": SHAPE, "networks": networks, "device": "cpu"} | options)


def point(seed=0):
    return torch.randn(SHAPE, generator=seeds.generator(seed, "point"))


def network(i, seed=0):
    with seeds.seeded(seed, "network", i):
        return tanh_network(SHAPE, 1).eval()


def slow_secant(model, x, scale):
    """One pixel at a time, in float64."""
    model, x = model.double(), x.double()
    g = []
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=torch.float64)
        step[i] = scale
        step = step.view(x.shape)
        g.append((model((x + step)[None]) - model((x - step)[None])).item() / (2 * scale))
    return torch.tensor(g, dtype=torch.float64)


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


def test_mixed_derivative_against_autograd():
    model, x = network(0).double(), point().double()
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(z[None]).squeeze(), z, create_graph=True)
    weights = list(model.parameters())
    rows = []
    for component in g.flatten():
        parts = torch.autograd.grad(component, weights, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(anisotropy.mixed_moment(model, x), jacobian @ jacobian.T)


def test_mixed_derivative_of_lenet_against_autograd():
    """A few entries: J J^T between unit vectors at four pixels."""
    with seeds.seeded(0):
        model = architectures.build("lenet", shape=(1, 16, 16), classes=1).double().eval()
    x = torch.randn(1, 16, 16, dtype=torch.float64, generator=seeds.generator(0, "x"))
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(z[None]).squeeze(), z, create_graph=True)
    pixels = [0, 37, 120, 136]
    rows = []
    for i in pixels:
        parts = torch.autograd.grad(g.flatten()[i], list(model.parameters()), retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    found = anisotropy.mixed_moment(model, x)[pixels][:, pixels]
    assert found.diagonal().min() > 0
    torch.testing.assert_close(found, jacobian @ jacobian.T)


def test_memory_does_not_grow_with_the_networks():
    few, many = (
        sum(t.nbytes for t in vars(covariance(range(n))).values() if isinstance(t, torch.Tensor)) for n in (3, 30)
    )
    assert few == many == 8 * (16 + 16 * 16)


def test_a_known_covariance_gives_its_known_directions():
    """Weights w_i ~ N(0, 4^-i) have the pixels as NADs; their eigenvalues are 4^-i, and 1 by mixed derivatives."""
    pixels = directions.pixel(SHAPE)
    for method in ("secant", "gradient"):
        nads = compute_nads(decaying, shape=SHAPE, n_networks=2000, method=method, scale=1.0, device="cpu")
        assert nads.overlap(pixels, 1) > 0.99
        assert nads.eigenvalues[:5] == pytest.approx([4.0**-i for i in range(5)], rel=0.15)
    linear = compute_nads(decaying, shape=SHAPE, n_networks=1, method="mixed", device="cpu")
    assert linear.eigenvalues == pytest.approx([1.0] * 16)  # d^2 f / dx dw is the identity
    assert linear.singular_values == pytest.approx([1.0] * 16)


def test_linear_networks_are_isotropic_within_sampling_error():
    n = 400
    nads = compute_nads("logreg", shape=(1, 10, 10), n_networks=n, device="cpu")
    low, high = anisotropy.marchenko_pastur_edges(100, n)
    relative = nads.eigenvalues / nads.eigenvalues.mean()
    assert relative[0].item() == pytest.approx(high, rel=0.1)
    assert relative[-1].item() == pytest.approx(low, rel=0.15)


def test_secant_does_not_depend_on_the_batch(monkeypatch):
    model = architectures.build("lenet", shape=(1, 16, 16), classes=1).eval()
    x = torch.randn(1, 16, 16)
    whole = anisotropy.secant(model, x, 100.0)
    monkeypatch.setitem(anisotropy.BATCH, "cpu", 14)
    torch.testing.assert_close(anisotropy.secant(model, x, 100.0), whole, rtol=1e-3, atol=1e-6)


def test_blocks_parts_and_order_do_not_matter(monkeypatch):
    whole = covariance(range(7))
    monkeypatch.setitem(anisotropy.BLOCK, "secant", 2)
    late, early = covariance(range(3, 7)), covariance(range(3))
    joined = anisotropy.merged([late, early])
    assert joined.networks == [(0, 7)]
    assert late.networks == [(3, 7)]
    for other in (joined, covariance(range(7))):
        torch.testing.assert_close(other.total, whole.total)
        torch.testing.assert_close(other.second, whole.second)


def equal(one, other):
    facts = [(c.shape, c.settings, c.networks) for c in (one, other)]
    return facts[0] == facts[1] and torch.equal(one.total, other.total) and torch.equal(one.second, other.second)


@pytest.fixture(scope="module")
def two_processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@pytest.fixture
def small_parts(monkeypatch):
    for method in anisotropy.PART:
        monkeypatch.setitem(anisotropy.PART, method, 2)


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
    monkeypatch.setattr(anisotropy, "gather", backwards)
    assert equal(covariance(range(9), executor=object()), covariance(range(9)))


def test_an_interrupt_keeps_what_workers_have_finished(tmp_path, monkeypatch, small_parts):
    path, asked = tmp_path / "moments.safetensors", []

    def interrupted(executor, function, tasks):
        for task in reversed(list(tasks)):
            if task == (range(2, 4),) and len(asked) < 9:
                raise KeyboardInterrupt
            asked.append(task[0])
            yield function(*task)

    monkeypatch.setattr(anisotropy, "gather", interrupted)
    with pytest.raises(KeyboardInterrupt):
        covariance(range(9), executor=object(), checkpoint=path)
    assert GradientCovariance.load(path).networks == [(4, 9)]
    asked.extend(["later"] * 9)
    resumed = covariance(range(9), executor=object(), checkpoint=path)
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
    monkeypatch.setattr(anisotropy, "gather", shuffled)
    covariance(range(8), executor=object(), checkpoint=tmp_path / "moments.safetensors")
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


def test_merging_refuses_what_would_count_twice_or_differ():
    with pytest.raises(ValueError, match="at least one"):
        anisotropy.merged([])
    with pytest.raises(ValueError, match="seen before"):
        covariance(range(4)).merge(covariance(range(3, 6)))
    with pytest.raises(ValueError, match="equal settings"):
        covariance(range(2)).merge(covariance(range(2, 4), seed=1))
    with pytest.raises(ValueError, match="equal settings"):
        covariance(range(2)).merge(covariance(range(2, 4), x=torch.ones(SHAPE)))


def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, classes))


def relu_network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, classes))


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
    monkeypatch.setitem(anisotropy.BLOCK, "secant", 2)
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
    monkeypatch.setattr(anisotropy, "secant", pytest.fail)
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


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiling_does_not_change_the_numbers():
    plain, compiled = (
        gradient_covariance("lenet", shape=(1, 16, 16), networks=range(3), device="cpu", compile=c).covariance()
        for c in (False, True)
    )
    torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


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


def test_networks_without_pooling_have_a_name():
    nads = compute_nads("lenet-nopool", shape=(1, 9, 9), n_networks=2, device="cpu")
    assert nads.settings["architecture"] == "lenet-nopool"


def test_networks_that_do_not_see_the_input_are_explained():
    def dead(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 1).apply(lambda m: nn.init.zeros_(m.weight)))

    with pytest.raises(ValueError, match="all input derivatives are zero"):
        compute_nads(dead, shape=SHAPE, n_networks=3, device="cpu")


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
    ceiling = directions.overlap_ceiling(cpu.eigenvalues, 10, n_networks=(1000, 1000))
    assert gpu.overlap(cpu, 10) > 0.9 * ceiling.mean


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
    published = anisotropy.published_nads("lenet")
    nads = compute_nads("lenet", n_networks=300, device="cpu")
    for k in (1, 10, 50):
        ceiling = directions.overlap_ceiling(published.eigenvalues, k, n_networks=(300, published.n_networks))
        assert nads.overlap(published, k) > 0.85 * ceiling.mean


@pytest.mark.parametrize(("dimensions", "n"), [(60, 240), (240, 60), (120, 120)])
def test_marchenko_pastur_law_against_a_gaussian_matrix(dimensions, n):
    g = torch.randn(n, dimensions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(g.T @ g / n)[-min(n, dimensions) :]
    share = (torch.arange(len(eigenvalues)) + 0.5) / len(eigenvalues)
    distance = (anisotropy.marchenko_pastur_cdf(eigenvalues, dimensions, n) - share).abs().max()
    assert distance < 0.04
    assert (anisotropy.marchenko_pastur_cdf(2 * eigenvalues, dimensions, n) - share).abs().max() > 0.1
    low, high = anisotropy.marchenko_pastur_edges(dimensions, n)
    ends = torch.tensor([low, high, high + 1])
    assert anisotropy.marchenko_pastur_cdf(ends, dimensions, n).tolist() == pytest.approx([0, 1, 1], abs=1e-6)


def stacked_gradients(model, n, shape=SHAPE):
    """The derivatives that the library takes, (N, D) float64, from autograd."""
    rows, x = [], torch.randn(shape, generator=seeds.generator(0, "point"))
    for i in range(n):
        with seeds.seeded(0, "network", i):
            f = model(shape, 1).eval()
        z = x.clone().requires_grad_()
        rows.append(torch.autograd.grad(f(z[None]).squeeze(), z)[0].flatten())
    return torch.stack(rows).double()


@pytest.mark.parametrize("n", [9, 40])  # fewer networks than dimensions, and more
@pytest.mark.parametrize("method", ["gradient", "secant"])
def test_leading_nads_are_those_of_the_covariance(n, method):
    options = {"shape": SHAPE, "n_networks": n, "method": method, "scale": 2.0, "device": "cpu"}
    expected, found = compute_nads(tanh_network, **options).leading(5), leading_nads(tanh_network, 5, **options)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-6, atol=0)
    assert (found.vectors * expected.vectors).sum(1).abs() == pytest.approx([1] * 5, abs=1e-6)
    for fact in ("shape", "name", "n_networks", "centred", "settings"):
        assert getattr(found, fact) == getattr(expected, fact)


def test_leading_nads_against_a_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr(anisotropy, "GRAM_CHUNK", 30)  # chunks of three columns and a last one of one
    g = stacked_gradients(tanh_network, 10)
    _, singular_values, vectors = np.linalg.svd((g - g.mean(0)).numpy(), full_matrices=False)
    found = leading_nads(tanh_network, 9, shape=SHAPE, n_networks=10, device="cpu")
    np.testing.assert_allclose(found.singular_values, singular_values[:9], rtol=1e-5)
    np.testing.assert_allclose((found.vectors.numpy() * vectors[:9]).sum(1) ** 2, np.ones(9), rtol=1e-4)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-8)


def test_leading_nads_of_large_inputs():
    """D = 30,000: a covariance would take 7 GB."""
    nads = leading_nads("logreg", 3, shape=(3, 100, 100), n_networks=6, device="cpu")
    assert nads.vectors.shape == (3, 30_000)
    assert nads.images.shape == (3, 3, 100, 100)


def rank_two(shape, classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes, bias=False))
    with torch.no_grad():
        model[1].weight[:, 2:] = 0
    return model


def broken(shape, classes):
    model = tanh_network(shape, classes)
    nn.init.constant_(model[3].weight, torch.nan)
    return model


def dead(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 1).apply(lambda m: nn.init.zeros_(m.weight)))


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        (tanh_network, {"k": 6}, "k: expected 1 to 5, the rank that 6 centred derivatives of 16 numbers.*got 6"),
        (tanh_network, {"k": 17, "n_networks": 40}, "k: expected 1 to 16"),
        (tanh_network, {"k": 0}, "k: expected 1 to 5"),
        (tanh_network, {"k": 1.5}, "k: expected 1 to 5"),
        (tanh_network, {"k": 3.0}, "k: expected 1 to 5.*got 3.0"),
        (tanh_network, {"n_networks": 1}, "n_networks: expected an integer, at least 2"),
        (tanh_network, {"method": "mixed"}, "'gradient' or 'secant', got 'mixed'"),
        (tanh_network, {"method": "grad"}, "expected one of secant, gradient, mixed"),
        (tanh_network, {"x": torch.zeros(1, 4, 5)}, "x: expected shape"),
        (rank_two, {"k": 3}, "span 2 directions only, got 3"),
        (dead, {}, "all input derivatives are zero"),
        (broken, {}, "network 0: an input derivative is NaN or infinite"),
        ("lenot", {}, "did you mean 'lenet'"),
    ],
)
def test_leading_nads_that_cannot_be_are_explained(architecture, options, message):
    options = {"k": 2, "shape": SHAPE, "n_networks": 6, "device": "cpu"} | options
    with pytest.raises(ValueError, match=message):
        leading_nads(architecture, **options)


def test_leading_nads_show_a_bar(capsys):
    leading_nads("logreg", 1, shape=SHAPE, n_networks=4, device="cpu", progress=True)
    assert "4/4" in capsys.readouterr().err


def normed(shape, classes):
    """Two convolutions with batch norm, dropout between them."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3),
        nn.BatchNorm2d(3, momentum=0.2),
        nn.ReLU(),
        nn.Dropout(),
        nn.Conv2d(3, 4, 2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, classes),
    )


def test_batch_statistics_normalise_a_batch_in_eval_mode():
    factory = with_batch_statistics(normed, batch=500)
    with seeds.seeded(0):
        model = factory(SHAPE, 1).eval()
    x = torch.randn(500, *SHAPE, generator=seeds.generator(0, "batch statistics"))
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.BatchNorm2d):
            # not exactly: training divides by n where the statistics have n - 1
            torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), rtol=0, atol=2e-3)
            torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(x.shape[1]), rtol=0, atol=2e-3)
            assert module.momentum == {"1": 0.2, "5": 0.1}[name]


def test_batch_statistics_leave_weights_modes_and_generators_alone():
    with seeds.seeded(3):
        plain, after = normed(SHAPE, 1), torch.rand(1)
    with seeds.seeded(3):
        model, after_too = with_batch_statistics(normed)(SHAPE, 1), torch.rand(1)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(after, after_too)
    assert all(m.training for m in model.modules())
    assert not torch.equal(model[1].running_mean, plain[1].running_mean)


def test_batch_statistics_depend_on_their_batch():
    def statistics(**options):
        with seeds.seeded(3):
            return with_batch_statistics(normed, **options)(SHAPE, 1)[1].running_mean

    assert torch.equal(statistics(), statistics(batch=128, seed=0))
    assert not torch.equal(statistics(), statistics(seed=1))
    assert not torch.equal(statistics(), statistics(batch=64))


def test_batch_statistics_change_the_nads_and_travel(two_processes, small_parts):
    factory = with_batch_statistics(normed, batch=8)
    options = {"shape": SHAPE, "networks": range(3), "method": "gradient", "device": "cpu"}
    there = gradient_covariance(factory, executor=two_processes, **options)
    here, plain = gradient_covariance(factory, **options), gradient_covariance(normed, **options)
    assert here.settings == there.settings
    torch.testing.assert_close(there.second, here.second, rtol=1e-4, atol=1e-6 * here.second.abs().max().item())
    assert here.settings["networks"] == plain.settings["networks"]  # weights: statistics vary with the threads
    assert not torch.allclose(here.second, plain.second, rtol=0.1)
    assert isinstance(pickle.loads(pickle.dumps(factory))(shape=SHAPE, classes=1), nn.Module)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121"])
def test_every_network_with_batch_norms_takes_batch_statistics(name):
    with seeds.seeded(0):
        model = with_batch_statistics(name, batch=4)((1, 32, 32), 1)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.running_mean.abs().sum() > 0 for norm in norms)
    assert architectures.n_logits(model, (1, 32, 32)) == 1


def test_batch_statistics_have_a_name():
    assert architectures.name_of(with_batch_statistics("resnet18")) == "resnet18 (norms of a batch of 128)"
    assert architectures.name_of(with_batch_statistics(normed, batch=9, seed=2)) == (
        "normed (norms of a batch of 9, seed 2)"
    )


def test_batch_statistics_that_cannot_be_are_explained():
    with pytest.raises(ValueError, match="'lenet': it has no batch norm"):
        gradient_covariance(with_batch_statistics("lenet"), networks=range(1), device="cpu")
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        with_batch_statistics("resnet19")
    with pytest.raises(ValueError, match="batch: expected an integer, at least 2"):
        with_batch_statistics("resnet18", batch=1)
    with pytest.raises(ValueError, match="seed"):
        with_batch_statistics("resnet18", seed=-1)


@pytest.mark.parametrize(("spectrum", "expected"), [([1, 0, 0], 1), ([2, 2, 2, 2], 4), ([3, 1], 1.6)])
def test_effective_dimension_of_known_spectra(spectrum, expected):
    assert anisotropy.effective_dimension(torch.tensor(spectrum)) == pytest.approx(expected)


@pytest.mark.parametrize("spectrum", [[0.0, 0.0], [1.0, -1.0], [1.0, torch.nan], [torch.inf, 1.0]])
def test_what_has_no_effective_dimension_is_refused(spectrum):
    with pytest.raises(ValueError, match="eigenvalues: expected finite numbers, not negative, not all zero"):
        anisotropy.effective_dimension(torch.tensor(spectrum))


def with_derivatives(g, first):
    part = GradientCovariance.empty((1, 1, g.shape[1]), {"seed": 0})
    part.update(g, (first, first + len(g)))
    return part


def test_population_effective_dimension_of_few_heavy_tailed_derivatives():
    """Networks whose derivatives differ in size as much as in direction; 20 of 60 dimensions count."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.cat([torch.ones(20), torch.full((40,), 0.01)]).double()
    truth = anisotropy.effective_dimension(spectrum)
    products = []
    for _ in range(500):
        size = (0.5 * torch.randn(24, 1, generator=generator, dtype=torch.float64)).exp()
        g = size * torch.randn(24, 60, generator=generator, dtype=torch.float64) * spectrum.sqrt()
        one, other = with_derivatives(g[:12], 0), with_derivatives(g[12:], 12)
        s, t = one.covariance(), other.covariance()
        products.append([s.trace() * t.trace(), (s @ t).trace()])
        expected = (products[-1][0] / products[-1][1]).item()
        assert anisotropy.population_effective_dimension(one, other) == pytest.approx(expected)
    found = torch.tensor(products, dtype=torch.float64).mean(0)
    assert (found[0] / found[1]).item() == pytest.approx(truth, rel=0.05)


def test_population_effective_dimension_wants_other_networks():
    one = with_derivatives(torch.eye(4), 0)
    with pytest.raises(ValueError, match="seen before"):
        anisotropy.population_effective_dimension(one, with_derivatives(torch.eye(4), 2))
    with pytest.raises(ValueError, match="one shape"):
        anisotropy.population_effective_dimension(one, with_derivatives(torch.eye(5), 4))
    of_a_step = with_derivatives(torch.eye(4), 4)
    of_a_step.settings = {"seed": 1, "scale": 2.0}
    with pytest.raises(ValueError, match="two samples of one experiment, got scale"):
        anisotropy.population_effective_dimension(one, of_a_step)
    with pytest.raises(ValueError, match="two networks in each, got 4 and 1"):
        anisotropy.population_effective_dimension(one, with_derivatives(torch.eye(4)[:1], 4))
