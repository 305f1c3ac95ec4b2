import itertools
import xml.etree.ElementTree as ET

import pytest
from sample_findings import findings

from holdfast.audit.findings import Chart, Series
from holdfast.report.charts import draw
from holdfast.report.frame import COMPACT, WIDE

KINDS = ("line", "bar", "histogram", "scatter", "heatmap")
EVIL = "</svg><script>alert(1)</script>\"'&"


def parsed(chart):
    return ET.fromstring(str(draw(chart).svg))


def rects(root, name):
    return [e for e in root.iter("rect") if e.get("class") == name]


def texts(root):
    return [e.text for e in root.iter("text") if e.text] + [e.tail for e in root.iter("title") if e.tail]


def chart(kind="line", **more):
    given = {"title": "A chart", "series": [Series(name="a", x=[0, 1, 2], y=[0.1, 0.5, 0.9])]} | more
    return Chart(kind=kind, **given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series(name="", x=[], y=[])],
        [Series(name="a", x=[1.0], y=[None])],
        [Series(name="a", x=[3.0], y=[0.0])],
        [Series(name="a", x=["x", "y"], y=[1.0, -2.0])],
        [Series(name="a", x=[0.0, 1.0], y=[1e-12, 1e12]), Series(name="b", x=[5.0], y=[None])],
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_every_chart_is_well_formed_whatever_is_missing(kind, series, log):
    root = parsed(chart(kind, series=series, log_x=log, log_y=log))
    assert root.tag == "svg"
    for element in root.iter():
        assert not any("nan" in value or "inf" in value.split() for value in element.attrib.values())


@pytest.mark.parametrize("kind", KINDS)
def test_names_cannot_leave_their_element(kind):
    evil = chart(
        kind,
        title=EVIL,
        x_label=EVIL,
        y_label=EVIL,
        level=0.5,
        level_label=EVIL,
        series=[Series(name=EVIL, x=[0, 1], y=[1, 2]), Series(name=EVIL + "2", x=[0, 1], y=[1, 2])],
    )
    root = parsed(evil)
    assert {e.tag for e in root.iter()} <= {
        "svg", "g", "desc", "title", "text", "line", "rect", "path", "polyline", "polygon", "circle",
    }  # fmt: skip


def test_the_same_chart_gives_the_same_text():
    assert draw(chart()).svg == draw(chart()).svg


def test_bars_are_as_long_as_their_values():
    root = parsed(chart("bar", y_range=(0, 1), series=[Series(name="a", x=["x", "y"], y=[0.8, 0.4])]))
    long, short = (float(bar.get("width")) for bar in rects(root, "bar"))
    assert long == pytest.approx(2 * short, abs=0.2)


def test_negative_bars_start_at_zero_and_go_the_other_way():
    root = parsed(chart("bar", series=[Series(name="a", x=["x", "y"], y=[1.0, -1.0])]))
    right, left = rects(root, "bar")
    assert float(left.get("x")) + float(left.get("width")) == pytest.approx(float(right.get("x")), abs=0.2)


def test_values_declared_to_lie_between_0_and_1_are_shown_in_percent():
    bars = [Series(name="a", x=["x"], y=[0.932])]
    assert "93.2\u202f%" in texts(parsed(chart("bar", y_range=(0, 1), series=bars)))
    assert "0.932" in texts(parsed(chart("bar", series=bars)))


def test_a_higher_value_is_drawn_higher_and_intervals_enclose_it():
    line = Series(name="a", x=[0, 1], y=[0.2, 0.8], low=[0.1, 0.7], high=[0.3, 0.9])
    root = parsed(chart(series=[line]))
    drawn = next(e for e in root.iter("polyline"))
    (_, first), (_, last) = (map(float, p.split(",")) for p in drawn.get("points").split())
    assert last < first  # pixels count downwards
    band = [tuple(map(float, p.split(","))) for p in next(root.iter("polygon")).get("points").split()]
    assert min(y for x, y in band[:1] + band[-1:]) < first < max(y for x, y in band[:1] + band[-1:])


def test_a_gap_in_the_data_is_left_out():
    series = Series(name="a", x=[0, 1, 2], y=[0.1, None, 0.9])
    line = next(parsed(chart(series=[series])).iter("polyline"))
    assert len(line.get("points").split()) == 2


def test_a_diagonal_means_equal_values_on_both_axes():
    series = Series(name="a", x=[0, 0.5, 1], y=[0, 0.5, 1])
    root = parsed(chart(series=[series], diagonal=True, y_range=(0, 1)))
    line = next(e for e in root.iter("line") if e.get("class") == "diagonal")
    points = [tuple(map(float, p.split(","))) for p in next(root.iter("polyline")).get("points").split()]
    assert points[0] == (float(line.get("x1")), float(line.get("y1")))
    assert points[-1] == (float(line.get("x2")), float(line.get("y2")))


def test_a_histogram_takes_edges_or_centres():
    edges = parsed(chart("histogram", series=[Series(name="a", x=[0, 1, 2], y=[3, 6])]))
    centres = parsed(chart("histogram", series=[Series(name="a", x=[0.5, 1.5], y=[3, 6])]))
    assert [r.attrib for r in rects(edges, "hit")] == [r.attrib for r in rects(centres, "hit")]


def test_a_heat_map_is_darker_where_values_are_higher_and_leaves_unknown_cells_empty():
    series = [Series(name="a", x=["p", "q", "r"], y=[0.1, 0.9, None])]
    cells = [
        r for r in rects(parsed(chart("heatmap", series=series, y_range=(0, 1))), "heat") if r.find("title") is not None
    ]
    shades = [float(r.get("fill-opacity")) for r in cells]
    assert len(shades) == 2
    assert shades[0] < shades[1] <= 0.7


def test_curves_of_few_series_are_named_at_their_ends_and_of_many_in_a_legend():
    def named(n):
        series = [Series(name=f"s{i}", x=[0, 1], y=[i, i + 1]) for i in range(n)]
        return {
            e.text: float(e.get("y")) for e in parsed(chart(series=series)).iter("text") if "name" in e.get("class", "")
        }

    few, many = named(4), named(9)
    assert len(few) == 4
    assert len(many) == 9
    heights = sorted(few.values())
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))
    assert max(many.values()) < 60


def test_a_thousand_cells_or_a_hundred_classes_stay_small():
    names = [f"class {i}" for i in range(100)]
    rows = [Series(name=n, x=names, y=[0.9 if i == k else 0.0 for k in range(100)]) for i, n in enumerate(names)]
    matrix = draw(chart("heatmap", series=rows, y_range=(0, 1)))
    assert matrix.wide
    assert len(matrix.svg) < 60_000
    bars = draw(chart("bar", series=[Series(name="a", x=names, y=[0.5] * 100)]))
    assert bars.wide
    cloud = draw(chart("scatter", series=[Series(name="a", x=list(range(20_000)), y=[0.5] * 20_000)]))
    assert len(cloud.svg) < 400_000


def test_the_sample_charts_stay_inside_their_picture():
    for finding in findings():
        for figure in finding.figures:
            if isinstance(figure, Chart):
                drawing = draw(figure)
                root = ET.fromstring(str(drawing.svg))
                width, height = map(float, root.get("viewBox").split()[2:])
                assert width == (WIDE if drawing.wide else COMPACT)
                for rect in root.iter("rect"):
                    assert float(rect.get("x")) >= -0.5
                    assert float(rect.get("x")) + float(rect.get("width")) <= width + 0.5
                    assert float(rect.get("y")) + float(rect.get("height")) <= height + 0.5
