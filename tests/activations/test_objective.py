"""The selectivity objective: its definition, its gradients, training with it."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F

from nadkit.activations.objective import SelectivityObjective
from nadkit.activations.selectivity import class_selectivity
from nadkit.activations.sites import capture, find_sites
from nadkit.architectures import MLP, ConvNet

ARCHITECTURES = {
    "mlp": partial(MLP, shape=(1, 8, 8), classes=3, width=8),
    "mlp with batch norm": partial(MLP, shape=(1, 8, 8), classes=3, width=8, batch_norm=True),
    "convnet": partial(ConvNet, shape=(1, 8, 8), classes=3, width=1 / 16),
    "convnet without batch norm": partial(ConvNet, shape=(1, 8, 8), classes=3, width=1 / 16, batch_norm=False),
}


def batch(classes: int = 3, seed: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(classes, (12,), generator=generator)


class Functional(nn.Module):
    """An MLP of two hidden layers whose ReLUs are functions, one of them in place."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2, self.out = mlp.fc1, mlp.fc2, mlp.out

    def forward(self, x):
        return self.out(torch.relu(self.fc2(F.relu(self.fc1(x.flatten(1)), inplace=True))))


def selectivity_of(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, present: list[int], axis: int = 1
) -> torch.Tensor:
    """Mean over sites of the mean over units of the index, by the function for recorded means; silent units count 0."""
    found_sites = find_sites(model, (1, 8, 8))
    with capture(model, found_sites) as found:
        model(x)
    sites = []
    for activation in found.values():
        maps = activation.movedim(axis, 1) if activation.ndim > 2 else activation
        activity = maps.flatten(2).mean(2) if activation.ndim > 2 else activation
        sites.append(class_selectivity(torch.stack([activity[y == k].mean(0) for k in present], dim=1)).nan_to_num())
    return torch.stack([site.mean() for site in sites]).mean()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("alpha", [1.0, -20.0])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_objective_is_cross_entropy_less_alpha_times_the_selectivity_of_the_batch(name, alpha, given):
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES[name]().train(), batch()
    sites = find_sites(model, (1, 8, 8)) if given else None
    loss, logits = SelectivityObjective(alpha, sites, epsilon=1e-20)(model, x, y, 0)
    torch.testing.assert_close(logits, model(x))
    expected = F.cross_entropy(logits, y) - alpha * selectivity_of(model, x, y, [0, 1, 2]).float()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_classes_that_are_not_in_the_batch_do_not_count():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch(2)
    loss, logits = SelectivityObjective(1.0)(model, x, 2 * y, 0)
    expected = F.cross_entropy(logits, 2 * y) - selectivity_of(model, x, 2 * y, [0, 2]).float()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_one_class_has_no_selectivity():
    model, (x, _) = ARCHITECTURES["mlp"](), batch()
    y = torch.ones(12, dtype=torch.int64)
    loss, logits = SelectivityObjective(5.0)(model, x, y, 0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))


def test_activations_that_are_functions_count_as_modules_do():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    torch.testing.assert_close(
        SelectivityObjective(3.0)(Functional(model), x, y, 0), SelectivityObjective(3.0)(model, x, y, 0)
    )


def test_units_of_tokens_are_not_guessed():
    model = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3))
    x, y = batch()
    with pytest.raises(ValueError, match="cannot tell units from positions in Sequential"):
        SelectivityObjective(1.0)(model, x, y, 0)
    sites = find_sites(model, (1, 8, 8))
    expected = F.cross_entropy(model(x), y) - selectivity_of(model, x, y, [0, 1, 2], axis=2).float()
    torch.testing.assert_close(SelectivityObjective(1.0, sites)(model, x, y, 0)[0], expected, rtol=1e-4, atol=1e-4)


def test_some_epochs_and_some_sites_only():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    sites = find_sites(model, (1, 8, 8))
    objective = SelectivityObjective(2.0, epochs=(1, 3))
    losses = [objective(model, x, y, epoch)[0].item() for epoch in range(5)]
    plain = F.cross_entropy(model(x), y).item()
    always = SelectivityObjective(2.0)(model, x, y, 0)[0].item()
    assert losses == pytest.approx([plain, always, always, plain, plain])
    assert always < plain
    assert SelectivityObjective(0.0)(model, x, y, 0)[0].item() == pytest.approx(plain)
    each = [SelectivityObjective(2.0, sites[i : i + 1])(model, x, y, 0)[0].item() for i in range(2)]
    assert sum(each) / 2 == pytest.approx(always)


