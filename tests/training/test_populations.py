"""Many networks with their weights: the same by every strategy, kept when asked for, and gone on with after a stop."""

import dataclasses
import functools
import itertools
import math
import pickle
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
import torch
from test_training import Stripes
from torch import nn
from torch.nn import functional as F

from nadkit import architectures, seeds, storage, training
from nadkit.activations.objective import SelectivityObjective
from nadkit.architectures.mlp import MLP
from nadkit.files import DataError
from nadkit.training import Recipe, cross_entropy, evaluate, fit, fit_many, fit_networks, many
from nadkit.training.stack import Stack

SHAPE = (1, 6, 6)
RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.3)
SMALL = functools.partial(MLP, width=8)
CPU = {"device": "cpu"}


class ToDouble(nn.Module):
    def forward(self, x):
        return x.double()


def in_double(shape, classes, width=5):
    """In float64, where the strategies can be told to agree to more than a few digits."""
    layers = (nn.Conv2d(shape[0], width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten())
    return nn.Sequential(ToDouble(), nn.Sequential(*layers, nn.Linear(16 * width, classes)).double())


def convolution(shape, classes):
    return nn.Sequential(nn.Conv2d(shape[0], 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, classes))


def with_dropout(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, classes))


def with_quiet_units(model, x, y, epoch):
    """Cross-entropy and, from the second epoch on, the mean of what a hook sees after the ReLU."""
    seen = []
    hook = next(m for m in model.modules() if isinstance(m, nn.ReLU)).register_forward_hook(
        lambda *a: seen.append(a[2])
    )
    logits = model(x)
    hook.remove()
    return F.cross_entropy(logits, y) + 0.5 * min(epoch, 1) * seen[0].mean(), logits


def that_looks_at_values(model, x, y, epoch):
    """As cross-entropy, but in a way that cannot be batched."""
    loss, logits = cross_entropy(model, x, y, epoch)
    return (loss if loss.item() > 0 else 2 * loss), logits


@pytest.fixture
def no_loop(monkeypatch):
    """No network may be trained alone."""
    monkeypatch.setattr(many, "_fit_one", pytest.fail)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As on the workers: another number of threads may round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def workers():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def assert_same(ours, theirs, **tolerance):
    """The same histories, epochs and weights: bit by bit, or to a tolerance."""
    for one, other in zip(ours, theirs, strict=True):
        assert one.weights.keys() == other.weights.keys()
        for epoch in one.weights:
            torch.testing.assert_close(one.weights[epoch], other.weights[epoch], **tolerance or {"rtol": 0, "atol": 0})
        if not tolerance:
            assert one.history == other.history
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert getattr(one.history, name) == pytest.approx(getattr(other.history, name), rel=1e-5)


# ---- the strategies ------------------------------------------------------------------------------


RATES = [(0.3, 0.0, 0.0), (0.05, 0.9, 0.0), (0.1, 0.5, 1e-2), (0.3, 0.0, 1e-3)]
SGD = [dataclasses.replace(RECIPE, learning_rate=a, momentum=b, weight_decay=c) for a, b, c in RATES]
ADAM = [dataclasses.replace(RECIPE, optimizer="adam", learning_rate=a / 20, weight_decay=c) for a, _, c in RATES]


@pytest.mark.parametrize("objective", [None, with_quiet_units])
@pytest.mark.parametrize("recipes", [SGD, ADAM, [dataclasses.replace(r, clip=None, schedule="constant") for r in SGD]])
def test_vmap_is_the_loop(monkeypatch, recipes, objective):
    options = {"keep": [0, 1, 3], "objective": objective, "seed": 4, **CPU}
    loop = fit_networks(in_double, [Stripes(i) for i in range(4)], recipes, strategy="loop", **options)
    monkeypatch.setattr(many, "_fit_one", pytest.fail)
    as_one = fit_networks(in_double, [Stripes(i) for i in range(4)], recipes, strategy="vmap", **options)
    assert_same(as_one, loop, rtol=1e-9, atol=1e-12)
    assert list(as_one[0].weights) == [0, 1, 3]


def test_per_network_settings_do_something():
    alike = fit_networks(SMALL, [Stripes()] * 4, RECIPE, seed=[1] * 4, strategy="vmap", **CPU)
    apart = fit_networks(SMALL, [Stripes()] * 4, SGD, seed=[1] * 4, strategy="vmap", **CPU)
    assert len({t.history.train_loss[-1] for t in alike}) == 1
    assert len({t.history.train_loss[-1] for t in apart}) == 4


