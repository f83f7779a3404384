"""Networks as users have them: that begin in place, with frozen weights, in float64, with hooks, in odd batches."""

import numpy as np
import pytest
import torch
from torch import nn

from nadkit import seeds, training
from nadkit.activations.ablation import evaluate_masks, unit_impact
from nadkit.activations.activity import record_activity
from nadkit.activations.moments import unit_moments
from nadkit.activations.sites import find_sites
from nadkit.architectures import MLP
from nadkit.data.synthetic import Separable
from nadkit.inputs.basis import pixel_basis
from nadkit.neighbours.alignment import units_along
from nadkit.neighbours.elasticity import elasticity_along
from nadkit.neighbours.importance import unit_scores
from nadkit.neighbours.pruning import remove_units
from nadkit.neighbours.scores import code_kernel, gradient_norm
from nadkit.training import Recipe

SHAPE = (1, 4, 4)


class InPlace(nn.Module):
    """A network that begins by changing its inputs."""

    def __init__(self, shape: tuple[int, int, int] = SHAPE, classes: int = 3) -> None:
        super().__init__()
        self.rest = MLP(shape, classes, width=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x -= 0.5
        return self.rest(x)


@pytest.fixture
def data():
    draws = seeds.generator(0, "any")
    return torch.randn(24, *SHAPE, generator=draws), torch.arange(24) % 3


def fresh(make, seed: int = 0, **options) -> nn.Module:
    with seeds.seeded(seed, "any network"):
        return make(SHAPE, 3, **options)


@pytest.mark.parametrize(
    "measure",
    [
        lambda net, sites, x, y: training.evaluate(net, (x, y)),
        lambda net, sites, x, y: unit_moments(net, x, sites).mean.tolist(),
        lambda net, sites, x, y: record_activity(net, (x, y), sites).mean.tolist(),
        lambda net, sites, x, y: unit_scores(net, (x, y), sites, ["Taylor", "Taylor, 2nd order"])["Taylor"].tolist(),
        lambda net, sites, x, y: units_along(net, x, sites, [pixel_basis(SHAPE)])[0].nan_to_num().tolist(),
        lambda net, sites, x, y: code_kernel(net, x).tolist(),
        lambda net, sites, x, y: gradient_norm(net, (x, y)),
        lambda net, sites, x, y: unit_impact(net, (x, y), sites).loss.tolist(),
    ],
)
def test_a_network_that_begins_in_place_leaves_the_data_alone(data, measure):
    (x, y), net = data, fresh(InPlace)
    before, sites = x.clone(), find_sites(net, SHAPE)
    first = measure(net, sites, x, y)
    assert torch.equal(x, before)
    assert measure(net, sites, x, y) == first


def test_training_tests_such_a_network_on_the_same_images_after_every_epoch(data):
    net, (x, y) = fresh(InPlace), data
    before = x.clone()
    history = training.fit(net, (x, y), (x, y), Recipe(epochs=3, batch_size=8, learning_rate=0.1), device="cpu")
    assert torch.equal(x, before)
    assert history.test_loss[-1] == training.evaluate(net, (x, y))[0]


def half_frozen(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """An MLP whose first layer does not learn."""
    net = MLP(shape, classes, width=8)
    net.fc1.requires_grad_(False)
    return net


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_frozen_weights_stay_however_many_are_trained(strategy):
    problems = [Separable(v=torch.ones(16), shape=SHAPE, n_train=40, n_test=10, seed=i) for i in range(3)]
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    trained = training.fit_networks(half_frozen, problems, recipe, keep=[0, 2], strategy=strategy, device="cpu")
    for one in trained:
        before, after = one.network(0), one.network(2)
        assert torch.equal(before.fc1.weight, after.fc1.weight)
        assert not torch.equal(before.fc2.weight, after.fc2.weight)


def test_frozen_weights_give_the_same_losses_alone_and_stacked():
    problems = [Separable(v=torch.ones(16), shape=SHAPE, n_train=40, n_test=10, seed=i) for i in range(3)]
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1, clip=0.05)
    losses = [
        [h.train_loss for h in training.fit_many(half_frozen, problems, recipe, strategy=strategy, device="cpu")]
        for strategy in ("loop", "vmap")
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-6)


def test_a_network_in_float64_is_measured_and_trained_as_one_in_float32(data):
    single, double = fresh(MLP, width=8), fresh(MLP, width=8).double()
    assert training.evaluate(double, data) == pytest.approx(training.evaluate(single, data), rel=1e-5)
    assert gradient_norm(double, data) == pytest.approx(gradient_norm(single, data), rel=1e-5)
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1)
    histories = [training.fit(net, data, data, recipe, device="cpu") for net in (single, double)]
    assert histories[0].train_loss == pytest.approx(histories[1].train_loss, rel=1e-4)
    assert next(double.parameters()).dtype == torch.float64