def test_the_gradient_is_that_of_the_loss():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"]().double(), batch()
    objective, names = SelectivityObjective(3.0), ["fc1.weight", "fc2.bias"]

    def loss(*weights: torch.Tensor) -> torch.Tensor:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = model

            def forward(self):
                return objective(self.network, x.double(), y, 0)[0]

        return functional_call(Whole(), {f"network.{n}": w for n, w in zip(names, weights, strict=True)}, ())

    weights = tuple(model.get_parameter(name).detach().clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(loss, weights, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_trained_together_have_the_gradients_of_each_alone(name, given):
    torch.manual_seed(2)
    models = [ARCHITECTURES[name]().train() for _ in range(3)]
    sites = find_sites(models[0], (1, 8, 8)) if given else None
    x, y = (torch.stack(part) for part in zip(*(batch(3 - (i == 2), seed=i) for i in range(3)), strict=True))
    objective = SelectivityObjective(-2.0, sites, epochs=(0, 5))
    params, buffers = stack_module_state([copy.deepcopy(model) for model in models])
    skeleton = copy.deepcopy(models[0]).to("meta")

    class Trainee(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = skeleton

        def forward(self, x, y):
            return objective(self.network, x, y, 3)

    def loss(params, buffers, x, y):
        return functional_call(Trainee(), {f"network.{n}": t for n, t in {**params, **buffers}.items()}, (x, y))

    params = {name: p.detach() for name, p in params.items()}
    grads, (losses, _) = vmap(grad_and_value(loss, has_aux=True), randomness="different")(params, buffers, x, y)
    for i, model in enumerate(models):
        alone, _ = objective(model, x[i], y[i], 3)
        alone.backward()
        torch.testing.assert_close(losses[i], alone, rtol=1e-4, atol=1e-5)
        for path, p in model.named_parameters():
            torch.testing.assert_close(grads[path][i], p.grad, rtol=1e-3, atol=1e-4)


def test_a_positive_alpha_raises_selectivity_and_a_negative_one_lowers_it():
    x, y = batch()

    def after(alpha: float) -> float:
        torch.manual_seed(0)
        model = ARCHITECTURES["mlp"]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            SelectivityObjective(alpha)(model, x, y, 0)[0].backward()
            optimizer.step()
        return selectivity_of(model, x, y, [0, 1, 2]).item()

    low, plain, high = map(after, (-2.0, 0.0, 2.0))
    assert low + 0.1 < plain < high - 0.1


def test_gradients_are_finite_where_units_are_silent():
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    with torch.no_grad():
        model.fc1.bias.fill_(-1e4)
    loss, _ = SelectivityObjective(1.0)(model, x, y, 0)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_objective_under_bfloat16_is_nearly_that_in_float32():
    torch.manual_seed(1)
    model, (x, y) = ARCHITECTURES["mlp"](), batch()
    objective = SelectivityObjective(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(model, x, y, 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(objective(model, x, y, 0)[0].item(), rel=0.05)


def test_objectives_can_be_sent_to_workers():
    objective = SelectivityObjective(-1.0, find_sites(ARCHITECTURES["mlp"](), (1, 8, 8)), (0, 10))
    assert pickle.loads(pickle.dumps(objective)) == objective


def test_objectives_that_cannot_be():
    x, y = batch()
    with pytest.raises(ValueError, match="alpha: expected a finite number"):
        SelectivityObjective(math.nan)
    with pytest.raises(ValueError, match=r"epochs: expected \(first, end\)"):
        SelectivityObjective(1.0, epochs=(5, 5))
    with pytest.raises(ValueError, match="epsilon: expected a positive"):
        SelectivityObjective(1.0, epsilon=0.0)
    with pytest.raises(ValueError, match="no activation in Sequential, neither a module nor a function"):
        SelectivityObjective(1.0)(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), x, y, 0)
    signed = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match="Sequential has a Tanh; give the sites"):
        SelectivityObjective(1.0)(signed, x, y, 0)
