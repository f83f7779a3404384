"""Many networks trained as one: their parameters stacked to (M, ...), every operation done for all at once."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from tqdm import tqdm

from nadkit import seeds
from nadkit.data.images import to_float
from nadkit.devices import keep_freed_memory
from nadkit.training.fitting import Data, History, Objective, checked, loss_and_accuracy, require_fit, told_of_batches
from nadkit.training.recipe import Recipe

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as in `torch.optim`."""


class CannotVmap(ValueError):
    """A network or an objective does what `torch.vmap` cannot, such as asking for values or for another library."""


def fit_stack(
    models: Sequence[nn.Module],
    train: Sequence[Data],
    test: Sequence[Data],
    recipes: Sequence[Recipe],
    objective: Objective,
    training_seeds: Sequence[int],
    *,
    keep: Sequence[int] = (),
    after_epoch: Callable[[int], None] = lambda epoch: None,
    progress: bool = False,
) -> list[History]:
    """Train networks of one architecture in place, as one, and return their histories; `fitting.fit` for many.

    Args:
        models: M networks, on the device of their data.
        train: what each is trained on, inputs all of one shape and type.
        test: what each is tested on after the last epoch.
        recipes: of each; they may differ in learning rate, momentum and weight decay.
        objective: of all.
        training_seeds: of each one's order of samples; the first's is that of all dropout masks.
        keep: numbers of epochs trained, 0 for none, after which ``after_epoch`` may look at the models.
        after_epoch: called with that number.
        progress: show a bar that counts epochs.

    Raises:
        ValueError: what `fitting.fit` raises.
        CannotVmap: the networks or the objective cannot be batched.

    A network whose loss becomes NaN or infinite does not stop the others: its history says that it ``diverged``.
    """
    for model, own, other in zip(models, train, test, strict=True):
        require_fit(model, own, other)
    device, epochs = train[0][0].device, recipes[0].epochs
    keep_freed_memory(device)
    orders = [seeds.generator(seed, "order", device=device) for seed in training_seeds]
    stack, histories = Stack(models), [History() for _ in models]
    training = stack.train(train, recipes, checked(objective), orders)
    if 0 in keep:
        after_epoch(0)
    batches = told_of_batches(len(train[0][1]), recipes[0])
    with batches, seeds.seeded(training_seeds[0], "dropout", device=device):
        for epoch, results in enumerate(tqdm(training, total=epochs, unit="epoch", disable=not progress, leave=False)):
            for history, recipe, (loss, accuracy) in zip(histories, recipes, results, strict=True):
                if history.diverged is None and not history.has_diverged(loss, epoch, recipe):
                    history.trained(loss, accuracy)
            if all(history.diverged for history in histories):
                break
            if epoch + 1 in (*keep, epochs):
                stack.copy_to(models)
                after_epoch(epoch + 1)
    for model, data, history, recipe in zip(models, test, histories, recipes, strict=True):
        if history.diverged is None:
            loss, accuracy = loss_and_accuracy(model, data)
            if not history.has_diverged(loss, epochs - 1, recipe):
                history.tested(loss, accuracy)
    return histories


