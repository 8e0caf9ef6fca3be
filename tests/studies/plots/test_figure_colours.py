"""The six colours of our figures can be told apart by those who see colours otherwise.

Colours are simulated as they are seen without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1), and
compared by CIEDE2000 (Sharma, Wu and Dalal 2005): a distance of 1 is just visible side by side; thin lines and small
dots take far more.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from redlab.studies.plots.splitting import draw_splits
from redlab.studies.plots.style import BLUE, COLOURS, GREY, INK, MARKERS, ORANGE, PURPLE, RED, VIOLET

NAMES = {BLUE: "blue", RED: "red", PURPLE: "purple", ORANGE: "orange", VIOLET: "violet", GREY: "grey", INK: "ink"}
# What a retina makes of linear RGB.
EYES = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]  # sRGB
WHITE = [0.95047, 1.0, 1.08883]


def seen(colour, eye):
    """L*, a*, b* of a colour as ``eye`` sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.array(XYZ) @ np.clip(np.array(EYES[eye]) @ linear, 0, 1) / WHITE
    x, y, z = (v ** (1 / 3) if v > (6 / 29) ** 3 else v / (3 * (6 / 29) ** 2) + 4 / 29 for v in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def distance(one, other):
    """CIEDE2000 between two (L*, a*, b*)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    grey = 1.5 - 0.5 * _seventh((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(a1 * grey, b1), np.hypot(a2 * grey, b2)
    h1, h2 = np.arctan2(b1, a1 * grey), np.arctan2(b2, a2 * grey)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, h1 + turn / 2
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.2, 4, -63))
    tone = 1 + sum(share * np.cos(times * hue + np.radians(shift)) for share, times, shift in waves)
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * tone)
    bend = np.radians(60 * np.exp(-(((np.degrees(hue) % 360 - 275) / 25) ** 2)))
    return np.sqrt(dl**2 + dc**2 + dh**2 - 2 * _seventh(chroma) * np.sin(bend) * dc * dh)


def _seventh(chroma):
    return np.sqrt(chroma**7 / (chroma**7 + 25**7))


def nearest(one, other):
    """The distance of two colours for the eye that finds them most alike."""
    return min(distance(seen(one, eye), seen(other, eye)) for eye in EYES)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [  # from the table of Sharma, Wu and Dalal
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_distances_are_those_that_were_published(one, other, expected):
    assert distance(one, other) == pytest.approx(expected, abs=1e-4)


def test_colours_differ_for_every_eye_and_the_nearest_pair_is_known():
    near = {pair: nearest(*pair) for pair in combinations((*COLOURS, INK), 2)}
    assert min(near.values()) > 10
    # These rely on marker and dash as well: thin lines of the two look alike without red cones.
    weak = {(NAMES[one], NAMES[other]) for (one, other), found in near.items() if found < 17}
    assert weak == {("purple", "violet")}


def test_colours_stand_out_from_paper():
    assert min(nearest(colour, "white") for colour in COLOURS) > 20


def test_lines_of_two_colours_never_share_their_marker():
    assert len(set(MARKERS[: len(COLOURS)])) == len(COLOURS)


def test_a_method_looks_the_same_in_the_panels_of_all_units():
    methods, units = [f"method {k}" for k in range(6)], ("channel", "tap", "kernel")
    rows = [{"method": m, "unit": u, "share": 0.1 * k, "accuracy": 90} for m in methods for u in units for k in (1, 2)]
    frame = pd.DataFrame(rows)
    frame = frame[(frame["method"] != "method 2") | (frame["unit"] == "tap")]  # one that is measured in one unit alone
    frame.attrs["before"] = 91.0
    wanted = {name: (MARKERS[k], COLOURS[k]) for k, name in enumerate(dict.fromkeys(frame["method"]))}
    for ax in draw_splits(frame).axes:
        looks = {line.get_label(): (line.get_marker(), line.get_color()) for line in ax.get_lines()}
        assert {name: looks[name] for name in methods if name in looks and name != "method 2"} == {
            name: wanted[name] for name in methods if name != "method 2"
        }