@pytest.mark.parametrize("alpha", [-1.0, 1.0])
def test_selectivity_is_an_objective_of_many(no_loop, monkeypatch, alpha):
    options = {"objective": SelectivityObjective(alpha, epochs=(1, 3)), "seed": 4, **CPU}
    as_one = fit_networks(SMALL, [Stripes()] * 3, RECIPE, strategy="vmap", **options)
    monkeypatch.undo()
    assert_same(as_one, fit_networks(SMALL, [Stripes()] * 3, RECIPE, strategy="loop", **options), rtol=1e-3, atol=1e-5)
    assert as_one[0].history != fit_networks(SMALL, [Stripes()], RECIPE, seed=4, **CPU)[0].history


def test_processes_and_workers_are_the_loop(workers):
    def defined_here(shape, classes):
        return SMALL(shape=shape, classes=classes)

    def objective(model, x, y, epoch):
        return with_quiet_units(model, x, y, epoch)

    run = functools.partial(fit_networks, defined_here, [Stripes(i) for i in range(3)], SGD[:3], keep=[0, 2], **CPU)
    loop = run(objective=objective, strategy="loop")
    assert_same(run(objective=objective, strategy="processes", workers=2), loop)
    assert_same(run(objective=objective, strategy="processes", executor=workers), loop)
    assert_same(run(objective=objective, executor=workers), loop)


def test_batches_do_not_depend_on_the_workers(workers):
    """10 networks are two batches of 5."""
    run = functools.partial(fit_networks, SMALL, [Stripes(i) for i in range(10)], RECIPE, **CPU)
    here = run(strategy="vmap")
    assert_same(run(strategy="vmap", workers=2), here)
    assert_same(run(strategy="auto", workers=2), here)
    assert_same(run(executor=workers), here)
    assert_same(run(strategy="loop"), here, rtol=1e-3, atol=1e-5)


def batches(*args, strategy="auto", device="cpu", at_once=8):
    """How many networks the tasks of a run have, and whether they are trained as one."""
    jobs = many._jobs(*args)
    tasks = many._tasks(jobs, strategy, at_once, torch.device(device))
    assert sorted(job.number for task in tasks for job in task.jobs) == list(range(len(jobs)))
    return sorted((len(task.jobs), task.as_one) for task in tasks)


def test_auto_batches_what_is_faster_so():
    alone, many = [(1, False)], [Stripes()] * 10
    plain = (None, None, 0)
    assert batches(SMALL, many, RECIPE, *plain) == [(5, True)] * 2
    assert batches(SMALL, many[:3], RECIPE, *plain) == alone * 3
    assert batches(convolution, many, RECIPE, *plain) == alone * 10
    assert batches(functools.partial(MLP, width=512), many, RECIPE, *plain) == alone * 10
    assert batches(functools.partial(MLP, width=512), many, RECIPE, *plain, device="cuda", at_once=64) == [(10, True)]
    assert batches(SMALL, many, RECIPE, *plain, device="mps") == alone * 10
    assert batches(SMALL, many, dataclasses.replace(RECIPE, stop_at_loss=0.1), *plain) == alone * 10
    assert batches(SMALL, many, RECIPE, *plain, strategy="processes") == alone * 10
    assert batches(convolution, many[:2], RECIPE, *plain, strategy="vmap") == [(2, True)]


def test_only_networks_of_one_kind_are_batched():
    many = [Stripes()] * 8
    widths = [functools.partial(MLP, width=w) for w in (8, 9) * 4]  # equal, but not the same objects
    epochs = [dataclasses.replace(RECIPE, epochs=2, learning_rate=0.1 * i) for i in range(1, 5)] + [RECIPE] * 4
    alphas = [SelectivityObjective(alpha) for alpha in (0.5, 1.0) * 4]
    halves, whole = [(4, True)] * 2, [(8, True)]
    assert batches(SMALL, many, RECIPE, None, None, list(range(8))) == whole
    assert batches(SMALL, many, SGD * 2, None, None, 0) == whole
    assert batches(widths, many, RECIPE, None, None, 0) == halves
    assert batches(SMALL, many, epochs, None, None, 0) == halves
    assert batches(SMALL, many, RECIPE, None, alphas, 0) == halves
    assert batches(SMALL, [*many[:4], *[Stripes(n_classes=4)] * 4], RECIPE, None, None, 0) == halves
    assert batches(SMALL, many, RECIPE, None, [None, cross_entropy] * 4, 0) == whole


