"""Datasets however they are given: map-style ones, loaders and pairs of tensors say the same."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from redlab import (
    correct_biases,
    error_bound,
    evaluate,
    fold_batchnorm,
    hash_network,
    iterative_prune,
    load_network,
    red_plus_plus,
    score_channels,
    sensitivity,
    sparsify,
    train_masks,
)
from redlab.network.samples import as_dataset, batches, whole
from redlab.network.training import train
from redlab.studies.splitting import split_differences

IMAGES = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 10
PLAIN = TensorDataset(IMAGES, LABELS)


class Named(Dataset):
    """Samples as transformers' datasets give them."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        return {"x": IMAGES[index], "label": int(LABELS[index])}


GIVEN = {
    "pair": (IMAGES, LABELS),
    "list of two": [IMAGES, LABELS],
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "numbers": (IMAGES, LABELS.tolist()),
    "loader": DataLoader(PLAIN, 7),
    "samples": [(image, int(label)) for image, label in PLAIN],
    "named": Named(),
    "loader of named": DataLoader(Named(), 5),
    "a dict": {"x": IMAGES, "labels": LABELS},
    "a tuple of one": ((IMAGES,), LABELS),
    "a custom collation": DataLoader(
        PLAIN,
        4,
        collate_fn=lambda rows: {"x": torch.stack([row[0] for row in rows]), "labels": [int(row[1]) for row in rows]},
    ),
}

TAKERS = {
    "evaluate": lambda network, own: evaluate(network, own).loss,
    "score": lambda network, own: score_channels(network, "taylor", own).values["conv1"].tolist(),
    "biases": lambda network, own: correct_biases(hash_network(network).network, network, own).layers["shift"].tolist(),
    "red++": lambda network, own: red_plus_plus(network, correct_bias=own).network.conv1.bias.tolist(),
    "sensitivity": lambda network, own: sensitivity(network, "taylor", own, [0.5])["loss"].tolist(),
    "iterative": lambda network, own: iterative_prune(network, "taylor", own, 0.9, 20, {"every": 1}).plan["history"],
    "train": lambda network, own: train(network, own, 1).history["loss"].tolist(),
    "masks": lambda network, own: train_masks(sparsify(network, 0.5), own, 1).history["loss"].tolist(),
    "differences": lambda network, own: split_differences(network, own)["difference"].tolist(),
}  # fmt: skip


