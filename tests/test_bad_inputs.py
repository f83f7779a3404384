"""Every public function refuses bad input with an error for people: it names the argument, and says what was expected.

`CALLS` has a good call of each function, `BAD` twenty inputs, each of which takes the place of each argument in turn.
"""

import inspect
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nadkit import HOME, architectures, training
from nadkit.activations import ablation, activity, moments, objective, selectivity, sites
from nadkit.data import images, interventions, published, synthetic
from nadkit.files import DataError
from nadkit.inputs import basis, covariance, fourier, gram, population, spectra, theory
from nadkit.neighbours import (
    alignment,
    cells,
    clustering,
    elasticity,
    importance,
    inactive,
    kernels,
    nas_bench,
    polynomial,
    pruning,
    scores,
    similarity,
    surfaces,
    wiring,
)

MODULES = [
    *(architectures, training, images, interventions, published, synthetic),
    *(ablation, activity, moments, objective, selectivity, sites),
    *(basis, covariance, fourier, gram, population, spectra, theory),
    *(alignment, cells, clustering, elasticity, importance, inactive, kernels, nas_bench, polynomial),
    *(pruning, scores, similarity, surfaces, wiring),
]
SHAPE = (3, 4, 4)


def network(classes=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), nn.Linear(5, classes))


def tiny(shape, classes):
    return network(classes)


class Output(nn.Module):
    """A network whose output is what ``form`` makes of its logits."""

    def __init__(self, form):
        super().__init__()
        self.network, self.form = network(), form

    def forward(self, x):
        return self.form(self.network(x))


X, Y = torch.rand(12, *SHAPE), torch.arange(12) % 2
DATA = (X, Y)
PIXELS = (255 * X).byte()
IMAGES = images.ImageSet(PIXELS, Y, PIXELS, Y, ("a", "b"), "toy", "random")
THREE = images.ImageSet(PIXELS, torch.arange(12) % 3, PIXELS, Y, ("a", "b", "c"), "toy", "random")
V = torch.ones(48)
PROBLEM = synthetic.Separable(v=V, shape=SHAPE, n_train=8, n_test=8)
RECIPE = training.Recipe(epochs=1)
BASIS, GREY = basis.random_basis(SHAPE), basis.random_basis((1, 4, 4))
POPULATION = population.Population(tiny, SHAPE, "gradient")
MOMENTS, OTHERS = (covariance.gradient_covariance(POPULATION, networks=range(i, i + 4)) for i in (0, 4))
TAPS = torch.rand(1, 3)
CELL = cells.random_cells(1)[0]
NETWORK = network()
SITES = sites.find_sites(NETWORK, SHAPE)
UNITS = moments.unit_moments(NETWORK, X, SITES)
ACTIVITY = activity.record_activity(NETWORK, DATA, SITES)
CPU = {"device": "cpu"}
SIMILARITY = torch.eye(4) + 0.1
SURFACES = surfaces.torus(8)
REMOVED = alignment.removal_curve(NETWORK, DATA, BASIS, counts=[1])
ABLATION = {"batch_size": 5, "memory": 1000, "progress": False}