def test_what_differs_is_trained_beside_the_rest(no_loop, monkeypatch):
    tasks = [Stripes(1), Stripes(2, n_train=100), Stripes(3, shape=(1, 8, 8)), Stripes(4), Stripes(5, n_train=100)]
    kinds = [SMALL, SMALL, SMALL, functools.partial(MLP, width=9), functools.partial(MLP, width=8)]
    recipes = [RECIPE, RECIPE, dataclasses.replace(RECIPE, batch_size=32), RECIPE, SGD[1]]
    options = {"seed": [7, 8, 9, 10, 11], **CPU}
    as_one = fit_networks(kinds, tasks, recipes, strategy="vmap", **options)
    monkeypatch.undo()
    assert_same(as_one, fit_networks(kinds, tasks, recipes, strategy="loop", **options), rtol=1e-3, atol=1e-5)


def test_inputs_that_are_equal_are_held_once():
    @dataclasses.dataclass(frozen=True)
    class Relabelled(Stripes):
        shift: int = 0

        def sample(self, split, device):
            x, y = super().sample(split, device)
            return x, (y + self.shift) % 3

    tasks = [Relabelled(), Relabelled(shift=1), Relabelled(seed=1), Relabelled()]
    data = many._sampled(tasks, "train", torch.device("cpu"))
    (x, y), (x1, y1), (x2, _), (x3, y3) = (data[id(task)] for task in tasks)
    assert x is x1 is x3 is not x2
    assert torch.equal(y, y3)
    assert not torch.equal(y, y1)
    loop, as_one = (fit_networks(SMALL, tasks, RECIPE, strategy=s, **CPU) for s in ("loop", "vmap"))
    assert_same(as_one, loop, rtol=1e-3, atol=1e-5)


def test_dropout_masks_are_each_networks_own():
    run = functools.partial(fit_networks, with_dropout, [Stripes()] * 4, RECIPE, keep=[0, 3], seed=[1] * 4, **CPU)
    as_one, loop = run(strategy="vmap"), run(strategy="loop")
    assert_same(run(strategy="vmap"), as_one)
    assert len({t.history.train_loss[0] for t in loop}) == 1
    assert len({t.history.train_loss[0] for t in as_one}) == 4
    torch.testing.assert_close(as_one[0].weights[0], loop[0].weights[0], rtol=0, atol=0)
    assert not as_one[0].network().training
    assert not any(m.training for m in as_one[0].network().modules())


def test_dropout_drops_the_same_share_by_every_strategy():
    """An objective that only looks: the share of units that are zero, of logits that are constant."""

    def half(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 400), Ones(), nn.Dropout(0.25), nn.Linear(400, classes))

    class Ones(nn.Module):
        def forward(self, x):
            return x * 0 + 1

    def share(model, x, y, epoch):
        seen = []
        hook = model[3].register_forward_hook(lambda *a: seen.append((a[2] == 0).float().mean()))
        _, logits = cross_entropy(model, x, y, epoch)
        hook.remove()
        return seen[0] + 0 * logits.sum(), logits

    for strategy in ("loop", "vmap"):
        trained = fit_networks(half, [Stripes()] * 2, RECIPE, objective=share, strategy=strategy, **CPU)
        assert [t.history.train_loss[-1] for t in trained] == pytest.approx([0.25] * 2, abs=0.01)


def test_what_vmap_cannot_do():
    run = functools.partial(fit_networks, SMALL, [Stripes(i) for i in range(4)], RECIPE, **CPU)
    with pytest.raises(ValueError, match=r"cannot be batched; use 'loop' or 'processes' \("):
        run(objective=that_looks_at_values, strategy="vmap")
    assert_same(run(objective=that_looks_at_values), run(strategy="loop"))
    with pytest.raises(ValueError, match="'vmap' trains all networks equally long; use 'loop' or 'processes'"):
        fit_networks(SMALL, [Stripes()], dataclasses.replace(RECIPE, stop_at_loss=0.1), strategy="vmap", **CPU)


