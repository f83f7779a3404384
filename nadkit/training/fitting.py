"""Training one network: `fit`, what it minimises and measures, and `evaluate`."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd
from tqdm import tqdm

from nadkit import architectures, checks, seeds
from nadkit.architectures import Shape
from nadkit.data.images import to_float
from nadkit.devices import keep_freed_memory, pick
from nadkit.training.recipe import SEPARABLE, STOP_WINDOW, Recipe

Data = tuple[Tensor, Tensor]
"""Inputs (N, C, H, W), uint8 (scaled to [0, 1] batch by batch) or float, and labels (N,) int64."""

Objective = Callable[[nn.Module, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""What training minimises: (network, inputs (B, C, H, W) float, labels (B,), epoch from 0) -> loss, logits (B, K).

The loss is a scalar; the accuracy is taken from the logits. Hooks on the network are allowed."""

EVALUATION_BATCH = 1000


@runtime_checkable
class Problem(Protocol):
    """What `fit_many` trains on: anything with these four, such as `nadkit.data.synthetic.Separable`."""

    @property
    def shape(self) -> Shape:
        """(C, H, W) of the inputs."""

    @property
    def n_classes(self) -> int:
        """Number of logits a network needs."""

    def sample(self, split: Literal["train", "test"], device: str | torch.device) -> Data:
        """Return a split's inputs and labels on a device, the same ones at each call."""

    def checksum(self) -> str:
        """Return a word that differs between problems with other samples; checkpoints identify a problem by it."""


class Diverged(RuntimeError):
    """The training loss is no longer a finite number; the message says since when and what to change.

    Attributes:
        history: of the training until then, or None.
    """

    def __init__(self, message: str, history: "History | None" = None) -> None:
        super().__init__(message)
        self.history = history


