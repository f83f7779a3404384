"""Training: against a plain loop, the same by every strategy, and clear about bad input."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import nn

from nadkit import seeds, training
from nadkit.architectures.pooling import Blur
from nadkit.data.synthetic import Separable
from nadkit.files import DataError
from nadkit.inputs.basis import pixel_basis
from nadkit.training import Recipe, checkpoints, evaluate, fit, fit_many, fitting, many

SHAPE = (1, 6, 6)
RECIPE = Recipe(epochs=3, batch_size=64, learning_rate=0.3)


def with_batch_norm(shape, classes):
    return nn.Sequential(
        nn.Conv2d(shape[0], 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes)
    )


def with_fixed_filter(shape, classes):
    return nn.Sequential(Blur(), nn.Flatten(), nn.Linear(9 * shape[0], classes))


def problems(n, **options):
    return [
        Separable(
            **{"v": pixel_basis(SHAPE)[i], "shape": SHAPE, "sigma": 1.0, "n_train": 150, "n_test": 90, "seed": i}
            | options
        )
        for i in range(n)
    ]


@dataclasses.dataclass(frozen=True)
class Stripes:
    """Images in bytes, in which the row that is bright tells the class."""

    seed: int = 0
    shape: tuple[int, int, int] = SHAPE
    n_classes: int = 3
    n_train: int = 150

    def sample(self, split, device):
        generator = seeds.generator(self.seed, split)
        y = torch.randint(self.n_classes, (self.n_train if split == "train" else 90,), generator=generator)
        x = torch.randint(128, (len(y), *self.shape), generator=generator, dtype=torch.uint8)
        x[torch.arange(len(y)), :, y] += 100
        return x.to(device), y.to(device)

    def checksum(self):
        return repr(self)


def data(n=200, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *SHAPE, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


@pytest.fixture
def one_thread():
    """As on the workers: another number of threads may round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two_processes():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, momentum=0.9, weight_decay=1e-2, clip=None)])
def test_fit_against_a_plain_loop(recipe):
    """The reference draws the same order and writes the update out."""
    (x, y), test = data(), data(seed=1)
    torch.manual_seed(0)
    model = with_batch_norm(SHAPE, 3)
    plain = with_batch_norm(SHAPE, 3)
    plain.load_state_dict(model.state_dict())
    history = fit(model, (x, y), test, recipe, seed=5, device="cpu")

    order = seeds.generator(5, "order")
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


