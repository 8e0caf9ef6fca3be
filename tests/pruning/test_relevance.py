"""Relevance: captum's LRP, plain autograd and F.unfold are the oracles; what comes in is what went out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LRP, LayerLRP
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import EpsilonRule
from nets import Net
from torch import nn

from redlab.pruning.relevance import BACKENDS, layer_relevance, trace_relevance
from redlab.pruning.subject import Subject
from redlab.zoo.datasets import load_dataset
from redlab.zoo.saving import load_network


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def ready(network):
    return network.double().eval()


def mlp(bias=True, act=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 9, bias), act(), nn.Linear(9, 7, bias), act(), nn.Linear(7, 4, bias))


def conv(bias=True, pool=nn.MaxPool2d, **options):
    parts = [nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.ReLU(**options), pool(2)]
    parts += [nn.Conv2d(5, 6, 3, stride=2, padding=1, bias=bias), nn.ReLU(**options), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6, 3, bias=bias))


def residual(bias=True):
    def forward(self, x):
        x = self.relu1(self.stem(x))
        return self.head(self.relu3(self.add(self.conv2(self.relu2(self.conv1(x))), x)).flatten(1))

    convs = {name: nn.Conv2d(4, 4, 3, padding=1, bias=bias) for name in ("conv1", "conv2")}
    relus = {f"relu{k}": nn.ReLU() for k in (1, 2, 3)}
    stem, head = nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Linear(4 * 36, 3, bias=bias)
    return Net(forward, stem=stem, add=Addition_Module(), head=head, **convs, **relus)


NETWORKS = {
    "linear": (mlp, (5, 6)),
    "tanh": (lambda bias: mlp(bias, nn.Tanh), (5, 6)),
    "max-pool": (conv, (5, 2, 8, 8)),
    "avg-pool": (lambda bias: conv(bias, nn.AvgPool2d), (5, 2, 8, 8)),
    "residual": (residual, (5, 2, 6, 6)),
}


def with_rules(network, epsilon):
    """As captum wants it: the epsilon in layers, hardly any in sums and poolings, and a flatten is linear too."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.rule = EpsilonRule(epsilon)
        elif not isinstance(module, nn.ReLU | nn.Tanh | Net | nn.Sequential):
            module.rule = EpsilonRule(1e-14)
    return network


@pytest.mark.parametrize("epsilon", [1e-6, 0.25])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_is_captums_in_every_layer(name, bias, epsilon):
    build, shape = NETWORKS[name]
    network, x = ready(build(bias)), images(*shape).requires_grad_()
    target = network(x).argmax(1)
    traces = trace_relevance(network, x, "lrp", epsilon)
    assert len(traces) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in network.modules())
    theirs = LRP(with_rules(network, epsilon)).attribute(x, target)
    torch.testing.assert_close(traces[0].inputs, theirs.detach())
    for trace in traces:
        layer = network.get_submodule(trace.name.removesuffix(".weight"))
        theirs = LayerLRP(with_rules(network, epsilon), layer).attribute(x, target).detach()
        torch.testing.assert_close(trace.outputs, theirs)


