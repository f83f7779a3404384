"""The plain reference that speeds are compared with gives the same results."""

import argparse
import multiprocessing
import os
import time

import pytest
import torch

from benchmarks import populations, reference, timing, training
from nadkit import architectures, seeds
from nadkit.data.synthetic import Separable
from nadkit.inputs.basis import pixel_basis
from nadkit.inputs.covariance import compute_nads
from nadkit.training import Recipe, fit_many

SHAPE = (1, 16, 16)


def test_reference_nads_are_ours():
    models = []
    for i in range(8):
        with seeds.seeded(0, "network", i):
            models.append(architectures.build("lenet", shape=SHAPE, classes=1))
    vectors, eigenvalues = reference.nads(models, torch.randn(SHAPE, generator=seeds.generator(0, "point")), 100.0)
    nads = compute_nads("lenet", shape=SHAPE, n_networks=8, device="cpu")
    assert nads.eigenvalues[:7].tolist() == pytest.approx(eigenvalues[:7].tolist(), rel=1e-4)
    assert (nads.vectors[:7].numpy() * vectors[:7]).sum(1) ** 2 == pytest.approx([1] * 7, abs=1e-3)


def test_reference_training_learns_what_ours_learns():
    problem = Separable(v=pixel_basis(SHAPE)[9], shape=SHAPE, sigma=1.0, n_train=2000, n_test=1000)
    recipe = Recipe(epochs=4)
    torch.manual_seed(0)
    plain = reference.train(
        architectures.build("logreg", shape=SHAPE, classes=2),
        problem.sample("train"),
        problem.sample("test"),
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        clip=recipe.clip,
        workers=0,
    )
    (ours,) = fit_many("logreg", [problem], recipe, device="cpu")
    assert plain == pytest.approx(ours.test_accuracy[-1], abs=0.03)
    assert plain > 0.9


def test_a_plain_loop_runs_in_a_process_that_nothing_has_changed():
    with timing.untouched() as call:
        processes = {call(os.getpid) for _ in range(2)}
        assert len(processes) == 1
        assert os.getpid() not in processes
        assert call(torch.get_num_threads) == torch.get_num_threads()
        assert call(multiprocessing.get_start_method) == multiprocessing.get_start_method()


def test_contenders_take_turns():
    calls = []
    seconds = timing.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert "1.00 x a" in timing.table(seconds, reference="a", unit="call")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_populations_are_trained_by_every_strategy(monkeypatch, device):
    monkeypatch.setattr(populations.training, "fit_networks", lambda *args, **options: (args, options))
    options = argparse.Namespace(device=device, networks=3, epochs=1, workers=2, optimizer="sgd")
    contenders = populations.contenders("mlp64-8", options)
    assert list(contenders) == (
        ["loop", "processes", "vmap", "vmap in processes"] if device == "cpu" else ["loop", "vmap"]
    )
    for name, contender in contenders.items():
        (_, problems, _), called = contender()
        assert called["strategy"] == name.split()[0]
        assert len(problems) == 3


def test_core_time_does_not_pass_while_nothing_is_done():
    start, wall = timing.core_seconds(), time.perf_counter()
    time.sleep(0.2)
    idle = timing.core_seconds()
    while time.perf_counter() - wall < 0.6:
        pass
    assert idle - start < 0.1
    assert timing.core_seconds() > idle


def test_the_windows_of_a_convolution_give_its_maps():
    conv = torch.nn.Conv2d(1, 6, 5)
    x = torch.randn(3, 1, 12, 10, generator=seeds.generator(0, "images"))
    torch.testing.assert_close(training.Windows(conv)(x), conv(x), rtol=1e-5, atol=1e-6)
