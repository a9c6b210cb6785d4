"""The report page: its sections, its charts, its links, and that text from outside stays text."""

import io
import math
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from distilhash.experiments.charts import Disc, Line, bubble_chart, line_chart, log_ticks
from distilhash.experiments.page import Neighbour, Query
from distilhash.experiments.summary import png_bytes
from distilhash.experiments.trials import PAPER, Grid
from markup import HOSTILE, Balanced
from trial_rows import CURVES, grid_of, hostile, page_of, row

MINUS = "\N{MINUS SIGN}"
LINKED = r"<td class=\"[^\"]*best\"[^>]*>\s*<span>(?:<a[^>]*>)?([^<]*)"


def whole_run(text="text"):
    png = png_bytes(np.full((4, 4, 3), 7, dtype=np.uint8))
    found = [Neighbour(png, text, distance, distance < 2) for distance in range(4)]
    return page_of(
        [*hostile(text), *grid_of([0.6, 0.7], [0.5, 0.6], [0.8], **CURVES)], Grid(), title=text, subtitle=text,
        training=[(text, text, [Line(text, [1, 2], [2, 1], "neutral-1"), Line("b", [1], [1], "scratch", (7, 4))]),
                  ("left out", "y", [])],
        queries=[Query(png, text, [("distilled", found), (text, found)])],
        provenance={text: text, "command": text}, notes=[text],
    )  # fmt: skip


def test_the_page_is_well_formed_and_keeps_its_order():
    parsed = Balanced(whole_run())
    assert [a["id"] for t, a in parsed.tags if t == "section"] == [
        "results", "bits", "trade-off", "precision-recall", "precision-at-n", "training", "epochs", "queries", "method",
    ]  # fmt: skip
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in parsed.tags if t == "a"} <= set(ids)
    assert parsed.count("article", "query") == 1  # both arms answered the same query: it is shown once
    assert parsed.count("li", "right") == parsed.count("li", "wrong") == 4
    text = "".join(parsed.text)
    assert text.count("✓") == text.count("✗") == 4
    assert "2 of 4 relevant" in text
    assert "left out" not in text
    assert all(a.get("alt") for t, a in parsed.tags if t == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in parsed.tags if t == "svg")


def test_a_section_without_data_is_left_out():
    parsed = Balanced(page_of([row(chosen=None)], Grid()))
    assert [a["id"] for t, a in parsed.tags if t == "section"] == ["results", "method"]


def test_the_page_asks_for_nothing():
    text = whole_run()
    assert "<script" not in text and not re.search(r"https?:|//[a-z]|@import|url\(", text)
    for tag, attributes in Balanced(text).tags:
        for name in ("src", "href", "srcset", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:40])


def test_hostile_text_stays_text():
    kind, hostile_page = Balanced(whole_run()), Balanced(whole_run(HOSTILE))
    assert [tag for tag, _ in kind.tags] == [tag for tag, _ in hostile_page.tags]
    assert [list(a) for _, a in kind.tags] == [list(a) for _, a in hostile_page.tags]
    assert "".join(hostile_page.text).count(HOSTILE) >= 16


def test_the_better_student_is_marked_and_a_tie_is_not():
    html = page_of(grid_of([0.6, 0.4], [0.5, 0.4], [0.9, 0.9]))
    best = re.findall(LINKED, html)
    assert best[0] == ".600" and ".900" not in best and ".400" not in best
    assert ">+.100</span>" in html and ">±.000</span>" in html


def test_the_best_of_each_column_is_marked_within_its_framework():
    rows = [row(value=0.573), row("scratch", 0.456), row("teacher_frozen", 0.77, stable_map=0.771),
            row(value=0.9, framework="dch", stable_map=0.901), row("scratch", 0.8, framework="dch")]  # fmt: skip
    table = page_of([{**r, "chosen": None} for r in rows], Grid()).split("<tbody>")
    best = [re.findall(LINKED, line) for body in table[1:3] for line in body.split("<tr>")[1:]]
    cheap = ["3.437 M", "1.000 k"]
    # Seconds and precision are equal everywhere, and so are the costs under DCH: nothing there is best.
    assert [found for found in best if found] == [cheap, cheap, [".770", ".771"], [".900", ".901"]]