def per_image(values):
    return values.flatten(1).sum(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_biases_the_image_has_the_relevance_of_the_logit_up_to_epsilon(name):
    build, shape = NETWORKS[name]
    network, x = ready(build(False)), images(*shape)
    logits = network(x).detach().max(1).values
    lost = []
    for epsilon in (1e-4, 1e-5, 1e-6):
        traces = trace_relevance(network, x, "lrp", epsilon)
        torch.testing.assert_close(per_image(traces[-1].outputs), logits)
        lost.append(float((per_image(traces[0].inputs) - logits).abs().sum()))
    assert 0 < lost[0] < 0.1 * float(logits.abs().sum())
    assert lost[1] < lost[0] / 5  # linear in epsilon
    assert lost[2] < lost[1] / 5


@pytest.mark.parametrize("name", ["digits/resnet", "digits/mobilenet"])
def test_a_real_network_loses_relevance_to_its_biases_only(name):
    subject = Subject(load_network(name).double(), load_dataset("digits", limit=32))
    network, (x,) = subject.folded, next(subject.inputs(32)).args
    made = {}
    for path, module in network.named_modules():
        module.register_forward_hook(lambda _, given, out, path=path: made.update({path: out.detach()}))
    logits = network(x).detach().max(1).values
    traces = trace_relevance(network, x, "lrp", 1e-9)
    assert all(trace.inputs.isfinite().all() and trace.outputs.isfinite().all() for trace in traces)
    taken = torch.zeros_like(logits)
    for trace in traces:
        bias = dict(network.named_parameters())[trace.name.replace("weight", "bias")].detach()
        share = (
            trace.outputs / made[trace.name.removesuffix(".weight")] * bias.view(1, -1, *[1] * (trace.outputs.ndim - 2))
        )
        taken += per_image(share)
    assert float(taken.abs().min()) > 0.1
    torch.testing.assert_close(per_image(traces[0].inputs) + taken, logits, rtol=1e-5, atol=1e-5)


def test_with_relus_and_a_tiny_epsilon_lrp_is_the_signed_form_of_the_gradient():
    network, x = ready(conv()), images(5, 2, 8, 8)
    signed, absolute = trace_relevance(network, x, "lrp", 1e-12), trace_relevance(network, x, "gradient")
    for one, other in zip(signed, absolute, strict=True):
        assert (one.inputs < 0).any()
        torch.testing.assert_close(one.inputs.abs(), other.inputs)
        torch.testing.assert_close(one.outputs.abs(), other.outputs)


def test_the_gradient_is_that_of_plain_autograd():
    network, x = ready(conv()), images(5, 2, 8, 8).requires_grad_()
    kept = {"0": [x, network[0](x)]}
    kept["3"] = [network[2](F.relu(kept["0"][1]))]
    kept["3"].append(network[3](kept["3"][0]))
    kept["7"] = [network[6](network[5](F.relu(kept["3"][1])))]
    kept["7"].append(network[7](kept["7"][0]))
    logit = kept["7"][1].max(1).values.sum()
    traces = trace_relevance(network, x.detach(), "gradient")
    for trace in traces:
        for found, tensor in zip((trace.inputs, trace.outputs), kept[trace.name[0]], strict=True):
            (slope,) = torch.autograd.grad(logit, tensor, retain_graph=True)
            torch.testing.assert_close(found, (tensor * slope).abs().detach())


def test_a_reader_of_what_others_read_too_has_its_own_share():
    network, x = ready(residual(False)), images(5, 2, 6, 6)
    traces = {trace.name: trace for trace in trace_relevance(network, x, "lrp", 1e-9)}
    stem, inner = traces["stem.weight"].outputs, traces["conv1.weight"].inputs
    by_conv, whole = per_image(traces["conv2.weight"].outputs), per_image(traces["head.weight"].inputs)
    torch.testing.assert_close(per_image(inner), by_conv, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(per_image(stem), whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(by_conv, whole)


ACTIVATIONS = [
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.Hardswish, nn.Mish),
    *(nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.PReLU),
]


def around(act):
    return ready(nn.Sequential(nn.Linear(6, 40, bias=False), act, nn.Linear(40, 4, bias=False)))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_an_activation_hands_on_the_relevance_of_every_value(act):
    first, second = trace_relevance(around(act()), 9 * images(50, 6), "lrp", 1e-9)
    assert first.outputs.abs().sum() > 0
    torch.testing.assert_close(first.outputs, second.inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", ACTIVATIONS[:11])
def test_working_in_place_changes_nothing(act, backend):
    network, x = around(act()), images(50, 6)
    wanted = [t for trace in trace_relevance(network, x, backend) for t in (trace.inputs, trace.outputs)]
    network[1].inplace = True
    found = [t for trace in trace_relevance(network, x, backend) for t in (trace.inputs, trace.outputs)]
    torch.testing.assert_close(found, wanted)


def test_an_activation_may_work_in_place_and_give_nothing_back():
    def forward(self, x):
        x = self.first(x)
        x.clamp_(-0.5, 0.5)
        return self.second(x)

    layers = {name: nn.Linear(n, m, bias=False) for name, n, m in [("first", 6, 9), ("second", 9, 4)]}
    returned = ready(Net(lambda self, x: self.second(self.first(x).clamp(-0.5, 0.5)), **layers))
    x = images(50, 6)
    for one, other in zip(trace_relevance(ready(Net(forward, **layers)), x), trace_relevance(returned, x), strict=True):
        torch.testing.assert_close(one.inputs, other.inputs)
        torch.testing.assert_close(one.outputs, other.outputs)


GATED = {
    "signal first": lambda signal, gate: signal * torch.sigmoid(gate),
    "gate first": lambda signal, gate: torch.mul(F.hardsigmoid(gate), signal),
    "a view": lambda signal, gate: signal * gate.sigmoid().view(-1, 1, 9).expand(-1, 1, 9).flatten(1),
    "a part": lambda signal, gate: signal[:, 3:] * gate.sigmoid()[:, 3:],
    "in place": lambda signal, gate: signal.clone().mul_(gate.sigmoid_()),
}


@pytest.mark.parametrize("product", GATED.values(), ids=GATED)
def test_a_gate_counts_as_a_constant(product):
    layers = {name: nn.Linear(n, m, bias=False) for name, n, m in [("one", 6, 9), ("gate", 9, 9)]}
    network = ready(Net(lambda self, x: self.last(product(y := self.one(x), self.gate(y))), **layers))
    network.last = nn.Linear(product(torch.ones(1, 9), torch.ones(1, 9)).shape[1], 4, bias=False).double()
    one, gate, last = trace_relevance(network, images(50, 6), "lrp", 1e-9)
    torch.testing.assert_close(one.outputs[:, -last.inputs.shape[1] :], last.inputs)
    assert not gate.inputs.any()
    assert not gate.outputs.any()


@pytest.mark.parametrize("act", [torch.tanh, torch.sigmoid])
def test_of_two_factors_alike_each_has_the_relevance_of_the_product(act):
    layers = {name: nn.Linear(n, m, bias=False) for name, n, m in [("one", 6, 9), ("other", 6, 9), ("last", 9, 4)]}
    network = ready(Net(lambda self, x: self.last(act(self.one(x)) * act(self.other(x))), **layers))
    one, other, last = trace_relevance(network, images(50, 6), "lrp", 1e-9)
    torch.testing.assert_close(one.outputs, last.inputs)
    torch.testing.assert_close(other.outputs, last.inputs)


@pytest.mark.parametrize("product", [lambda s, a: a * s, lambda s, a: s * a, lambda s, a: a * 2 + 0 * s])
def test_a_sigmoid_that_is_scaled_is_no_gate(product):
    network = ready(Net(lambda s, x: s.last(product(s.scale, s.one(x).sigmoid())), one=nn.Linear(6, 9, bias=False)))
    network.last, network.scale = nn.Linear(9, 4).double(), nn.Parameter(torch.randn(9).double())
    one, last = trace_relevance(network, images(50, 6), "lrp", 1e-9)
    assert one.outputs.any()
    torch.testing.assert_close(one.outputs, last.inputs)


LAYERS = {
    "plain": (nn.Conv2d(4, 6, 3), (7, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (7, 8)),
    "dilated": (nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=(2, 3)), (7, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, stride=(1, 2), groups=2), (7, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (7, 8)),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), (7, 8)),
    "one-dimensional": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (9,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_relevance_of_a_weight_is_that_of_the_rows_of_its_product(name):
    layer, space = LAYERS[name]
    network = ready(nn.Sequential(layer))
    (trace,) = trace_relevance(network, images(3, 4, *space))
    trace = replace(trace, inputs=torch.randn_like(trace.inputs), outputs=torch.randn_like(trace.outputs))
    flat = len(space) == 1
    options = {key: getattr(layer, key) for key in ("dilation", "padding", "stride")}
    options["padding"] = (1, 1) if options["padding"] == "same" else options["padding"]
    options = {key: (value[0], 1) if flat and key != "padding" else value for key, value in options.items()}
    options["padding"] = (*options["padding"], 0) if flat else options["padding"]
    kernel = (*layer.kernel_size, 1) if flat else layer.kernel_size
    given = trace.inputs.unsqueeze(3) if flat else trace.inputs
    a = F.unfold(given, kernel, **options).transpose(1, 2).flatten(0, 1)  # (rows, inputs x taps)
    b = trace.outputs.flatten(2).transpose(1, 2).flatten(0, 1)  # (rows, outputs)
    assert len(a) == len(b)
    u = a.sum(0).view(layer.groups, 1, -1).expand(-1, layer.out_channels // layer.groups, -1)
    wanted = u.flatten(0, 1) + b.sum(0)[:, None]
    torch.testing.assert_close(trace.summed().of_weights().flatten(1), wanted)


def test_a_transposed_convolution_counts_what_each_of_its_products_reads():
    layer = nn.ConvTranspose1d(4, 6, 3, stride=2, padding=2, output_padding=1, dilation=2, groups=2)
    (trace,) = trace_relevance(ready(nn.Sequential(layer)), images(3, 4, 5))
    trace = replace(trace, inputs=torch.randn_like(trace.inputs), outputs=torch.randn_like(trace.outputs))
    wanted = torch.zeros_like(layer.weight)
    for i, o, tap in np.ndindex(4, 3, 3):
        used = [q for q in range(5) if 0 <= 2 * q - 2 + 2 * tap < trace.outputs.shape[2]]
        wanted[i, o, tap] = trace.inputs[:, i, used].sum() + trace.outputs[:, i // 2 * 3 + o].sum()
    torch.testing.assert_close(trace.summed().of_weights(), wanted.detach())


def test_in_three_dimensions_a_tap_sees_what_lies_under_it():
    layer = nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 0, 1))
    (trace,) = trace_relevance(ready(nn.Sequential(layer)), images(3, 2, 2, 4, 5))
    under = F.pad(trace.inputs, (1, 1)).unfold(3, 2, 1).unfold(4, 3, 1).sum((0, 2, 3, 4))[:, None]
    wanted = under[None] + trace.outputs.sum((0, 2, 3, 4)).view(3, 1, 1, 1, 1)
    torch.testing.assert_close(trace.summed().of_weights(), wanted)


def test_the_tokens_of_a_linear_layer_are_rows():
    network = ready(nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(18, 2)))
    trace, _ = trace_relevance(network, images(5, 3, 4))
    wanted = trace.inputs.sum((0, 1)) + trace.outputs.sum((0, 1))[:, None]
    torch.testing.assert_close(trace.summed().of_weights(), wanted)


def data(*shape):
    return [(image, -1) for image in images(*shape)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_add_up_and_the_chunk_is_memory_only(backend):
    subject = Subject(ready(conv()), data(10, 2, 8, 8))
    whole = layer_relevance(subject, backend, chunk=10)
    apart = [layer_relevance(Subject(subject.network, [each]), backend) for each in subject.dataset]
    for name, own in whole.items():
        torch.testing.assert_close(own.of_weights(), sum(each[name].of_weights() for each in apart))
        found = layer_relevance(subject, backend, chunk=3)[name]
        torch.testing.assert_close(own.of_weights(), found.of_weights())


def test_outputs_are_those_of_the_batch_norm_behind_the_layer():
    layers = [nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(5, 3))
    network.double()(3 + images(50, 2, 8, 8))  # which the norm learns from
    subject = Subject(network.eval(), data(10, 2, 8, 8), images(1, 2, 8, 8))
    first, second = trace_relevance(subject.folded, torch.stack([image for image, _ in subject.dataset]))
    found = layer_relevance(subject)["0.weight"]
    torch.testing.assert_close(found.outputs.flatten(), first.outputs.sum((0, 2, 3)))
    torch.testing.assert_close(found.outputs.flatten(), second.inputs.sum(0))
    assert not torch.allclose(found.outputs, trace_relevance(network, images(10, 2, 8, 8))[0].summed().outputs)


def test_a_layer_that_is_called_twice_has_the_relevance_of_both_calls():
    shared = nn.Linear(6, 6)
    apart = Net(lambda s, x: s.last(F.relu(s.b(F.relu(s.a(x))))), a=shared, b=nn.Linear(6, 6), last=nn.Linear(6, 4))
    apart.b.load_state_dict(shared.state_dict())
    once = ready(Net(lambda s, x: s.last(F.relu(s.a(F.relu(s.a(x))))), a=shared, last=apart.last))
    dataset = data(10, 6)
    twice, both = layer_relevance(Subject(ready(apart), dataset)), layer_relevance(Subject(once, dataset))
    wanted = twice["a.weight"].of_weights() + twice["b.weight"].of_weights()
    torch.testing.assert_close(both["a.weight"].of_weights(), wanted)


@pytest.mark.parametrize(
    ("backend", "epsilon"), [("lpr", 1), ("lrp", 0), ("lrp", -1), ("lrp", np.nan), ("lrp", np.inf)]
)
def test_bad_options_are_refused(backend, epsilon):
    with pytest.raises(ValueError, match="lrp, gradient" if backend == "lpr" else "epsilon must be positive"):
        layer_relevance(Subject(mlp(), data(2, 6)), backend, epsilon)
