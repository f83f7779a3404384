"""Training: one network on any data (`fit`), or one architecture on many problems (`fit_many`)."""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import joblib
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional as F
from tqdm import tqdm

from nadkit import architectures, files, seeds
from nadkit.architectures import Architecture, Shape
from nadkit.devices import pick
from nadkit.images import to_float
from nadkit.names import hint
from nadkit.parallel import gather
from nadkit.synthetic import checksum

Data = tuple[Tensor, Tensor]
"""Inputs (N, C, H, W), uint8 (scaled to [0, 1] batch by batch) or float, and labels (N,) int64."""

Strategy = Literal["auto", "loop", "processes", "vmap"]
Optimizer = Literal["sgd", "adam"]
Schedule = Literal["linear", "constant"]

EVALUATION_BATCH = 1000

STOP_WINDOW = 10
"""Consecutive batches whose mean loss decides when a loss is reached; a single batch's is too noisy."""


@runtime_checkable
class Problem(Protocol):
    """What `fit_many` trains on: anything with these four, `nadkit.synthetic.Separable` for one."""

    @property
    def shape(self) -> Shape:
        """(C, H, W) of the inputs."""

    @property
    def n_classes(self) -> int:
        """Number of logits a network needs."""

    def sample(self, split: Literal["train", "test"], device: str | torch.device) -> Data:
        """Return a split's inputs and labels on a device, the same ones at each call."""

    def checksum(self) -> str:
        """Return a word that differs between problems with other samples; checkpoints know a problem by it."""


