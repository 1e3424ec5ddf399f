"""The picture of the road: every notebook once, nothing on top of anything."""

import matplotlib

matplotlib.use("Agg")

from itertools import combinations

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyBboxPatch

from cria import claims, plots, road


@pytest.fixture
def ax():
    with plt.rc_context():
        plots.use_style()
        yield road.draw({"01", "03"})
    plt.close("all")


def boxes(ax):
    """The steps' boxes; arrows' heads are patches too."""
    return [
        p
        for p in ax.patches
        if isinstance(p, FancyBboxPatch) and p.get_width() == road.WIDTH
    ]


def test_every_notebook_after_the_welcome_is_a_step():
    assert sorted(s.notebook for s in road.ROAD) == [f"{i:02d}" for i in range(1, 13)]
    known = {s.notebook for s in road.ROAD}
    assert {claim.notebook[:2] for claim in claims.read().values()} <= known


def test_what_feeds_what_leads_from_the_first_step_to_every_model():
    names = {s.name for s in road.ROAD}
    assert {name for pair in road.FEEDS for name in pair} <= names
    reached = {road.ROAD[0].name}
    for _ in road.FEEDS:
        reached |= {end for start, end in road.FEEDS if start in reached}
    assert names - reached == {"full scale"}  # which stands beside the road


def test_written_notebooks_are_filled_and_the_others_dashed(ax):
    solid = [box.get_linestyle() == "-" for box in boxes(ax)]
    assert solid == [s.notebook in {"01", "03"} for s in road.ROAD]


def test_words_stay_inside_their_boxes_and_boxes_apart(ax):
    ax.figure.canvas.draw()
    areas = [box.get_window_extent() for box in boxes(ax)]
    assert not any(a.overlaps(b) for a, b in combinations(areas, 2))
    words = [t.get_window_extent() for t in ax.texts if "notebook" in t.get_text()]
    words += [
        t.get_window_extent()
        for t in ax.texts
        for s in road.ROAD
        if t.get_text() in (s.name, s.makes)
    ]
    assert len(words) == 3 * len(road.ROAD)
    for word in words:
        assert any(
            box.x0 < word.x0 and word.x1 < box.x1 and box.y0 < word.y0 < box.y1
            for box in areas
        )