# ---- networks and their weights ------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_networks_are_those_of_fit_many(strategy):
    tasks = [Stripes(i) for i in range(3)]
    ours = fit_networks(SMALL, tasks, RECIPE, seed=5, strategy=strategy, **CPU)
    assert [t.history for t in ours] == fit_many(SMALL, tasks, RECIPE, seed=5, strategy=strategy, **CPU)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_kept_weights_against_a_plain_loop(strategy):
    """The reference stops in the middle of the schedule, whose end is that of the whole training."""
    task, recipe = Stripes(), dataclasses.replace(RECIPE, clip=None)
    (trained,) = fit_networks(SMALL, [task], recipe, keep=(2, 0, 3, 2), seed=6, strategy=strategy, **CPU)
    assert list(trained.weights) == [0, 2, 3]

    with seeds.seeded(6, "initialisation", 0):
        plain = architectures.build(SMALL, shape=SHAPE, classes=3)
    torch.testing.assert_close(dict(plain.state_dict()), trained.weights[0], rtol=0, atol=0)
    (x, y), step = task.sample("train", "cpu"), 0
    order = seeds.generator(seeds.derive(6, "training", 0), "order")
    for epoch in range(1, 4):
        for batch in torch.randperm(len(x), generator=order).split(64):
            plain.zero_grad()
            F.cross_entropy(plain(x[batch] / 255), y[batch]).backward()
            with torch.no_grad():
                for w in plain.parameters():
                    w -= 0.3 * (1 - step / 9) * w.grad
            step += 1
        if epoch in trained.weights:
            torch.testing.assert_close(dict(plain.state_dict()), trained.weights[epoch], rtol=1e-4, atol=1e-6)
    assert evaluate(plain, task.sample("test", "cpu")) == pytest.approx(
        (trained.history.test_loss[0], trained.history.test_accuracy[0]), rel=1e-4
    )


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_kept_weights_are_those_of_a_shorter_training(strategy):
    long, short = (dataclasses.replace(RECIPE, epochs=n, schedule="constant") for n in (4, 2))
    tasks = [Stripes(i) for i in range(2)]
    run = functools.partial(fit_networks, convolution, tasks, strategy=strategy, **CPU)
    for whole, part in zip(run(long, keep=[1, 2]), run(short), strict=True):
        torch.testing.assert_close(whole.weights[2], part.weights[2], rtol=0, atol=0)
        assert whole.history.train_loss[:2] == part.history.train_loss
        assert list(part.weights) == [2]


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_networks_come_back(strategy):
    (trained,) = fit_networks(in_double, [Stripes()], RECIPE, keep=[0, 3], strategy=strategy, **CPU)
    state = torch.get_rng_state()
    first, last = trained.network(0), trained.network()
    assert torch.equal(state, torch.get_rng_state())
    assert not last.training
    test = Stripes().sample("test", "cpu")
    assert evaluate(last, test) == (trained.history.test_loss[-1], trained.history.test_accuracy[-1])
    assert evaluate(first, test)[1] < evaluate(last, test)[1]
    for t in trained.weights[3].values():
        t.zero_()  # the networks have weights of their own
    assert evaluate(last, test)[0] == trained.history.test_loss[-1]
    with pytest.raises(ValueError, match=r"epoch 2 was not kept; these were: 0, 3"):
        trained.network(2)
    assert "weights" not in repr(trained)


def test_weights_do_not_change_with_the_training():
    (trained,) = fit_networks(SMALL, [Stripes()], RECIPE, keep=range(4), strategy="loop", **CPU)
    states = [trained.weights[epoch]["fc1.weight"] for epoch in range(4)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(states))
    assert all(t.is_contiguous() for t in trained.weights[3].values())


def test_equal_seeds_begin_alike_wherever_they_stand():
    run = functools.partial(fit_networks, SMALL, strategy="loop", keep=[0, 3], **CPU)
    four = run([Stripes(1), Stripes(2), Stripes(1), Stripes(1)], RECIPE, seed=[3, 3, 8, 3])
    assert_same(four[:1], four[3:])
    torch.testing.assert_close(four[0].weights[0], four[1].weights[0], rtol=0, atol=0)
    assert not torch.equal(four[0].weights[0]["fc1.weight"], four[2].weights[0]["fc1.weight"])
    assert_same(run([Stripes(1)], RECIPE, seed=[8]), four[2:3])
    assert_same(run([Stripes(1)], RECIPE, seed=8), four[2:3])