def test_impact_sees_what_a_hook_does_to_the_inputs_of_a_layer(data):
    net = fresh(MLP, width=5, depth=1)
    net.out.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    sites = find_sites(net, SHAPE)
    slow = evaluate_masks(net, data, sites, torch.eye(sites.n_units, dtype=torch.bool))
    torch.testing.assert_close(unit_impact(net, data, sites).loss, slow.loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_batch_normalisation_of_one_sample_is_said_in_words(strategy):
    problems = [Separable(v=torch.ones(16), shape=SHAPE, n_train=7, n_test=10, seed=i) for i in range(2)]
    recipe = Recipe(epochs=1, batch_size=3)

    def normed(shape, classes):
        return MLP(shape, classes, width=8, batch_norm=True)

    with pytest.raises(ValueError, match="the last of 7 samples in batches of 3 has 1; take another batch_size"):
        training.fit_many(normed, problems, recipe, strategy=strategy, device="cpu")


def test_whole_numbers_of_numpy_are_whole_numbers(data, tmp_path):
    three, net = np.int64(3), fresh(MLP, width=8)
    sites = find_sites(net, SHAPE)
    recipe = Recipe(epochs=np.int64(1), batch_size=three)
    assert (type(recipe.epochs), type(recipe.batch_size)) == (int, int)
    training.fit(net, data, data, recipe, device="cpu")
    assert training.evaluate(net, data, batch_size=three) == training.evaluate(net, data, batch_size=3)
    moments = [unit_moments(net, data[0], sites, batch_size=batch_size) for batch_size in (three, 3)]
    assert torch.equal(moments[0].mean, moments[1].mean)
    problem = Separable(v=torch.ones(16), shape=SHAPE, n_train=np.int64(8), n_test=10)
    assert problem.checksum() == Separable(v=torch.ones(16), shape=SHAPE, n_train=8, n_test=10).checksum()
    training.fit_many("logreg", [problem], recipe, checkpoint=tmp_path / "c.json", device="cpu")


def test_a_point_in_uint8_is_scaled_before_a_step_is_taken():
    net = fresh(lambda shape, classes: MLP(shape, 2, width=8))
    draws = seeds.generator(0, "point")
    x = torch.randint(256, SHAPE, dtype=torch.uint8, generator=draws)
    directions = torch.nn.functional.normalize(torch.randn(3, 16, generator=draws), dim=1)
    found = elasticity_along(net, x, directions)
    assert torch.equal(found, elasticity_along(net, x.float() / 255, directions))


def test_units_in_front_of_a_flattened_batch_norm_are_removed():
    with seeds.seeded(0, "flattened"):
        parts = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)]
        net = nn.Sequential(*parts).eval()
    sites = find_sites(net, SHAPE, names=["1"])
    with torch.no_grad():
        net[3].running_mean.zero_()
        net[3].bias.zero_()
    x = torch.randn(5, *SHAPE, generator=seeds.generator(0, "flattened"))
    keep = torch.tensor([True, False, True])
    smaller = remove_units(net, sites, ~keep, x)
    assert smaller[0].out_channels == 2
    assert smaller[3].num_features == 8
    clamped = nn.functional.relu(net[0](x)) * keep[:, None, None]
    torch.testing.assert_close(smaller(x), net[4](net[3](clamped.flatten(1))))


def test_a_unit_that_nothing_reads_has_no_score(data):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aside = MLP(SHAPE, 3, width=4, depth=1), nn.Linear(16, 2)
            self.relu = nn.ReLU()

        def forward(self, x):
            self.relu(self.aside(x.flatten(1)))
            return self.body(x)

    with seeds.seeded(0, "aside"):
        net = Aside()
    sites = find_sites(net, SHAPE)
    scores = unit_scores(net, data, sites, ["Taylor", "Taylor, 2nd order"])
    unread = torch.cat([torch.full((site.units,), site.name == "relu") for site in sites])
    assert unread.sum() == 2
    assert (scores["Taylor"][unread] == 0).all()
    assert (scores["Taylor, 2nd order"][unread] == 0).all()
    assert (scores["Taylor"][~unread] > 0).any()