class Plain(nn.Module):
    """A network that takes ``x`` by name, too."""

    def __init__(self):
        super().__init__()
        self.conv1, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.conv1(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    own = Plain().eval()
    own.redlab = load_network("digits/mlp", weights=None).redlab
    return own


@pytest.fixture(scope="module")
def wanted(network):
    return {}


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("given", ["pair", "a custom collation"])
def test_whatever_is_given_says_the_same(network, wanted, taker, given):
    if taker not in wanted:
        wanted[taker] = TAKERS[taker](network, PLAIN)
    assert TAKERS[taker](network, GIVEN[given]) == wanted[taker]


@pytest.mark.parametrize("given", GIVEN)
def test_every_form_is_read_in_its_order(network, given):
    dataset = as_dataset(GIVEN[given])
    read = list(batches(dataset, 10))
    assert [len(labels) for _, labels in read] == [10, 10, 4]
    assert torch.equal(torch.cat([whole(labels) for _, labels in read]), LABELS)
    assert torch.equal(torch.cat([inputs.tensors[0] for inputs, _ in read]), IMAGES)
    assert evaluate(network, GIVEN[given]) == evaluate(network, PLAIN)


def test_labels_that_are_not_looked_at_may_be_anything(network):
    folded, shares = fold_batchnorm(load_network("digits/mlp")).network, TensorDataset(IMAGES, torch.rand(24))
    assert correct_biases(hash_network(network).network, network, shares).layers["skipped"].tolist() == ["", ""]
    assert len(error_bound(folded, hash_network(folded), shares)) == 4
    assert score_channels(network, "flexrel", shares).values.keys() == {"conv1"}


def test_the_bound_takes_them_too():
    network = fold_batchnorm(load_network("digits/mlp")).network
    frames = [
        error_bound(network, hash_network(network).network, own) for own in (PLAIN, (IMAGES, LABELS), DataLoader(PLAIN))
    ]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


# By kind, the loader and the labels that it gives, None where chance decides which.
LOADERS = {
    "a subset": (lambda: DataLoader(PLAIN, 5, sampler=SubsetRandomSampler([3, 1, 4, 15])), [1, 3, 4, 5]),
    "the last one dropped": (lambda: DataLoader(PLAIN, 7, drop_last=True), sorted(LABELS[:21].tolist())),
    "drawn again": (lambda: DataLoader(PLAIN, 7, sampler=WeightedRandomSampler([0.0] * 23 + [1.0], 40)), [3] * 40),
    "batches of its own": (lambda: DataLoader(PLAIN, batch_sampler=[[5, 6], [2]]), [2, 5, 6]),
    "a generator of its own": (
        lambda: DataLoader(PLAIN, 7, sampler=RandomSampler(PLAIN, generator=torch.Generator())),
        sorted(LABELS.tolist()),
    ),
    "shuffled": (lambda: DataLoader(PLAIN, 7, shuffle=True), sorted(LABELS.tolist())),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_gives_the_samples_that_it_draws_and_stays_as_it_was(kind):
    loader = LOADERS[kind][0]()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = [torch.cat([labels for _, labels in batches(as_dataset(loader), 3)]) for _ in range(2)]
    assert sorted(found[0].tolist()) == LOADERS[kind][1]
    assert torch.equal(found[0], found[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_of_a_loader_keeps_its_collation():
    dataset = Subset(as_dataset(GIVEN["a custom collation"]), [9, 2])
    ((inputs, labels),) = batches(dataset, 8)
    assert labels == [9, 2]
    assert list(inputs.kwargs) == ["x"]


class Endless(IterableDataset):
    def __iter__(self):
        yield from PLAIN


WRONG = {
    "lengths": ((IMAGES, LABELS[:9]), "24 inputs and 9 labels"),
    "parts of other lengths": (((IMAGES, IMAGES[:3]), LABELS), "3 inputs and 24 labels"),
    "no labels": (IMAGES, r"pass a pair \(inputs, labels\)"),
    "no labels in a dataset": (TensorDataset(IMAGES), r"a sample must be \(inputs, label\).*1 values"),
    "three values": (TensorDataset(IMAGES, IMAGES, LABELS), r"3 values; .*\(\(u, v\), label\)"),
    "bare samples": ([*IMAGES, IMAGES[0]], "this dataset gives Tensor"),
    "a dict without labels": ({"x": IMAGES, "y": LABELS}, "labels under one of labels, label, label_ids; it has x, y"),
    "shares for labels": ((IMAGES, torch.rand(24)), r"whole numbers, one a sample; .*float32"),
    "one-hot labels": ((IMAGES, torch.eye(24).long()), r"one a sample; .*\(.*, 24\)"),
    "iterable": (Endless(), "map-style .* Endless has no samples by index"),
    "a generator": ((sample for sample in PLAIN), "generator has no samples"),
    "a loader of an iterable": (DataLoader(Endless()), r"iterable dataset .*list\(loader.dataset\)"),
    "a loader without batches": (DataLoader(PLAIN, batch_size=None), "batch_size=None"),
    "empty": ((IMAGES[:0], LABELS[:0]), "empty"),
    "a word": ("digits", r"load_dataset\('digits'\)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_dataset_is_refused(network, kind):
    given, why = WRONG[kind]
    with pytest.raises(ValueError, match=why):
        evaluate(network, given)


def test_labels_of_any_whole_number_will_do(network):
    for kind in (torch.int32, torch.uint8, torch.int16, np.int64):
        labels = LABELS.numpy().astype(kind) if kind is np.int64 else LABELS.to(kind)
        assert evaluate(network, (IMAGES, labels)) == evaluate(network, PLAIN)


def test_a_network_that_nobody_described_is_traced_on_what_the_dataset_gives():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, u, v):
            return self.head((self.one(u) + self.two(v)).relu())

    torch.manual_seed(0)
    network = Sum().eval()
    samples = [((torch.randn(4), torch.randn(5)), k % 3) for k in range(8)]
    example = (torch.zeros(1, 4), torch.zeros(1, 5))
    given, guessed = (score_channels(network, "taylor", samples, example=own) for own in (example, None))
    assert (given.frame()["score"] == guessed.frame()["score"]).all()
    assert red_plus_plus(network, correct_bias=samples).network(*example).shape == (1, 3)