CALLS = {
    images.ImageSet: dict(vars(IMAGES)),
    images.ImageSet.subset: dict(self=IMAGES, n_train=4, n_test=4, seed=0),
    images.ImageSet.tested_on_the_rest: dict(self=IMAGES, n_train=4, n_test=4, seed=0),
    images.ImageSet.to: dict(self=IMAGES, device="cpu"),
    images.check: dict(name="digits"),
    images.load: dict(name="digits", size=8, channels=1, device="cpu", progress=False),
    images.to_float: dict(images=PIXELS, mean=0.5, std=0.5),
    interventions.statistics_of: dict(images=PIXELS),
    interventions.Clean: dict(images=IMAGES, statistics=None),
    interventions.Corrupted: dict(images=IMAGES, statistics=None, fraction=0.5, seed=0),
    interventions.Poisoned: dict(images=IMAGES, statistics=None, basis=GREY, index=0, epsilon=0.1),
    interventions.Poisoned.carrier: dict(self=interventions.Poisoned(images=IMAGES, basis=GREY, index=0), label=0),
    interventions.Flipped: dict(images=IMAGES, statistics=None, basis=BASIS),
    interventions.Rotated: dict(images=IMAGES, statistics=None, basis=BASIS),
    published.published_nads: dict(name="lenet", download=False),
    published.numbers: dict(name="arrays"),
    published.is_at_hand: dict(name="lenet"),
    published.known_nads: dict(name="lenet"),
    published.published_spectrum: dict(name="lenet"),
    published.published_fourier_map: dict(name="lenet"),
    published.published_index_curve: dict(name="lenet"),
    synthetic.Separable: dict(v=V, shape=SHAPE, sigma=1.0, epsilon=1.0, convention="code", n_train=8, n_test=8, seed=0),
    synthetic.Separable.sample: dict(self=PROBLEM, split="train", device="cpu"),
    synthetic.corrupt_labels: dict(labels=Y, fraction=0.5, seed=0),
    sites.find_sites: dict(model=NETWORK, shape=SHAPE, names=None, axis=None),
    sites.Sites: dict(sites=[*SITES]),
    sites.Sites.last: dict(self=SITES, k=1),
    sites.Sites.split: dict(self=SITES, values=torch.rand(5)),
    moments.unit_moments: dict(model=NETWORK, x=X, sites=SITES, batch_size=5),
    activity.record_activity: dict(
        model=NETWORK, data=DATA, sites=SITES, classes=2, resolution=8, batch_size=5, progress=False
    ),
    activity.activity_of: dict(values=torch.rand(12, 3), labels=Y, classes=2, resolution=8),
    selectivity.class_selectivity: dict(activity=ACTIVITY),
    selectivity.mutual_information: dict(activity=ACTIVITY, bins=4, kind="width"),
    selectivity.class_auroc: dict(activity=ACTIVITY),
    selectivity.auroc: dict(activity=ACTIVITY),
    objective.SelectivityObjective: dict(alpha=0.5, sites=SITES, epochs=(0, 1), epsilon=0.1),
    ablation.area_under_curve: dict(fraction=torch.tensor([0.0, 1.0]), accuracy=torch.rand(2), normalised=False),
    ablation.unit_impact: dict(model=NETWORK, data=DATA, sites=SITES, value="mean", moments=UNITS, **ABLATION),
    ablation.evaluate_masks: dict(
        model=NETWORK,
        data=DATA,
        sites=SITES,
        masks=torch.eye(5) > 0,
        value="mean",
        moments=UNITS,
        bases=None,
        **ABLATION,
    ),
    ablation.cumulative_curve: dict(
        model=NETWORK,
        data=DATA,
        sites=SITES,
        orderings=1,
        steps=2,
        value="mean",
        moments=UNITS,
        basis="units",
        seed=0,
        **ABLATION,
    ),
    ablation.layer_curves: dict(model=NETWORK, data=DATA, sites=SITES),
    ablation.class_impact: dict(model=NETWORK, data=DATA, sites=SITES, classes=2),
    ablation.noise_curve: dict(
        model=NETWORK, data=DATA, sites=SITES, scales=[0.5], repeats=1, moments=UNITS, relative=True, seed=0, **ABLATION
    ),
    training.Recipe: dict(vars(RECIPE)),
    training.fit: dict(
        model=network(),
        train=DATA,
        test=DATA,
        recipe=RECIPE,
        objective=training.cross_entropy,
        seed=0,
        device="cpu",
        evaluate_every=1,
        after_epoch=None,
        progress=False,
    ),
    training.evaluate: dict(model=network(), data=DATA, batch_size=5),
    training.fit_many: dict(
        architecture=tiny,
        problems=[PROBLEM],
        recipe=RECIPE,
        seed=0,
        device="cpu",
        strategy="loop",
        workers=1,
        executor=None,
        checkpoint=None,
        progress=False,
    ),
    training.fit_networks: dict(
        architecture=tiny,
        problems=[PROBLEM],
        recipe=RECIPE,
        keep=[1],
        objective=None,
        seed=0,
        device="cpu",
        strategy="loop",
        workers=1,
        executor=None,
        checkpoint=None,
        progress=False,
    ),
    basis.Basis: dict(vectors=BASIS.vectors[:3], shape=SHAPE, name="toy", eigenvalues=torch.ones(3)),
    basis.Basis.coordinates: dict(self=BASIS, x=X),
    basis.Basis.flip: dict(self=BASIS, x=X),
    basis.Basis.leading: dict(self=BASIS, k=3),
    basis.Basis.overlap: dict(self=BASIS, other=BASIS, k=3),
    basis.pixel_basis: dict(shape=SHAPE),
    basis.random_basis: dict(shape=SHAPE, seed=0),
    population.Population: dict(architecture=tiny, shape=SHAPE, method="gradient", scale=1.0, seed=0, x=X[0]),
    population.with_batch_statistics: dict(architecture=tiny, batch=2, seed=0),
    covariance.compute_nads: dict(
        architecture=tiny, n_networks=2, shape=SHAPE, method="gradient", scale=1.0, seed=0, x=X[0], **CPU
    ),
    covariance.gradient_covariance: dict(
        architecture=POPULATION, networks=range(2), checkpoint=None, local=False, executor=None, progress=False, **CPU
    ),
    covariance.merged: dict(parts=[MOMENTS, OTHERS]),
    covariance.GradientCovariance.nads: dict(self=MOMENTS, centred=True),
    gram.leading_nads: dict(
        architecture=tiny, k=1, shape=SHAPE, n_networks=3, method="gradient", progress=False, seed=0, x=X[0], **CPU
    ),
    fourier.fourier_basis: dict(shape=SHAPE),
    fourier.fourier_direction: dict(fx=1, fy=1, shape=SHAPE, part="real", channel=0),
    fourier.map_cells: dict(step=1),
    spectra.marchenko_pastur_edges: dict(dimensions=4, n=10),
    spectra.marchenko_pastur_cdf: dict(x=torch.rand(3), dimensions=4, n=10),
    spectra.effective_dimension: dict(eigenvalues=torch.ones(3)),
    spectra.population_effective_dimension: dict(one=MOMENTS, other=OTHERS),
    spectra.overlap_ceiling: dict(eigenvalues=torch.ones(3), k=1, n_networks=(4, 4), repeats=2, seed=0),
    spectra.overlap_ceilings: dict(eigenvalues=torch.ones(3), ks=[1], n_networks=(4, 4), repeats=2, seed=0),
    alignment.variance_along: dict(x=X, basis=GREY),
    alignment.signal_along: dict(data=DATA, basis=GREY),
    alignment.principal_basis: dict(x=X),
    alignment.exchanged: dict(basis=GREY, chosen=torch.arange(8) < 3),
    alignment.remove: dict(x=X, basis=GREY, k=3, value="zero"),
    alignment.removal_curve: dict(
        model=NETWORK, data=DATA, basis=BASIS, counts=[3], value="zero", batch_size=5, progress=False
    ),
    alignment.area_over_variance: dict(curve=REMOVED, normalised=False),
    alignment.units_along: dict(model=NETWORK, x=X, sites=SITES, bases=[BASIS], batch_size=5, progress=False),
    theory.aliases: dict(frequency=[1], size=(8,), stride=2),
    theory.transfer: dict(taps=TAPS, size=(8,)),
    theory.composed: dict(first=TAPS, second=TAPS),
    theory.folded_share: dict(taps=TAPS, v=torch.ones(8), size=(8,), stride=2),
    theory.wave_shares: dict(taps=TAPS, size=(8,), stride=2, part="real"),
    theory.best_accuracy: dict(share=0.5, shift=1.0, sigma=1.0),
    theory.best_filter: dict(frequency=[1], kernel=(3,), size=(8,), stride=2, part="real", then=TAPS),
    theory.nads: dict(phi=torch.rand(4, 48), shape=SHAPE),
    theory.hessian: dict(phi=torch.rand(4, 48), v=V, shift=1.0, sigma=1.0),
    theory.descent: dict(phi=torch.rand(4, 48), v=V, steps=1, learning_rate=0.01, shift=1.0, sigma=1.0),
    cells.cell_of: dict(operations=["none"] * 6),
    cells.operations: dict(cell=CELL),
    cells.is_connected: dict(cell=CELL),
    cells.random_cells: dict(n=3, seed=0),
    cells.CellNetwork: dict(shape=SHAPE, classes=2, cell=CELL, channels=2, cells=1, stages=2),
    nas_bench.read: dict(path="bench.csv"),
    scores.code_kernel: dict(model=NETWORK, x=X, batch_statistics=True),
    scores.naswot: dict(
        model=nn.Sequential(nn.Flatten(), nn.ReLU()), x=X[:3] - 0.5, batch_statistics=True, normalised=True
    ),
    scores.gradient_norm: dict(model=NETWORK, data=DATA, batch_statistics=True),
    scores.synflow: dict(model=NETWORK, shape=SHAPE),
    scores.energy: dict(covariance=torch.eye(4), x=torch.rand(3, 4)),
    scores.best_of: dict(scores=[1.0, 2.0], values=[1.0, 2.0], n=1),
    similarity.SimilarityConv2d: dict(conv=nn.Conv2d(1, 1, 2), matrix=torch.rand(4, 4), learned=True),
    similarity.DynamicConv2d: dict(conv=nn.Conv2d(1, 1, 2), diagonal=False),
    similarity.Stages: dict(shape=SHAPE, classes=2, width=0.05, convs=1),
    similarity.with_similarity: dict(architecture="lenet", kind="static-diagonal", start="ones", root=True),
    similarity.transplanted: dict(architecture="lenet", given={"conv1": torch.eye(25)}),
    similarity.matrices: dict(model=NETWORK),
    similarity.folded: dict(model=NETWORK),
    similarity.MatrixDecay: dict(decay=0.1),
    clustering.agreement: dict(found=Y, classes=Y),
    kernels.centred: dict(kernel=SIMILARITY),
    kernels.kernel_distance: dict(kernel=SIMILARITY),
    kernels.leading_components: dict(kernel=SIMILARITY, k=2),
    kernels.log_determinant: dict(kernel=SIMILARITY),
    clustering.primary_and_auxiliary: dict(images=THREE, primary=(0, 1), auxiliary=(2,), n=2, seed=0),
    clustering.two_means: dict(kernel=SIMILARITY, seed=0, restarts=1, steps=5),
    kernels.as_kernel: dict(kernel=SIMILARITY),
    elasticity.critical_rate: dict(kernel=SIMILARITY),
    elasticity.elasticity_along: dict(
        model=network(), x=X[0], directions=torch.eye(48)[:2], shift=1.0, loss="cross-entropy"
    ),
    kernels.normalised: dict(kernel=SIMILARITY),
    elasticity.single_steps: dict(model=network(), x=X, y=Y, loss="square", rate=0.1, progress=False),
    kernels.symmetrised: dict(similarity=SIMILARITY),
    elasticity.tangent_kernel: dict(model=network(), x=X, loss="square", memory=1000),
    surfaces.folded_boxes: dict(n=8, seed=0),
    surfaces.torus: dict(n=8, seed=0),
    surfaces.Surfaces.sample: dict(self=SURFACES, split="train", device="cpu"),
    importance.unit_scores: dict(
        model=NETWORK, data=DATA, sites=SITES, criteria=["Taylor", "OBD"], batch_size=5, seed=0, progress=False
    ),
    importance.criteria_for: dict(model=NETWORK, sites=SITES),
    importance.oracle: dict(model=NETWORK, data=DATA, sites=SITES, batch_size=5, memory=1000),
    wiring.find_wires: dict(model=NETWORK, sites=SITES, readers=True),
    pruning.LeNet252: dict(shape=(1, 16, 16), classes=2, width=0.1, batch_norm=False),
    pruning.Schedule: dict(total=2, units=1, every=1, momentum=0.5),
    pruning.prune_while_training: dict(
        model=network(),
        train=DATA,
        test=DATA,
        sites=SITES,
        schedule=pruning.Schedule(total=2, units=2, every=1),
        recipe=training.Recipe(epochs=2),
        criterion="Taylor",
        look=None,
        seed=0,
        device="cpu",
        progress=False,
    ),
    pruning.remove_units: dict(model=NETWORK, sites=SITES, mask=torch.tensor([True, *[False] * 4]), x=X),
    pruning.cost: dict(model=NETWORK, x=X),
    pruning.seconds: dict(models={"toy": NETWORK}, x=X, repeats=1),
    polynomial.CCP: dict(inputs=4, units=3, degree=2, bias=False),
    polynomial.NCP: dict(inputs=4, units=3, degree=2, skip=False),
    polynomial.PolynomialNet: dict(shape=SHAPE, classes=2, kind="CCP", degree=[2, 1], width=3, bias=False),
    polynomial.ConvCCP: dict(shape=SHAPE, classes=2, width=3),
    polynomial.ProductBlock: dict(channels=3, width=2, stride=1, product="1x1", relu=False, scale=0.5),
    polynomial.TutorialBlock: dict(channels=3, width=2, stride=1),
    polynomial.PiNet: dict(shape=SHAPE, classes=2, block="pi", depth=1, width=2, relu=False, scale=0.5, max_pool=False),
    inactive.without_activations: dict(architecture=tiny),
    polynomial.finite_differences: dict(network=NETWORK, shape=SHAPE, most=2, reach=1.5, lines=1, seed=0),
    polynomial.degree_from: dict(differences=torch.rand(4), tolerance=1e-9),
    polynomial.degree_of: dict(network=NETWORK, shape=SHAPE, most=2, tolerance=1e-9, reach=1.5, lines=1, seed=0),
    polynomial.expected_moment: dict(x=X[0], kind="CCP", degree=2, bias=False),
    architectures.build: dict(architecture="logreg", shape=SHAPE, classes=2),
    architectures.n_logits: dict(model=network(), shape=SHAPE, device="cpu"),
    architectures.factory: dict(architecture="logreg"),
    architectures.check: dict(name="logreg"),
    architectures.name_of: dict(architecture="logreg"),
    architectures.LogReg: dict(shape=SHAPE, classes=2),
    architectures.LeNet: dict(
        shape=(1, 16, 16), classes=2, pooling="max", width=0.2, depth=2, activation="relu", batch_norm=False
    ),
    architectures.MLP: dict(shape=SHAPE, classes=2, width=3, depth=1, dropout=0.1, batch_norm=False),
    architectures.ConvNet: dict(shape=(1, 8, 8), classes=2, width=0.03, batch_norm=True, dropout=0.1),
    architectures.VGG11: dict(shape=(1, 32, 32), classes=2, pooling=True),
    architectures.ResNet18: dict(shape=SHAPE, classes=2, pooling="stride"),
    architectures.DenseNet121: dict(shape=(1, 8, 8), classes=2),
    architectures.ViT: dict(shape=(1, 8, 8), classes=2),
    architectures.ConvNeXt: dict(shape=(1, 16, 16), classes=2),
    architectures.Mixer: dict(shape=(1, 8, 8), classes=2),
    architectures.pretrained: dict(name="resnet50", weights="IMAGENET1K_V1", download=False),
}

