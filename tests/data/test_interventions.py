"""Interventions on real images: against loops in float64 on tiny ones, and what may not change."""

import math
import pickle
from dataclasses import replace

import pytest
import torch

from nadkit.data import images, interventions
from nadkit.data.images import ImageSet
from nadkit.data.interventions import Clean, Corrupted, Flipped, Poisoned, Rotated
from nadkit.data.synthetic import corrupt_labels
from nadkit.inputs.basis import Basis, pixel_basis, random_basis
from nadkit.inputs.fourier import fourier_basis
from nadkit.training import Problem

SIDE = 4
D = SIDE * SIDE


def image_set(n_train=37, n_test=11, channels=3, classes=10, seed=0, **changes) -> ImageSet:
    """Random images, every class among the first ones, the channels of different brightness."""
    generator = torch.Generator().manual_seed(seed)

    def split(n):
        tops = torch.linspace(256, 120, channels)[:, None, None]
        pixels = (torch.rand(n, channels, SIDE, SIDE, generator=generator) * tops).byte()
        return pixels, torch.arange(n) % classes

    (train, train_labels), (test, test_labels) = split(n_train), split(n_test)
    content = {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
    names = {"classes": tuple(map(str, range(classes))), "name": "toy", "source": "drawn"}
    return ImageSet(**{**content, **names, **changes})


BASIS = random_basis((1, SIDE, SIDE), seed=3)
PROBLEMS = {
    "clean": lambda data, **options: Clean(images=data, **options),
    "poisoned": lambda data, **options: Poisoned(**{"images": data, "basis": BASIS, "index": 2} | options),
    "flipped": lambda data, **options: Flipped(**{"images": data, "basis": BASIS} | options),
    "rotated": lambda data, **options: Rotated(**{"images": data, "basis": BASIS} | options),
    "corrupted": lambda data, **options: Corrupted(images=data, **options),
}


def pixels(raw):
    return raw.double() / 255


def standardised(x, data):
    """In float64, channel by channel, by the training images."""
    train = pixels(data.train)
    columns = [
        (x[:, c] - train[:, c].mean()) / train[:, c].std(correction=0)  # a loop over channels
        for c in range(x.shape[1])
    ]
    return torch.stack(columns, 1)


def close(found, expected, atol=2e-5):
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)


# Oracles


def poisoned_by_hand(data, basis, index, epsilon):
    """The authors' rule, one image and one class at a time."""
    x = pixels(data.train).clone()
    for image, label in zip(x, data.train_labels.tolist(), strict=True):
        direction = basis.vectors[index if label < 6 else index + 1]
        channel, sign = label % 3, 2 * (label % 2) - 1
        flat = image[channel].flatten()
        image[channel] = (flat - (flat @ direction) * direction + sign * epsilon * direction).view(SIDE, SIDE)
    return standardised(x, data)


def mapped_by_hand(x, basis, flip):
    out = torch.zeros_like(x)
    for n in range(len(x)):
        for c in range(x.shape[1]):
            coordinates = [(u @ x[n, c].flatten()).item() for u in basis.vectors]
            if flip:
                for k, a in enumerate(coordinates):
                    out[n, c] += a * basis.vectors[D - 1 - k].view(SIDE, SIDE)
            else:
                out[n, c] = torch.tensor(coordinates, dtype=torch.float64).view(SIDE, SIDE)
    return out


