"""Theory of linear convolutional networks: closed forms against matrices, matrices against convolutions and data."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from nadkit.data import synthetic
from nadkit.inputs import theory
from nadkit.inputs.basis import Basis, random_basis
from nadkit.inputs.fourier import fourier_basis, fourier_direction

SHIFT, SIGMA = 1.0, 3.0
CASES = [((12,), 1), ((12,), 2), ((12,), 4), ((6, 8), 2), ((8, 4), 4)]  # (size, stride)


def filters(count: int, kernel: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *kernel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel_of(size: tuple[int, ...]) -> tuple[int, ...]:
    return (3,) * len(size)


def waves(size: tuple[int, ...]) -> list[tuple[tuple[int, ...], str, torch.Tensor]]:
    """Every frequency and part of a grid with its unit vector."""
    height, width = size if len(size) == 2 else (1, *size)
    found = []
    for fy in range(height):
        for fx in range(width):
            for part in ("real", "imaginary"):
                try:
                    v = fourier_direction(fx, fy, shape=(1, height, width), part=part)
                except ValueError:  # a sine that is zero on every pixel
                    continue
                found.append(((fy, fx)[2 - len(size) :], part, v))
    return found


def accuracy_by_matrix(phi: torch.Tensor, v: torch.Tensor) -> float:
    """Q(-d) by the definition, with the pseudo-inverse; 1 where the signal leaves the range of the noise."""
    signal = phi @ v
    noise = SIGMA**2 * phi @ (torch.eye(len(v), dtype=torch.float64) - torch.outer(v, v)) @ phi.T
    inverse = torch.linalg.pinv(noise, rtol=1e-10, hermitian=True)
    if (noise @ inverse @ signal - signal).norm() > 1e-6 * signal.norm():
        return 1.0
    d = SHIFT * (signal @ inverse @ signal).clamp(min=0).sqrt()
    return torch.special.ndtr(d).item()


def folded(taps: torch.Tensor, *, size: tuple[int, ...], stride: int) -> torch.Tensor:
    """Phi of z = Phi x by its definition, z_c,n = sum_t h_c,t x_(S n + t): (C, *kernel) -> (C D / S^axes, D)."""
    starts = list(itertools.product(*(range(0, n, stride) for n in size)))
    phi = torch.zeros(len(taps), len(starts), *size, dtype=torch.float64)
    for row, start in enumerate(starts):
        for t in itertools.product(*map(range, taps.shape[1:])):
            place = tuple((s + k) % n for s, k, n in zip(start, t, size, strict=True))
            phi[(slice(None), row, *place)] += taps[(slice(None), *t)].double()
    return phi.flatten(0, 1).flatten(1)


def visible_share(phi: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """|P v|^2 / |v|^2, P the projection onto the row space of Phi: (K, D), (..., D) -> (...)."""
    _, values, rows = torch.linalg.svd(phi.double(), full_matrices=False)
    rows, v = rows[values > 1e-10 * values[0]], v.double()
    return ((v @ rows.T).square().sum(-1) / v.square().sum(-1)).clamp(max=1)


def test_aliases_fold_by_hand():
    assert theory.aliases([2], size=(32,), stride=4) == [(2,), (10,), (-14,), (-6,)]
    assert theory.aliases([0, 3], size=(8, 8), stride=2) == [(0, 3), (0, -1), (-4, 3), (-4, -1)]
    assert theory.aliases([5, -1], size=(8, 8), stride=1) == [(-3, -1)]


@pytest.mark.parametrize(("size", "stride"), CASES)
def test_aliases_are_one_signal_after_subsampling(size, stride):
    positions = torch.cartesian_prod(*(torch.arange(0, n, stride) for n in size)).view(-1, len(size)).double()

    def kept(frequency: tuple[int, ...]) -> torch.Tensor:
        turns = positions @ (torch.tensor(frequency).double() / torch.tensor(size))
        return torch.exp(2j * math.pi * turns)

    for frequency, _, _ in waves(size):
        found = theory.aliases(frequency, size=size, stride=stride)
        assert len(set(found)) == stride ** len(size)
        for other in found:
            torch.testing.assert_close(kept(other), kept(frequency))


def test_folded_is_a_circular_convolution_with_a_stride():
    taps = filters(2, (3, 2))
    x = torch.randn(5, 1, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 2), mode="circular"), taps[:, None], stride=4).flatten(1)
    phi = folded(taps, size=(8, 12), stride=4)
    assert phi.shape == (2 * 2 * 3, 96)
    torch.testing.assert_close(x.flatten(1) @ phi.T, expected)


def test_folded_in_one_dimension_by_hand():
    phi = folded(torch.tensor([[1.0, 2.0]]), size=(4,), stride=2)
    assert phi.round(decimals=12).tolist() == [[1, 2, 0, 0], [0, 0, 1, 2]]


def test_average_pooling_is_a_box_filter():
    taps = torch.full((1, 2, 2), 1 / 4)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    phi = folded(taps, size=(8, 8), stride=2)
    torch.testing.assert_close(phi @ x.flatten(), F.avg_pool2d(x, 2).flatten())


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_three_ways_to_the_best_accuracy_agree(size, stride, count):
    """The matrix of the definition, the row space, and the folded spectrum."""
    taps = filters(count, kernel_of(size))
    phi = folded(taps, size=size, stride=stride)
    for frequency, part, v in waves(size):
        share = visible_share(phi, v)
        torch.testing.assert_close(theory.folded_share(taps, v, size=size, stride=stride), share)
        accuracy = theory.best_accuracy(share, shift=SHIFT, sigma=SIGMA).item()
        assert accuracy == pytest.approx(accuracy_by_matrix(phi, v), abs=1e-6), (frequency, part)


@pytest.mark.parametrize("part", ["real", "imaginary"])
@pytest.mark.parametrize(("size", "stride"), CASES)
def test_the_closed_form_of_waves_agrees(size, stride, part):
    taps = filters(1, kernel_of(size), seed=2)
    closed = theory.wave_shares(taps, size=size, stride=stride, part=part)
    phi = folded(taps, size=size, stride=stride)
    for frequency, which, v in waves(size):
        if which == part:
            assert closed[frequency].item() == pytest.approx(visible_share(phi, v).item(), abs=1e-10)


def test_the_formula_of_the_paper():
    """Where a wave is no alias of its mirror: Q(-d), d = shift |m_k| / (sigma sqrt(sum_j |m_(k + j N / S)|^2))."""
    taps, size, stride, k = filters(1, (5,)), (32,), 4, 3
    m = theory.transfer(taps, size=size)[0].abs().square()
    d = SHIFT * (m[k] / (m[11] + m[19] + m[27])).sqrt() / SIGMA
    share = theory.wave_shares(taps, size=size, stride=stride)[k]
    accuracy = theory.best_accuracy(share, shift=SHIFT, sigma=SIGMA)
    torch.testing.assert_close(accuracy, torch.special.ndtr(d))


def test_a_wave_that_is_an_alias_of_its_mirror_depends_on_the_phase():
    """Every second sample of a wave of N / 4 cycles: the cosine is seen whole, the sine not at all."""
    pick = torch.ones(1, 1)
    assert theory.wave_shares(pick, size=(16,), stride=2)[4] == pytest.approx(1)
    assert theory.wave_shares(pick, size=(16,), stride=2, part="imaginary")[4] == pytest.approx(0, abs=1e-20)
    assert theory.wave_shares(pick, size=(16,), stride=2)[3] == pytest.approx(1 / 2)


def test_without_subsampling_nothing_is_lost():
    shares = theory.wave_shares(filters(1, (3, 3)), size=(8, 8), stride=1)
    torch.testing.assert_close(shares, torch.ones(8, 8, dtype=torch.float64))
    assert (theory.best_accuracy(shares) == 1).all()


def test_averages_hide_the_multiples_of_their_rate():
    """A box of S lets frequency zero through whole, and nothing of N / S, 2 N / S, ..."""
    shares = theory.wave_shares(torch.ones(1, 4), size=(32,), stride=4)
    assert shares[0] == pytest.approx(1)
    assert shares[[8, 16, 24]].abs().max() < 1e-20
    assert (theory.best_accuracy(shares[[8, 16]]) == 0.5).all()
    basis = fourier_basis((1, 1, 32))
    phi = folded(torch.ones(1, 4), size=(32,), stride=4)
    total = visible_share(phi, basis.vectors).sum()
    assert total == pytest.approx(8)  # all directions together show as much as there are numbers left


def test_as_many_filters_as_aliases_lose_nothing():
    v = fourier_direction(3, 5, shape=(1, 8, 8))
    taps = filters(4, (3, 3))
    shares = [theory.folded_share(taps[:c], v, size=(8, 8), stride=2).item() for c in (1, 2, 3, 4)]
    assert shares == sorted(shares)
    assert shares[2] < 0.999
    assert shares[3] == pytest.approx(1)


def test_what_no_filter_passes_is_dark():
    both = torch.ones(2, 2, dtype=torch.float64)  # both filters drop N / 2, and with stride 2 its alias is zero
    v = fourier_direction(8, 0, shape=(1, 1, 16))
    assert theory.folded_share(both, v, size=(16,), stride=2) == pytest.approx(0, abs=1e-12)
    zero = theory.folded_share(torch.zeros(1, 2), v, size=(16,), stride=2)
    assert zero == 0
    assert theory.wave_shares(torch.zeros(1, 2), size=(16,), stride=2).abs().max() == 0


def test_many_directions_at_once():
    taps, vectors = filters(2, (3, 3)), random_basis((1, 6, 4)).vectors
    together = theory.folded_share(taps, 7 * vectors, size=(6, 4), stride=2)
    one_by_one = [theory.folded_share(taps, v, size=(6, 4), stride=2) for v in vectors]
    torch.testing.assert_close(together, torch.stack(one_by_one))
    phi = folded(taps, size=(6, 4), stride=2)
    torch.testing.assert_close(visible_share(phi, 7 * vectors), together)


@pytest.mark.parametrize("frequency", [1, 3, 4, 8])
def test_the_best_linear_classifier_of_samples_reaches_the_theory(frequency):
    """Fisher's discriminant, fitted to samples of D(v) behind the layer and counted on others."""
    n = 40_000
    v = fourier_direction(frequency, 0, shape=(1, 1, 16))
    problem = synthetic.Separable(v=v, shape=(1, 1, 16), sigma=SIGMA, n_train=n, n_test=n)
    taps = filters(1, (3,), seed=4)
    phi = folded(taps, size=(16,), stride=4)
    (x, y), (x_test, y_test) = (problem.sample(split) for split in ("train", "test"))
    z, z_test = (inputs.flatten(1).double() @ phi.T for inputs in (x, x_test))
    means = torch.stack([z[y == label].mean(0) for label in (0, 1)])
    within = torch.cov((z - means[y]).T)
    weights = torch.linalg.solve(within, means[1] - means[0])
    right = ((z_test - means.mean(0)) @ weights > 0) == y_test.bool()
    share = theory.wave_shares(taps, size=(16,), stride=4)[frequency]
    expected = theory.best_accuracy(share, shift=problem.shift, sigma=SIGMA).item()
    assert right.double().mean().item() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("part", ["real", "imaginary"])
