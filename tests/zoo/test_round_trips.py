"""Networks after any steps, saved and opened again; and saves that are killed before each change of the disk."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from fuzz.runner import acts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from redlab import (
    example_input,
    fold_batchnorm,
    hash_network,
    load_network,
    merge_neurons,
    prune_channels,
    prune_weights,
    save_network,
    score_channels,
    score_weights,
    split_inputs,
)


def fold(network: nn.Module, draw) -> nn.Module:
    return fold_batchnorm(network).network


def hashed(network: nn.Module, draw) -> nn.Module:
    rule = draw(st.sampled_from(["kde", "uniform", "lloyd"]))
    return hash_network(network, rule, max_error=draw(st.sampled_from([None, 0.05, 0.3])), force=True).network


def merge(network: nn.Module, draw) -> nn.Module:
    return merge_neurons(network, alpha=draw(st.floats(0, 0.6))).network


def prune(network: nn.Module, draw) -> nn.Module:
    return prune_channels(network, score_channels(network, "magnitude"), ratio=draw(st.floats(0, 0.6))).network


def thin(network: nn.Module, draw) -> nn.Module:
    return prune_weights(network, score_weights(network, "magnitude"), ratio=draw(st.floats(0, 0.9))).network


def split(network: nn.Module, draw) -> nn.Module:
    return split_inputs(network, unit=draw(st.sampled_from(["channel", "tap", "kernel"]))).network


@st.composite
def networks(draw) -> nn.Module:
    """A network that ships after up to three steps in any order, at the end perhaps split."""
    network = load_network(draw(st.sampled_from(["digits/mlp", "digits/resnet"])))
    for step in draw(st.lists(st.sampled_from([fold, hashed, merge, prune, thin]), max_size=3)):
        network = step(network, draw)
    return split(hashed(network, draw), draw) if draw(st.booleans()) else network


@settings(max_examples=6)
@given(network=networks())
def test_a_network_after_any_steps_comes_back_bit_for_bit(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "net"
    opened = load_network(save_network(network, folder))
    assert opened.redlab == network.redlab
    images = torch.randn(3, *example_input(network).shape[1:], generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened(images), network(images))
    states = network.state_dict(), opened.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    shutil.rmtree(folder)


def save_until(deed: int, network: nn.Module, folder: Path) -> bool:
    """Save in a process that is killed just before its ``deed``-th change of the disk; whether it was."""
    left = list(range(deed))

    def count(event: str, args: tuple) -> None:
        if acts(event, args, folder.parent):
            left.pop() if left else os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        try:
            sys.addaudithook(count)
            save_network(network, folder)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kill is Unix's")
def test_a_save_that_is_killed_anywhere_leaves_the_old_network_or_the_new_one(tmp_path):
    old, new = load_network("digits/mlp"), fold_batchnorm(load_network("digits/mlp")).network
    save_network(old, tmp_path / "old")
    found = []
    for deed in range(100):
        folder = tmp_path / f"{deed}" / "net"
        shutil.copytree(tmp_path / "old", folder)
        killed = save_until(deed, new, folder)
        found.append(load_network(folder).redlab)
        assert load_network(save_network(new, folder)).redlab == new.redlab  # what was left behind is in nobody's way
        if not killed:
            break
    assert len(found) > 5
    assert found == sorted(found, key=[old.redlab, new.redlab].index)
    assert found[-1] == new.redlab