def test_clean_images_are_standardised_by_the_training_split():
    data = image_set()
    problem = Clean(images=data)
    for split, raw in (("train", data.train), ("test", data.test)):
        x, _ = problem.sample(split)
        close(x, standardised(pixels(raw), data))
    x = problem.sample("train")[0].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(x.mean(1), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(1, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", [0, 2, D - 2])
@pytest.mark.parametrize("epsilon", [0.05, 3.0])
def test_poisoning_is_the_authors_rule(index, epsilon):
    data = image_set()
    x, y = Poisoned(images=data, basis=BASIS, index=index, epsilon=epsilon).sample("train")
    close(x, poisoned_by_hand(data, BASIS, index, epsilon))
    assert torch.equal(y, data.train_labels)


@pytest.mark.parametrize(("kind", "flip"), [(Flipped, True), (Rotated, False)])
@pytest.mark.parametrize("channels", [1, 3])
def test_flips_and_rotations_are_their_definition(kind, flip, channels):
    data = image_set(channels=channels)
    for split, raw in (("train", data.train), ("test", data.test)):
        x, _ = kind(images=data, basis=BASIS).sample(split)
        close(x, mapped_by_hand(standardised(pixels(raw), data), BASIS, flip))


def test_a_flip_is_that_of_the_basis():
    data = image_set()
    x, _ = Clean(images=data).sample("test")
    close(Flipped(images=data, basis=BASIS).sample("test")[0], BASIS.flip(x.double()))


def test_a_basis_of_colour_images_mixes_the_channels():
    data, basis = image_set(), random_basis((3, SIDE, SIDE), seed=1)
    x, _ = Clean(images=data).sample("test")
    close(Flipped(images=data, basis=basis).sample("test")[0], basis.flip(x.double()))
    close(Rotated(images=data, basis=basis).sample("test")[0].flatten(1), basis.coordinates(x.double()))


# Properties of poisoning


def coefficients(problem):
    """Coordinates of the training images in pixel space, with the standardisation undone: (N, 3, D) float64."""
    mean, std = (value[:, None, None] for value in problem.statistics)
    return BASIS.coordinates(problem.sample("train")[0].double() * std + mean)


@pytest.mark.parametrize("epsilon", [0.05, 1e-6])
@pytest.mark.parametrize("index", [0, 7])
def test_only_the_carriers_coefficient_changes_and_it_is_what_the_rule_says(index, epsilon):
    problem = Poisoned(images=image_set(), basis=BASIS, index=index, epsilon=epsilon)
    expected = coefficients(Clean(images=problem.images))
    for n, label in enumerate(problem.images.train_labels.tolist()):
        k, channel, sign = problem.carrier(label)
        expected[n, channel, k] = sign * epsilon
    close(coefficients(problem), expected, atol=2e-6)
    assert set(problem.images.train_labels.tolist()) == set(range(10))


def test_carriers_are_the_published_ones_and_all_differ():
    problem = Poisoned(images=image_set(), basis=BASIS, index=4)
    assert [problem.carrier(t) for t in range(10)] == [
        (4, 0, -1),
        (4, 1, 1),
        (4, 2, -1),
        (4, 0, 1),
        (4, 1, -1),
        (4, 2, 1),
        (5, 0, -1),
        (5, 1, 1),
        (5, 2, -1),
        (5, 0, 1),
    ]


def test_twelve_classes_have_carriers_of_their_own():
    problem = Poisoned(images=image_set(classes=12), basis=BASIS, index=4)
    assert len({problem.carrier(t) for t in range(12)}) == 12
    gram = problem.carriers.flatten(1) @ problem.carriers.flatten(1).T
    torch.testing.assert_close(gram.diagonal(), torch.ones(12, dtype=torch.float64))
    assert gram.triu(1).max() < 1e-12, "two classes with the same carrier"


def test_carrier_images_show_direction_channel_and_sign():
    problem = Poisoned(images=image_set(), basis=BASIS, index=4)
    images = problem.carriers
    assert images.shape == (10, 3, SIDE, SIDE)
    assert not images[9, 1:].any()
    torch.testing.assert_close(images[9, 0], BASIS.images[5, 0])
    torch.testing.assert_close(images[2, 2], -BASIS.images[4, 0])


def test_test_images_stay_clean_and_the_statistics_are_those_of_clean_images():
    data = image_set()
    problem = Poisoned(images=data, basis=BASIS, index=2, epsilon=5)
    for found, expected in zip(problem.sample("test"), Clean(images=data).sample("test"), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(problem.statistics, Clean(images=data).statistics, strict=True):
        assert torch.equal(found, expected)


def test_directions_of_nearly_norm_1_leave_no_trace_of_the_old_coefficient():
    """The published arrays are float32: their rows are of norm 1 to a few digits only."""
    rough = Basis(vectors=BASIS.vectors * (1 + 1e-5), shape=BASIS.shape)
    data = image_set()
    x, _ = Poisoned(images=data, basis=rough, index=0).sample("train")
    close(x, Poisoned(images=data, basis=BASIS, index=0).sample("train")[0].double(), atol=1e-6)


def test_few_classes_need_one_direction_only():
    data = image_set(classes=6)
    Poisoned(images=data, basis=BASIS, index=D - 1).sample("train")


# Properties of flips and rotations


def test_flipping_twice_is_the_identity():
    data = image_set()
    flipped, _ = Flipped(images=data, basis=BASIS).sample("train")
    close(BASIS.flip(flipped.double()), Clean(images=data).sample("train")[0].double())


@pytest.mark.parametrize("kind", [Flipped, Rotated])
def test_all_inner_products_stay_and_so_does_what_a_linear_model_sees(kind):
    data = image_set()
    for split in ("train", "test"):
        problems = kind(images=data, basis=BASIS), Clean(images=data)
        x, x_clean = (problem.sample(split)[0].double().flatten(1) for problem in problems)
        close(x @ x.T, x_clean @ x_clean.T, atol=2e-4)
        close(torch.cdist(x, x), torch.cdist(x_clean, x_clean), atol=2e-3)
        assert not torch.allclose(x, x_clean, atol=0.1)


def test_the_flip_of_the_pixel_basis_turns_the_image_round():
    data = image_set()
    x, _ = Clean(images=data).sample("test")
    flipped, _ = Flipped(images=data, basis=pixel_basis((1, SIDE, SIDE))).sample("test")
    assert torch.equal(flipped, x.flip(-1, -2))


def test_the_signs_of_the_directions_are_part_of_a_flip():
    signs = torch.ones(D, dtype=torch.float64)
    signs[0] = -1
    other = Basis(vectors=BASIS.vectors * signs[:, None], shape=BASIS.shape)
    a, b = (Flipped(images=image_set(), basis=basis) for basis in (BASIS, other))
    assert not torch.allclose(a.sample("test")[0], b.sample("test")[0], atol=0.1)
    assert a.checksum() != b.checksum()


# Corrupted labels


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_only_labels_of_the_training_split_are_corrupted(fraction):
    data = image_set()
    problem, clean = Corrupted(images=data, fraction=fraction, seed=2), Clean(images=data)
    for split in ("train", "test"):
        assert torch.equal(problem.sample(split)[0], clean.sample(split)[0])
    assert torch.equal(problem.sample("test")[1], data.test_labels)
    expected = corrupt_labels(data.train_labels, fraction, seed=2)
    assert torch.equal(problem.sample("train")[1], expected)
    assert torch.equal(problem.train_labels, expected)
    assert torch.equal(problem.sample("train", "auto")[1].cpu(), expected)
    assert torch.equal(expected, data.train_labels) == (fraction == 0)


def test_a_corrupted_problem_can_be_changed_without_being_corrupted_twice():
    problem = Corrupted(images=image_set(), fraction=0.4, seed=1)
    again = replace(replace(problem, fraction=0.8), fraction=0.4)
    assert torch.equal(again.train_labels, problem.train_labels)
    assert again.checksum() == problem.checksum()


def test_checksums_of_corruption_see_fraction_and_seed():
    data = image_set()
    options = [{}, {"fraction": 0.2}, {"fraction": 0.41}, {"seed": 1}, {"fraction": 0}]
    assert len({Corrupted(images=data, **option).checksum() for option in options}) == len(options)
    assert Corrupted(images=data, fraction=1).checksum() == Corrupted(images=data, fraction=1.0).checksum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.2}, "fraction: expected a number from 0 to 1, got 1.2"),
        ({"fraction": -0.2}, "fraction: expected a number from 0 to 1"),
        ({"seed": -1}, "seed: expected an integer"),
        ({"seed": 0.5}, "seed: expected an integer"),
    ],
)
def test_impossible_corruptions_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Corrupted(images=image_set(), **options)


