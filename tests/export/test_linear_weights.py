"""Transformers and linear layers in ONNX files: short weights, products of bytes, sequences of any length."""

import numpy as np
import pytest
import torch
from torch import nn

from redlab import export_onnx, hash_network
from redlab.export import dynamic
from redlab.export.grids import read_rows
from redlab.export.program import export_program
from redlab.export.short_weights import Blocks, blocks_of, round_blocks, shorten_weights
from redlab.network.example import fit_example
from redlab.network.layers import weight_layers
from redlab.network.onnx_network import OnnxNetwork

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
SHORT = {"weights8": 8, "weights4": 4}
LEVELS = {"weights8": 255, "weights4": 15, "int8": 255}


class Encoder(nn.Module):
    """Token ids and their mask to a vector a token, and a class; the last layer is a Gemm in the file."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, width)
        layer = nn.TransformerEncoderLayer(width, 4, 40, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.classifier = nn.Linear(width, 5)
        for parameter in self.parameters():  # or both layers have the same weights
            nn.init.normal_(parameter, std=0.2)

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
    return Encoder().eval()


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
    assert own.codes.min() == lowest and own.codes.max() <= -1 - lowest
    # One step at the other end, whose code there isn't.
    assert (np.abs(own.values.numpy() - weight) <= steps * np.where(own.codes == -1 - lowest, 1.001, 0.501)).all()
    np.testing.assert_array_equal(own.values[0], 0)
    np.testing.assert_allclose(own.values[1], 0.3, rtol=1e-6)


@pytest.mark.parametrize("precision", SHORT)
def test_codes_of_hashing_are_stored_as_they_are(encoder, tmp_path, precision):
    bits = SHORT[precision]
    hashed = hash_network(encoder, rule="uniform", scale="row", levels=LEVELS[precision]).network
    export = export_onnx(hashed, tmp_path / "net.onnx", precision, example=tokens())
    assert set(export.layers["precision"]) == {precision} and set(export.layers["codes"]) == {"hash"}
    stored = constants(export.path)
    for layer in weight_layers(hashed):
        rows = read_rows(layer, bits)
        name = f"{layer.name}.weight" if layer.parameter == "weight" else f"{layer.name}_weight"
        found = decoded(stored[f"{name}_codes"], bits)[:, : rows.codes.shape[1]]
        np.testing.assert_array_equal(found, rows.codes)
        steps = stored[f"{name}_steps"]
        assert (steps == rows.steps[:, None]).all()
        np.testing.assert_allclose(found * steps[:, :1], layer.weight.detach(), rtol=1e-6)
    assert apart(hashed, export.path, tokens(3, 9)) < 0.02


def decoded(codes, bits):
    """(outputs, inputs) of the kernel's bytes."""
    codes = codes.astype(int)
    codes = codes if bits == 8 else np.stack([codes & 15, codes >> 4], -1)
    return codes.reshape(len(codes), -1) - 2 ** (bits - 1)


@pytest.mark.parametrize("precision", ["int8", "weights8"])
def test_bytes_stay_near_the_network_at_other_lengths(encoder, tmp_path, precision):
    export = export_onnx(encoder, tmp_path / "net.onnx", precision, example=tokens())
    assert (export.layers["skipped"] == "").all()
    assert export.bytes < 0.6 * sum(4 * own.numel() for own in encoder.parameters()) + 20_000
    assert apart(encoder, export.path, tokens(3, 40)) < 0.05


def test_products_of_bytes_hold_the_codes_of_hashing(encoder, tmp_path):
    hashed = hash_network(encoder, rule="uniform", scale="row", levels=LEVELS["int8"]).network
    export = export_onnx(hashed, tmp_path / "net.onnx", "int8", example=tokens(), bits=8)
    assert set(export.layers["codes"]) == {"hash"}
    products = [node for node in onnx.load(export.path).graph.node if node.op_type == "MatMulInteger"]
    stored = constants(export.path)
    found = sorted(stored[node.input[1]].T.tobytes() for node in products)
    assert found == sorted(read_rows(layer, 8).codes.tobytes() for layer in weight_layers(hashed))
    assert not [name for name, own in stored.items() if own.dtype == np.float32 and own.shape == (40, 24)]
    assert stored["embedding.weight"].dtype == np.float32


def test_other_codes_than_ours_are_an_error(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic, "overrides", lambda weights: {})
    with pytest.raises(RuntimeError, match="other codes of"):
        export_onnx(encoder, tmp_path / "net.onnx", "int8", example=tokens(), bits=7)
    assert not list(tmp_path.iterdir())


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
    assert "no linear layer" in layers["skipped"]["stem"] and layers["error"]["stem"] == 0
    np.testing.assert_array_equal(constants(export.path)["stem.weight"], network.stem.weight.detach())
    assert "1 of 4 in float32: stem" in str(export)
    assert OnnxNetwork(export.path)(images[:1]).shape == (1, 4)


def test_without_linear_layers_there_are_no_short_weights(tmp_path):
    with pytest.raises(ValueError, match="no linear layer"):
        export_onnx(nn.Conv2d(1, 2, 3), tmp_path / "net.onnx", "weights8", example=torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize("given", [tokens(1, 5), tokens(3, 40), tokens(2, 1)])
def test_a_file_takes_any_batch_and_any_number_of_tokens(encoder, float_file, given):
    assert apart(encoder, float_file, given) < 1e-4


@pytest.fixture(scope="module")
def float_file(encoder, tmp_path_factory):
    export = export_onnx(encoder, tmp_path_factory.mktemp("float") / "net.onnx", example=tokens())
    graph = onnx.load(export.path).graph
    assert [[axis.dim_param for axis in own.type.tensor_type.shape.dim] for own in graph.input] == [
        ["batch", "tokens"]
    ] * 2
    return export.path


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
    assert "sequences of one length only" in str(export) and "batches" not in str(export)
    torch.testing.assert_close(OnnxNetwork(export.path)(ids.repeat(3, 1)), network(ids.repeat(3, 1)))


def test_layers_of_equal_weights_share_a_tensor_and_are_all_found():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    network = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    program = export_program(network, fit_example(network, torch.randn(1, 6, 16)))
    assert set(program.weights) == {own.name for own in weight_layers(network)}
    stored = {tensor.name: tensor for tensor in program.onnx.model_proto.graph.initializer}
    for own in weight_layers(network):
        weight = program.weights[own.name]
        found = onnx.numpy_helper.to_array(stored[weight.name])
        np.testing.assert_array_equal(found.T if weight.transposed else found, own.weight.detach())


def test_a_bert_answers_in_its_own_order(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    network = transformers.BertModel(config).eval()
    export = export_onnx(network, tmp_path / "net.onnx", "float32", example=tokens())
    assert apart(network, export.path, tokens(3, 128)) < 1e-4


def test_blocks_of_a_layer_that_does_not_fit_are_rounded(encoder):
    layer = next(weight_layers(hash_network(encoder, rule="uniform", scale="row", levels=255).network))
    assert blocks_of(layer, 8).hashed
    rounded = blocks_of(layer, 4)
    assert isinstance(rounded, Blocks) and not rounded.hashed