# What a bad input may go under in a message, other than the name of the argument.
CALLED = {
    "checkpoint": "a file|a folder",
    "data": "labels",
    "model": "network|module",
    "names": "module",
    "path": "bench",
    "name": "image set|NADs|architecture|model",
    "size": "kernel",
    "test": "test data|test labels",
    "test_labels": "test",
    "then": "taps",
    "train": "train data|train labels",
    "train_labels": "train",
    "values": "activation",
    "vectors": "vector",
    "x": "inputs",
}

# What is no bad input for these arguments (of one function), and why, where that is not plain.
ACCEPTED = {
    "None": "clip ProductBlock.product",
    "text": "checkpoint source ImageSet.name Basis.name name_of.architecture is_at_hand.name",
    "fraction": "stop_at_loss",
    "-1": "alpha axis fx fy mean seed shift ProductBlock.scale PiNet.scale",
    "0": "alpha channel compile decay dropout fraction fx fy index label mean momentum seed share shift sigma steps "
    "weight_decay remove.k ProductBlock.scale PiNet.scale",
    "empty list": "problems overlap_ceilings.ks removal_curve.counts",
    "network": "after_epoch look matrices.model folded.model",  # two take one argument, the others any network
    "class": "architecture",  # networks are built when they are needed
    "function": "architecture",
    "empty tensors": "x images labels",
    "flat tensors": "v images accuracy split.values marchenko_pastur_cdf.x energy.x expected_moment.x",
    # NaN stays NaN where numbers are not averaged
    "NaN in tensors": "coordinates.x flip.x split.values images",
    "infinity in tensors": "coordinates.x flip.x split.values images",
    # activations and similarities need no logits
    "tuple output": "find_sites.model matrices.model folded.model cost.model code_kernel.model naswot.model",
    "dict output": "find_sites.model matrices.model folded.model cost.model code_kernel.model naswot.model",
}