# Chunks, devices, repetition


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_does_not_depend_on_the_chunks(name, monkeypatch):
    problem = PROBLEMS[name](image_set())
    whole = problem.sample("train")[0].double()
    for chunk in (1, 5, 36, 37):
        monkeypatch.setattr(interventions, "CHUNK", chunk)
        close(problem.sample("train")[0], whole, atol=2e-6)


@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_are_problems_of_training(name):
    data = image_set()
    problem = PROBLEMS[name](data)
    assert problem.shape == (3, SIDE, SIDE)
    assert problem.n_classes == 10
    assert isinstance(problem, Problem)
    train_labels = problem.train_labels if name == "corrupted" else data.train_labels
    for split, labels in (("train", train_labels), ("test", data.test_labels)):
        state = torch.get_rng_state()
        x, y = problem.sample(split)
        assert torch.equal(torch.get_rng_state(), state), "something was drawn at random"
        assert x.dtype == torch.float32
        assert x.shape == (len(labels), 3, SIDE, SIDE)
        assert torch.equal(y, labels)
        assert torch.equal(x, problem.sample(split)[0])
    again = pickle.loads(pickle.dumps(problem))
    assert torch.equal(again.sample("train")[0], problem.sample("train")[0])
    assert again.checksum() == problem.checksum()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_device_makes_no_difference(name):
    data = image_set()
    here, there = PROBLEMS[name](data), PROBLEMS[name](data.to("cuda"))
    x, y = here.sample("train", "cuda")
    assert x.device.type == y.device.type == "cuda"
    close(x.cpu(), here.sample("train")[0].double())
    close(there.sample("train", "cpu")[0], here.sample("train")[0].double())
    assert here.checksum() == there.checksum()


