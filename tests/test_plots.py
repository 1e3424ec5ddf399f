"""Plots: what is drawn is what was given."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb

from cria import plots
from cria.intervals import Interval


@pytest.fixture(autouse=True)
def tidy():
    plots.use_style()
    yield
    plt.close("all")


def test_curves_keep_the_data_and_name_the_axes():
    ax = plots.curves(
        {"7B": ([1, 2], [3, 2]), "13B": ([1, 2], [2, 1])}, "steps", "loss (nats)"
    )
    assert [list(line.get_ydata()) for line in ax.lines] == [[3, 2], [2, 1]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("steps", "loss (nats)")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["7B", "13B"]
    # told apart without colour
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()


def test_smoothing_keeps_the_raw_values_in_sight():
    ax = plots.curves({"loss": ([0, 1, 2, 3], [4, 0, 4, 0])}, "steps", "loss", smooth=2)
    assert list(ax.lines[0].get_ydata()) == [4, 0, 4, 0]
    assert list(ax.lines[1].get_ydata()) == [4, 2, 2, 2]


def test_running_mean_of_a_constant_is_the_constant():
    assert plots.running_mean([2.0] * 5, 3) == [2.0] * 5
    assert plots.running_mean([], 3) == []


def test_bars_show_value_interval_and_paper():
    given = {"few": Interval(0.8, 0.1, 3), "many": 0.6}
    ax = plots.bars(given, "helpfulness", paper={"many": 0.5})
    assert [bar.get_height() for bar in ax.patches] == [0.8, 0.6]
    assert [t.get_text() for t in ax.texts] == ["0.8", "0.6"]
    segments = [s for c in ax.collections for s in c.get_segments()]
    assert sorted(y for _, y in segments[0]) == pytest.approx([0.7, 0.9])
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [list(d.get_xydata()[0]) for d in diamonds] == [[1, 0.5]]


def test_mask_picture_fills_exactly_the_tokens_whose_loss_counts():
    pieces, mask = (
        ["<s>", "▁hi$", "\n", "▁yes", "</s>"],
        [False, False, False, True, True],
    )
    ax = plots.mask_picture(pieces, mask, doc_ids=[0, 0, 0, 1, -1], columns=12)
    filled = [p.get_facecolor()[:3] == to_rgb(plots.YELLOW) for p in ax.patches]
    assert filled == [False, False, False, True, False]  # padding never counts
    assert [t.get_text() for t in ax.texts] == ["<s>", "▁hi$", "↵", "▁yes", "</s>"]
    edges = [p.get_edgecolor() for p in ax.patches]
    assert edges[0] == edges[2] != edges[3] != edges[4]
    for patch in ax.patches:  # nothing runs off the picture
        assert patch.get_x() >= 0 and patch.get_x() + patch.get_width() <= 12
    ax.figure.canvas.draw()  # a lone dollar sign is text, not mathematics


def test_mask_picture_refuses_lengths_that_differ():
    with pytest.raises(ValueError, match="2 pieces, 1 mask"):
        plots.mask_picture(["a", "b"], [True])


def test_paper_note_stands_at_the_papers_number():
    ax = plots.curves({"ours": ([1, 2], [3, 2])}, "steps", "loss (nats)")
    plots.paper_note(ax, "1.75 at 7B", y=1.75)
    assert list(ax.lines[-1].get_ydata()) == [1.75, 1.75]
    assert ax.texts[-1].get_text() == "paper: 1.75 at 7B"


def test_colours_differ_in_lightness_or_hue_for_a_colour_blind_eye():
    """Red and green cones merged (a crude deuteranope): still apart."""

    def seen(colour):
        r, g, b = to_rgb(colour)
        return (0.6 * r + 0.4 * g, b)

    views = [seen(c) for c in plots.PALETTE]
    for i, a in enumerate(views):
        for b in views[:i]:
            assert max(abs(p - q) for p, q in zip(a, b, strict=True)) > 0.05