def test_a_training_that_stops_early_keeps_its_last_weights():
    recipe = Recipe(epochs=60, batch_size=32, learning_rate=0.5, stop_at_loss=0.5)
    (trained,) = fit_networks("logreg", [Stripes()], recipe, keep=[0, 1, 30, 60], **CPU)
    last = trained.history.epochs
    assert 1 < last < 30
    assert list(trained.weights) == [0, 1, last]
    assert evaluate(trained.network(), Stripes().sample("test", "cpu"))[0] == trained.history.test_loss[-1]


def test_one_training_can_be_watched():
    """`fit` calls back before the first epoch and after each."""
    torch.manual_seed(0)
    model, seen = SMALL(SHAPE, 3), []
    watched = fit(
        model,
        Stripes().sample("train", "cpu"),
        Stripes().sample("test", "cpu"),
        RECIPE,
        objective=with_quiet_units,
        after_epoch=lambda epoch: seen.append((epoch, model.fc1.weight.norm().item())),
        **CPU,
    )
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert len({norm for _, norm in seen}) == 4
    assert watched.epochs == 3


def test_networks_can_be_sent():
    (trained,) = fit_networks(SMALL, [Stripes()], RECIPE, **CPU)
    assert_same([pickle.loads(pickle.dumps(trained))], [trained])


def test_nothing_to_train():
    assert fit_networks(SMALL, [], RECIPE, **CPU) == []


# ---- checkpoints ---------------------------------------------------------------------------------


def interrupted_at(build):
    """An architecture whose ``build``-th network is interrupted, and the list of its networks."""
    built = []

    def interrupted(shape, classes):
        built.append(shape)
        if len(built) == build:
            raise KeyboardInterrupt
        return SMALL(shape=shape, classes=classes)

    return interrupted, built


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_interrupted_run_trains_only_what_is_missing(tmp_path):
    folder = tmp_path / "run"
    architecture, built = interrupted_at(4)  # the first is built to know the run again
    run = functools.partial(fit_networks, architecture, [Stripes(i) for i in range(5)], SGD[1], keep=[0, 3], **CPU)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=folder, strategy="loop")
    assert files_of(folder) == ["network-0.safetensors", "network-1.safetensors"]
    resumed = run(checkpoint=folder, strategy="loop")
    assert len(built) == 4 + 1 + 3
    assert_same(resumed, run(strategy="loop"))
    before = len(built)
    assert_same(run(checkpoint=folder), resumed)
    assert len(built) == before + 1
    (folder / "network-3.safetensors").unlink()
    assert_same(run(checkpoint=folder, strategy="vmap"), resumed, rtol=1e-3, atol=1e-5)


def test_batches_that_are_missing_are_what_they_would_have_been(tmp_path):
    """With dropout, too, whose masks are drawn for a batch. 17 networks are batches of 6, 6 and 5."""
    run = functools.partial(fit_networks, with_dropout, [Stripes(i) for i in range(17)], RECIPE, workers=1, **CPU)
    uninterrupted = run(checkpoint=tmp_path)
    for number in set(range(17)) - set(range(0, 17, 3)):
        (tmp_path / f"network-{number}.safetensors").unlink()
    assert_same(run(checkpoint=tmp_path), uninterrupted)


@pytest.mark.parametrize(("strategy", "added"), [("loop", [1] * 10), ("processes", [1] * 10), ("vmap", [5, 5])])
def test_networks_are_saved_as_they_come(tmp_path, monkeypatch, strategy, added):
    sizes, add = [], many.NetworkFolder.add

    def counted(folder, results):
        results = list(results)
        add(folder, results)
        sizes.append(len(results))
        assert len(files_of(tmp_path)) == sum(sizes)

    monkeypatch.setattr(many.NetworkFolder, "add", counted)
    fit_networks(SMALL, [Stripes()] * 10, RECIPE, checkpoint=tmp_path, strategy=strategy, workers=2, **CPU)
    assert sizes == added


def test_a_larger_run_uses_the_networks_of_a_smaller(tmp_path, workers):
    run = functools.partial(fit_networks, convolution, checkpoint=tmp_path, **CPU)
    two = run([Stripes(0), Stripes(1)], SGD[:2])
    assert_same(run([Stripes(i) for i in range(4)], SGD, executor=workers)[:2], two)
    assert len(files_of(tmp_path)) == 4


