"""Training many networks: one architecture on many problems, or networks that differ in any setting."""

import functools
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nadkit import architectures, checks, identity, seeds
from nadkit.architectures import Architecture, Shape
from nadkit.devices import pick
from nadkit.parallel import gather
from nadkit.storage import described, digest
from nadkit.training import fitting
from nadkit.training.checkpoints import HistoryFile, Memory, NetworkFolder, Result, Weights
from nadkit.training.fitting import Data, Diverged, History, Objective, Problem, cross_entropy, fit
from nadkit.training.recipe import SEPARABLE, Recipe
from nadkit.training.stack import CannotVmap, fit_stack

__all__ = ["TOGETHER", "WORTH_VMAP", "Trained", "fit_many", "fit_networks"]

Strategy = Literal["auto", "loop", "processes", "vmap"]

FEWEST_TOGETHER = 4
"""So many networks train faster as one than one by one; fewer do not."""

TOGETHER = {"cpu": 8, "cuda": 64, "mps": 8}
"""Networks that `fit_networks` trains as one, by kind of device: larger batches on a CPU gain little, and processes
would have fewer of them to share."""

ONE_STEP = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
"""The training by whose losses a checkpoint identifies networks and objectives: one step of one batch."""

WORTH_VMAP = {"cpu": 200_000, "cuda": math.inf, "mps": 0}
"""Parameters up to which networks without convolutions are trained as one by ``"auto"``: measured on a CPU only."""


@dataclass(eq=False)
class Trained:
    """A trained network: what its training measured, and its weights at the epochs that were kept.

    Attributes:
        history: of its training, with the test results after the last epoch; ``history.diverged`` is not None where
            the training diverged.
        weights: epoch -> state dict, on the CPU; 0 is the initialisation. Where training stopped early, its last epoch
            stands for the later ones that were asked for. Where it diverged, there are none from then on.
        architecture, shape, classes: what the network is built from.
    """

    history: History
    weights: dict[int, dict[str, Tensor]] = field(repr=False)
    architecture: Architecture
    shape: Shape
    classes: int

    @checks.typed
    def network(self, epoch: int | None = None) -> nn.Module:
        """Return the network in eval mode, on the CPU, as it was after an epoch, by default the last that was kept.

        Raises:
            ValueError: the epoch was not kept.
            Diverged: no epoch is named, and the training diverged.
        """
        kept, diverged = ", ".join(map(str, self.weights)) or "none", self.history.diverged
        if epoch is None and diverged:
            raise Diverged(f"{diverged}; epochs kept before that: {kept}", self.history)
        epoch = max(self.weights) if epoch is None else epoch
        if epoch not in self.weights:
            raise ValueError(f"epoch {epoch!r} was not kept; these were: {kept}" + f" ({diverged})" * bool(diverged))
        with seeds.seeded(0), torch.device("cpu"):  # drawn in vain, and should change no other draws
            model = architectures.build(self.architecture, shape=self.shape, classes=self.classes)
        model.load_state_dict(self.weights[epoch])
        return model.eval()