# Checksums


def test_checksums_tell_kinds_apart_and_ignore_names():
    data = image_set()
    assert len({make(data).checksum() for make in PROBLEMS.values()}) == len(PROBLEMS)
    renamed = replace(data, name="other", source="elsewhere", classes=tuple("abcdefghij"))
    named = Basis(vectors=BASIS.vectors, shape=BASIS.shape, name="other", eigenvalues=torch.ones(D))
    for make in PROBLEMS.values():
        assert make(data).checksum() == make(renamed).checksum()
    assert PROBLEMS["flipped"](data, basis=named).checksum() == PROBLEMS["flipped"](data).checksum()


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("part", ["train", "test", "train_labels", "test_labels"])
def test_checksums_see_every_image_and_label(name, part):
    data = image_set()
    tensor = getattr(data, part).clone()
    tensor[-1] = 9 - tensor[-1] if part.endswith("labels") else 255 - tensor[-1]
    changed = image_set(**{part: tensor})
    assert PROBLEMS[name](data).checksum() != PROBLEMS[name](changed).checksum()


def test_checksums_see_the_number_of_classes_and_the_statistics():
    data = image_set()
    more = replace(data, classes=tuple("abcdefghijk"))
    assert Clean(images=data).checksum() != Clean(images=more).checksum()
    mean, std = Clean(images=data).statistics
    given = [Clean(images=data, statistics=(mean + shift, std)).checksum() for shift in (0, 1e-3)]
    assert given[0] == Clean(images=data).checksum() != given[1]


def test_checksums_of_poisoning_see_the_carriers_and_no_other_direction():
    data = image_set()
    first = Poisoned(images=data, basis=BASIS, index=2)
    assert Poisoned(images=data, basis=BASIS, index=3).checksum() != first.checksum()
    assert Poisoned(images=data, basis=BASIS, index=2, epsilon=0.06).checksum() != first.checksum()
    assert Poisoned(images=data, basis=BASIS.leading(4), index=2).checksum() == first.checksum()
    assert Poisoned(images=data, basis=random_basis((1, SIDE, SIDE)), index=2).checksum() != first.checksum()


# Statistics


def test_statistics_are_exact():
    data = image_set()
    mean, std = interventions.statistics_of(data.train)
    columns = pixels(data.train).transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, columns.mean(1))
    torch.testing.assert_close(std, columns.std(1, correction=0))


def test_given_statistics_may_be_rounded():
    data = image_set()
    mean, std = Clean(images=data).statistics
    rounded = [round(m, 3) for m in mean.tolist()], [round(s, 3) for s in std.tolist()]
    x, _ = Clean(images=data, statistics=rounded).sample("train")
    close(x, Clean(images=data).sample("train")[0].double(), atol=0.02)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ((0.5, 0.2), "a mean and a deviation for each of 3 channels"),
        (([0.5, 0.4, 0.3], [0.2, 0.2]), "a mean and a deviation for each of 3 channels"),
        (([0.1, 0.1, 0.1], [0.3, 0.2, 0.15]), r"expected those of these training images, .* belong to other data"),
        (([math.nan] * 3, [1, 1, 1]), "belong to other data"),
        (([0.5, 0.4, 0.3], [0, 0.2, 0.1]), "belong to other data"),
    ],
)
@pytest.mark.parametrize("name", PROBLEMS)
def test_statistics_of_other_data_are_refused(name, statistics, message):
    with pytest.raises(ValueError, match=message):
        PROBLEMS[name](image_set(), statistics=statistics)