@pytest.mark.parametrize(("size", "stride", "kernel"), [((16,), 4, (5,)), ((16,), 2, (2,)), ((8, 8), 4, (3, 3))])
def test_the_best_filter_reaches_its_share_and_no_other_does(size, stride, kernel, part, pooled):
    generator = torch.Generator().manual_seed(0)
    then = torch.ones(1, *[stride] * len(size), dtype=torch.float64) if pooled else torch.ones(1, *[1] * len(size))

    def share_of(taps: torch.Tensor, v: torch.Tensor) -> float:
        return theory.folded_share(theory.composed(taps, then), v, size=size, stride=stride).item()

    options = {"size": size, "stride": stride, "part": part, "then": then if pooled else None}
    for frequency, which, v in waves(size):
        if which != part:
            continue
        taps, share = theory.best_filter(frequency, kernel, **options)
        assert share_of(taps, v) == pytest.approx(share, abs=1e-8)
        for _ in range(3):
            other = torch.randn(1, *kernel, generator=generator, dtype=torch.float64)
            assert share_of(other, v) <= share + 1e-10
            assert share_of(taps + 0.01 * other, v) <= share + 1e-10


def test_no_filter_brings_back_what_an_average_hides():
    options = {"size": (32,), "stride": 4, "then": torch.ones(1, 4)}
    shares = [theory.best_filter([k], (5,), **options)[1] for k in (0, 1, 8, 16)]
    assert shares[0] == pytest.approx(1)
    assert 0.5 < shares[1] < 1
    assert max(shares[2:]) < 1e-12
    crowd = theory.composed(filters(9, (5,)), torch.ones(1, 4))
    dark, lit = (fourier_direction(k, 0, shape=(1, 1, 32)) for k in (8, 7))
    assert theory.folded_share(crowd, dark, size=(32,), stride=4) < 1e-12
    assert theory.folded_share(crowd, lit, size=(32,), stride=4) == pytest.approx(1)