# ---- what takes the place of a good argument, made of it; `GOOD` where that would not make it bad ----

GOOD = object()


def of_tensors(change):
    """Return the function that changes a tensor, or each of several."""

    def changed(good):
        if isinstance(good, tuple) and all(isinstance(item, torch.Tensor) for item in good):
            return tuple(map(change, good))
        return change(good) if isinstance(good, torch.Tensor) and good.ndim else GOOD

    return changed


def holding(number):
    """Return the function that puts a number in the first place of each tensor."""
    return of_tensors(lambda t: torch.cat([torch.tensor([number]), t.flatten()[1:]]).view(t.shape))


def flat(t):
    return t.flatten() if t.ndim > 1 else t[None]


def answering(form):
    """Return the function that gives a network with another form of output."""
    return lambda good: Output(form) if isinstance(good, nn.Module) else GOOD


BAD = {
    "None": lambda good: None,
    "text": lambda good: "lenett",
    "bytes": lambda good: b"lenet",
    "fraction": lambda good: GOOD if isinstance(good, float) else 1.5,
    "-1": lambda good: -1,
    "0": lambda good: 0,
    "NaN": lambda good: float("nan"),
    "empty list": lambda good: [],
    "dict": lambda good: {"x": 1},
    "array": lambda good: np.full(7, np.nan),
    "DataLoader": lambda good: DataLoader(TensorDataset(X, Y)),
    "class": lambda good: Output,
    "network": lambda good: nn.Linear(7, 7),
    "function": lambda good: tiny,
    "tuple output": answering(lambda logits: (logits, logits)),
    "dict output": answering(lambda logits: {"logits": logits}),
    "empty tensors": of_tensors(lambda t: t[:0]),
    "flat tensors": of_tensors(flat),
    "NaN in tensors": holding(torch.nan),
    "infinity in tensors": holding(torch.inf),
    "one too few": lambda good: (X, Y[1:]) if good is DATA else GOOD,
    "swapped": lambda good: (Y, X) if good is DATA else GOOD,
}


