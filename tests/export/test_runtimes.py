"""Runtimes: which rows there are, what they are divided by, and that no engine can hang or end the comparison.

Never how long anything takes.
"""

from __future__ import annotations

import os
import textwrap
import time
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from redlab import split_inputs
from redlab.export import contestants, engines, jobs, runtimes
from redlab.export.contestants import make_contestants
from redlab.export.engine_process import Timer, _torch
from redlab.export.engines import EngineError, EngineProcess, chosen_engines
from redlab.export.jobs import jobs_of
from redlab.export.machine import cpu_flags, processors
from redlab.export.onnx_facts import onnx_facts
from redlab.export.runtimes import compare_runtimes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
HAS_OPENVINO = "openvino" in chosen_engines(None)


class Dies(nn.Linear):
    def forward(self, given):
        os._exit(3)


class Refuses(nn.Linear):
    def forward(self, given):
        raise RuntimeError("not today\nnor tomorrow")


@pytest.fixture(autouse=True, scope="module")
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def write(path: Path, shape=("batch", 8), kind=onnx.TensorProto.FLOAT, inner: int = 8) -> Path:
    """y = W x, with a weight of ``inner`` rows."""
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(inner, 8)).astype(np.float32), "weight")
    floats = onnx.TensorProto.FLOAT
    cast = onnx.helper.make_node("Cast", ["x"], ["c"], to=floats)
    nodes = [cast, onnx.helper.make_node("MatMul", ["c", "weight"], ["y"])]
    given = [onnx.helper.make_tensor_value_info("x", kind, shape)]
    made = [onnx.helper.make_tensor_value_info("y", floats, [None, 8])]
    graph = onnx.helper.make_graph(nodes, "small", given, made, [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def write_int8(path: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(write(path.with_suffix(".float.onnx")), path)
    return path


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("files")
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    given = {"network": network, "int8": write_int8(folder / "int8.onnx"), "one": write(folder / "one.onnx", (1, 8))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the machine may be busy
        return compare_runtimes(given, torch.zeros(1, 8), batches=(1, 2), threads=[1], rounds=2)


def test_every_engine_runs_what_it_can_in_one_process(frame):
    found = set(zip(frame["network"], frame["engine"], frame["precision"], frame["batch"], strict=True))
    for batch in (1, 2):
        assert {("network", "torch", "float32", batch), ("network", "onnxruntime", "float32", batch)} <= found
        assert ("int8", "onnxruntime", "int8", batch) in found
        assert (("int8", "openvino", "int8", batch) in found) == HAS_OPENVINO
    assert len(found) == len(frame)
    assert not [row for row in found if row[:2] == ("int8", "torch")]
    assert frame["layout"][frame["engine"] != "torch"].unique().tolist() == [""]
    assert frame.attrs["machine"] == cpu_flags()


def test_times_are_ordered_and_the_reference_is_one(frame):
    measured = frame[frame["why"] == ""]
    assert (measured["q25"] > 0).all()
    for low, middle, high in (("q25", "median", "q75"), ("speedup_q25", "speedup", "speedup_q75")):
        assert (measured[low] <= measured[middle]).all()
        assert (measured[middle] <= measured[high]).all()
    for _, rows in measured.groupby("batch"):
        floats = rows[(rows["network"] == "network") & (rows["precision"] == "float32")]
        assert floats.loc[floats["median"].idxmin(), ["speedup", "speedup_q25", "speedup_q75"]].tolist() == [1, 1, 1]
    assert frame.attrs["busy"] == "" or frame.attrs["busy"].startswith("busy machine: nothing can be concluded from")


def test_a_file_of_one_batch_is_timed_at_that_one(frame):
    rows = frame[frame["network"] == "one"]
    assert set(rows["why"][rows["batch"] == 1]) == {""}
    assert set(rows["why"][rows["batch"] == 2]) == {"the file takes batches of 1 only"}
    assert rows["median"].isna().tolist() == (rows["batch"] == 2).tolist()
    assert not rows["conclusive"][rows["batch"] == 2].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:busy machine")
def test_a_network_that_ends_its_process_or_refuses_is_a_row_with_the_reason():
    given = {"good": nn.Linear(4, 4), "dies": Dies(4, 4), "refuses": Refuses(4, 4), "fine": nn.Linear(4, 4)}
    frame = compare_runtimes(given, engines=["torch"], batches=[1], threads=[1], rounds=2)
    why = frame[frame["precision"] == "float32"].set_index("network")["why"]
    assert why["dies"].startswith("the process of torch ended")
    assert why["refuses"] == "not today"
    assert why[["good", "fine"]].tolist() == ["", ""]


FAKE = """
    import json, os, sys, time
    loaded = set()
    for line in sys.stdin:
        job = json.loads(line)
        what = job.get("file", "")
        if what == "hang":
            time.sleep(600)
        if what == "end":
            sys.exit("out of luck")
        loaded |= {job["load"]} if "load" in job else set()
        if job.get("time", 0) == 7:
            os._exit(1)
        known = "load" in job or job.get("time") in loaded or "forget" in job
        print(json.dumps({"ms": float(len(loaded))} if known else {"why": "not loaded"}), flush=True)
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    """A process that behaves as the name of a file says."""
    (tmp_path / "fake_engine.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "_MODULE", "fake_engine")
    with EngineProcess("fake", 1, tmp_path) as made:
        yield made


def test_a_process_that_ends_is_started_again_with_what_was_loaded(process):
    process.load(1, {"file": "a"})
    with pytest.raises(EngineError, match=r"^the process of fake ended: out of luck$"):
        process.load(2, {"file": "end"})
    assert process.time(1) == 1
    process.load(7, {"file": "b"})
    with pytest.raises(EngineError, match="ended"):
        process.time(7)
    assert process.time(1) == 1
    process.forget()
    with pytest.raises(KeyError):
        process.time(1)


def test_a_process_that_hangs_is_ended(process, monkeypatch):
    monkeypatch.setattr(engines, "_TO_LOAD", 0.3)
    with pytest.raises(EngineError, match="fake gave no answer for 0 seconds"):
        process.load(1, {"file": "hang"})
    assert process._process is None


def test_the_process_has_ended_after_the_context(process):
    process.load(1, {"file": "a"})
    running = process._process
    process.__exit__(None, None, None)
    assert running.returncode == 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's list of processes")
def test_a_process_that_is_not_asked_does_not_compute(process):
    process.load(1, {"file": "a"})
    stat = Path(f"/proc/{process._process.pid}/stat")
    until = time.monotonic() + 10
    while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T" and time.monotonic() < until:
        time.sleep(0.01)
    assert state == "T"
    assert process.time(1) == 1


TIMES = {  # round by round
    ("first", "torch", "float32", "nchw"): [8.0, 8.0, 8.0],
    ("first", "torch", "float32", "channels_last"): [4.0, 4.0, 8.0],
    ("first", "onnxruntime", "float32", ""): [2.0, 2.0, 4.0],
    ("second", "torch", "float32", "nchw"): [1.0, 1.0, 2.0],
    ("second", "torch", "float32", "channels_last"): [2.0, 1.0, 2.0],
    ("second", "onnxruntime", "float32", ""): [1.0, 4.0, 2.0],
}


class Scripted:
    """Stands for EngineProcess: the times above."""

    def __init__(self, engine, *_):
        self.engine, self.left = engine, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def load(self, key, order):
        name = "second" if Path(order["inputs"]).name.startswith("1") else "first"
        self.left[key] = deque(TIMES[name, self.engine, order["precision"], order["layout"]])

    def time(self, key):
        return self.left[key].popleft()

    def forget(self):
        assert not any(self.left.values())


def test_speedups_are_medians_of_ratios_within_rounds_to_the_best_float32_of_the_first(monkeypatch):
    monkeypatch.setattr(runtimes, "EngineProcess", Scripted)
    monkeypatch.setattr(jobs, "has_bf16", lambda: False)
    monkeypatch.setattr(contestants, "export_onnx", lambda _, path, example: write(path, ("batch", 1, 2, 2)))
    given = {name: nn.Conv2d(1, 1, 1) for name in ("first", "second")}
    with pytest.warns(UserWarning, match=r"^busy machine: nothing can be concluded from 4 of 4 rows \(spread above 20"):
        frame = compare_runtimes(
            given, torch.zeros(1, 1, 2, 2), engines=["torch", "onnxruntime"], batches=[1], threads=[1], rounds=3
        )
    assert frame["layout"].tolist() == ["channels_last", "", "nchw", ""]
    assert frame["median"].tolist() == [4, 2, 1, 2]
    assert frame["speedup"].tolist() == [0.5, 1, 2, 2]
    assert frame["spread"].tolist() == [0.5, 0.5, 0.5, 0.75]
    assert not frame["conclusive"].any()


def test_more_threads_than_processors_are_a_reason(monkeypatch):
    monkeypatch.setattr(runtimes, "EngineProcess", None)
    count = len(processors()) + 1
    frame = compare_runtimes({"a": nn.Linear(2, 2)}, engines=["torch"], threads=[count])
    assert set(frame["why"]) == {f"{count} threads, and this process may use {count - 1} processors"}


def test_split_layers_run_as_ordinary_ones_and_the_network_stays_as_it_was(tmp_path):
    split = split_inputs(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).network.train()
    [made] = make_contestants({"split": split}, None, ["torch"], tmp_path)
    assert type(made.network[0]) is nn.Linear
    assert not made.network.training
    assert split.training
    assert type(split[0]) is not nn.Linear


def test_a_network_whose_code_no_other_process_finds_is_traced(tmp_path):
    class Local(nn.Linear):
        def forward(self, given):
            return super().forward(given) + 1

    [made] = make_contestants({"local": Local(3, 2)}, None, ["torch"], tmp_path)
    job = next(jobs_of(made, ["torch"], 4))
    assert (job.why, Path(job.file).suffix) == ("", ".pt2")
    output = _torch(job.order, torch.get_num_threads())()
    torch.testing.assert_close(output, made.network(made.inputs.repeat(4).args[0]))


def test_what_a_timer_is_told():
    timer = Timer(lambda job, threads: {"a": lambda: None, "b": lambda: 1 / 0}[job["file"]], 1)
    assert timer.answer({"load": 0, "file": "a"})["ms"] >= 0
    assert timer.answer({"time": 0})["ms"] >= 0
    assert timer.answer({"load": 1, "file": "b"}) == {"why": "division by zero"}
    assert "why" in timer.answer({"load": 2, "file": "c"})
    assert timer.answer({"forget": True}) == {}
    assert "why" in timer.answer({"time": 0})


def test_a_file_says_its_precision_and_inputs(tmp_path):
    facts = onnx_facts(write(tmp_path / "a.onnx"))
    assert (facts.precision, facts.batch, facts.inputs[0].shape) == ("float32", None, (None, 8))
    assert [array.shape for array in facts.example()] == [(1, 8)]
    assert onnx_facts(write(tmp_path / "b.onnx", (4, 8))).batch == 4
    assert onnx_facts(write_int8(tmp_path / "c.onnx")).precision == "int8"
    node = onnx.helper.make_node("MatMulNBits", ["x", "w"], ["y"], domain="com.microsoft", bits=8)
    own = onnx.helper.make_graph([node], "own", [], [])
    onnx.save(onnx.helper.make_model(own), tmp_path / "d.onnx")
    assert onnx_facts(tmp_path / "d.onnx").precision == "weights8"
    (tmp_path / "e.onnx").write_text("no file of that kind")
    with pytest.raises(ValueError, match=r"e\.onnx is no ONNX file"):
        onnx_facts(tmp_path / "e.onnx")


def test_what_a_file_takes_is_asked_for_where_it_is_not_known(tmp_path):
    whole = write(tmp_path / "whole.onnx", kind=onnx.TensorProto.INT64)
    wide = write(tmp_path / "wide.onnx", ("batch", "width"))
    for path in (whole, wide):
        with pytest.raises(ValueError, match=r"the input x \(.*\) may be is not known: pass example="):
            make_contestants({"a": path}, None, ["onnxruntime"], tmp_path)
    [made] = make_contestants({"a": whole}, {"x": torch.arange(16).reshape(2, 8)}, ["onnxruntime"], tmp_path)
    fed = made.facts.feeds(made.inputs, 3)["x"]
    assert fed.dtype == np.int64
    assert fed.tolist() == [[*range(8)]] * 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"contestants": {}}, ValueError, "at least one"),
        ({"contestants": {"a": 3}}, TypeError, "contestant 'a' must be a network or the path of an .onnx file, not 3"),
        ({"contestants": {"a": "digits/mlp"}}, FileNotFoundError, "there is no file digits/mlp"),
        ({"engines": ["tensorrt"]}, ValueError, "engines must be one of torch, onnxruntime, openvino"),
        ({"engines": "torch"}, ValueError, "engines must be a list"),
        ({"batches": [0]}, ValueError, "batches must be a whole number of at least 1, not 0"),
        ({"batches": []}, ValueError, "batches must hold at least one"),
        ({"threads": [1.5]}, ValueError, "threads must be a whole number"),
        ({"rounds": 0}, ValueError, "rounds must be a whole number of at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        compare_runtimes(**{"contestants": {"a": nn.Linear(2, 2)}} | options)


def test_a_file_needs_an_engine_that_runs_files(tmp_path):
    with pytest.raises(ValueError, match="the engine onnxruntime or openvino must run it"):
        compare_runtimes({"a": write(tmp_path / "a.onnx")}, engines=["torch"])


def test_a_missing_package_says_its_extra(monkeypatch):
    monkeypatch.setattr(engines, "EXTRAS", {"torch": "", "no_such_package": "export"})
    with pytest.raises(ImportError, match=r"no_such_package is missing: pip install 'redlab\[export\]'"):
        chosen_engines(["no_such_package"])
    assert chosen_engines(None) == ["torch"]