@dataclass(kw_only=True)
class History:
    """What a training run measured, one number per epoch; accuracies from 0 to 1, losses in nats.

    Training loss and accuracy are means over the epoch's batches, each taken before its step; the training loss is that
    of the objective, the test loss the cross-entropy. ``steps_to_loss`` is the number of steps after which the recipe's
    ``stop_at_loss`` was reached: the mean loss of the last `STOP_WINDOW` of them was at most that. It is None if that
    never happened, or was not asked for. ``diverged`` says since when the loss was not a finite number, and what to
    change; the results of that epoch, the history's last, are NaN. It is None if all went well.
    """

    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    steps_to_loss: int | None = None
    diverged: str | None = None

    @property
    def epochs(self) -> int:
        """Number of epochs trained."""
        return len(self.train_loss)

    def trained(self, loss: float, accuracy: float) -> None:
        """Add the results of an epoch's training."""
        self.train_loss.append(loss)
        self.train_accuracy.append(accuracy)

    def tested(self, loss: float, accuracy: float) -> None:
        """Add the results on the test set."""
        self.test_loss.append(loss)
        self.test_accuracy.append(accuracy)

    def has_diverged(self, loss: float, epoch: int, recipe: Recipe) -> bool:
        """Say whether a loss in an epoch, from 0, is not a finite number; the history is marked if so."""
        if not math.isfinite(loss):
            self.diverged = (
                f"training diverged in epoch {epoch + 1} (loss {loss}); lower the learning rate "
                f"({recipe.learning_rate}) or clip ({recipe.clip})"
            )
            del self.train_loss[epoch:], self.train_accuracy[epoch:]
            self.trained(math.nan, math.nan)
            self.tested(math.nan, math.nan)
        return self.diverged is not None


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy (nats) of a batch and its logits: the default `Objective`."""
    logits = model(x)
    return F.cross_entropy(logits, y), logits


@checks.typed
def fit(
    model: nn.Module,
    train: Data,
    test: Data,
    recipe: Recipe = SEPARABLE,
    *,
    objective: Objective = cross_entropy,
    seed: int = 0,
    device: str | torch.device = "auto",
    evaluate_every: int = 1,
    after_epoch: Callable[[int], None] | None = None,
    progress: bool = False,
) -> History:
    """Train ``model`` in place, the data resident on the device, and return its history.

    Args:
        model: the network.
        train: what it is trained on.
        test: what it is tested on.
        recipe: how to train.
        objective: what to minimise, by default the cross-entropy.
        seed: of the order of the samples and of the dropout masks.
        device: where to train.
        evaluate_every: test after every so many epochs, and after the last.
        after_epoch: called with 0 before training and with the number of epochs trained after each; it may look at the
            model, but must not draw from torch's global generators.
        progress: show a bar that counts epochs.

    Raises:
        ValueError: inputs and labels do not match, hold NaN, or a label has no logit; the test inputs have another
            shape than the training inputs; the network does not accept them; the objective returns something else
            than a scalar loss and logits; the loss does not depend on the weights.
        Diverged: the loss became NaN or infinite.
    """
    device = pick(device)
    keep_freed_memory(device)
    objective = checked(objective)
    after_epoch = after_epoch or (lambda epoch: None)
    checks.require_takes("after_epoch", after_epoch, "epoch")
    checks.require_integer("evaluate_every", evaluate_every, 1)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model: expected a network with weights to train, it has none that require a gradient")
    (x, y), test = on_device(train, device, "train"), on_device(test, device, "test")
    model.to(device, memory_format=_layout(model))
    require_fit(model, (x, y), test)
    optimizer, dtype = _optimizer(model, recipe), architectures.dtype_of(model)
    history = History()
    batch_losses = torch.empty(0)
    per_epoch = math.ceil(len(x) / recipe.batch_size)
    order = seeds.generator(seed, "order", device=device)
    after_epoch(0)
    with (
        told_of_batches(len(x), recipe),
        seeds.seeded(seed, "dropout", device=device),
        tqdm(total=recipe.epochs, unit="epoch", disable=not progress, leave=False) as bar,
    ):
        for epoch in range(recipe.epochs):
            model.train()
            steps = []
            batches = torch.randperm(len(x), generator=order, device=device).split(recipe.batch_size)
            for i, batch in enumerate(batches):
                rate = recipe.rate(epoch * per_epoch + i, recipe.epochs * per_epoch)
                samples = (to_float(x[batch]).to(dtype), y[batch], epoch)
                steps.append(_step(model, optimizer, objective, samples, rate, recipe))
            losses, right = torch.stack(steps).cpu().T  # the epoch's only wait for the device
            sizes = torch.tensor([len(batch) for batch in batches])
            # one after the other, not by `.sum()`, whose order and so last digits depend on the processor
            loss, accuracy = ((sum(part) / len(x)).item() for part in (losses * sizes, right))
            if history.has_diverged(loss, epoch, recipe):
                raise Diverged(history.diverged, history)
            history.trained(loss, accuracy)
            if recipe.stop_at_loss is not None:
                batch_losses = torch.cat([batch_losses, losses])
                history.steps_to_loss = _steps_to_loss(batch_losses, recipe.stop_at_loss)
            done = history.steps_to_loss is not None
            if done or (epoch + 1) % evaluate_every == 0 or epoch + 1 == recipe.epochs:
                loss, accuracy = loss_and_accuracy(model, test)
                if history.has_diverged(loss, epoch, recipe):  # by the epoch's last step
                    raise Diverged(history.diverged, history)
                history.tested(loss, accuracy)
            after_epoch(epoch + 1)
            bar.update()
            bar.set_postfix(loss=f"{history.train_loss[-1]:.3f}")
            if done:
                break
    return history


class _Sgd:
    """The steps of `torch.optim.SGD`, whose first use imports a compiler: that takes longer than many a training."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        self.param_groups = [{"params": list(params), "lr": lr}]
        self.options = {"momentum": momentum, "weight_decay": weight_decay, "dampening": 0, "nesterov": False}
        self.velocities: dict[nn.Parameter, Tensor] = {}

    def zero_grad(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        params = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        velocities = [self.velocities.get(p) for p in params]
        rate = self.param_groups[0]["lr"]
        sgd(params, [p.grad for p in params], velocities, lr=rate, maximize=False, **self.options)
        if self.options["momentum"]:
            self.velocities |= zip(params, velocities, strict=True)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer | _Sgd:
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), **options)
    return _Sgd(model.parameters(), momentum=recipe.momentum, **options)


def _steps_to_loss(losses: Tensor, limit: float) -> int | None:
    """Return the number of steps after which the mean of the last `STOP_WINDOW` losses was first at most the limit."""
    if len(losses) < STOP_WINDOW:
        return None
    low = losses.double().unfold(0, STOP_WINDOW, 1).mean(1) <= limit
    return STOP_WINDOW + low.nonzero()[0].item() if low.any() else None


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | _Sgd,
    objective: Objective,
    batch: tuple[Tensor, Tensor, int],
    rate: float,
    recipe: Recipe,
) -> Tensor:
    """Take one step; return the batch's mean loss and its number of right answers, without leaving the device."""
    x, y, epoch = batch
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.bf16):
        loss, logits = objective(model, x, y, epoch)
    if not loss.requires_grad:
        raise ValueError(
            "model: expected a loss that depends on the weights; does forward run under torch.no_grad(), or detach?"
        )
    loss.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return torch.stack([loss.detach().float(), (logits.argmax(1) == y).sum()])


