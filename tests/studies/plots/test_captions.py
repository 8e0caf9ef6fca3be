"""What pictures show, in words."""

import matplotlib.pyplot as plt

from redlab.studies.plots.save import describe, keep_caption, read_captions


def test_titles_axes_and_legend_are_named_once(tmp_path):
    figure, (left, right, hidden) = plt.subplots(1, 3)
    figure.suptitle("One layer,\nsix bandwidths")
    for ax, name in ((left, "conv1"), (right, "conv2")):
        ax.set(title=name, xlabel=r"weight $w_1$", ylabel="density")
        ax.plot([0, 1], label="mode")
        ax.legend()
    hidden.set(title="not to be seen")
    hidden.set_visible(False)
    words = "One layer, six bandwidths. conv1; conv2. Across: weight w_1. Up: density. Legend: mode."
    assert describe(figure) == words

    keep_caption(tmp_path, "02_b", figure)
    keep_caption(tmp_path, "02_a", plt.figure())
    assert read_captions(tmp_path) == {"02_b": words, "02_a": ""}
    assert list(read_captions(tmp_path)) == ["02_b", "02_a"]  # as they were saved
    assert read_captions(tmp_path / "elsewhere") == {}
    plt.close("all")


def test_many_panels_are_counted():
    figure, axes = plt.subplots(1, 12)
    for k, ax in enumerate(axes):
        ax.set_title(f"layer{k}")
    assert describe(figure).endswith("layer7 and 4 more.")
    plt.close("all")