class Diverged(RuntimeError):
    """The training loss is no longer a finite number; the message says since when and what to change."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: by default stochastic gradient descent, learning rate falling linearly to zero with every step.

    Attributes:
        epochs: passes over the training data, at most.
        batch_size: samples per step; the last, smaller batch is used too.
        optimizer: ``"sgd"`` or ``"adam"``, as in `torch.optim`.
        learning_rate: of the first step.
        schedule: of the learning rate, step by step: ``"linear"`` to zero, or ``"constant"``.
        momentum: of ``"sgd"``.
        weight_decay: added to the gradient, times the weight.
        clip: largest norm of a network's whole gradient, or None.
        bf16: compute forward and backward in bfloat16 (weights stay float32).
        stop_at_loss: stop after the epoch in which the mean loss of `STOP_WINDOW` consecutive batches was first at
            most this, which `History.steps_to_loss` dates; or None.

    Raises:
        ValueError: a value is out of range, or a name unknown.
    """

    epochs: int = 20
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.5
    schedule: Schedule = "linear"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = 0.5
    bf16: bool = False
    stop_at_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            seeds.require_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "clip", "stop_at_loss"):
            value = getattr(self, name)
            if not (value is None and name != "learning_rate") and not (_is_finite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
        for name in ("momentum", "weight_decay"):
            value = getattr(self, name)
            if not (_is_finite(value) and value >= 0):
                raise ValueError(f"{name}: expected a finite number, at least 0, got {value!r}")
        for name, options in (("optimizer", get_args(Optimizer)), ("schedule", get_args(Schedule))):
            value = getattr(self, name)
            if value not in options:
                known = " or ".join(map(repr, options))
                raise ValueError(f"{name}: expected {known}, got {value!r}{hint(str(value), options)}")
        if self.optimizer == "adam" and self.momentum:
            raise ValueError(f"momentum: expected 0 with 'adam', which has moments of its own, got {self.momentum}")

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of ``step`` out of ``total``."""
        return self.learning_rate * (1 - step / total) if self.schedule == "linear" else self.learning_rate


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


SEPARABLE = Recipe()
"""The recipe of the NAD paper for D(v)."""

CIFAR = Recipe(epochs=50, learning_rate=0.21, momentum=0.9, weight_decay=5e-4, clip=None)
"""The recipe of the NAD paper's poisoning experiment on CIFAR-10."""


@dataclass(kw_only=True)
class History:
    """What a training run measured, one number an epoch; accuracies from 0 to 1, losses in nats.

    Training loss and accuracy are means over the epoch's batches, each taken before its step. ``steps_to_loss`` is
    the number of steps after which the recipe's ``stop_at_loss`` was reached: the mean loss of the last `STOP_WINDOW`
    of them was at most that. It is None if that never happened, or was not asked for.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    steps_to_loss: int | None = None

    @property
    def epochs(self) -> int:
        """Number of epochs trained."""
        return len(self.train_loss)


def fit(
    model: nn.Module,
    train: Data,
    test: Data,
    recipe: Recipe = SEPARABLE,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    evaluate_every: int = 1,
    progress: bool = False,
) -> History:
    """Train ``model`` in place by cross-entropy, the data resident on the device, and return its history.

    The seed decides the order of the samples and the dropout masks. The test set is looked at after every
    ``evaluate_every``-th epoch and after the last.

    Raises:
        ValueError: inputs and labels do not match, hold NaN, or a label has no logit; the test inputs have another
            shape than the training inputs; the network does not accept them.
        Diverged: the loss became NaN or infinite.
    """
    device = pick(device)
    seeds.require_integer("evaluate_every", evaluate_every, 1)
    (x, y), test = _on_device(train, device, "train"), _on_device(test, device, "test")
    # channels_last halves the time of convolutions with few channels on one CPU thread
    model.to(device, memory_format=torch.channels_last)
    _require_fit(model, (x, y), test)
    optimizer = _optimizer(model, recipe)
    history = History()
    batch_losses = torch.empty(0)
    per_epoch = math.ceil(len(x) / recipe.batch_size)
    order = seeds.generator(seed, "order", device=device)
    with (
        seeds.seeded(seed, "dropout", device=device),
        tqdm(total=recipe.epochs, unit="epoch", disable=not progress, leave=False) as bar,
    ):
        for epoch in range(recipe.epochs):
            model.train()
            steps = []
            batches = torch.randperm(len(x), generator=order, device=device).split(recipe.batch_size)
            for i, batch in enumerate(batches):
                rate = recipe.rate(epoch * per_epoch + i, recipe.epochs * per_epoch)
                steps.append(_step(model, optimizer, to_float(x[batch]), y[batch], rate, recipe))
            losses, right = torch.stack(steps).cpu().T  # the epoch's only wait for the device
            sizes = torch.tensor([len(batch) for batch in batches])
            # one after the other, not by `.sum()`, whose order and so last digits depend on the processor
            loss, accuracy = ((sum(part) / len(x)).item() for part in (losses * sizes, right))
            _require_finite(loss, epoch, recipe)
            history.train_loss.append(loss)
            history.train_accuracy.append(accuracy)
            if recipe.stop_at_loss is not None:
                batch_losses = torch.cat([batch_losses, losses])
                history.steps_to_loss = _steps_to_loss(batch_losses, recipe.stop_at_loss)
            done = history.steps_to_loss is not None
            if done or (epoch + 1) % evaluate_every == 0 or epoch + 1 == recipe.epochs:
                loss, accuracy = evaluate(model, test)
                history.test_loss.append(loss)
                history.test_accuracy.append(accuracy)
            bar.update()
            bar.set_postfix(loss=f"{history.train_loss[-1]:.3f}")
            if done:
                break
    return history


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **options)


def _steps_to_loss(losses: Tensor, limit: float) -> int | None:
    """Return the number of steps after which the mean of the last `STOP_WINDOW` losses was first at most the limit."""
    if len(losses) < STOP_WINDOW:
        return None
    low = losses.double().unfold(0, STOP_WINDOW, 1).mean(1) <= limit
    return STOP_WINDOW + low.nonzero()[0].item() if low.any() else None


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, rate: float, recipe: Recipe
) -> Tensor:
    """Take one step; return the batch's mean loss and its number of right answers, without leaving the device."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.bf16):
        logits = model(x)
        loss = F.cross_entropy(logits, y)
    loss.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack([loss.detach().float(), (logits.argmax(1) == y).sum()])


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, *, batch_size: int = EVALUATION_BATCH) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy (0 to 1) of ``model`` in eval mode, on the device it lives on."""
    device = next(model.parameters()).device
    x, y = data[0].to(device), data[1].to(device)
    model.eval()
    sums = torch.zeros(2, device=device)
    for batch, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        logits = model(to_float(batch))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss, accuracy = (sums / len(x)).tolist()
    return loss, accuracy


def fit_many(
    architecture: Architecture,
    problems: Sequence[Problem],
    recipe: Recipe = SEPARABLE,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    strategy: Strategy = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    networks: range | None = None,
    progress: bool = False,
) -> list[History]:
    """Train one fresh network on each problem; every history holds the test results after the last epoch.

    Network i depends on ``seed``, i and the kind of device alone, so ranges trained apart are together what one call
    gives, and the strategies agree (up to rounding; under ``"vmap"`` dropout masks differ):

    - ``"loop"``: one network after the other;
    - ``"processes"``: as many processes of one thread as torch has threads, or ``workers``;
    - ``"vmap"``: all networks in one batched computation.

    ``"auto"`` is processes on a CPU, where ``benchmarks/training.py`` finds them fastest, and the loop elsewhere.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        problems: network i is trained on problem i, and has a logit for each of its classes.
        recipe: how to train.
        seed: of the networks and of their training.
        device: where to train; with an executor, ``"auto"`` is what its first worker to answer has.
        strategy: see above.
        workers: number of processes.
        executor: train on its workers instead, one task a network.
        checkpoint: a file to save to after each network (``"vmap"``: at the end), and to continue from; ranges
            may share one, in turn.
        networks: numbers of the networks to train, in ascending order; by default all.
        progress: show a bar that counts networks (``"vmap"``: epochs).

    Raises:
        ValueError: an unknown strategy or architecture, an executor with another strategy than ``"auto"``, what is no
            `Problem`, numbers without a problem; for ``"vmap"``, problems of different sizes, or a recipe that stops
            early or with Adam; a checkpoint that is damaged or of another run.
        Diverged: the loss of a network became NaN or infinite.
        DataError: the checkpoint cannot be written.
    """
    seed = seeds.require_integer("seed", seed, 0)
    architectures.factory(architecture)  # a wrong name should fail here, not in a worker
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy: expected one of {', '.join(get_args(Strategy))}, got {strategy!r}")
    if executor is not None and strategy != "auto":
        raise ValueError(f"strategy: expected 'auto' with an executor, whose workers train, got {strategy!r}")
    if workers is not None:
        seeds.require_integer("workers", workers, 1)
    _require_problems(problems)
    networks = range(len(problems)) if networks is None else networks
    if networks and not (networks.step > 0 and networks[0] >= 0 and networks[-1] < len(problems)):
        raise ValueError(f"networks: expected ascending numbers from 0 to {len(problems) - 1}, got {networks}")
    if not networks:
        return []
    device = pick(device) if executor is None else next(gather(executor, pick, [(device,)]))
    settings = {} if checkpoint is None else _settings(architecture, problems, recipe, seed, device)
    finished = {} if checkpoint is None else _start(Path(checkpoint), settings)
    left = {i: problems[i] for i in networks if i not in finished}
    if strategy == "vmap":
        finished |= _fit_vmap(architecture, left, recipe, seed, device, progress)
        if checkpoint is not None:
            _save(Path(checkpoint), settings, finished)
        return [finished[i] for i in networks]
    tasks = [(architecture, problem, recipe, seed, i, device) for i, problem in left.items()]
    if executor is not None:
        results = gather(executor, _fit_one, tasks)
    else:
        parallel = strategy == "processes" or (strategy == "auto" and device.type == "cpu")
        jobs = (workers or torch.get_num_threads()) if parallel else 1
        run = joblib.Parallel(max(1, min(jobs, len(tasks))), return_as="generator_unordered")
        results = run(joblib.delayed(_fit_one)(*task) for task in tasks)
    done = len(networks) - len(left)
    with tqdm(total=len(networks), initial=done, unit="network", disable=not progress, leave=False) as bar:
        for i, history in results:
            finished[i] = history
            if checkpoint is not None:
                _save(Path(checkpoint), settings, finished)
            bar.update()
    return [finished[i] for i in networks]


def _require_problems(problems: Sequence[Problem]) -> None:
    """A forgotten pair of brackets, or a direction in place of its D(v), should be told by name."""
    if isinstance(problems, Problem) or not isinstance(problems, Sequence):
        raise ValueError(f"problems: expected a list of problems, got one {type(problems).__name__}")
    for i, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            members = ("shape", "n_classes", "sample", "checksum")
            missing = ", ".join(name for name in members if not hasattr(problem, name))
            raise ValueError(
                f"problem {i}: expected a training.Problem such as synthetic.Separable, "
                f"got a {type(problem).__name__}, which lacks {missing}"
            )


def _fresh(architecture: Architecture, problem: Problem, seed: int, i: int, device: torch.device) -> nn.Module:
    with seeds.seeded(seed, "initialisation", i, device=device), device:
        return architectures.build(architecture, shape=problem.shape, classes=problem.n_classes)


def _fit_one(
    architecture: Architecture, problem: Problem, recipe: Recipe, seed: int, i: int, device: torch.device
) -> tuple[int, History]:
    return i, fit(
        _fresh(architecture, problem, seed, i, device),
        problem.sample("train", device),
        problem.sample("test", device),
        recipe,
        seed=seeds.derive(seed, "training", i),
        device=device,
        evaluate_every=recipe.epochs,
    )


def _fit_vmap(
    architecture: Architecture,
    numbered: Mapping[int, Problem],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    progress: bool,
) -> dict[int, History]:
    """Train M networks as one: parameters and buffers stacked to (M, ...), per-network batches, clipping and order."""
    if recipe.stop_at_loss is not None:
        raise ValueError("strategy 'vmap' trains all networks equally long; use 'loop' or 'processes' to stop early")
    if recipe.optimizer != "sgd":
        raise ValueError(f"strategy 'vmap' has 'sgd' only; use 'loop' or 'processes' for {recipe.optimizer!r}")
    if not numbered:
        return {}
    problems = list(numbered.values())
    samples = [_on_device(p.sample("train", device), device, "train") for p in problems]
    kinds = {(tuple(p.shape), p.n_classes, len(y), x.dtype) for p, (x, y) in zip(problems, samples, strict=True)}
    if len(kinds) != 1:
        raise ValueError(
            "strategy 'vmap' needs problems of one shape, one number of classes and one number and type of training "
            "samples; use 'loop' or 'processes'"
        )
    models = [_fresh(architecture, p, seed, i, device) for i, p in numbered.items()]
    for model, problem, sample in zip(models, problems, samples, strict=True):
        _require_fit(model, sample, _on_device(problem.sample("test", device), device, "test"))
        model.train()
    params, buffers = stack_module_state(models)
    params = {name: p.detach() for name, p in params.items()}
    skeleton = copy.deepcopy(models[0]).to("meta")
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    del samples
    orders = [seeds.generator(seeds.derive(seed, "training", i), "order", device=device) for i in numbered]
    histories = [History() for _ in problems]
    velocity: dict[str, Tensor] = {}
    network = torch.arange(len(problems), device=device)[:, None]

    def objective(params: dict, buffers: dict, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            logits = functional_call(skeleton, (params, buffers), (x,))
            return F.cross_entropy(logits, y), (logits.argmax(1) == y).sum()

    gradient = vmap(grad_and_value(objective, has_aux=True), randomness="different")
    total = recipe.epochs * math.ceil(x.shape[1] / recipe.batch_size)
    step = 0
    with seeds.seeded(seed, "dropout", device=device):
        for epoch in tqdm(range(recipe.epochs), unit="epoch", disable=not progress, leave=False):
            sums = torch.zeros(2, len(problems), device=device)
            order = torch.stack([torch.randperm(x.shape[1], generator=g, device=device) for g in orders])
            for batch in order.split(recipe.batch_size, dim=1):
                grads, (loss, right) = gradient(params, buffers, to_float(x[network, batch]), y[network, batch])
                _sgd_step(params, grads, velocity, recipe, recipe.rate(step, total))
                sums += torch.stack([loss * batch.shape[1], right])
                step += 1
            for history, (loss, accuracy) in zip(histories, (sums / x.shape[1]).T.tolist(), strict=True):
                _require_finite(loss, epoch, recipe)
                history.train_loss.append(loss)
                history.train_accuracy.append(accuracy)
    for i, (model, problem) in enumerate(zip(models, problems, strict=True)):
        # buffers that no state dict holds, such as a fixed filter, are stacked, too
        model.load_state_dict({name: t[i] for name, t in {**params, **buffers}.items()}, strict=False)
        loss, accuracy = evaluate(model, problem.sample("test", device))
        histories[i].test_loss.append(loss)
        histories[i].test_accuracy.append(accuracy)
    return dict(zip(numbered, histories, strict=True))


def _sgd_step(params: dict, grads: dict, velocity: dict, recipe: Recipe, rate: float) -> None:
    """Update stacked parameters in place as clipping and `torch.optim.SGD` would each network's own."""
    if recipe.clip is not None:
        norm = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
        shrink = (recipe.clip / (norm + 1e-6)).clamp(max=1)
    for name, p in params.items():
        g = grads[name]
        if recipe.clip is not None:
            g = g * shrink.view(-1, *[1] * (g.ndim - 1))
        if recipe.weight_decay:
            g = g + recipe.weight_decay * p
        if recipe.momentum:
            g = velocity[name] = velocity[name] * recipe.momentum + g if name in velocity else g
        p -= rate * g


