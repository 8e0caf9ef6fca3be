"""Rounded weights and inputs: on the grid, at most half a step away, and with the gradient that passes straight."""

import pytest
import torch
from nets import Net
from torch import nn

from redlab import load_network, sparsify
from redlab.dpp.masks import masks_in
from redlab.dpp.quantization import RoundedInput, masked_weight, round_to_grid, signs


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gradient_by(function, values):
    values = torch.tensor(values, requires_grad=True)
    function(values).sum().backward()
    return values.grad.tolist()


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**60])
def test_numbers_are_rounded_to_the_nearest_of_256_levels(scale):
    values = torch.cat([torch.tensor([-1.0, 1.0]), 2 * torch.rand(10_000) - 1]).double() * scale
    peak = torch.tensor(scale, dtype=torch.float64)
    rounded, step = round_to_grid(values, peak), peak / 127.5
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    assert levels.amin().round() == -128
    assert levels.amax().round() == 127
    assert len(levels.round().unique()) == 256
    assert (rounded - values).abs().max() <= step / 2 * (1 + 1e-9)


def test_rounding_agrees_with_pytorch_s_fake_quantization():
    values, peak = torch.linspace(-1.995, 1.995, 1001), torch.tensor(2.0)
    wanted = torch.fake_quantize_per_tensor_affine(values, 2 / 127.5, 0, -128, 127)
    torch.testing.assert_close(round_to_grid(values, peak), wanted)


def test_the_gradient_of_rounding_is_1_up_to_the_peak_and_0_beyond():
    values = [-3.0, -2.1, -2.0, -1.3, 0.0, 0.004, 1.9, 2.0, 2.1]
    wanted = [0, 0, 1, 1, 1, 1, 1, 1, 0]
    assert gradient_by(lambda own: round_to_grid(own, torch.tensor(2.0)), values) == wanted


def test_the_gradient_of_signs_is_that_of_a_hard_tanh():
    assert signs(torch.tensor([-3.0, -1e-30, -0.0, 0.0, 0.5])).tolist() == [-1, -1, 1, 1, 1]
    values = [-1.5, -1.0, -0.7, 0.0, 0.7, 1.0, 1.5]
    assert gradient_by(signs, values) == [0, 1, 1, 1, 1, 1, 0]


def test_weights_of_8_bits_lie_on_the_grid_of_those_that_are_kept():
    sparse = sparsify(load_network("digits/resnet").train(), 0.3, weight_bits=8)
    plain = sparsify(load_network("digits/resnet").train(), 0.3)
    for name in sparse.dpp.masks:
        torch.manual_seed(1)
        rounded = sparse.get_submodule(name).weight.detach()
        torch.manual_seed(1)
        masked = plain.get_submodule(name).weight.detach()
        step = masked.abs().max() / 127.5
        assert len(rounded.unique()) <= 256
        torch.testing.assert_close(rounded / step, (rounded / step).round(), rtol=0, atol=1e-4)
        assert (rounded - masked).abs().max() <= step / 2 * (1 + 1e-5)
        assert (rounded[masked == 0] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_binary_weights_are_signs_of_exactly_k_and_zeros_though_weights_be_0(training):
    layer = nn.Linear(20, 30)
    layer.weight.data[:, ::3] = 0
    sparse = sparsify(layer.train(training), 7, weight_bits=1)
    weight = sparse.weight
    assert set(weight.unique().tolist()) == {-1, 0, 1}
    assert ((weight != 0).sum(1) == 7).all()


def test_gradients_of_binary_weights_pass_where_a_weight_is_small_and_kept():
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[0.5, -2.0, 0.1]])
    sparse = sparsify(layer.eval(), 2, weight_bits=1)
    (mask,) = masks_in(sparse)
    mask.logits.data = torch.tensor([[3.0, 2.0, 1.0]])
    sparse.weight.sum().backward()
    assert sparse.parametrizations.weight.original.grad.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("bits", [32, 8, 1])
def test_the_mask_gets_the_gradient_of_what_it_multiplies(bits):
    weight, factor = torch.tensor([[0.5, -0.25, 0.1]]), torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    masked_weight(weight, factor, bits).sum().backward()
    torch.testing.assert_close(factor.grad, signs(weight) if bits == 1 else weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zeros_stay_zeros(dtype):
    zeros = torch.zeros(3, 4, dtype=dtype, requires_grad=True)
    rounded = masked_weight(zeros, torch.ones(3, 4, dtype=dtype), 8)
    assert (rounded == 0).all()
    rounded.sum().backward()
    assert zeros.grad.isfinite().all()
    layer = RoundedInput()
    assert (layer.train()(zeros) == 0).all()
    assert (layer.eval()(zeros) == 0).all()


def test_zeros_stay_zeros_where_denormal_numbers_are_flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormal numbers")
    try:
        assert round_to_grid(torch.zeros(3), torch.tensor(0.0)).tolist() == [0, 0, 0]
    finally:
        torch.set_flush_denormal(False)


def test_inputs_are_rounded_by_the_peak_of_the_minibatch_in_training_and_by_its_running_mean_in_eval_mode():
    rounding, first, second = RoundedInput().train(), torch.tensor([1.0, -4.0]), torch.tensor([2.0, 0.3])
    assert torch.equal(rounding(first), round_to_grid(first, torch.tensor(4.0)))
    assert rounding.peak == 4
    assert torch.equal(rounding(second), round_to_grid(second, torch.tensor(2.0)))
    assert float(rounding.peak) == pytest.approx(0.9 * 4 + 0.1 * 2)
    rounding.eval()
    values = torch.tensor([10.0, 1.0, 0.01])
    torch.testing.assert_close(rounding(values), round_to_grid(values, torch.tensor(3.8)))
    assert float(rounding(values)[0]) == pytest.approx(127 * 3.8 / 127.5)
    assert float(rounding.peak) == pytest.approx(3.8)


def test_before_any_training_inputs_are_rounded_by_their_own_peak():
    values = torch.randn(50)
    assert torch.equal(RoundedInput().eval()(values), round_to_grid(values, values.abs().max()))


def test_a_masked_layer_gets_rounded_inputs_and_others_do_not():
    seen = {}

    def forward(net, x):
        return net.two(net.one(x))

    network = Net(forward, one=nn.Linear(5, 4), two=nn.Linear(4, 3))
    sparse = sparsify(network.eval(), {"one": 2}, activation_bits=8)
    for name in ("one", "two"):
        sparse.get_submodule(name).register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0]}))
    images = torch.randn(6, 5)
    with torch.no_grad():
        sparse(images)
        assert torch.equal(seen["one"], round_to_grid(images, images.abs().max()))
        assert torch.equal(seen["two"], sparse.one(images))
    assert not hasattr(sparse.two, "rounded_input")
    assert "one.rounded_input.peak" in sparse.state_dict()


def test_rounding_of_8_bits_changes_what_a_trained_network_answers_by_little():
    network, images = load_network("digits/resnet"), torch.rand(20, 1, 8, 8)
    rounded = sparsify(network, 1.0, weight_bits=8, activation_bits=8)
    with torch.no_grad():
        wanted, got = network(images), rounded(images)
    assert 0 < (got - wanted).norm() / wanted.norm() < 0.05
