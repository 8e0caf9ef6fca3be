"""Latency: what is measured and what is left as it was; never how long anything takes."""

from __future__ import annotations

import copy
import time
from dataclasses import FrozenInstanceError

import pandas as pd
import pytest
import torch
from torch import nn

from redlab import Latency, load_network, measure_latency
from redlab.network import latency
from redlab.network.latency import compare_latency


@pytest.fixture
def network() -> nn.Module:
    return load_network("digits/resnet")


def test_a_measurement_says_how_it_was_made(network):
    measured = measure_latency(network, batch=4, repeats=5, threads=1)
    assert 0 < measured.q25 <= measured.median <= measured.q75
    assert (measured.batch, measured.threads, measured.device) == (4, 1, "cpu")
    assert measured.layout in ("nchw", "channels_last")
    with pytest.raises(FrozenInstanceError):
        measured.median = 0.0


def test_it_reads_as_a_sentence():
    said = str(Latency(3.2101, 3.1, 3.4, batch=1, threads=2, layout="channels_last", device="cpu"))
    assert said == "3.21 ms (quartiles 3.1 to 3.4) for a batch of 1: cpu, 2 threads, channels_last"
    assert "1 thread, nchw" in str(Latency(3.2, 3.1, 3.4, 1, 1, "nchw", "cpu"))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_a_layout_that_is_asked_for_is_measured(network, layout, monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "_milliseconds", lambda own, inputs, *_: seen.append(inputs.run(own)) or 1.0)
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert measure_latency(network, batch=2, repeats=1, layout=layout).layout == layout
    images = [tensor for tensor in seen if tensor.ndim == 4]
    assert all(image.is_contiguous(memory_format=latency._FORMATS[layout]) for image in images)
    assert {tuple(image.shape) for image in images} == {(2, 1, 8, 8)}


def test_the_better_layout_is_reported(network, monkeypatch):
    def slow_unless_channels_last(own, *_):
        kernels = [parameter for parameter in own.parameters() if parameter.ndim == 4]
        return 1.0 if kernels[1].is_contiguous(memory_format=torch.channels_last) else 2.0

    monkeypatch.setattr(latency, "_milliseconds", slow_unless_channels_last)
    measured = measure_latency(network, repeats=3)
    assert (measured.layout, measured.median) == ("channels_last", 1.0)


def test_the_network_and_the_settings_stay_as_they_were(network):
    network.train()
    network.relu.eval()
    state = copy.deepcopy(network.state_dict())
    flags = [module.training for module in network.modules()]
    threads, generator = torch.get_num_threads(), torch.random.get_rng_state()
    compare_latency({"one": network, "other": network}, repeats=2, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert network.conv1.weight.is_contiguous()
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_threads_come_back_after_an_error(network):
    threads = torch.get_num_threads()
    with pytest.raises(ValueError, match=r"CifarResNet cannot run on an input of shape \(1, 5, 8, 8\)"):
        measure_latency(network, torch.zeros(1, 5, 8, 8), threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_a_comparison_has_a_row_a_network_and_ratios_to_the_first(network):
    table = compare_latency({"resnet": network, "mlp": load_network("digits/mlp")}, batch=3, repeats=4, threads=1)
    assert list(table) == [
        *("network", "median", "q25", "q75", "ratio", "faster"),
        *("layout", "batch", "threads", "device"),
    ]
    assert list(table["network"]) == ["resnet", "mlp"]
    assert table["ratio"][0] == 1.0
    assert table["faster"][0] == ""
    assert table["faster"][1] in ("yes", "no", "within noise")
    assert set(table["batch"]) == {3}


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ([0.5, 0.6, 0.7, 0.8], "yes"),
        ([1.5, 1.6, 1.7, 0.8], "no"),
        ([0.9, 1.1, 0.95, 1.05], "within noise"),
        ([1.0, 1.0, 1.0, 1.0], "within noise"),
    ],
)
def test_faster_is_what_three_quarters_of_the_rounds_say(times, verdict):
    assert latency._faster(pd.Series(times)) == verdict


def test_short_calls_are_repeated_within_a_measurement(network, monkeypatch):
    asked = []
    monkeypatch.setattr(latency, "_milliseconds", lambda own, inputs, calls, *_: asked.append(calls) or 0.01)
    assert measure_latency(network, repeats=2, layout="nchw").median == pytest.approx(0.01)
    assert asked == [3, 1, 100, 100]


def test_networks_without_images_are_measured_too():
    assert measure_latency(nn.Linear(4, 2), batch=2, repeats=2).layout == "nchw"
    volume = nn.Sequential(nn.Conv3d(1, 2, 3))
    assert measure_latency(volume, torch.zeros(1, 1, 4, 4, 4), repeats=2).layout == "nchw"
    assert measure_latency(load_network("digits/resnet").double(), repeats=2).batch == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"repeats": 0}, "repeats must be a whole number of at least 1"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"layout": "nhwc"}, "layout must be one of best, nchw, channels_last, not 'nhwc'"),
    ],
)
def test_options_that_make_no_sense_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(network, **options)


def test_the_processors_clock_does_not_count_what_waits(network):
    network.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    wall, processor = (
        compare_latency({"one": network}, repeats=3, threads=1, layout="nchw", clock=clock)["median"][0]
        for clock in ("wall", "processor")
    )
    assert wall > 20
    assert 0 < processor < wall


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clock": "sundial"}, "clock must be one of wall, processor, not 'sundial'"),
        ({"clock": "processor", "threads": 2}, "times one thread on a CPU: pass threads=1"),
    ],
)
def test_a_clock_that_cannot_tell_is_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        compare_latency({"one": network}, **options)


def test_channels_last_needs_images():
    with pytest.raises(ValueError, match="a layout of images"):
        measure_latency(nn.Linear(4, 2), layout="channels_last")
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_latency({})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_measured_until_its_work_is_done(network):
    measured = measure_latency(network.cuda(), repeats=3)
    assert measured.device == "cuda:0"
    assert measured.median > 0