class Stack:
    """M networks of one architecture as one, trained together.

    Attributes:
        params, buffers: name -> (M, ...).
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        params, buffers = stack_module_state(list(models))
        frozen = {name for name, p in models[0].named_parameters() if not p.requires_grad}
        self.params = {name: p.detach() for name, p in params.items() if name not in frozen}
        self.buffers = buffers | {name: params[name].detach() for name in frozen}
        self._skeleton = copy.deepcopy(models[0]).to("meta").train()

    def state(self, i: int) -> dict[str, Tensor]:
        """Return views of the parameters and buffers of network i."""
        return {name: t[i] for name, t in {**self.params, **self.buffers}.items()}

    def copy_to(self, models: Sequence[nn.Module]) -> None:
        """Give each network its parameters and buffers."""
        for i, model in enumerate(models):
            # buffers that no state dict holds, such as a fixed filter, are stacked, too
            model.load_state_dict(self.state(i), strict=False)

    def train(
        self,
        data: Sequence[tuple[Tensor, Tensor]],
        recipes: Sequence[Recipe],
        objective: Objective,
        orders: Sequence[torch.Generator],
    ) -> Iterator[list[tuple[float, float]]]:
        """Train epoch by epoch; yield each network's mean loss and accuracy over the epoch's batches.

        The recipes may differ in learning rate, momentum and weight decay. Inputs that are the same tensor are held
        once.

        Args:
            data: inputs (N, C, H, W) and labels (N,) of each network, on the device, all of one shape and type.
            recipes: of each network.
            objective: of all.
            orders: generators of each network's order of samples.

        Raises:
            CannotVmap: the networks or the objective cannot be batched.
        """
        recipe, device = recipes[0], data[0][0].device
        own, which = _distinct([x for x, _ in data])
        x, y = torch.stack(own), torch.stack([y for _, y in data])
        which, network = torch.tensor(which, device=device)[:, None], torch.arange(len(data), device=device)[:, None]
        gradient = self._gradient(objective, recipe.bf16, device)
        update, dtype = _Update(self.params, recipes), next(iter(self.params.values())).dtype
        n, per_epoch = y.shape[1], math.ceil(y.shape[1] / recipe.batch_size)
        for epoch in range(recipe.epochs):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            rates = [[r.rate(step, recipe.epochs * per_epoch) for r in recipes] for step in steps]
            order = torch.stack([torch.randperm(n, generator=g, device=device) for g in orders])
            sums = torch.zeros(2, len(data), device=device)
            batches = order.split(recipe.batch_size, dim=1)
            for batch, rate in zip(batches, update.per_network(rates), strict=True):
                inputs, labels = to_float(x[which, batch]).to(dtype), y[network, batch]
                try:
                    grads, (loss, right) = gradient(self.params, self.buffers, inputs, labels, epoch)
                except RuntimeError as error:
                    raise CannotVmap(
                        f"the network or the objective cannot be batched; use 'loop' or 'processes' ({error})"
                    ) from error
                update(grads, rate)
                sums += torch.stack([loss * batch.shape[1], right])
            yield (sums / n).T.tolist()

    def _gradient(self, objective: Objective, bf16: bool, device: torch.device) -> Callable:
        """Return the function from a batch to gradients (M, ...), losses (M,) and numbers of right answers (M,)."""
        trainee = _Trainee(self._skeleton, objective)

        def loss(params: dict, buffers: dict, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
            state = {f"network.{name}": t for name, t in {**params, **buffers}.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                return functional_call(trainee, state, (x, y, epoch))

        return vmap(grad_and_value(loss, has_aux=True), in_dims=(0, 0, 0, 0, None), randomness="different")


class _Trainee(nn.Module):
    """A network and its objective in one module: the weights that `functional_call` lends it are there for both."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self._objective = (objective,)  # in a tuple: an objective that is a module is none of ours

    def forward(self, x: Tensor, y: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        loss, logits = self._objective[0](self.network, x, y, epoch)
        return loss, (logits.argmax(1) == y).sum()


class _Update:
    """Clipping and the steps of `torch.optim.SGD` or `Adam`, each network's own, on stacked parameters."""

    def __init__(self, params: dict[str, Tensor], recipes: Sequence[Recipe]) -> None:
        self.params, self.recipe, self.steps = params, recipes[0], 0
        self.decay, self.momentum = (
            self.per_network(values) if any(values) else None
            for values in ([r.weight_decay for r in recipes], [r.momentum for r in recipes])
        )
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def per_network(self, values: list) -> Tensor:
        """Return numbers (..., M) as the parameters are: a product of both should round as that with one number."""
        like = next(iter(self.params.values()))
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def __call__(self, grads: dict[str, Tensor], rate: Tensor) -> None:
        """Take a step with learning rates (M,)."""
        self.steps += 1
        if self.recipe.clip is not None:
            norm = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
            shrink = (self.recipe.clip / (norm + 1e-6)).clamp(max=1)
        for name, p in self.params.items():
            g = grads[name]
            if self.recipe.clip is not None:
                g = g * _along(shrink, g)
            if self.decay is not None:
                g = g + _along(self.decay, p) * p
            p -= _along(rate, p) * (self._adam(name, g) if self.recipe.optimizer == "adam" else self._sgd(name, g))

    def _sgd(self, name: str, g: Tensor) -> Tensor:
        if self.momentum is not None:
            g = self.first[name] = self.first[name] * _along(self.momentum, g) + g if name in self.first else g
        return g

    def _adam(self, name: str, g: Tensor) -> Tensor:
        """Return mean / (root of the mean square + epsilon), both means corrected for their start at zero."""
        first, second = (means.setdefault(name, torch.zeros_like(g)) for means in (self.first, self.second))
        first.lerp_(g, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        mean, square = (m / (1 - beta**self.steps) for m, beta in zip((first, second), BETAS, strict=True))
        return mean / (square.sqrt() + EPSILON)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Return values (M,) as (M, 1, ...), to go with (M, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _distinct(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Return the different objects among the tensors, and which of them each is."""
    own = {id(t): t for t in tensors}
    return list(own.values()), [list(own).index(id(t)) for t in tensors]
