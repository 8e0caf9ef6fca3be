"""The remainder: every table tells of every parameter of two or more dimensions, once, and never by NaN."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from redlab import (
    correct_biases,
    fold_batchnorm,
    harden,
    hash_network,
    iterative_prune,
    merge_neurons,
    plot_collapse,
    plot_merges,
    plot_split,
    prune_channels,
    prune_weights,
    red,
    red_plus_plus,
    score_channels,
    score_weights,
    separate_kernels,
    sparsify,
    split_inputs,
    weight_layers,
)
from redlab.network.result import of_layers
from redlab.studies.plots.hashing import plot_error


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 6, 6))

    def forward(self, x):
        return torch.einsum("bi,eio->bo", x, self.experts)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        return self.lstm(x[:, None])[0][:, -1]


class Scaled(nn.Linear):
    """A layer with a matrix of its own beside its weight."""

    def __init__(self):
        super().__init__(6, 6)
        self.adapter = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return super().forward(x) + x @ self.adapter


class Placed(nn.Module):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 6))

    def forward(self, x):
        return x + self.place


def around(middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), middle, nn.Linear(6, 3)).eval()


HELD = {
    "addmm": (Conv1D(6, 6), {"3.weight": ("Conv1D", 36)}),
    "experts": (Experts(), {"3.experts": ("Experts", 108)}),
    "lstm": (Recurrent(), {"3.lstm.weight_ih_l0": ("LSTM", 144), "3.lstm.weight_hh_l0": ("LSTM", 144)}),
    "beside a weight": (Scaled(), {"3.adapter": ("Scaled", 36)}),
    "position": (Placed(), {"3.place": ("Placed", 6)}),
}
EXAMPLE = torch.randn(1, 4)
STEPS = {
    "fold": lambda n: fold_batchnorm(n, EXAMPLE),
    "hash": hash_network,
    "merge": lambda n: merge_neurons(n, 0.2, example=EXAMPLE),
    "split": lambda n: split_inputs(n, example=EXAMPLE),
    "separate": lambda n: separate_kernels(n, example=EXAMPLE),
    "correct biases": lambda n: correct_biases(n, n, example=EXAMPLE),
    "red": lambda n: red(n, example=EXAMPLE),
    "red++": lambda n: red_plus_plus(n, example=EXAMPLE),
    "prune channels": lambda n: prune_channels(
        n, score_channels(n, "magnitude", example=EXAMPLE), 0.2, example=EXAMPLE
    ),
    "prune weights": lambda n: prune_weights(n, score_weights(n, "magnitude"), 0.2),
    "in rounds": lambda n: iterative_prune(n, "magnitude", None, 0.9, 1, example=EXAMPLE),
    "harden": lambda n: harden(sparsify(n, 0.5)),
    "harden channels": lambda n: harden(sparsify(n, 0.5, "filter", example=EXAMPLE)),
}


@pytest.mark.parametrize("step", STEPS)
def test_after_the_layers_comes_a_row_for_every_other_parameter(step):
    for case in HELD if step == "hash" else ("beside a weight", "lstm"):
        middle, wanted = HELD[case]
        network = around(middle)
        result = STEPS[step](network)
        table, names = result.layers, [layer.name for layer in weight_layers(network)]
        assert table["layer"].tolist() == [*names, *wanted]
        assert not table.isna().any(axis=None)
        others = table.iloc[len(names) :]
        assert (others["kind"] == "other").all()
        assert dict(zip(others["layer"], others["weights"], strict=True)) == {n: own for n, (_, own) in wanted.items()}
        if "distinct" in table:
            assert (others["distinct"] == others["weights"]).all()
        assert not others[[name for name in table if name.startswith(("products", "channels", "error"))]].any(axis=None)
        for row in others.itertuples():
            assert row.skipped == f"of {wanted[row.layer][0]}, no conv or linear layer"


def test_the_shares_are_those_of_layers_and_a_line_says_what_they_cover():
    network = around(Recurrent())
    lines = str(hash_network(network)).splitlines()
    before = sum(layer.weight.unique().numel() for layer in weight_layers(network))
    assert lines[1].startswith(f"distinct values: {before:,} -> ")
    whole, own = (
        sum(p.numel() for p in network.parameters()),
        sum(layer.weight.numel() for layer in weight_layers(network)),
    )
    assert f"conv and linear weights: {own / whole:.3%} of all {whole:,} parameters" in lines
    assert lines[-2] == "3 layers, none skipped"
    assert (
        lines[-1] == "2 other parameters: 3.lstm.weight_ih_l0, 3.lstm.weight_hh_l0 (of LSTM, no conv or linear layer)"
    )


def test_what_a_weight_is_computed_from_is_told_by_its_layer_alone():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    for own in (network, sparsify(network, 0.5)):
        assert hash_network(own).layers["layer"].tolist() == ["0", "1"]


def test_torchscript_is_told_tensor_by_tensor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.trace(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.zeros(1, 4))
    result = hash_network(network)
    assert result.layers[["layer", "weights", "skipped"]].to_numpy().tolist() == [
        ["0.weight", 20, "of TorchScript, no conv or linear layer"],
        ["1.weight", 10, "of TorchScript, no conv or linear layer"],
    ]


def test_figures_draw_the_layers_alone():
    network, names = around(Experts()), ["0", "2", "4"]
    drawn = {
        plot_collapse: hash_network(network).layers,
        plot_error: hash_network(network).layers.assign(rule="kde"),
        plot_merges: merge_neurons(network, 0.2, example=EXAMPLE).layers,
        plot_split: split_inputs(network, example=EXAMPLE).layers,
    }
    for plot, frame in drawn.items():
        assert len(of_layers(frame)) == 3 < len(frame)
        assert [label.get_text() for label in plot(frame).get_yticklabels()] == names


def test_steps_after_one_another_keep_the_rows():
    network = around(Experts())
    first, second = red(network, example=EXAMPLE), hash_network(network)
    assert first.layers["layer"].tolist() == second.layers["layer"].tolist()


def test_a_narrower_parameter_is_counted_after_too():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.scale = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x):
            return self.two(F.relu(self.one(x) * self.scale))

    network, image = Scale(), torch.randn(1, 3, 4, 4)
    result = prune_channels(network, score_channels(network, "magnitude", example=image), 0.5, example=image)
    row = result.layers.iloc[-1]
    assert (row["layer"], row["parameters_before"]) == ("scale", 8)
    assert row["parameters_after"] == result.network.scale.numel() == len(result.network.one.weight)