def test_a_selected_epoch_is_set_against_the_last_one():
    rows = [
        row(value=0.6, chosen={"epoch": 5, "map": 0.63}),
        row(value=0.7, seed=1, chosen={"epoch": 9, "map": 0.66}),
    ]
    html = page_of(rows)
    assert f".645</a></span><small>{MINUS}.005</small>" in html
    assert re.search(r"last epoch \.650; \w+: epoch 5, epoch 9", html)
    rows[1]["chosen"] = None  # a mean of those that happen to be there would not be one of the entry
    assert ".630</a>" not in page_of(rows)


def test_the_better_student_of_a_selected_epoch_is_that_of_its_own_table():
    rows = [row(value=0.6, chosen={"epoch": 5, "map": 0.55}), row("scratch", 0.5, chosen={"epoch": 5, "map": 0.65})]
    assert re.findall(LINKED, page_of(rows)) == [".600", ".650"]


def test_every_number_leads_to_its_record():
    rows = [*grid_of([0.6, 0.7], [0.5]), *grid_of([0.4], [0.3], dataset="mosaics")]
    parsed = Balanced(page_of(rows))
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    links = [a["href"][1:] for t, a in parsed.tags if t == "a"]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)
    assert len({link for link in links if link.startswith("trial-")}) == 5
    titles = [a["title"] for t, a in parsed.tags if t == "a" and "title" in a]
    assert "cifar10, cifar10\nseeds: 0\npaper budget\n30 epochs\nLinux x86_64, 2 cores\ndistilhash reproduce" in titles
    assert "".join(parsed.text).count("distilhash reproduce") == 5


def test_figures_show_the_length_with_most_arms_not_the_best():
    rows = [
        *grid_of([0.3, 0.9], [0.2], **CURVES),
        row("teacher_frozen", 0.4, bits=16),
    ]  # three arms at 16 bits, one at 64
    html = page_of(rows)
    trade = html.split('id="trade-off"')[1].split("</section>")[0]
    assert "CSQ · 16 bits" in trade and "CSQ · 64 bits" not in trade
    assert ">+.100</text>" in trade
    assert trade.count('class="disc') == 2 * 3  # drawn wide, and again for a phone
    curves = html.split('id="precision-recall"')[1].split("</section>")[0]
    first, folded = curves.split("<details>")
    assert "CSQ · 16 bits" in first and "CSQ · 64 bits" in folded


def test_the_arrow_rises_with_the_gain_and_is_left_out_without_one():
    assert ">+.200</text>" in page_of(grid_of([0.5], [0.3]))
    assert not re.search(r">\+\.\d+</text>", page_of(grid_of([0.2], [0.3])))


def test_an_arm_keeps_its_line_whoever_is_beside_it():
    both = page_of([*grid_of([0.6], [0.5], [0.8]), row("scratch", 0.4, framework="dch")], PAPER)
    lines = re.findall(r'class="c-(\w+)" stroke-dasharray="([^"]*)"', both)
    assert {arm: {dash for name, dash in lines if name == arm} for arm, _ in lines} == {
        "distilled": {"none"}, "scratch": {"7 4"}, "teacher_finetuned": {"9 4 2 4"},
    }  # fmt: skip


def drawn(lines, **options):
    svg = line_chart(lines, title="t", x_label="x", y_label="y", **options)
    return svg, Balanced(svg).tags


def curves_of(tags, colour):
    """The points of the paths in a colour, path by path."""
    paths = [a["d"] for t, a in tags if t == "path" and f"var(--{colour})" in a["style"]]
    return [np.array([pair.split() for pair in re.split(r"[ML]", d)[1:]], dtype=float) for d in paths]