@checks.typed
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
    progress: bool = False,
) -> list[History]:
    """Train one fresh network on each problem; every history holds the test results after the last epoch.

    Network i depends on ``seed``, i and the kind of device alone, and the strategies agree (up to rounding; under
    ``"vmap"`` dropout masks differ):

    - ``"loop"``: one network after the other;
    - ``"processes"``: as many processes of one thread as torch has threads, or ``workers``;
    - ``"vmap"``: all networks of one shape, number of classes, and number and type of samples in one batched
      computation.

    ``"auto"`` is processes on a CPU, where ``benchmarks/training.py`` finds them fastest, and the loop elsewhere.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        problems: network i is trained on problem i, and has a logit for each of its classes.
        recipe: how to train.
        seed: of the networks and of their training.
        device: where to train; with an executor, ``"auto"`` is the device of its first worker to answer.
        strategy: see above.
        workers: number of processes.
        executor: train on its workers instead, one task per network.
        checkpoint: a file to save to after each network (``"vmap"``: at the end), and to continue from.
        progress: show a bar that counts networks (``"vmap"``: epochs).

    Raises:
        ValueError: an unknown strategy or architecture, an executor with another strategy than ``"auto"``, a problem
            that is not a `Problem`; for ``"vmap"``, networks that torch cannot batch, or a recipe that stops early; a
            checkpoint that is damaged or of another run.
        Diverged: the loss of a network became NaN or infinite.
        DataError: the checkpoint cannot be written.
    """
    seed = checks.require_integer("seed", seed, 0)
    architectures.factory(architecture)  # a wrong name should fail here, not in a worker
    _require_workers(workers)
    if executor is not None and strategy != "auto":
        raise ValueError(f"strategy: expected 'auto' with an executor, whose workers train, got {strategy!r}")
    _require_problems(problems)
    if not problems:
        return []
    device = _where(device, executor)
    settings = {} if checkpoint is None else _settings(architecture, problems, recipe, seed, device)
    saved = Memory() if checkpoint is None else HistoryFile(checkpoint, settings)
    jobs = [
        _Job(number=i, seed=seed, place=i, architecture=architecture, problem=problem, recipe=recipe)
        for i, problem in enumerate(problems)
    ]
    if strategy == "auto":
        strategy = "processes" if device.type == "cpu" else "loop"
    for results in _run(jobs, saved, strategy, len(jobs), device, workers, executor, progress):
        for _, history, _ in results:
            if history.diverged:
                raise Diverged(history.diverged, history)
        saved.add(results)
    return [saved.finished[job.number][0] for job in jobs]


