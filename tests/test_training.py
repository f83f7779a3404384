"""Training: against a plain loop, the same by every strategy, and clear about bad input."""

import dataclasses

import pytest
import torch
from torch import nn

from nadkit import directions, training
from nadkit.synthetic import Separable
from nadkit.training import Recipe, evaluate, fit, fit_many

SHAPE = (1, 6, 6)
RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.3)


def with_batch_norm(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes)
    )


def problems(n, **options):
    return [
        Separable(
            **{"v": directions.pixel(SHAPE)[i], "shape": SHAPE, "sigma": 1.0, "n_train": 150, "n_test": 90, "seed": i}
            | options
        )
        for i in range(n)
    ]


def data(n=200, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *SHAPE, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, momentum=0.9, weight_decay=1e-2, clip=None)])
def test_fit_against_a_plain_loop(recipe):
    """The reference draws the same order and writes the update out."""
    (x, y), test = data(), data(seed=1)
    torch.manual_seed(0)
    model = with_batch_norm(SHAPE, 3)
    plain = with_batch_norm(SHAPE, 3)
    plain.load_state_dict(model.state_dict())
    history = fit(model, (x, y), test, recipe, seed=5, device="cpu")

    order = training.seeds.generator(5, "order")
    weights = list(plain.parameters())
    velocity = [torch.zeros_like(w) for w in weights]
    step, losses = 0, []
    for _ in range(recipe.epochs):
        total = 0.0
        for batch in torch.randperm(len(x), generator=order).split(recipe.batch_size):
            loss = nn.functional.cross_entropy(plain(x[batch]), y[batch])
            grads = torch.autograd.grad(loss, weights)
            if recipe.clip is not None:
                norm = torch.cat([g.flatten() for g in grads]).norm()
                grads = [g * min(1.0, recipe.clip / (norm.item() + 1e-6)) for g in grads]
            rate = recipe.learning_rate * (1 - step / (recipe.epochs * 4))
            with torch.no_grad():
                for w, g, v in zip(weights, grads, velocity, strict=True):
                    v.mul_(recipe.momentum).add_(g + recipe.weight_decay * w)
                    w -= rate * v
            total += loss.item() * len(batch)
            step += 1
        losses.append(total / len(x))

    assert history.train_loss == pytest.approx(losses, rel=1e-4)
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_history_and_evaluation_agree():
    train, test = data(), data(seed=1)
    model = with_batch_norm(SHAPE, 3)
    history = fit(model, train, test, RECIPE, device="cpu", evaluate_every=2)
    assert history.epochs == len(history.train_accuracy) == 3
    assert len(history.test_loss) == len(history.test_accuracy) == 2  # after the second epoch, and at the end
    assert (history.test_loss[-1], history.test_accuracy[-1]) == pytest.approx(evaluate(model, test))
    assert evaluate(model, test, batch_size=7) == pytest.approx(evaluate(model, test), rel=1e-5)