def test_a_line_has_every_point():
    lines = [Line("a", [0, 1, 2, 3], [1, 3, 2, 5], "distilled"), Line("b", [0, 2], [4, 4], "scratch", (7, 4))]
    svg, tags = drawn(lines, width=400, height=300)
    (first,), (second,) = curves_of(tags, "distilled"), curves_of(tags, "scratch")
    assert (len(first), len(second)) == (4, 2)
    assert [a["style"].count("dasharray") for t, a in tags if t == "path" and "--scratch" in a["style"]] == [1]
    assert sum(t == "circle" and a["class"] == "target" for t, a in tags) == 6
    x, y = first.T
    assert np.allclose(np.diff(x), x[1] - x[0], atol=0.11)  # equal steps in x
    assert np.allclose((y[0] - y[1]) / (y[0] - y[3]), 2 / 4, atol=0.01)  # upwards in proportion
    assert x.min() >= 0 and x.max() <= 400 and y.min() >= 0 and y.max() <= 300
    assert svg == drawn(lines, width=400, height=300)[0]  # nothing of the clock, nothing of a counter


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    svg, tags = drawn([Line("a", [0, 1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0, math.inf], "distilled")])
    (path,) = (a["d"] for t, a in tags if t == "path" and "--distilled" in a["style"])
    assert path.count("L") == 1
    assert sum(t == "circle" and a["class"] == "dot" for t, a in tags) == 1
    assert "nan" not in svg and "inf" not in path


def test_one_value_everywhere_is_drawn():
    _, tags = drawn([Line("a", [5, 5], [0.0, 0.0], "distilled")])
    assert sum(t == "circle" and a["class"] == "target" for t, a in tags) == 2


def test_whiskers_reach_from_the_lowest_seed_to_the_highest():
    line = Line("a", [16, 32, 64], [0.5, 0.6, 0.7], "distilled", (), [(0.4, 0.6), (0.6, 0.6), (0.6, 0.9)])
    svg, tags = drawn([line], x_ticks=[16, 32, 64])
    points, *whiskers = curves_of(tags, "distilled")
    assert len(whiskers) == 2  # none where all seeds agree
    pixels_of_a_unit = (points[0, 1] - points[2, 1]) / 0.2
    for whisker, i, low, high in ((whiskers[0], 0, 0.4, 0.6), (whiskers[1], 2, 0.6, 0.9)):
        (x, bottom), (_, top) = whisker[2:4]  # between its caps
        assert x == pytest.approx(points[i, 0], abs=0.11)
        assert bottom - top == pytest.approx((high - low) * pixels_of_a_unit, abs=0.5)
        assert points[0, 1] - bottom == pytest.approx((low - 0.5) * pixels_of_a_unit, abs=0.5)
    assert re.findall(r">(16|32|64)</text>", svg) == ["16", "32", "64"]


def test_discs_lie_on_a_logarithmic_axis_and_their_areas_are_in_proportion():
    discs = [Disc(10.0**i, 0.1 * i, 16.0**i, "distilled", f"{i}", "name", "0.1", "note") for i in range(3)]
    circles = [a for t, a in Balanced(bubble_chart(discs, title="t", x_label="x", y_label="y")).tags if t == "circle"]
    x = sorted(float(a["cx"]) for a in circles)
    radii = sorted(float(a["r"]) for a in circles)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.05)
    assert radii[2] == pytest.approx(4 * radii[1], abs=0.02)


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(6e7, 6e8) == pytest.approx([1e8, 2e8, 5e8])
    assert log_ticks(1e3, 1e9) == pytest.approx([10.0**p for p in range(3, 10)])


def test_png_is_read_back():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


def relative_luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_of_every_colour(theme):
    css = resources.files("distilhash.experiments").joinpath("templates/report.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", css)
    colours = {name: both[theme] for name, *both in pairs}

    def contrast(one, other):
        low, high = sorted(relative_luminance(colours[name]) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card"):
        for text in ("ink", "quiet", "accent", "right", "wrong"):
            assert contrast(text, ground) >= 4.5, (text, ground)
    assert contrast("accent", "wash") >= 4.5
    lines = [name for name in colours if name.startswith(("distilled", "scratch", "teacher", "neutral"))]
    assert len(lines) == 8
    for line in lines:
        assert contrast(line, "card") >= 4.5, line  # the key of the trade-off chart prints its numbers in them
