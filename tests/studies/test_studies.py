import pytest

from redlab import compare_hashes, fold_batchnorm, hash_network, load_dataset, load_network


@pytest.fixture(scope="module")
def frame():
    network = fold_batchnorm(load_network("digits/resnet")).network
    settings = [{"rule": rule, "max_error": bound} for rule in ("kde", "uniform", "lloyd") for bound in (0.02, 0.2)]
    return compare_hashes(network, load_dataset("digits", limit=100), settings)


def test_a_row_a_setting_with_what_is_left(frame):
    assert list(frame["rule"]) == ["kde", "kde", "uniform", "uniform", "lloyd", "lloyd"]
    assert frame["share"].between(0, 1).all()
    assert (frame["error"] <= frame["max_error"]).all()
    assert frame.attrs["before"] > 95


def test_a_larger_error_leaves_fewer_values(frame):
    for _, rows in frame.groupby("rule"):
        assert rows["share"].is_monotonic_decreasing


def test_a_small_error_keeps_the_accuracy(frame):
    small = frame[frame["max_error"] == 0.02]
    assert (small["accuracy"] >= frame.attrs["before"] - 1).all()


def test_layers_that_are_left_alone_are_in_no_mean():
    network, images = load_network("digits/mlp"), load_dataset("digits", limit=20)
    bounds = {"hidden.0.linear": 0, "hidden.1.linear": 0, "classifier": 0.1}
    frame = compare_hashes(network, images, [{"max_error": bounds}, {"max_error": dict.fromkeys(bounds, 0)}])
    layers = hash_network(network, max_error=bounds).layers
    assert frame["error"].tolist() == [layers["error"].iloc[2], 0]
    assert frame["modes"].tolist() == [layers["modes"].iloc[2], 0]