def test_weights_are_data_and_never_code(tmp_path):
    fit_networks(SMALL, [Stripes()], RECIPE, keep=[0, 3], checkpoint=tmp_path, **CPU)
    tensors, facts = storage.read(tmp_path / "network-0.safetensors", "trained network")
    names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "out.weight", "out.bias"]
    assert sorted(tensors) == sorted(f"{epoch}/{name}" for epoch in (0, 3) for name in names)
    assert facts["settings"]["objective"] == "cross_entropy"
    assert len(facts["history"]["train_loss"]) == 3


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    own = {"architecture": SMALL, "problems": [Stripes(0), Stripes(1)], "recipe": RECIPE, "keep": [0, 3], **CPU}
    fit_networks(**own, checkpoint=tmp_path)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    for change, message in [
        ({"recipe": [RECIPE, SGD[1]]}, r"network-1.safetensors: .*\(learning_rate was 0.3, now 0.05 and|, momentum"),
        ({"seed": 1}, r"network-0.safetensors: .*\(seed was 0, now 1\)"),
        ({"seed": [0, 0]}, r"network-1.safetensors: .*\(place below the seed was 1, now 0\)"),
        ({"problems": [Stripes(0), Stripes(2)]}, r"network-1.safetensors: .*\(problem was .*seed=1"),
        ({"keep": [3]}, r"\(keep was \[0, 3\], now \[3\]\)"),
        ({"architecture": "logreg"}, r"architecture was 'MLP\(width=8\)', now 'logreg', layers was"),
        ({"objective": SelectivityObjective(0.5)}, r"objective was 'cross_entropy', now 'SelectivityObjective\(alpha"),
    ]:
        with pytest.raises(ValueError, match=f"a checkpoint of another run, name another folder .*|{message}") as error:
            fit_networks(**own | change, checkpoint=tmp_path)
        assert error.match(message)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before


class Switched(nn.Module):
    """Its layers say nothing of its activation."""

    activation = staticmethod(torch.relu)

    def __init__(self, shape, classes):
        super().__init__()
        self.hidden, self.out = nn.Linear(36, 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.out(self.activation(self.hidden(x.flatten(1))))


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@pytest.mark.parametrize(
    ("activation", "what"),
    [(torch.tanh, "outputs"), (F.relu6, "outputs"), (F.leaky_relu, "outputs"), (Doubled.apply, "losses of one step")],
)
def test_a_checkpoint_knows_what_networks_do(tmp_path, monkeypatch, activation, what):
    """ReLU and ReLU6 differ for large activities only, and `Doubled` in its gradient only."""
    options = {"problems": [Stripes()], "recipe": RECIPE, **CPU}
    runs = [
        functools.partial(fit_networks, Switched, checkpoint=tmp_path / "networks", **options),
        functools.partial(fit_many, Switched, checkpoint=tmp_path / "histories.json", **options),
    ]
    for run in runs:
        run()
        run()
    monkeypatch.setattr(Switched, "activation", staticmethod(activation))
    for run in runs:
        with pytest.raises(
            ValueError, match=rf"of another run, name another .*\({what} differ by 0?\.?\d.* of the larg"
        ):
            run()


def weighted(weight):
    return lambda model, x, y, epoch: (weight**epoch * F.cross_entropy(model(x), y), model(x))


def test_a_checkpoint_knows_objectives_by_what_they_do(tmp_path):
    """They have one name, and agree in the first epoch."""
    run = functools.partial(fit_networks, SMALL, [Stripes()], RECIPE, checkpoint=tmp_path, **CPU)
    run(objective=weighted(2))
    run(objective=weighted(2))
    later = lambda model, x, y, epoch: (2**epoch * F.cross_entropy(model(x), y).square(), model(x))  # noqa: E731
    for other in (weighted(3), later):
        with pytest.raises(ValueError, match=r"\(.*code of the objective was '\w+', now '\w+'\)"):
            run(objective=other)


def test_what_a_checkpoint_knows_changes_no_number(tmp_path):
    state = torch.get_rng_state()
    run = functools.partial(fit_networks, with_dropout, [Stripes()], RECIPE, objective=with_quiet_units, **CPU)
    assert_same(run(checkpoint=tmp_path), run())
    assert torch.equal(state, torch.get_rng_state())


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    run = functools.partial(fit_networks, SMALL, [Stripes()], RECIPE, checkpoint=tmp_path, **CPU)
    run()
    path = tmp_path / "network-0.safetensors"
    tensors, facts = storage.read(path, "trained network")
    for name in ("outputs", "losses of one step"):
        del facts["settings"][name]
    storage.write(path, "trained network", tensors, facts)
    with pytest.raises(ValueError, match=r"another folder \(outputs were not noted by the older version that wrote it"):
        run()


def test_a_checkpoint_that_cannot_be_used_is_explained(tmp_path):
    run = functools.partial(fit_networks, SMALL, [Stripes()], RECIPE, **CPU)
    run(checkpoint=tmp_path)
    path = tmp_path / "network-0.safetensors"
    tensors, facts = storage.read(path, "trained network")
    whole = path.read_bytes()
    for damage in (whole[:50], b"", b"{}"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"network-0.safetensors: a damaged file.* delete"):
            run(checkpoint=tmp_path)
        assert path.read_bytes() == damage
    for wrong in ({}, {"settings": facts["settings"], "history": {"loss": []}}):
        storage.write(path, "trained network", tensors, wrong)
        with pytest.raises(ValueError, match=r"network-0.safetensors: a damaged checkpoint; delete it"):
            run(checkpoint=tmp_path)
    storage.write(path, "basis", tensors, {})
    with pytest.raises(ValueError, match="expected a saved trained network, found basis"):
        run(checkpoint=tmp_path)
    with pytest.raises(ValueError, match="expected a folder, found a file"):
        run(checkpoint=path)


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, no_loop):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        fit_networks(SMALL, [Stripes()], RECIPE, checkpoint=tmp_path / "file" / "run", **CPU)