def test_composed_filters_are_one_after_the_other():
    first, second = filters(2, (3, 2)), filters(2, (2, 4), seed=1)
    size = (6, 8)
    one_by_one = folded(second, size=size, stride=2)
    inner = folded(first, size=size, stride=1).unflatten(0, (2, 48))
    expected = torch.cat([one_by_one @ phi for phi in inner])
    both = theory.composed(first, second)
    assert both.shape == (4, 4, 5)
    torch.testing.assert_close(folded(both, size=size, stride=2), expected)


def test_a_filter_long_enough_to_drop_every_alias_hides_nothing():
    """A filter of 5 taps can drop the one alias of every wave that a stride of 2 leaves it."""
    assert theory.best_filter([3], (5,), size=(32,), stride=2)[1] == pytest.approx(1)
    assert theory.best_filter([3], (5,), size=(32,), stride=4)[1] < 0.99


def test_nads_are_the_right_singular_vectors():
    phi = folded(filters(1, (3, 3)), size=(6, 4), stride=2)
    basis = theory.nads(phi, shape=(1, 6, 4))
    second = basis.vectors.T @ torch.diag(basis.eigenvalues) @ basis.vectors
    torch.testing.assert_close(second, phi.T @ phi)
    assert len(basis) == 6
    theta = torch.randn(200_000, len(phi), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    derivatives = theta @ phi
    moment = derivatives.T @ derivatives / len(theta)
    assert (moment - phi.T @ phi).abs().max() < 0.02 * (phi.T @ phi).diagonal().max()


def test_hessian_is_that_of_the_loss_on_samples():
    v = fourier_direction(1, 2, shape=(1, 6, 4))
    phi = folded(filters(1, (3, 3)), size=(6, 4), stride=2)
    x, y = synthetic.Separable(v=v, shape=(1, 6, 4), sigma=0.5, n_train=200_000).sample("train")
    z = x.flatten(1).double() @ phi.T
    expected = z.T @ z / len(z)
    found = theory.hessian(phi, 3 * v, shift=1.0, sigma=0.5)
    assert (found - expected).abs().max() < 0.02 * found.abs().max()
    gradient = -(z * (2 * y - 1)[:, None]).mean(0)
    assert (gradient + phi @ v).abs().max() < 0.02 * (phi @ v).norm()


@pytest.mark.parametrize("stride", [1, 2])
def test_descent_against_gradient_descent_on_the_same_moments(stride):
    """Square loss sees first and second moments only, and 2 (D - 1) points a class have exactly those of D(v)."""
    shift, sigma = 0.8, 0.5
    phi = folded(filters(2, (3, 3)), size=(6, 4), stride=stride)
    v = torch.randn(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = v / v.norm()
    across = Basis(vectors=unit[None], shape=(1, 6, 4)).complete().vectors[1:]
    noise = sigma * math.sqrt(len(across)) * torch.cat([across, -across])
    z = torch.cat([noise + shift * unit, noise - shift * unit]) @ phi.T
    y = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(len(noise))
    rate = 1 / torch.linalg.eigvalsh(theory.hessian(phi, v, shift=shift, sigma=sigma))[-1].item()
    theta, losses = torch.zeros(len(phi), dtype=torch.float64), []
    for _ in range(31):
        error = z @ theta - y
        losses.append(error.square().mean() / 2)
        theta -= rate * (error @ z) / len(z)
    found = theory.descent(phi, v, 30, learning_rate=rate, shift=shift, sigma=sigma)
    torch.testing.assert_close(found, torch.stack(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_descent_along_a_nad_is_geometric():
    phi = folded(filters(2, (3, 3)), size=(6, 4), stride=2)
    basis = theory.nads(phi, shape=(1, 6, 4))
    rate = 0.5 / basis.eigenvalues[0].item()
    for index in (0, 3, 5):
        found = theory.descent(phi, basis[index], 20, learning_rate=rate, shift=0.8, sigma=0.5)
        factor = 1 - rate * 0.8**2 * basis.eigenvalues[index]
        torch.testing.assert_close(found, factor ** (2 * torch.arange(21)) / 2)


def test_descent_without_a_signal_stays_where_it_is():
    phi = torch.eye(4, dtype=torch.float64)[:2]
    assert theory.descent(phi, torch.eye(4)[3], 5, learning_rate=0.1).tolist() == [0.5] * 6


def test_accuracy_grows_with_the_share_and_the_signal():
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)
    accuracy = theory.best_accuracy(shares, sigma=3)
    assert accuracy[0] == 0.5
    assert accuracy[-1] == 1
    assert (accuracy.diff() > 0).all()
    assert theory.best_accuracy(0.5, shift=1, sigma=3).item() == pytest.approx(torch.special.ndtr(torch.tensor(1 / 3)))
    assert theory.best_accuracy(0.5, sigma=0) == 1
    assert theory.best_accuracy(0.0, sigma=0) == 0.5
    tiny = theory.best_accuracy(shares, shift=1e-11, sigma=3e-11)
    torch.testing.assert_close(tiny, theory.best_accuracy(shares, sigma=3))  # their ratio alone matters


def test_a_frequency_that_a_filter_stops_with_its_aliases_has_no_share():
    assert theory.wave_shares(torch.ones(1, 3), size=(9,), stride=1)[3] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.aliases([1], size=(10,), stride=4), r"divisor of the size \(10,\), got 4"),
        (lambda: theory.aliases([1, 2], size=(8,), stride=2), "expected 1 integers, one an axis"),
        (
            lambda: theory.folded_share(torch.ones(1, 2), torch.ones(8), size=(8,), stride=0),
            "stride: expected an integer, at least 1",
        ),
        (lambda: theory.folded_share(torch.ones(3), torch.ones(8), size=(8,), stride=2), "taps: expected"),
        (lambda: theory.folded_share(torch.ones(1, 9), torch.ones(8), size=(8,), stride=2), "taps: expected"),
        (lambda: theory.wave_shares(torch.ones(2, 2), size=(8,), stride=2), "one filter, got 2"),
        (lambda: theory.wave_shares(torch.ones(1, 2), size=(8,), stride=2, part="sine"), "'real' or 'imaginary'"),
        (lambda: theory.best_filter([1], (2,), size=(8,), stride=2, part="sine"), "'real' or 'imaginary'"),
        (lambda: theory.best_filter([4], (2,), size=(8,), stride=2, part="imaginary"), "has no sine"),
        (lambda: theory.best_filter([1], (2,), size=(8,), stride=2, then=torch.ones(2, 2)), "one filter, got 2"),
        (lambda: theory.best_filter([1], (9,), size=(8,), stride=2), "kernel of 1 axes"),
        (lambda: theory.best_filter([1], (2, 2), size=(8,), stride=2), "kernel of 1 axes"),
        (lambda: theory.best_filter([1.5], (2,), size=(8,), stride=2), "integers, one an axis"),
        (lambda: theory.best_filter([3], (2,), size=(9,), stride=1, then=torch.ones(1, 3)), "lets frequency"),
        (lambda: theory.composed(torch.ones(1, 2), torch.ones(1, 2, 2)), "as many axes"),
        (lambda: theory.folded_share(torch.ones(1, 2), torch.zeros(8), size=(8,), stride=2), "the zero vector"),
        (lambda: theory.hessian(torch.eye(3), torch.zeros(3)), "the zero vector"),
        (lambda: theory.best_accuracy(1.5), "from 0 to 1, got 1.5"),
        (lambda: theory.best_accuracy(0.5, shift=0), "shift: expected a positive"),
        (lambda: theory.descent(torch.eye(3), torch.ones(3), 2, learning_rate=0.3), r"from 0 to 2 / 9, .* got 0.3"),
        (lambda: theory.descent(torch.eye(3), torch.ones(3), -1, learning_rate=0.1), "steps: expected an integer"),
    ],
)
def test_impossible_layers_are_explained(call, message):
    with pytest.raises(ValueError, match=message):
        call()
