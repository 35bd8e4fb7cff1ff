"""Pictures: what is drawn, looked up in the figure before it is saved."""

import pytest
from matplotlib.figure import Figure

from lm.report import style
from lm.report.plot import Panel, band, save, tick


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draw panels; returns the figure."""
    figures = []
    write = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or write(self, *args, **kwargs)
    )

    def call(panels, *args, **kwargs):
        save(str(tmp_path / "a.png"), panels, *args, **kwargs)
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]

    return call


def test_a_curve_is_drawn_as_it_is(figure):
    drawn = figure([Panel("x", "y", {"a": [[(1, 2.0), (3, 4.0)]], "empty": [[]]}, "panel")], "title")
    (ax,) = drawn.axes
    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[1, 2], [3, 4]]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), drawn._suptitle.get_text()) == (
        "x",
        "y",
        "panel",
        "title",
    )
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear") and ax.get_xlim()[0] == 0
    assert [text.get_text() for text in drawn.legends[0].texts] == ["a"]


def test_a_name_looks_the_same_in_all_panels_and_no_two_names_alike(figure):
    names = [f"n{i}" for i in range(35)]
    curve = [[(1, 2.0), (3, 4.0)]]
    first, second = figure([Panel("x", "y", dict.fromkeys(names, curve)), Panel("x", "z", {"n8": curve})]).axes
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker(), line._dash_pattern) for line in first.lines]
    assert len({str(look) for look in looks}) == 35
    assert second.lines[0].get_color() == first.lines[8].get_color() == style.LIGHT[1]


def test_repetitions_are_a_mean_a_band_and_thin_lines(figure):
    (ax,) = figure([Panel("x", "y", {"a": [[(0, 1.0), (2, 3.0)], [(0, 3.0), (2, 7.0)]]})]).axes
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[0, 1], [2, 3]], [[0, 3], [2, 7]], [[0, 2], [2, 5]]]
    assert ax.lines[0].get_linewidth() < ax.lines[2].get_linewidth() and len(ax.collections) == 1


def test_axes_target_and_shared_labels(figure):
    curves = {"a": [[(64, 0.1), (4096, 10.0)]]}
    panels = [Panel("x", "y", curves), Panel("x", "y", curves)]
    first, second = figure(panels, scales=("log", "log"), target=0.5).axes
    assert first.get_xscale() == first.get_yscale() == "log" and (first.get_ylabel(), second.get_ylabel()) == ("y", "")
    assert [ax.lines[-1].get_ydata()[0] for ax in (first, second)] == [0.5, 0.5]
    assert [text.get_text() for text in first.texts] == ["target 0.5"] and not second.texts
    first, second = figure([panels[0], Panel("x", "z", curves)], scales=("log", "linear")).axes
    assert (first.get_yscale(), second.get_ylabel()) == ("linear", "z")
    assert first.xaxis.get_major_formatter()(4096, 0) == "4,096" and first.xaxis.get_major_formatter()(0.5, 0) == "0.5"


def test_names_are_neither_formulas_nor_hidden(figure):
    curve = [[(1, 2.0), (3, 4.0)]]
    legend = figure([Panel("x", "y", {"$x_{": curve, "_hidden": curve, "__": curve})]).legends[0]
    assert [text.get_text() for text in legend.texts] == [r"\$x_{", "hidden", "?"]


@pytest.mark.parametrize(("length", "columns"), [(3, 6), (16, 2), (50, 1)])
def test_the_legend_is_inside_the_picture_in_as_few_rows_as_fit(figure, length, columns):
    drawn = figure([Panel("x", "y", {str(i) + "m" * length: [[(1, 2.0), (3, 4.0)]] for i in range(6)})])
    (legend,) = drawn.legends
    place = legend.get_window_extent()
    assert place.x0 >= 0 and place.x1 <= drawn.bbox.x1 and legend._ncols == columns


def test_band_interpolates_where_all_curves_have_values():
    assert band([[(0, 0.0), (4, 4.0)], [(1, 3.0), (2, 5.0), (6, 5.0)]]) == [
        (1, 1, 2, 3),
        (2, 2, 3.5, 5),
        (4, 4, 4.5, 5),
    ]
    assert band([[(0, 1.0), (1, 1.0)], [(2, 1.0), (3, 1.0)]]) == []


def test_nothing_to_draw(figure):
    assert not figure([Panel("x", "y", {})], "nothing yet").legends


def test_points_in_rows_below(figure):
    curve = {"a": [[(1, 2.0), (3, 4.0)]]}
    below = [
        Panel("rate", "loss", {"a": [[(0.01, 2.0), (0.1, 1.0)], [(0.02, 9.0)]], "b": [[], []]}, "", True, (), (0.5, 3)),
        Panel("size", "loss", {"a": [[(8.0, 2.0), (32.0, 1.0)]]}, ticks=(8, 32)),
        Panel("word", "loss", {"b": [[("cosine", 2.0), ("linear", 1.0)]]}),
    ]
    axes = figure([Panel("x", "y", curve), Panel("x", "y", curve)], below=below).axes
    rate, size, word, rest = axes[2:]
    full, hollow = rate.collections
    assert full.get_offsets().tolist() == [[0.01, 2], [0.1, 1]] and hollow.get_offsets().tolist() == [[0.02, 9]]
    assert len(full.get_facecolor()) == 1 and len(hollow.get_facecolor()) == 0
    assert (rate.get_xscale(), rate.get_ylim(), rate.get_xlabel()) == ("log", (0.5, 3), "rate")
    assert rate.xaxis.get_major_formatter()(0.005, 0) == "0.005"
    assert size.get_xticks().tolist() == [8, 32] and not rest.get_visible()
    assert [label.get_text() for label in word.get_xticklabels()] == ["cosine", "linear"]
    assert word.collections[0].get_edgecolor().tolist() != full.get_edgecolor().tolist()


def test_numbers_on_an_axis():
    assert [tick(x) for x in (0, 0.5, 2, 1_400, 200_000, 2e6, 2e14, 1.2e15)] == [
        *("0", "0.5", "2", "1,400", "200,000", "2M", "200T", "1.2P")
    ]