def test_bars_count_networks_and_epochs(tmp_path, capsys):
    run = functools.partial(fit_networks, SMALL, recipe=RECIPE, checkpoint=tmp_path, strategy="vmap", **CPU)
    run(problems=[Stripes()] * 3)
    assert capsys.readouterr().err == ""
    run(problems=[Stripes()] * 4, progress=True)
    err = capsys.readouterr().err
    assert "3/4" in err
    assert "/3 [" in err
    assert "network/s" in err


# ---- bad input -----------------------------------------------------------------------------------


FAST = dataclasses.replace(RECIPE, learning_rate=1e38, clip=None)
DIVERGED = r"network 2: training diverged in epoch \d \(loss (nan|inf)\); lower the learning rate \(1e\+38\)"


@pytest.mark.parametrize("strategy", ["loop", "processes", "vmap"])
def test_a_network_that_diverges_is_named_and_stops_no_other(tmp_path, strategy):
    run = functools.partial(fit_networks, SMALL, keep=[0, 2, 3], strategy=strategy, workers=2, **CPU)
    run = functools.partial(run, checkpoint=tmp_path)
    plain = dataclasses.replace(RECIPE, clip=None)
    for _ in range(2):  # the second time from the checkpoint
        with pytest.warns(RuntimeWarning, match=f"^1 of 4 networks diverged; their last results are NaN.*: {DIVERGED}"):
            networks = run([Stripes()] * 4, [plain, plain, FAST, plain])
        bad = networks.pop(2)
        assert all(network.history.diverged is None for network in networks)
        assert list(bad.weights) == [0]
        assert bad.history.epochs <= 3
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            *before, last = getattr(bad.history, name)
            assert math.isnan(last)
            assert all(map(math.isfinite, before))
        assert not bad.network(0).training
        with pytest.raises(training.Diverged, match=f"^{DIVERGED}.*; epochs kept before that: 0$"):
            bad.network()
        with pytest.raises(ValueError, match=f"epoch 3 was not kept; these were: 0 .{DIVERGED}"):
            bad.network(3)
    seeds_of_three = {"seed": 0, "strategy": strategy, "workers": 2, **CPU}
    alone = fit_networks(SMALL, [Stripes()] * 4, plain, keep=[0, 2, 3], **seeds_of_three)
    assert_same(networks, [*alone[:2], alone[3]])


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_last_step_that_diverges_counts_as_well(strategy):
    """Each loss was taken before its step; the network after the last is beyond all numbers."""
    recipe = dataclasses.replace(FAST, epochs=1, batch_size=1000)
    with pytest.warns(RuntimeWarning, match="2 of 2 networks diverged.*network 0: .*network 1: "):
        networks = fit_networks(SMALL, [Stripes()] * 2, recipe, keep=[0, 1], strategy=strategy, **CPU)
    assert [list(network.weights) for network in networks] == [[0], [0]]
    assert [network.history.train_loss for network in networks] == [pytest.approx([math.nan], nan_ok=True)] * 2


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_an_objective_that_returns_something_else_is_explained(strategy):
    def only_the_loss(model, x, y, epoch):
        return cross_entropy(model, x, y, epoch)[0]

    def a_loss_each(model, x, y, epoch):
        return F.cross_entropy(model(x), y, reduction="none"), model(x)

    def no_tensor(model, x, y, epoch):
        return 0.5, model(x)

    def other_order(model, x, y, epoch):
        return cross_entropy(model, x, y, epoch)[::-1]

    for objective, found in [
        (only_the_loss, "a Tensor"),
        (a_loss_each, r"tensors of shape \[\(64,\), \(64, 3\)\]"),
        (no_tensor, "a tuple"),
        (other_order, r"tensors of shape \[\(64, 3\), \(\)\]"),
    ]:
        name = objective.__name__
        with pytest.raises(
            ValueError, match=rf"{name}: expected a scalar loss and logits \(64, classes\), got {found}"
        ):
            fit_networks(SMALL, [Stripes()] * 2, RECIPE, objective=objective, strategy=strategy, **CPU)


