"""What notebooks say follows their frames: other numbers, other sentences."""

import pandas as pd
import pytest

from redlab.studies import takeaways
from redlab.studies.sentences import Takeaways, best_and_worst, fewest, in_words, percent


def rows(**columns):
    return pd.DataFrame({"images": 360, "p": 1.0, "before": 99.4, **columns})


def test_takeaways_show_as_a_list_in_a_notebook_and_in_a_terminal():
    shown = Takeaways("One.", "Two.")
    assert shown._repr_markdown_() == repr(shown) == "- One.\n- Two."


def test_an_accuracy_comes_with_its_images_and_its_interval():
    assert in_words(99.44, 360) == "99.4 % of 360 images (98.0 to 99.8)"
    assert in_words(91.73, 10_000).startswith("91.7 % of 10,000 images (91.2")


def test_a_share_has_three_digits():
    assert [percent(share) for share in (0.00828, 0.5, 1.0)] == ["0.828 %", "50 %", "100 %"]


def test_the_fewest_are_looked_for_where_nothing_significant_is_lost():
    frame = rows(method=["kde", "lloyd", "uniform"], share=[0.3, 0.2, 0.1], accuracy=[99.4, 99.2, 80.0])
    frame["p"] = [1.0, 0.6, 0.001]
    said = fewest(frame, "share", "values")
    assert "**lloyd** leaves 20 % and has 99.2 % of 360 images" in said
    assert "chosen on these test images" in said
    assert fewest(frame.assign(p=0.01), "share", "values").startswith("No setting reduces the values")


@pytest.mark.parametrize(("worst", "verdict"), [(99.0, "intervals overlap"), (80.0, "intervals do not overlap")])
def test_the_best_and_the_worst_method_are_told_apart_by_their_intervals(worst, verdict):
    frame = rows(method=["a", "b", "b"], accuracy=[worst, 99.5, 99.3])
    said = best_and_worst(frame, "At half")
    assert said.startswith("At half, **b** keeps most accuracy, 99.4 % of 360 images")
    assert verdict in said


def test_one_method_alone_is_neither_best_nor_worst():
    assert best_and_worst(rows(method=["a"], accuracy=[50.0]), "Alone").startswith("Alone, a has 50.0 %")
    tied = rows(method=["a", "b"], accuracy=[50.0, 50.0])
    assert best_and_worst(tied, "Tied").startswith("Tied, every method has 50.0 %")


def test_hashing_names_the_rule_that_leaves_fewest_values_at_most_errors():
    frame = rows(
        method=["kde", "uniform"] * 2, max_error=[0.1, 0.1, 0.2, 0.2], share=[0.2, 0.1, 0.02, 0.01], accuracy=99.0
    )
    assert "**uniform** leaves the fewest distinct values: at 2 of 2 errors" in str(takeaways.hashing(frame))
    frame["share"] = frame["share"].to_numpy()[[1, 0, 3, 2]]
    assert "**kde** leaves the fewest" in str(takeaways.hashing(frame))


def test_noise_doubles_its_modes_when_the_bandwidth_is_halved():
    counts = pd.DataFrame({"layer": "a", "bandwidth": [1, 1 / 2, 1 / 3, 1 / 6], "modes": [1, 10, 20, 40]})
    costs = rows(bandwidth=["silverman", "silverman/6"], modes=[1.0, 40.0], share=[0.1, 0.2], accuracy=[50.0, 99.0])
    assert "half the bandwidth gives 2.00 times the modes" in str(takeaways.density(costs, counts))


def test_pruning_says_by_how_much_fine_tuning_brings_methods_together():
    alone = rows(section=1, method=["a", "b"], keep=0.5, seed=0, stage="pruned", products=0.5, accuracy=[40.0, 60.0])
    tuned = pd.concat([alone, alone.assign(stage="fine-tuned", accuracy=[90.0, 93.0])]).assign(section=2)
    said = str(takeaways.pruning(pd.concat([alone, tuned], ignore_index=True)))
    assert "span 20.0 points of accuracy before the last fine-tuning and 3.0 after" in said


def test_masks_tell_how_far_they_are_from_certain():
    metrics = pd.DataFrame({"epoch": [0, 1], "inclusion_entropy": [3.0, 2.5], "log_k": 2.0, "log_n": 3.0})
    frame = rows(method=["DPP", "magnitude"], keep=0.2, bits=[7.0, 7.0], accuracy=[99.0, 98.0])
    assert "50 % of the way" in str(takeaways.masks(metrics, frame))


@pytest.mark.parametrize("random", [0.004, 0.02])
def test_the_tour_gives_the_share_of_random_weights_beside_that_of_the_network(random):
    chance = pd.DataFrame()
    chance.attrs["share"] = {"trained": 0.008, "random": random}
    hashed = rows(network=["a", "b"], accuracy=[99.0, 98.0], difference=[-0.5, 0.2])
    steps = pd.DataFrame({"products": [100, 4], "operations": [200, 80], "bytes": [10, 1], "accuracy": [99.4, 99.1]})
    said = str(takeaways.tour(hashed, chance, steps))
    assert f"leaves 0.8 % of the distinct values of a, and {percent(random)} of random weights" in said
    assert "by at most 0.5 points, over 2 networks" in said
    assert "RED++ leaves 4 % of the multiplications, 40 % of all operations and 10 % of the bytes" in said