@checks.typed
def fit_networks(
    architecture: Architecture | Sequence[Architecture],
    problems: Sequence[Problem],
    recipe: Recipe | Sequence[Recipe] = SEPARABLE,
    *,
    keep: Sequence[int] | None = None,
    objective: Objective | None | Sequence[Objective | None] = None,
    seed: int | Sequence[int] = 0,
    device: str | torch.device = "auto",
    strategy: Strategy = "auto",
    workers: int | None = None,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> list[Trained]:
    """Train one fresh network on each problem and return them with their weights.

    Architecture, recipe, objective and seed are the same for all, or lists of one for each network. With one seed,
    network i begins and sees its samples as `fit_many`'s does. With a list, it depends on its own seed, so that
    networks with equal seeds begin alike and see their samples in the same order, wherever they are in the list.

    The strategies agree up to rounding (under ``"vmap"`` dropout masks differ):

    - ``"loop"``: one network after the other;
    - ``"processes"``: as many processes of one thread as torch has threads, or ``workers``;
    - ``"vmap"``: networks that agree in all but learning rate, momentum and weight decay in batches of at most
      `TOGETHER`, by one process or ``workers``.

    ``"auto"`` is what ``benchmarks/populations.py`` finds fastest: batches where four networks or more without
    convolutions agree and are small (`WORTH_VMAP`), and single networks otherwise; on a CPU in as many processes as
    torch has threads. On a GPU this is unmeasured.

    A network that diverges does not stop the others. A warning names it, its history says that it ``diverged``, its
    last results are NaN, and its weights end before.

    Args:
        architecture: a name or a factory (`nadkit.architectures`).
        problems: network i is trained on problem i, and has a logit for each of its classes; a problem may occur
            several times.
        recipe: how to train.
        keep: numbers of epochs trained, after which the weights are kept; by default the last only.
        objective: what to minimise, by default the cross-entropy.
        seed: of the networks and of their training.
        device: where to train; with an executor, ``"auto"`` is the device of its first worker to answer.
        strategy: see above.
        workers: number of processes.
        executor: train on its workers instead, one task per network or batch.
        checkpoint: a folder to save to, one file per network when it (or its batch) is finished, and to continue from.
            If some files of a batch are already there, its other networks train in another batch: they differ by
            rounding, with dropout also by the masks.
        progress: show a bar that counts networks, and one that counts epochs where one process trains.

    Raises:
        ValueError: lists of other lengths than that of the problems; an epoch to keep that is not trained; an unknown
            strategy or architecture, something that is not a `Problem` or an objective; for ``"vmap"``, what it cannot
            batch, or a recipe that stops early; a checkpoint that is damaged or of another run.
        DataError: the checkpoint cannot be written.
    """
    _require_workers(workers)
    if executor is not None and strategy == "loop":
        raise ValueError("strategy: expected 'auto', 'processes' or 'vmap' with an executor, whose workers train")
    _require_problems(problems)
    jobs = _jobs(architecture, problems, recipe, keep, objective, seed)
    if not jobs:
        return []
    device = _where(device, executor)
    saved = Memory() if checkpoint is None else NetworkFolder(checkpoint, _settings_each(jobs, device))
    for results in _run(jobs, saved, strategy, TOGETHER[device.type], device, workers, executor, progress):
        saved.add(results)
    _warn_of_diverged([saved.finished[job.number][0] for job in jobs])
    return [
        Trained(*saved.finished[job.number], job.architecture, tuple(job.problem.shape), job.problem.n_classes)
        for job in jobs
    ]


def _warn_of_diverged(histories: list[History]) -> None:
    if diverged := [history.diverged for history in histories if history.diverged]:
        told = "; ".join(diverged[:3]) + (f"; and {len(diverged) - 3} more" if len(diverged) > 3 else "")
        warnings.warn(
            f"{len(diverged)} of {len(histories)} networks diverged; their last results are NaN, and their weights end "
            f"before: {told}",
            RuntimeWarning,
            stacklevel=3,
        )


def _require_workers(workers: int | None) -> None:
    if workers is not None:
        checks.require_integer("workers", workers, 1)


def _require_problems(problems: Sequence[Problem]) -> None:
    """A direction in place of its D(v), for one, should be told by name."""
    if not isinstance(problems, Sequence):
        raise ValueError(f"problems: expected a list of problems, got one {type(problems).__name__}")
    for i, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            members = ("shape", "n_classes", "sample", "checksum")
            missing = ", ".join(name for name in members if not hasattr(problem, name))
            raise ValueError(
                f"problem {i}: expected a training.Problem such as synthetic.Separable, "
                f"got a {type(problem).__name__}, which lacks {missing}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One network to train: its number in the run, and where its random draws are, a seed and a place below it."""

    number: int
    seed: int
    place: int
    architecture: Architecture
    problem: Problem
    recipe: Recipe
    objective: Objective = cross_entropy
    keep: tuple[int, ...] = ()

    def fresh(self, device: torch.device) -> nn.Module:
        """Return the network as it begins."""
        return _fresh(self.architecture, self.problem, self.seed, self.place, device)

    @property
    def training_seed(self) -> int:
        """Of the order of the samples and of the dropout masks."""
        return seeds.derive(self.seed, "training", self.place)

    @property
    def network_kind(self) -> Hashable:
        """What networks with the same layers have in common."""
        return _identity(self.architecture), tuple(self.problem.shape), self.problem.n_classes

    @property
    def behaviour_kind(self) -> Hashable:
        """What networks with the same layers and the same objective have in common."""
        return self.network_kind, _identity(self.objective)

    @property
    def kind(self) -> Hashable:
        """What networks that are trained as one have in common."""
        recipe = replace(self.recipe, learning_rate=1.0, momentum=0.0, weight_decay=0.0)
        return *self.behaviour_kind, recipe, self.keep


@dataclass(frozen=True)
class _Task:
    """What one worker does: train networks as one, or ``or_singly``, if torch cannot do that; or one network."""

    jobs: list[_Job]
    as_one: bool = False
    or_singly: bool = False


def _jobs(
    architecture: Architecture | Sequence[Architecture],
    problems: Sequence[Problem],
    recipe: Recipe | Sequence[Recipe],
    keep: Sequence[int] | None,
    objective: Objective | None | Sequence[Objective | None],
    seed: int | Sequence[int],
) -> list[_Job]:
    """Return what is to be trained, checked."""
    lists = {"architecture": architecture, "recipe": recipe, "objective": objective, "seed": seed}
    each = [_each(name, value, len(problems)) for name, value in lists.items()]
    one_seed = not isinstance(seed, Sequence)
    jobs = []
    for i, (problem, factory, how, aim, own_seed) in enumerate(zip(problems, *each, strict=True)):
        architectures.factory(factory)  # a wrong name should fail here, not in a worker
        if not isinstance(how, Recipe):
            raise ValueError(f"recipe: expected a training.Recipe, got {how!r}")
        aim = cross_entropy if aim is None else aim
        fitting.checked(aim)
        jobs.append(
            _Job(
                number=i,
                seed=checks.require_integer("seed", own_seed, 0),
                place=i if one_seed else 0,
                architecture=factory,
                problem=problem,
                recipe=how,
                objective=aim,
                keep=_epochs(keep, how),
            )
        )
    return jobs


def _each(name: str, value: object, n: int) -> list:
    """Return a value for each of n networks."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * n
    if len(value) != n:
        raise ValueError(f"{name}: expected one, or a list of one for each of {n} problems, got a list of {len(value)}")
    return list(value)


def _epochs(keep: Sequence[int] | None, recipe: Recipe) -> tuple[int, ...]:
    """Return the epochs to keep in ascending order."""
    if keep is None:
        return (recipe.epochs,)
    if not isinstance(keep, Sequence) or len(keep) == 0:
        raise ValueError(f"keep: expected a list of epochs, 0 for the initialisation, got {keep!r}")
    epochs = sorted({checks.require_integer("keep", epoch, 0) for epoch in keep})
    if epochs[-1] > recipe.epochs:
        raise ValueError(f"keep: expected epochs from 0 to {recipe.epochs}, the recipe's last, got {epochs[-1]}")
    return tuple(epochs)


def _identity(value: object) -> Hashable:
    """Return what tells functions apart: partials with the same options are the same."""
    if isinstance(value, functools.partial):
        options = tuple((name, _identity(option)) for name, option in sorted(value.keywords.items()))
        return _identity(value.func), tuple(map(_identity, value.args)), options
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _where(device: str | torch.device, executor: Executor | None) -> torch.device:
    return pick(device) if executor is None else next(gather(executor, pick, [(device,)]))


def _run(
    jobs: list[_Job],
    saved: Memory,
    strategy: Strategy,
    at_once: int,
    device: torch.device,
    workers: int | None,
    executor: Executor | None,
    progress: bool,
) -> Iterator[list[Result]]:
    """Train what is not finished, and yield it as it comes."""
    left = [job for job in jobs if job.number not in saved.finished]
    tasks = _tasks(left, strategy, at_once, device)
    processes = min(_processes(strategy, workers, device), len(tasks))
    done = len(jobs) - len(left)
    with tqdm(total=len(jobs), initial=done, unit="network", disable=not progress, leave=False) as bar:
        for results in _results(tasks, device, processes, executor, progress):
            yield results
            bar.update(len(results))


def _tasks(jobs: list[_Job], strategy: Strategy, at_once: int, device: torch.device) -> list[_Task]:
    """Return what workers are to do: train single networks, or at most ``at_once`` of one kind as one.

    It does not depend on the number of workers, so the results do not, either.
    """
    kinds: dict[Hashable, list[_Job]] = {}
    for job in jobs:
        if strategy == "vmap" and job.recipe.stop_at_loss is not None:
            raise ValueError(
                "strategy 'vmap' trains all networks equally long; use 'loop' or 'processes' to stop early"
            )
        kinds.setdefault(job.kind if strategy in ("vmap", "auto") else job.number, []).append(job)
    tasks = []
    for kind in kinds.values():
        if strategy == "vmap" or (strategy == "auto" and _is_faster_as_one(kind, device)):
            n = math.ceil(len(kind) / at_once)
            tasks += [_Task(kind[i::n], as_one=True, or_singly=strategy == "auto") for i in range(n)]
        else:
            tasks += [_Task([job]) for job in kind]
    return tasks


def _is_faster_as_one(kind: list[_Job], device: torch.device) -> bool:
    if len(kind) < FEWEST_TOGETHER or kind[0].recipe.stop_at_loss is not None:
        return False
    network = kind[0].fresh(torch.device("cpu"))
    if any(isinstance(layer, nn.modules.conv._ConvNd) for layer in network.modules()):
        return False
    return sum(p.numel() for p in network.parameters()) <= WORTH_VMAP[device.type]


def _processes(strategy: Strategy, workers: int | None, device: torch.device) -> int:
    if strategy == "processes" or (strategy == "auto" and device.type == "cpu"):
        return workers or torch.get_num_threads()
    return workers or 1 if strategy == "vmap" else 1


def _results(
    tasks: list[_Task], device: torch.device, processes: int, executor: Executor | None, progress: bool
) -> Iterator[list[Result]]:
    """Yield the results of tasks in the order in which they come."""
    here = executor is None and processes <= 1
    calls = [(task, device, progress and here) for task in tasks]
    if executor is not None:
        yield from gather(executor, _train, calls)
    else:
        run = joblib.Parallel(max(1, processes), return_as="generator_unordered")
        found = run(joblib.delayed(_train)(*call) for call in calls)
        try:
            for results in found:  # noqa: UP028 (which would close it before the warnings are off)
                yield results
        finally:
            with warnings.catch_warnings(action="ignore"):  # joblib's, of the tasks that an error leaves undone
                found.close()


def _train(task: _Task, device: torch.device, progress: bool) -> list[Result]:
    if task.as_one:
        try:
            return _fit_as_one(task.jobs, device, progress)
        except CannotVmap:
            if not task.or_singly:
                raise
    return [_fit_one(job, device, progress) for job in task.jobs]


def _fresh(architecture: Architecture, problem: Problem, seed: int, i: int, device: torch.device) -> nn.Module:
    with seeds.seeded(seed, "initialisation", i, device=device), device:
        return architectures.build(architecture, shape=problem.shape, classes=problem.n_classes)


def _fit_one(job: _Job, device: torch.device, progress: bool) -> Result:
    network = job.fresh(device)
    weights: Weights = {}

    def keep(epoch: int) -> None:
        if epoch in job.keep:
            weights[epoch] = _on_cpu(network.state_dict())

    try:
        history = fit(
            network,
            job.problem.sample("train", device),
            job.problem.sample("test", device),
            job.recipe,
            objective=job.objective,
            seed=job.training_seed,
            device=device,
            evaluate_every=job.recipe.epochs,
            after_epoch=keep,
            progress=progress,
        )
    except Diverged as error:
        history = error.history
    if not history.diverged and any(epoch > history.epochs for epoch in job.keep):
        weights[history.epochs] = _on_cpu(network.state_dict())
    return _result(job, history, weights)


def _result(job: _Job, history: History, weights: Weights) -> Result:
    """Return a training's result; if it diverged, it is named and has the weights from before."""
    if history.diverged:
        history.diverged = f"network {job.number}: {history.diverged}"
        before = {epoch: state for epoch, state in weights.items() if epoch < history.epochs}
        weights = {epoch: state for epoch, state in before.items() if all(map(_is_finite, state.values()))}
    return job.number, history, weights


def _fit_as_one(jobs: list[_Job], device: torch.device, progress: bool) -> list[Result]:
    """Train networks of one kind as one, or as few as have numbers or types of samples."""
    train, test = (_sampled([job.problem for job in jobs], split, device) for split in ("train", "test"))
    alike: dict[Hashable, list[_Job]] = {}
    for job in jobs:
        x, _ = train[id(job.problem)]
        alike.setdefault((x.shape, x.dtype), []).append(job)
    return [result for some in alike.values() for result in _fit_alike(some, train, test, device, progress)]


def _fit_alike(
    jobs: list[_Job], train: dict[int, Data], test: dict[int, Data], device: torch.device, progress: bool
) -> list[Result]:
    networks = [job.fresh(device) for job in jobs]
    weights: list[Weights] = [{} for _ in jobs]

    def keep(epoch: int) -> None:
        for job, network, kept in zip(jobs, networks, weights, strict=True):
            if epoch in job.keep:
                kept[epoch] = _on_cpu(network.state_dict())

    histories = fit_stack(
        networks,
        [train[id(job.problem)] for job in jobs],
        [test[id(job.problem)] for job in jobs],
        [job.recipe for job in jobs],
        jobs[0].objective,
        [job.training_seed for job in jobs],
        keep=jobs[0].keep,
        after_epoch=keep,
        progress=progress,
    )
    return [_result(job, history, kept) for job, history, kept in zip(jobs, histories, weights, strict=True)]


def _sampled(problems: Iterable[Problem], split: str, device: torch.device) -> dict[int, Data]:
    """Return a split of each problem, by the problem's id; inputs that are equal are held once."""
    found: dict[int, Data] = {}
    for problem in problems:
        if id(problem) not in found:
            x, y = fitting.on_device(problem.sample(split, device), device, split)
            held = (other for other, _ in found.values() if other.dtype == x.dtype and torch.equal(other, x))
            found[id(problem)] = next(held, x), y
    return found


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict."""
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}


def _settings(
    architecture: Architecture, problems: Sequence[Problem], recipe: Recipe, seed: int, device: torch.device
) -> dict[str, Any]:
    """Return what the histories depend on, in numbers and words."""
    return {
        "architecture": architectures.name_of(architecture),
        **_behaviour(architecture, problems[0], cross_entropy),
        "seed": seed,
        "device": device.type,
        **asdict(recipe),
        **{f"problem {i}": problem.checksum() for i, problem in enumerate(problems)},
    }


def _settings_each(jobs: list[_Job], device: torch.device) -> dict[int, dict[str, Any]]:
    """Return what each network depends on, in numbers and words."""
    different = {job.behaviour_kind: job for job in jobs}
    behaviour = {kind: _behaviour(j.architecture, j.problem, j.objective) for kind, j in different.items()}
    problems = {id(job.problem): job.problem for job in jobs}
    checksums = {key: problem.checksum() for key, problem in problems.items()}
    return {
        job.number: {
            "architecture": architectures.name_of(job.architecture),
            **behaviour[job.behaviour_kind],
            "problem": checksums[id(job.problem)],
            "objective": fitting.name_of(job.objective),
            "code of the objective": identity.code(job.objective),
            "seed": job.seed,
            "place below the seed": job.place,
            "device": device.type,
            "keep": list(job.keep),
            **asdict(job.recipe),
        }
        for job in jobs
    }


def _behaviour(architecture: Architecture, problem: Problem, objective: Objective) -> dict[str, Any]:
    """Return what no name tells of a network and an objective: layers, outputs, and the losses of one step."""
    network = _fresh(architecture, problem, 0, 0, torch.device("cpu"))
    layers = [type(layer).__qualname__ for layer in network.modules()]
    parts = digest(repr(layers), *described(network.state_dict().values()))
    architectures.n_logits(network, problem.shape)  # it explains what it cannot be tried on
    return {
        "layers": parts,
        "outputs": identity.outputs(network, problem.shape),
        "losses of one step": _losses_of_one_step(network, problem, objective),
    }


def _losses_of_one_step(network: nn.Module, problem: Problem, objective: Objective) -> identity.Rows:
    """Return the loss of a fixed batch before a step, and the cross-entropy after it; NaN where they diverge."""
    x = torch.randn(ONE_STEP.batch_size, *problem.shape, generator=seeds.generator(0, "one step"))
    batch = x, torch.arange(len(x)) % problem.n_classes
    try:
        history = fit(network, batch, batch, ONE_STEP, objective=objective, device="cpu")
    except Diverged as error:
        history = error.history
    return identity.rows(torch.tensor([[*history.train_loss, *history.test_loss]]))