def test_adam_against_a_plain_loop():
    """The reference is `torch.optim.Adam` itself, at a constant rate, on the same order of samples."""
    (x, y), test = data(), data(seed=1)
    recipe = dataclasses.replace(RECIPE, optimizer="adam", learning_rate=0.01, schedule="constant", weight_decay=1e-2)
    torch.manual_seed(0)
    model = with_batch_norm(SHAPE, 3)
    plain = with_batch_norm(SHAPE, 3)
    plain.load_state_dict(model.state_dict())
    fit(model, (x, y), test, recipe, seed=5, device="cpu")

    order = seeds.generator(5, "order")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, weight_decay=1e-2)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(x), generator=order).split(recipe.batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x[batch]), y[batch]).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), recipe.clip)
            optimizer.step()
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_descent_takes_the_steps_of_torch_to_the_last_bit(momentum, weight_decay):
    """One weight is frozen, and one has no gradient at every other step."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(3, 2), requires_grad=i != 1) for i in range(3)]
    theirs = [nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in ours]
    options = {"lr": 0.1, "momentum": momentum, "weight_decay": weight_decay}
    optimizers = fitting._Sgd(ours, **options), torch.optim.SGD(theirs, **options)
    for step in range(6):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            assert all(p.grad is None for p in weights)
            used = weights[2].sin().sum() + (weights[1] * weights[2]).sum() + (step % 2 and weights[0].square().sum())
            used.backward()
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
    assert all(map(torch.equal, ours, theirs))


def test_a_network_that_hides_its_weights_from_training_is_explained():
    network = with_batch_norm(SHAPE, 3)
    network.forward = torch.no_grad()(network.forward)
    with pytest.raises(
        ValueError, match=r"depends on the weights; does forward run under torch.no_grad\(\), or detach"
    ):
        fit(network, data(), data(seed=1), RECIPE, device="cpu")


def test_training_does_not_import_the_compiler():
    """It takes over a second, and `torch.optim.SGD` imports it."""
    code = """
        import sys, torch
        from nadkit import architectures, training
        network = architectures.build("logreg", shape=(1, 4, 4), classes=2)
        data = torch.randn(8, 1, 4, 4), torch.arange(8) % 2
        training.fit(network, data, data, training.Recipe(epochs=1), device="cpu")
        assert "torch._dynamo" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_schedules_by_hand():
    linear, constant = (Recipe(learning_rate=0.4, schedule=schedule) for schedule in ("linear", "constant"))
    assert [linear.rate(step, 4) for step in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert [constant.rate(step, 4) for step in range(4)] == [0.4] * 4


@pytest.fixture
def losses(monkeypatch):
    """The mean loss of every batch, as the loop computes them."""
    seen, step = [], fitting._step

    def recorded(*args):
        result = step(*args)
        seen.append(result[0].item())
        return result

    monkeypatch.setattr(fitting, "_step", recorded)
    return seen


@pytest.mark.parametrize("batch_size", [50, 64, 150])
def test_steps_to_loss_against_a_slow_search(losses, batch_size):
    """Windows may begin in an epoch and end in the next: at 150 an epoch is a single batch."""
    recipe = Recipe(epochs=60, batch_size=batch_size, learning_rate=0.5, stop_at_loss=0.2)
    (history,) = fit_many("logreg", problems(1), recipe, device="cpu", strategy="loop")
    window = training.STOP_WINDOW
    means = {last: sum(losses[last - window : last]) / window for last in range(window, len(losses) + 1)}
    assert history.steps_to_loss == min(last for last, mean in means.items() if mean <= 0.2)
    per_epoch = -(-150 // batch_size)
    assert history.epochs == -(-history.steps_to_loss // per_epoch) < 60
    assert len(losses) == history.epochs * per_epoch
    assert len(history.test_loss) == 1


def test_a_loss_that_is_not_reached_has_no_step():
    far = Recipe(epochs=2, batch_size=64, stop_at_loss=1e-6)
    few = Recipe(epochs=1, batch_size=64, stop_at_loss=100.0)  # 3 batches: fewer than a window
    for recipe in (far, few, RECIPE):
        (history,) = fit_many("logreg", problems(1), recipe, device="cpu", strategy="loop")
        assert history.steps_to_loss is None
        assert history.epochs == recipe.epochs


def test_stopping_changes_nothing_before_it():
    recipe = Recipe(epochs=40, batch_size=64, schedule="constant", stop_at_loss=0.3)
    (stopped,) = fit_many("logreg", problems(1), recipe, device="cpu", strategy="loop")
    whole = dataclasses.replace(recipe, stop_at_loss=None)
    (trained,) = fit_many("logreg", problems(1), whole, device="cpu", strategy="loop")
    assert 1 < stopped.epochs < trained.epochs == 40
    assert stopped.train_loss == trained.train_loss[: stopped.epochs]


STRIDED = """\
import torch
from torch import nn
from nadkit.training import Recipe, fit
torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randn(64, 4, 32, 32), torch.arange(64) % 2
model = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
fit(model, (x, y), (x, y), Recipe(epochs=2, batch_size=32))
print(model[0].weight.flatten().tolist())
"""


def test_a_strided_convolution_of_few_channels_learns_alike_on_all_processors():
    """On processors with AVX2 alone, oneDNN's gradient of such a convolution in channels_last is wrong or crashes."""
    weights = []
    for isa in ("DEFAULT", "AVX2"):
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        run = subprocess.run([sys.executable, "-c", STRIDED], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        weights.append(json.loads(run.stdout))
    assert weights[1] == pytest.approx(weights[0], abs=1e-5)


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


SGD = dataclasses.replace(RECIPE, momentum=0.9, weight_decay=1e-3)
ADAM = dataclasses.replace(RECIPE, optimizer="adam", learning_rate=0.01, weight_decay=1e-3)


@pytest.mark.parametrize(
    ("architecture", "recipe"),
    [("logreg", SGD), (with_batch_norm, SGD), (with_fixed_filter, SGD), (with_batch_norm, ADAM)],
)
def test_strategies_agree(architecture, recipe):
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


def test_workers_give_what_one_process_gives(one_thread, two_processes):
    def defined_here(shape, classes):
        return nn.Sequential(with_batch_norm(shape, classes), nn.Dropout(0.2))

    for architecture in ("logreg", with_batch_norm, defined_here):
        alone = fit_many(architecture, problems(4), RECIPE, seed=1, device="cpu", strategy="loop")
        options = {"seed": 1, "device": "cpu", "executor": two_processes}
        assert fit_many(architecture, problems(4), RECIPE, **options) == alone
    assert fit_many("logreg", [], RECIPE, executor=two_processes) == []


def test_threads_give_what_one_process_gives():
    """They share torch's global generators, from which the weights and the dropout masks come."""
    dropout = nn.Dropout(0.2)
    alone = fit_many(lambda **k: nn.Sequential(with_batch_norm(**k), dropout), problems(6), RECIPE, strategy="loop")
    with ThreadPoolExecutor(3) as pool:
        threads = fit_many(lambda **k: nn.Sequential(with_batch_norm(**k), dropout), problems(6), RECIPE, executor=pool)
    assert threads == alone


def backwards(executor, function, tasks):
    """In place of `gather`: the last first."""
    return (function(*task) for task in reversed(list(tasks)))


def test_it_does_not_matter_which_worker_is_first(monkeypatch):
    monkeypatch.setattr(many, "gather", backwards)
    histories = fit_many("logreg", problems(4), RECIPE, device="cpu", executor=Executor())
    assert histories == fit_many("logreg", problems(4), RECIPE, device="cpu", strategy="loop")


def test_a_worker_is_sent_its_own_problem_only():
    basis = pixel_basis((1, 32, 32))
    assert len(pickle.dumps(Separable(v=basis[5]))) < 2 * 8 * 1024


def test_any_problem_can_be_trained_on(tmp_path, two_processes, one_thread):
    """Not D(v): three classes, bytes, a checkpoint; and every strategy gives the same."""
    tasks = [Stripes(seed) for seed in range(3)]
    recipe = Recipe(epochs=20, batch_size=32, learning_rate=0.5, momentum=0.5)
    options = {"seed": 1, "device": "cpu"}
    alone = fit_many("logreg", tasks, recipe, strategy="loop", **options)
    assert min(h.test_accuracy[-1] for h in alone) > 0.8
    for strategy in ("loop", "processes"):
        path = tmp_path / f"{strategy}.json"
        for left in ((0, 1, 2), (0, 1)):
            found = fit_many("logreg", tasks, recipe, strategy=strategy, workers=2, checkpoint=path, **options)
            assert found == alone
            interrupt(path, left)
        with pytest.raises(ValueError, match=r"problem 1 was .*seed=1.*, now .*seed=5"):
            fit_many("logreg", [tasks[0], Stripes(5), tasks[2]], recipe, checkpoint=path, **options)
    assert fit_many("logreg", tasks, recipe, executor=two_processes, **options) == alone
    for ours, theirs in zip(alone, fit_many("logreg", tasks, recipe, strategy="vmap", **options), strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-3)
        assert ours.test_accuracy == pytest.approx(theirs.test_accuracy, abs=1.5 / 90)


def test_problems_may_differ_in_shape_and_classes():
    tasks = [Stripes(), Stripes(n_classes=5), Stripes(shape=(3, 8, 8)), *problems(1), Stripes(n_train=100)]
    together = fit_many("logreg", tasks, RECIPE, device="cpu", strategy="loop")
    assert fit_many("logreg", tasks, RECIPE, device="cpu", strategy="processes", workers=2) == together
    for ours, theirs in zip(fit_many("logreg", tasks, RECIPE, device="cpu", strategy="vmap"), together, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_labels_without_a_logit_are_explained(strategy):
    class Wrong(Stripes):
        def sample(self, split, device):
            x, y = super().sample(split, device)
            return x, y + 1

    with pytest.raises(ValueError, match="train labels: expected 0 to 2 for 3 logits, got 1 to 3"):
        fit_many("logreg", [Wrong()], RECIPE, device="cpu", strategy=strategy)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_a_test_split_that_does_not_fit_is_explained_before_training(strategy):
    class Wrong(Stripes):
        def sample(self, split, device):
            x, y = super().sample(split, device)
            return (x, y) if split == "train" else (x.float() / torch.tensor(torch.nan), y)

    with pytest.raises(ValueError, match="test data: expected finite numbers"):
        fit_many("logreg", [Wrong()], RECIPE, device="cpu", strategy=strategy)


def test_bytes_and_floats_are_batched_apart():
    class Floats(Stripes):
        def sample(self, split, device):
            x, y = super().sample(split, device)
            return x / 255, y

    ours, theirs = fit_many("logreg", [Stripes(), Floats()], RECIPE, device="cpu", strategy="vmap")
    (alone,) = fit_many("logreg", [Stripes()], RECIPE, device="cpu", strategy="vmap")
    assert ours == alone != theirs


def test_what_is_no_problem_is_explained():
    basis = pixel_basis(SHAPE)
    for wrong, message in [
        (
            [*problems(1), basis[0]],
            "problem 1: expected a training.Problem .* got a Tensor, which lacks n_classes, sam",
        ),
        ([basis], "problem 0: .* got a Basis, which lacks n_classes, sample, checksum"),
        (problems(1)[0], "problems: expected a list, got a Separable"),
        (basis[0], "problems: expected a list of problems, got one Tensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_many("logreg", wrong, RECIPE)


def test_an_error_of_a_worker_arrives(two_processes):
    recipe = Recipe(epochs=3, learning_rate=1e38, clip=None)
    with pytest.raises(training.Diverged, match="diverged in epoch"):
        fit_many(with_batch_norm, problems(3), recipe, device="cpu", executor=two_processes)
    with pytest.raises(ValueError, match="device 'tpu'"):
        fit_many("logreg", problems(3), RECIPE, device="tpu", executor=two_processes)


def interrupted_at(build):
    """An architecture whose ``build``-th network is interrupted, and the list of its networks."""
    built = []

    def interrupted(shape, classes):
        built.append(shape)
        if len(built) == build:
            raise KeyboardInterrupt
        return with_batch_norm(shape, classes)

    return interrupted, built


def test_an_interrupted_map_goes_on_where_it_was(tmp_path):
    path = tmp_path / "map.json"
    architecture, built = interrupted_at(4)  # the first is built to know the run again
    options = {"device": "cpu", "strategy": "loop", "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        fit_many(architecture, problems(5), RECIPE, **options)
    assert list(json.loads(path.read_text())["networks"]) == ["0", "1"]
    resumed = fit_many(architecture, problems(5), RECIPE, **options)
    assert len(built) == 4 + 1 + 3
    assert resumed == fit_many(with_batch_norm, problems(5), RECIPE, device="cpu", strategy="loop")
    assert fit_many(architecture, problems(5), RECIPE, **options) == resumed
    assert len(built) == 8 + 1


def test_an_interrupted_map_on_workers_goes_on_where_it_was(tmp_path):
    path = tmp_path / "map.json"
    architecture, built = interrupted_at(4)
    with ThreadPoolExecutor(1) as pool:
        options = {"device": "cpu", "executor": pool, "checkpoint": path}
        with pytest.raises(KeyboardInterrupt):
            fit_many(architecture, problems(5), RECIPE, **options)
    saved = set(json.loads(path.read_text())["networks"])
    assert saved <= {"0", "1", "3", "4"}  # not 2, and those after it only if they were done before the others heard
    with ThreadPoolExecutor(1) as pool:
        before = len(built)
        resumed = fit_many(architecture, problems(5), RECIPE, **options | {"executor": pool})
    assert len(built) == before + 1 + 5 - len(saved)
    assert resumed == fit_many(with_batch_norm, problems(5), RECIPE, device="cpu", strategy="loop")


def interrupt(path, left):
    """Leave of a checkpoint what a run would have written that finished these networks only."""
    content = json.loads(path.read_text())
    content["networks"] = {str(i): content["networks"][str(i)] for i in left}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("strategy", "sizes"), [("loop", [0, 1, 2, 3]), ("processes", [0, 1, 2, 3]), ("vmap", [0, 3])])
def test_every_network_is_saved_when_it_is_finished(tmp_path, monkeypatch, strategy, sizes):
    saved, write = [], checkpoints.HistoryFile._write
    monkeypatch.setattr(checkpoints.HistoryFile, "_write", lambda self: (saved.append(len(self.finished)), write(self)))
    fit_many("logreg", problems(3), RECIPE, device="cpu", strategy=strategy, checkpoint=tmp_path / "map.json")
    assert saved == sizes


def test_strategies_share_a_checkpoint(tmp_path, two_processes, one_thread):
    path = tmp_path / "map.json"
    run = functools.partial(fit_many, "logreg", problems(5), RECIPE, device="cpu")
    whole = run(strategy="loop", checkpoint=path)
    interrupt(path, [3, 4])
    assert run(executor=two_processes, checkpoint=path) == whole
    interrupt(path, [0, 1, 3, 4])
    resumed = run(strategy="vmap", checkpoint=path)
    assert [*resumed[:2], *resumed[3:]] == [*whole[:2], *whole[3:]]
    assert resumed[2].train_loss == pytest.approx(whole[2].train_loss, rel=1e-4)
    assert run(checkpoint=path) == resumed


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "map.json"
    own = {"architecture": with_batch_norm, "problems": problems(3), "recipe": RECIPE, "device": "cpu", "seed": 0}
    fit_many(**own, checkpoint=path)
    interrupt(path, [0])
    before = path.read_bytes()

    def other(shape, classes):
        return nn.Sequential(nn.Flatten(), nn.Linear(36, classes))

    other.__name__ = "with_batch_norm"
    changed = [*problems(2), *problems(1, sigma=2.0)]
    for change, message in [
        ({"recipe": dataclasses.replace(RECIPE, epochs=4)}, r"\(epochs was 3, now 4\)"),
        ({"seed": 1}, r"\(seed was 0, now 1\)"),
        ({"problems": changed}, r"\(problem 2 was '\w+', now '\w+'\)"),
        ({"problems": [dataclasses.replace(p, v=2 - p.v) for p in problems(3)]}, "problem 0 .*problem 1 .*problem 2"),
        ({"problems": problems(2)}, r"\(problem 2 was '\w+', now None\)"),
        ({"problems": problems(3, n_train=20), "seed": 1}, "seed was .*problem 1 .* and 1 more"),
        ({"architecture": "logreg"}, "architecture was 'with_batch_norm', now 'logreg'"),
        ({"architecture": other}, r"\(layers was"),
    ]:
        with pytest.raises(ValueError, match=f"map.json: a checkpoint of another run, name another file .*{message}"):
            fit_many(**own | change, checkpoint=path)
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace('"cpu"', '"cuda"'))
    with pytest.raises(ValueError, match="device was 'cuda', now 'cpu'"):
        fit_many(**own, checkpoint=path)


def test_a_checkpoint_knows_when_a_loss_was_reached(tmp_path):
    recipe = Recipe(epochs=40, batch_size=32, stop_at_loss=0.3)
    options = {"device": "cpu", "strategy": "loop", "checkpoint": tmp_path / "map.json"}
    first = fit_many("logreg", problems(2), recipe, **options)
    assert all(h.steps_to_loss for h in first)
    assert fit_many("logreg", problems(2), recipe, **options) == first


def test_a_checkpoint_of_an_older_form_is_refused(tmp_path):
    """As it was before recipes had optimizers and histories `steps_to_loss`."""
    path = tmp_path / "map.json"
    fit_many("logreg", problems(1), RECIPE, device="cpu", checkpoint=path)
    content = json.loads(path.read_text())
    for name in ("optimizer", "schedule"):
        del content["settings"][name]
    del content["networks"]["0"]["steps_to_loss"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"of another run, name another file \(optimizer was None, now 'sgd', schedule"
    ):
        fit_many("logreg", problems(1), RECIPE, device="cpu", checkpoint=path)


def test_a_checkpoint_that_cannot_be_read_is_explained(tmp_path):
    path = tmp_path / "map.json"
    options = {"device": "cpu", "checkpoint": path}
    fit_many("logreg", problems(2), RECIPE, **options)
    whole = path.read_text()
    for damage in (whole[:50], "", "[]", "{}", '{"settings": 1, "networks": {}}', whole.replace("train_loss", "loss")):
        path.write_text(damage)
        with pytest.raises(ValueError, match=r"map.json: a damaged checkpoint; delete it to start afresh"):
            fit_many("logreg", problems(2), RECIPE, **options)
        assert path.read_text() == damage
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="a damaged checkpoint"):
        fit_many("logreg", problems(2), RECIPE, **options)
    with pytest.raises(ValueError, match="expected a file, found a folder"):
        fit_many("logreg", problems(2), RECIPE, device="cpu", checkpoint=tmp_path)


def test_a_checkpoint_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(many, "_fit_one", pytest.fail)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        fit_many("logreg", problems(2), RECIPE, strategy="loop", checkpoint=tmp_path / "file" / "map.json")


def test_the_bar_counts_networks(tmp_path, capsys):
    options = {"device": "cpu", "strategy": "loop", "checkpoint": tmp_path / "map.json"}
    fit_many("logreg", problems(4), RECIPE, **options)
    interrupt(tmp_path / "map.json", range(3))
    fit_many("logreg", problems(4), RECIPE, progress=True, **options)
    assert "3/4" in capsys.readouterr().err


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
        ((x.numpy(), y), r"expected two tensors, got \(ndarray, Tensor\)"),
    ]:
        with pytest.raises(ValueError, match=f"^train.*{message}"):
            fit(model, bad, test, RECIPE, device="cpu")
        with pytest.raises(ValueError, match=f"^test.*{message}"):
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
        ({"optimizer": "adm"}, "optimizer: expected 'sgd' or 'adam', got 'adm'; did you mean 'adam'"),
        ({"optimizer": None}, "optimizer: expected 'sgd' or 'adam', got None"),
        ({"schedule": "constnat"}, "schedule: expected 'linear' or 'constant', .*did you mean 'constant'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum: expected 0 with 'adam'"),
    ],
)
def test_impossible_recipes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_impossible_requests_are_explained():
    with pytest.raises(ValueError, match="strategy"):
        fit_many("logreg", problems(1), RECIPE, strategy="threads")
    for strategy in ("loop", "processes", "vmap"):
        with pytest.raises(ValueError, match=f"expected 'auto' with an executor.* got '{strategy}'"):
            fit_many("logreg", problems(1), RECIPE, strategy=strategy, executor=ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="workers: expected an integer, at least 1, got 0"):
        fit_many("logreg", problems(1), RECIPE, workers=0)
    with pytest.raises(ValueError, match="did you mean 'logreg'"):
        fit_many("logrep", problems(1), RECIPE)
    with pytest.raises(ValueError, match="stop early"):
        fit_many("logreg", problems(2), Recipe(stop_at_loss=0.1), strategy="vmap")