def answer(function, arguments):
    """Call a function, one with ``self`` as a method, and return the error or None."""
    arguments = dict(arguments)
    first = [arguments.pop("self")] if "self" in arguments else []
    try:
        function(*first, **arguments)
    except Exception as error:
        return error
    return None


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for files named like a bad input


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__qualname__)
def test_bad_inputs_are_refused_by_name(function):
    good = CALLS[function]
    assert isinstance(answer(function, good), DataError | None)  # data may not be at hand
    wrong = []
    for name in good.keys() - {"self"}:
        named = re.compile(rf"\b({name}|{CALLED.get(name, name)})\b")
        for kind, make in BAD.items():
            bad = make(good[name])
            fine = {name, f"{function.__name__}.{name}"} & {*ACCEPTED.get(kind, "").split()}
            if bad is GOOD or fine or (bad is None and optional(function, name)):
                continue
            error = answer(function, {**good, name: bad})
            if not isinstance(error, ValueError | DataError) or not named.search(str(error)):
                wrong.append(f"{name}, {kind}: {error!r}")
    assert not wrong, "\n".join(wrong)


def optional(function, name):
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is None or parameter.default is None


# What has no good call above.
OTHERS = """
    Carrier Ceiling Cell FourierBasis Frequency GradientCovariance History IndexCurve NADs Trained  (results)
    Activity ClassImpact Curve Impact Moments RemovalCurve MutualInformation NoiseCurve Scores Site  (more of them)
    Batch Cost Criterion Oracle Pruned Weights Wires  (and more)
    Anchor Flipping Reported union activity_at over_positions require_every_class require_finite require_sites as_inputs
    capture evaluating find origin replaced require_directions  (what other modules are made of)
    Diverged Problem cross_entropy square_loss  (an error, and what users give)
    Steps Surfaces  (results)
"""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_is_here(module):
    things = {name: it for name, it in vars(module).items() if inspect.isfunction(it) or inspect.isclass(it)}
    own = [name for name, it in things.items() if it.__module__ == module.__name__ and not name.startswith("_")]
    public = {name for name in getattr(module, "__all__", own) if name in things}
    assert not public - {function.__name__ for function in CALLS} - {*OTHERS.split()}