def _settings(
    architecture: Architecture, problems: Sequence[Problem], recipe: Recipe, seed: int, device: torch.device
) -> dict[str, str | int | float | None]:
    """Return what the histories depend on, in numbers and words."""
    network = _fresh(architecture, problems[0], 0, 0, torch.device("cpu"))
    return {
        "architecture": architectures.name_of(architecture),
        "layers": checksum([type(layer).__qualname__ for layer in network.modules()], *network.state_dict().values()),
        "seed": seed,
        "device": device.type,
        **asdict(recipe),
        **{f"problem {i}": problem.checksum() for i, problem in enumerate(problems)},
    }


def _start(path: Path, settings: dict[str, str | int | float | None]) -> dict[int, History]:
    """Return the histories that a checkpoint of this run holds; none are saved at once if there is no such file.

    A file that cannot be written should fail now, and not after an hour of work.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected a file, found a folder")
    finished = {}
    if path.exists():
        try:
            content = json.loads(path.read_bytes())
            saved = content["settings"]
            finished = {int(i): History(**history) for i, history in content["networks"].items()}
            other = [name for name in saved | settings if saved.get(name) != settings.get(name)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: a damaged checkpoint; delete it to start afresh ({error})") from error
        if other:
            told = ", ".join(f"{name} was {saved.get(name)!r}, now {settings.get(name)!r}" for name in other[:3])
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            raise ValueError(f"{path}: a checkpoint of another run, name another file ({told}{more})")
    _save(path, settings, finished)
    return finished


def _save(path: Path, settings: dict[str, str | int | float | None], finished: dict[int, History]) -> None:
    content = {"settings": settings, "networks": {i: vars(finished[i]) for i in sorted(finished)}}
    with files.atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content))


def _require_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise Diverged(
            f"training diverged in epoch {epoch + 1} (loss {loss}); lower the learning rate ({recipe.learning_rate}) "
            f"or clip ({recipe.clip})"
        )


def _on_device(data: Data, device: torch.device, split: str) -> Data:
    """Move a split to the device, having checked that training on it can mean anything."""
    x, y = data
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"{split} data: expected two tensors, got {type(x).__name__} and {type(y).__name__}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"{split} data: expected one label an input, got {len(x)} inputs and {len(y)} labels")
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"{split} labels: expected (N,) torch.int64, got {tuple(y.shape)} {y.dtype}")
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise ValueError(f"{split} data: expected finite inputs, got NaN or infinity")
    return x.to(device), y.to(device)


def _require_fit(model: nn.Module, train: Data, test: Data) -> None:
    """A label without a logit, for one, would otherwise end in an unreadable error on the device."""
    shape = train[0].shape[1:]
    if test[0].shape[1:] != shape:
        raise ValueError(f"test data: expected inputs of shape {tuple(shape)} as in training, got {test[0].shape[1:]}")
    classes = architectures.n_logits(model, shape, train[0].device)
    for split, (_, y) in (("train", train), ("test", test)):
        low, high = y.min().item(), y.max().item()
        if low < 0 or high >= classes:
            raise ValueError(f"{split} labels: expected 0 to {classes - 1} for {classes} logits, got {low} to {high}")