@checks.typed
def evaluate(model: nn.Module, data: Data, *, batch_size: int = EVALUATION_BATCH) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy (0 to 1) of ``model`` in eval mode, on the device it lives on.

    Args:
        model: any network of logits (B, classes); it is left in eval mode.
        data: inputs (N, ...), uint8 or float, as in training, and labels (N,) int64.
        batch_size: samples per forward pass.

    Raises:
        ValueError: no data; inputs and labels do not match, hold NaN, or a label has no logit; the network does not
            accept the inputs.
    """
    batch_size = checks.require_integer("batch_size", batch_size, 1)
    device = next((p.device for p in model.parameters()), data[0].device)
    x, y = on_device(data, device)
    require_logits(model, x, {"labels": y})
    return loss_and_accuracy(model, (x, y), batch_size)


@torch.no_grad()
def loss_and_accuracy(model: nn.Module, data: Data, batch_size: int = EVALUATION_BATCH) -> tuple[float, float]:
    """Return what `evaluate` does, for data that have been checked and are on the network's device."""
    (x, y), dtype = data, architectures.dtype_of(model)
    model.eval()
    sums = torch.zeros(2, device=x.device)
    for batch, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
        inputs = to_float(batch)
        inputs = inputs.clone() if inputs is batch else inputs  # the network may begin in place
        logits = model(inputs.to(dtype))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    loss, accuracy = (sums / len(x)).tolist()
    return loss, accuracy


def _layout(model: nn.Module) -> torch.memory_format:
    """Return the layout to train a network in: channels_last halves the time of few channels on one CPU thread.

    In it, on a CPU with AVX2 but not AVX-512, the gradient of a strided 1x1 convolution of fewer than 8 channels is
    wrong or crashes (oneDNN issue 6035).
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    wrong = any(max(c.stride) > 1 and max(c.kernel_size) == 1 and c.in_channels < 8 for c in convolutions)
    return torch.contiguous_format if wrong else torch.channels_last


@contextmanager
def told_of_batches(n: int, recipe: Recipe) -> Iterator[None]:
    """Say in our words that batch normalisation met a batch of one sample: less its own mean, nothing is left of it."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch_size: batch normalisation needs two samples a batch, and the last of {n} samples in batches of "
            f"{recipe.batch_size} has {n % recipe.batch_size or recipe.batch_size}; take another batch_size"
        ) from error


def checked(objective: Objective) -> Objective:
    """Return the objective with a check of what it returns."""

    def answer_of(model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        answer = objective(model, x, y, epoch)
        tensors = answer if isinstance(answer, tuple) and all(isinstance(t, Tensor) for t in answer) else ()
        shapes = [tuple(t.shape) for t in tensors]
        if len(shapes) != 2 or shapes[0] != () or len(shapes[1]) != 2 or shapes[1][0] != len(y):
            found = f"tensors of shape {shapes}" if shapes else f"a {type(answer).__name__}"
            raise ValueError(
                f"objective {name_of(objective)}: expected a scalar loss and logits ({len(y)}, classes), got {found}"
            )
        return answer

    if not callable(objective) or isinstance(objective, type):
        came = checks.found(objective)
        raise ValueError(f"objective: expected a function (network, x, y, epoch) -> loss, logits, got {came}")
    checks.require_takes("objective", objective, "network", "x", "y", "epoch")
    return answer_of


def name_of(function: object) -> str:
    """Return a name of an objective that is the same in every run."""
    described = repr(function)
    return architectures.name_of(function) if " at 0x" in described else described


def on_device(data: Data, device: torch.device, split: str = "") -> Data:
    """Move a split to the device, having checked that training on it can mean anything."""
    x, y = data
    named = f"{split} " if split else ""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(f"{named}data: expected two tensors, got {type(x).__name__} and {type(y).__name__}")
    checks.require_samples(x, y, f"{named}data", f"{named}labels")
    return x.to(device), y.to(device)


def require_fit(model: nn.Module, train: Data, test: Data) -> None:
    """Raise ValueError unless the network takes the inputs and has a logit for every label of both splits."""
    shape = train[0].shape[1:]
    if test[0].shape[1:] != shape:
        raise ValueError(f"test data: expected inputs of shape {tuple(shape)} as in training, got {test[0].shape[1:]}")
    require_logits(model, train[0], {"train labels": train[1], "test labels": test[1]})


def require_logits(model: nn.Module, x: Tensor, labels: Mapping[str, Tensor]) -> None:
    """A label without a logit, for one, would otherwise end in an unreadable error on the device."""
    classes = architectures.n_logits(model, x.shape[1:], x.device)
    for name, y in labels.items():
        checks.require_labels(name, y, classes)