def test_every_name_of_the_package_is_here():
    assert {*HOME.values()} <= {module.__name__ for module in MODULES}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training.evaluate(NETWORK, (X[:0], Y[:0])), "data: expected one label an input, got 0 inputs"),
        (lambda: training.evaluate(NETWORK, (X * torch.nan, Y)), "data: expected finite numbers, got NaN"),
        (lambda: training.evaluate(NETWORK, (X, Y + 1)), "labels: expected 0 to 1 for 2 logits, got 1 to 2"),
        (
            lambda: training.fit(NETWORK, DATA, DATA, training.Recipe),
            "recipe: expected a Recipe, got the class Recipe; ",
        ),
        (lambda: training.fit_many(NETWORK, [PROBLEM]), "architecture: expected .* a factory .*, got a Sequential"),
        (lambda: covariance.compute_nads("logreg", x=[1, 2]), r"x: expected a tensor or None, got \(1, 2\)"),
        (
            lambda: activity.record_activity(NETWORK, (X.numpy(), Y), SITES),
            r"data: expected two tensors, got \(ndarray, ",
        ),
        (
            lambda: activity.record_activity(NETWORK, DataLoader(X), SITES),
            "data: expected two tensors, got a DataLoader",
        ),
        (lambda: ablation.unit_impact(NETWORK, SITES, DATA), "data: expected two tensors, got a Sites"),
        (
            lambda: ablation.unit_impact(NETWORK, DATA, SITES, value="men"),
            "value: expected 'zero' or 'mean', got 'men'; d",
        ),
        (lambda: sites.find_sites(NETWORK, 8), "shape: expected a list, got 8"),
        (lambda: images.load("folder:"), "image set 'folder:': expected folder:PATH, got no path"),
        (lambda: images.ImageSet(X, Y, PIXELS, Y, ("a", "b"), "", ""), "train: expected uint8 from 0 to 255"),
        (lambda: images.ImageSet(PIXELS, Y, PIXELS, Y, ("a",), "", ""), "train_labels: expected 0 to 0 for 1 classes"),
        (lambda: synthetic.Separable(v="all"), "v: expected a tensor or a list, got 'all'"),
    ],
)
def test_what_is_wrong_and_what_to_do_is_said(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