def test_the_tolerance_tells_cifar10_from_cifar100_and_from_a_common_mistake():
    """The deviations 0.2023, 0.1994, 0.2010 that go round for CIFAR-10 are means over images, not its own."""
    own = (torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616]))
    others = [
        (torch.tensor([0.5071, 0.4865, 0.4409]), torch.tensor([0.2673, 0.2564, 0.2762])),
        (own[0], torch.tensor([0.2023, 0.1994, 0.2010])),
    ]
    two_levels = torch.stack([own[0] - own[1], own[0] + own[1]]).mul(255).round().byte()
    images = image_set(train=two_levels[:, :, None, None].repeat(20, 1, SIDE, SIDE)[:37])
    Clean(images=images, statistics=own)
    for statistics in others:
        with pytest.raises(ValueError, match="which belong to other data"):
            Clean(images=images, statistics=statistics)


def test_a_constant_channel_is_explained():
    data = image_set()
    data.train[:, 1] = 7
    with pytest.raises(ValueError, match="channel 1 has one value everywhere"):
        Clean(images=data)


def test_images_of_another_type_are_explained():
    with pytest.raises(ValueError, match=r"expected uint8 from 0 to 255, got torch\.float32"):
        Clean(images=image_set(train=torch.rand(37, 3, SIDE, SIDE)))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": D - 1}, r"expected 0 to 14, because 10 classes also use the next direction, got 15"),
        ({"index": D}, "index: expected 0 to 14"),
        ({"index": -1}, "index: expected an integer, at least 0"),
        ({"index": 1.5}, "index: expected an integer"),
        ({"epsilon": 0.0}, "epsilon: expected a positive finite number, got 0"),
        ({"epsilon": -0.05}, "epsilon: expected a positive"),
        ({"epsilon": math.inf}, "epsilon: expected a positive finite"),
        ({"basis": random_basis((1, 5, 5))}, r"random: expected directions of one channel, \(1, 4, 4\), got"),
        ({"basis": random_basis((3, SIDE, SIDE))}, r"expected directions of one channel"),
        ({"images": image_set(channels=1)}, "three channels, .* got 1; load them with channels=3"),
        ({"images": image_set(classes=13)}, "carriers for up to 12 classes, got 13"),
    ],
)
def test_impossible_poisonings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        Poisoned(**{"images": image_set(), "basis": BASIS, "index": 0} | options)


@pytest.mark.parametrize("label", [-1, 10, 0.5])
def test_a_label_without_a_carrier_is_explained(label):
    with pytest.raises(ValueError, match="label: expected"):
        Poisoned(images=image_set(), basis=BASIS, index=0).carrier(label)


@pytest.mark.parametrize("kind", [Flipped, Rotated])
@pytest.mark.parametrize(
    ("basis", "message"),
    [
        (BASIS.leading(D - 1), r"random: expected all 16 directions, this basis has 15; call .complete\(\) first"),
        (random_basis((1, 5, 5)), r"random: expected directions of images \(3, 4, 4\) or of one channel"),
    ],
)
def test_impossible_maps_are_explained(kind, basis, message):
    with pytest.raises(ValueError, match=message):
        kind(images=image_set(), basis=basis)
    kind(images=image_set(), basis=BASIS.leading(D - 1).complete())


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_unknown_split_is_explained(name):
    with pytest.raises(ValueError, match="expected 'train' or 'test', got 'valid'"):
        PROBLEMS[name](image_set()).sample("valid")


def test_digits_in_three_channels_can_be_poisoned():
    data = images.load("digits", channels=3).subset(50, 20)
    basis = fourier_basis()
    x, _ = Poisoned(images=data, basis=basis, index=100).sample("train")
    assert x.shape == (50, 3, 32, 32)