def test_evaluation_by_hand():
    """Logits are the two pixels: losses log(1 + e^-1), log(1 + e^2) and log 2, one answer right for sure."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.eye_(model[1].weight)
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]).view(3, 1, 1, 2)
    loss, accuracy = evaluate(model, (x, torch.tensor([0, 1, 1])))
    expected = (torch.tensor([-1.0, 2.0, -3.0]).exp() + 1).log().mean().item()
    assert loss == pytest.approx(expected)
    assert accuracy == pytest.approx(2 / 3)


def test_bytes_are_scaled_batch_by_batch():
    x, y = data()
    scaled = (x.clamp(0, 1) * 255).to(torch.uint8)
    runs = []
    for inputs in (scaled, scaled.float() / 255):
        torch.manual_seed(0)
        model = with_batch_norm(SHAPE, 3)
        runs.append(fit(model, (inputs, y), (inputs, y), RECIPE, device="cpu"))
    assert runs[0].train_loss == pytest.approx(runs[1].train_loss, rel=1e-4)


def test_training_stops_at_a_small_loss():
    problem = problems(1)[0]
    recipe = Recipe(epochs=50, learning_rate=0.5, stop_at_loss=0.2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    history = fit(model, problem.sample("train"), problem.sample("test"), recipe, device="cpu", evaluate_every=50)
    assert history.epochs < 50
    assert history.train_loss[-1] <= 0.2 < history.train_loss[-2]
    assert len(history.test_loss) == 1


def test_bf16_trains_and_keeps_float32_weights():
    train, test = data(), data(seed=1)
    model = with_batch_norm(SHAPE, 3)
    history = fit(model, train, test, dataclasses.replace(RECIPE, bf16=True, epochs=30), device="cpu")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert history.train_loss[-1] < 0.8 * history.train_loss[0]


@pytest.mark.parametrize("strategy", ["loop", "processes", "vmap"])
def test_divergence_is_reported(strategy):
    recipe = Recipe(epochs=3, learning_rate=1e38, clip=None)
    with pytest.raises(training.Diverged, match=r"diverged in epoch [12] \(loss .*lower the learning rate"):
        fit_many(with_batch_norm, problems(2), recipe, device="cpu", strategy=strategy, workers=2)


def test_the_same_seed_gives_the_same_numbers():
    runs = [fit_many("lenet", problems(1, shape=(1, 16, 16), v=torch.ones(256)), RECIPE, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("architecture", ["logreg", with_batch_norm])
def test_strategies_agree(architecture):
    recipe = dataclasses.replace(RECIPE, momentum=0.9, weight_decay=1e-3)
    runs = [
        fit_many(architecture, problems(3), recipe, seed=1, device="cpu", strategy=strategy, workers=2)
        for strategy in ("loop", "processes", "vmap")
    ]
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
            assert ours.test_loss == pytest.approx(theirs.test_loss, rel=1e-4)
            assert ours.test_accuracy == pytest.approx(theirs.test_accuracy, abs=1.5 / 90)


def test_a_network_does_not_depend_on_its_company():
    three, two = (fit_many("logreg", problems(n), RECIPE, device="cpu") for n in (3, 2))
    assert three[:2] == two
    for strategy in ("loop", "processes", "vmap"):
        assert fit_many("logreg", [], RECIPE, device="cpu", strategy=strategy) == []


def test_learning_succeeds_where_it_should():
    histories = fit_many("logreg", problems(2, n_train=2000, n_test=500), Recipe(epochs=10), device="cpu")
    assert min(h.test_accuracy[-1] for h in histories) > 0.97


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_gpu_learns_the_same_task(strategy):
    histories = fit_many(
        "logreg", problems(2, n_train=2000, n_test=500), Recipe(epochs=10), device="cuda", strategy=strategy
    )
    assert min(h.test_accuracy[-1] for h in histories) > 0.97


def test_bad_data_are_explained():
    (x, y), test = data(), data(seed=1)
    model = with_batch_norm(SHAPE, 3)
    poisoned = x.clone()
    poisoned[3, 0, 1, 1] = torch.nan
    for bad, message in [
        ((x, y[:-1]), "200 inputs and 199 labels"),
        ((x[:0], y[:0]), "0 inputs"),
        ((poisoned, y), "NaN"),
        ((x, y + 1), "labels: expected 0 to 2 for 3 logits, got 1 to 3"),
        ((x, y.float()), "torch.int64"),
        ((x, y[:, None]), r"got \(200, 1\)"),
        ((x.numpy(), y), "expected two tensors, got ndarray and Tensor"),
    ]:
        with pytest.raises(ValueError, match=f"^train .*{message}"):
            fit(model, bad, test, RECIPE, device="cpu")
        with pytest.raises(ValueError, match=f"^test .*{message}"):
            fit(model, test, bad, RECIPE, device="cpu")
    with pytest.raises(ValueError, match=r"test data: expected inputs of shape \(1, 6, 6\)"):
        fit(model, test, (x[..., 1:], y), RECIPE, device="cpu")
    with pytest.raises(ValueError, match="does not accept inputs"):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(35, 3)), test, test, RECIPE, device="cpu")
    with pytest.raises(ValueError, match="evaluate_every"):
        fit(model, test, test, RECIPE, device="cpu", evaluate_every=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip": 0.0}, "clip"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"epochs": 2.5}, "epochs: expected an integer"),
        ({"epochs": None}, "epochs"),
        ({"batch_size": 32.0}, "batch_size: expected an integer"),
        ({"learning_rate": None}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"clip": float("inf")}, "clip"),
        ({"momentum": None}, "momentum"),
        ({"stop_at_loss": 0.0}, "stop_at_loss"),
        ({"stop_at_loss": float("nan")}, "stop_at_loss"),
    ],
)
def test_impossible_recipes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_impossible_requests_are_explained():
    with pytest.raises(ValueError, match="strategy"):
        fit_many("logreg", problems(1), RECIPE, strategy="threads")
    with pytest.raises(ValueError, match="workers: expected an integer, at least 1, got 0"):
        fit_many("logreg", problems(1), RECIPE, workers=0)
    with pytest.raises(ValueError, match="did you mean 'logreg'"):
        fit_many("logrep", problems(1), RECIPE)
    with pytest.raises(ValueError, match="stop early"):
        fit_many("logreg", problems(2), Recipe(stop_at_loss=0.1), strategy="vmap")
    with pytest.raises(ValueError, match="one number of training samples"):
        fit_many("logreg", [*problems(1), *problems(1, n_train=20)], RECIPE, strategy="vmap")