def test_impossible_requests_are_explained():
    two = [Stripes(), Stripes(1)]
    for options, message in [
        ({"recipe": [RECIPE] * 3}, "recipe: expected one, or a list of one for each of 2 problems, got a list of 3"),
        ({"architecture": ["logreg"]}, "architecture: expected one, or a list of one for each of 2 problems"),
        ({"objective": [None]}, "objective: expected one, or a list"),
        ({"seed": [1, 2, 3]}, "seed: expected one, or a list"),
        ({"seed": [1, -2]}, "seed: expected an integer, at least 0, got -2"),
        ({"seed": 0.5}, "seed: expected an integer"),
        ({"keep": [0, 4]}, "keep: expected epochs from 0 to 3, the recipe's last, got 4"),
        ({"keep": [-1]}, "keep: expected an integer, at least 0, got -1"),
        ({"keep": [0.5]}, "keep: expected an integer"),
        ({"keep": []}, r"keep: expected a list of epochs, 0 for the initialisation, got \[\]"),
        ({"keep": 3}, "keep: expected a list"),
        ({"recipe": {"epochs": 3}}, "recipe: expected a Recipe or a list, got a dict"),
        ({"objective": "cross-entropy"}, "objective: expected a function .* got 'cross-entropy'"),
        ({"architecture": "logrep"}, "did you mean 'logreg'"),
        ({"architecture": ["logreg", "lenett"]}, "did you mean 'lenet'"),
        ({"problems": two[0]}, "problems: expected a list, got a Stripes"),
        ({"problems": [two[0], "mnist"]}, "problem 1: expected a training.Problem .* got a str"),
        ({"strategy": "vmapp"}, "strategy: expected one of auto, loop, processes, vmap, got 'vmapp'; did you mean"),
        ({"workers": 0}, "workers: expected an integer, at least 1, got 0"),
        (
            {"strategy": "loop", "executor": Executor()},
            "expected 'auto', 'processes' or 'vmap' with an executor",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_networks(**{"architecture": "logreg", "problems": two, "recipe": RECIPE, **CPU} | options)


def test_a_stack_is_its_networks():
    models = [in_double(SHAPE, 3) for _ in range(3)]
    stack = Stack(models)
    for i, model in enumerate(models):
        torch.testing.assert_close(stack.state(i), dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_the_same_networks_as_one():
    options = {"device": "cuda", "keep": [0, 1, 3]}
    loop, as_one = (fit_networks(in_double, [Stripes()] * 4, SGD, strategy=s, **options) for s in ("loop", "vmap"))
    assert_same(as_one, loop, rtol=1e-6, atol=1e-9)
    assert all(t.device.type == "cpu" for t in as_one[0].weights[3].values())
