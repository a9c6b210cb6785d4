"""The page, its sentence and its charts: what is said, what is escaped, what is counted."""

import io
import json
import math
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from distilhash.errors import DistilhashError
from distilhash.experiments.bubbles import Disc, bubble_chart, log_ticks
from distilhash.experiments.svg import Curve, line_chart, ticks
from distilhash.experiments.report import (
    ArmResult,
    QueryExample,
    ReportData,
    headline,
    page,
    png_bytes,
    results_json,
    terminal_table,
    write_report,
)
from markup import HOSTILE, Balanced

TIMES = "\N{MULTIPLICATION SIGN}"


def arm(name="distilled", map_at_all=0.573, **changes):
    student = name in ("distilled", "scratch")
    values = {
        "arm": name, "backbone": "v1" if student else "resnet50", "framework": "csq", "bits": 64, "seed": 0,
        "dataset": "CIFAR-10", "protocol": "cifar10", "map_at_all": map_at_all,
        "stable_map_at_all": map_at_all + 0.001, "precision_at_radius_2": 0.5, "seconds": 61.4, "input_size": 224,
        "parameters": 3_437_000 if student else 23_639_000,
        "macs": 1_087_000_000 if student else 4_087_000_000,
        "precision_recall": ([0.0, 0.5, 1.0], [0.9, 0.6, 0.1]),
    }  # fmt: skip
    return ArmResult(**{**values, **changes})


def three(distilled=0.573, scratch=0.456, teacher=0.770):
    return [arm("distilled", distilled), arm("scratch", scratch), arm("teacher_frozen", teacher)]


def whole_run(text="text"):
    png = png_bytes(np.full((4, 4, 3), 7, dtype=np.uint8))
    found = [(png, text, distance, distance < 2) for distance in range(4)]
    query = QueryExample(query_png=png, label=text, neighbours=found)
    return ReportData(
        title=text, subtitle=text, arms=[arm(backbone=text, dataset=text, protocol=text, framework=text), *three()],
        distillation_loss=[Curve(text, [1, 2, 3], [3.0, 2.0, 1.0])], agreement=[Curve("cosine", [1, 2], [0.1, 0.2])],
        hashing_loss=[Curve("distilled", [1, 2], [0.4, 0.3])], examples=[("distilled", [query]), (text, [query])],
        provenance={text: text, "command": text}, notes=[text],
    )  # fmt: skip


def test_the_page_is_well_formed_and_keeps_its_order():
    parsed = Balanced(page(whole_run()))
    assert [a["id"] for t, a in parsed.tags if t == "section"] == [
        "results", "trade-off", "precision-recall", "training", "queries", "method",
    ]  # fmt: skip
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in parsed.tags if t == "a"} <= set(ids)
    assert parsed.count("article", "query") == 1  # both arms answered the same query: it is shown once
    assert parsed.count("li", "right") == parsed.count("li", "wrong") == 4
    text = "".join(parsed.text)
    assert text.count("✓") == text.count("✗") == 4
    assert "2 of 4 relevant" in text
    assert all(a.get("alt") for t, a in parsed.tags if t == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in parsed.tags if t == "svg")


def test_the_page_asks_for_nothing():
    text = page(whole_run())
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.split("<script>")[0])
    for tag, attributes in Balanced(text).tags:
        for name in ("src", "href", "srcset", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:40])


def test_hostile_text_stays_text():
    kind, hostile = Balanced(page(whole_run())), Balanced(page(whole_run(HOSTILE)))
    assert [tag for tag, _ in kind.tags] == [tag for tag, _ in hostile.tags]
    assert [list(a) for _, a in kind.tags] == [list(a) for _, a in hostile.tags]
    assert "".join(hostile.text).count(HOSTILE) >= 8


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (three(), f"with 3.8{TIMES} fewer multiply-adds than its teacher: .117 above the same student trained"),
        (three(), "from scratch and .197 below the frozen teacher."),
        (three(0.4, 0.456, 0.3), ".056 below the same student trained from scratch and .100 above the frozen teacher."),
        (three(0.4562, 0.4558), "level with the same student trained from scratch"),
        ([arm(), arm("teacher_finetuned", 0.6, macs=710_000_000)], f"1.5{TIMES} more multiply-adds than its teacher"),
        ([arm(), arm("teacher_finetuned", 0.6)], ": .027 below the fine-tuned teacher."),
        ([arm(), arm("teacher_frozen", 0.6, macs=1_087_000_001)], "with as many multiply-adds as its teacher"),
        ([arm(), arm("scratch", 0.7, bits=32)], "The distilled student reaches .573 mAP at 64 bits with CSQ."),
        ([arm(map_at_all=0.5), arm(map_at_all=0.6, seed=1), arm("scratch", 0.5)],
         "reaches .550 mAP (mean of 2 seeds): .050 above the same student"),
        ([arm(map_at_all=math.nan), arm("teacher_frozen", 0.6)], "The frozen teacher (resnet50) reaches .600 mAP."),
        ([arm(map_at_all=math.nan)], "No arm of this run has a result yet."),
    ],
)  # fmt: skip
def test_the_headline_is_true_whichever_way_it_falls(arms, said):
    assert said in headline(arms)


def test_the_headline_compares_the_digits_it_shows():
    assert ".001 above" in headline([arm(map_at_all=0.50051), arm("scratch", 0.50049)])  # .501 against .500


def test_the_best_of_each_column_is_marked_within_its_setting():
    arms = [*three(), arm("distilled", 0.9, bits=32), arm("scratch", 0.8, bits=32)]
    rows = re.findall(r"<tr>(<th scope=\"row\".*?)</tr>", page(ReportData(title="t", arms=arms)))
    best = [re.findall(r"<td class=\"[^\"]*best\"[^>]*><span>(.*?)</span>", row) for row in rows]
    cheap = ["3.437 M", "1.087 G"]
    # Seconds and precision are equal everywhere, so nothing there is best.
    assert best == [cheap, cheap, [".770", ".771"], [".900", ".901"], []]


def test_a_line_has_every_point():
    curves = [Curve("a", [0, 1, 2, 3], [1, 3, 2, 5]), Curve("b", [0, 2], [4, 4])]
    svg = line_chart(curves, title="t", x_label="x", y_label="y", width=400, height=300)
    paths = [a for t, a in Balanced(svg).tags if t == "path"]
    assert [len(re.findall(r"[ML]", path["d"])) for path in paths] == [4, 2]
    assert len({path["stroke-dasharray"] for path in paths}) == 2  # told apart without colour
    assert Balanced(svg).count("circle", "target") == 6
    x, y = np.array([pair.split() for pair in re.split(r"[ML]", paths[0]["d"])[1:]], dtype=float).T
    assert np.allclose(np.diff(x), x[1] - x[0], atol=0.11)  # equal steps in x
    assert np.allclose((y[0] - y[1]) / (y[0] - y[3]), 2 / 4, atol=0.01)  # upwards in proportion
    assert x.min() >= 0 and x.max() <= 400 and y.min() >= 0 and y.max() <= 300


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    curve = Curve("a", [0, 1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0, math.inf])
    parsed = Balanced(line_chart([curve], title="t", x_label="x", y_label="y"))
    (path,) = (a["d"] for t, a in parsed.tags if t == "path")
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert parsed.count("circle", "dot") == 1
    assert "nan" not in path and "inf" not in path


@pytest.mark.parametrize("y", [[], [math.nan, math.nan]])
def test_nothing_to_draw_is_said(y):
    curve = Curve("a", list(range(len(y))), y)
    assert "no data" in line_chart([curve], title="t", x_label="x", y_label="y")
    discs = [Disc(x=1, y=value, area=1, label=("a",)) for value in y]
    assert "no data" in bubble_chart(discs, title="t", x_label="x", y_label="y")


def test_one_value_everywhere_is_drawn():
    parsed = Balanced(line_chart([Curve("a", [5, 5], [0.0, 0.0])], title="t", x_label="x", y_label="y"))
    assert parsed.count("circle", "target") == 2


def test_discs_lie_on_a_logarithmic_axis_and_their_areas_are_in_proportion():
    discs = [Disc(x=10.0**i, y=0.1 * i, area=4.0**i, label=(f"arm {i}",)) for i in range(3)]
    circles = [a for t, a in Balanced(bubble_chart(discs, title="t", x_label="x", y_label="y")).tags if t == "circle"]
    x = sorted(float(a["cx"]) for a in circles)
    radii = sorted(float(a["r"]) for a in circles)
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.05)
    assert radii[2] == pytest.approx(2 * radii[1], abs=0.02)


def test_the_arrow_rises_with_the_gain_and_is_left_out_without_one():
    def drawn(distilled):
        return page(ReportData(title="t", arms=three(distilled=distilled, scratch=0.3)))

    assert ".200 from distilling" in drawn(0.5) and 'class="arrow"' in drawn(0.5)
    assert 'class="arrow"' not in drawn(0.2)


def test_many_settings_become_many_figures_with_numbered_discs():
    arms = [arm(name, 0.1 * bits**0.5, bits=bits) for bits in (16, 32, 64) for name in ("distilled", "teacher_frozen")]
    parsed = Balanced(page(ReportData(title="t", arms=arms)))
    assert parsed.count("ul", "key") == 3
    assert parsed.count("ul", "legend") == 1  # the same for all three, so it stands above them once
    assert parsed.count("circle", "disc") == 6


def test_ticks_are_round_and_within():
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.31, 0.58, 6) == pytest.approx([0.35, 0.4, 0.45, 0.5, 0.55])
    assert log_ticks(6e7, 6e8) == pytest.approx([1e8, 2e8, 5e8])
    assert log_ticks(1e3, 1e9) == pytest.approx([10.0**p for p in range(3, 10)])


def test_writing_replaces_the_page_whole(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(DistilhashError):
        write_report(ReportData(title="t", arms=[]), target)
    assert target.read_text() == "old"
    write_report(ReportData(title="t", arms=three()), target)
    assert target.read_text(encoding="utf-8") == page(ReportData(title="t", arms=three()))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DistilhashError, match="folder"):
        write_report(ReportData(title="t", arms=three()), tmp_path / "none" / "report.html")


def test_what_cannot_be_told_is_refused():
    with pytest.raises(DistilhashError, match="teacher_frozen"):
        arm("teacher")
    with pytest.raises(DistilhashError, match="as many"):
        Curve("a", [1, 2], [1])
    with pytest.raises(DistilhashError, match="uint8"):
        png_bytes(np.zeros((2, 2, 3)))


def test_png_is_read_back():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


def test_results_are_plain_json():
    rows = results_json([arm(map_at_all=np.float64(0.25), bits=np.int64(48), seconds=math.nan)])
    (row,) = json.loads(json.dumps(rows, allow_nan=False))
    wanted = {"arm", "backbone", "framework", "bits", "seed", "dataset", "protocol", "map_at_all", "parameters", "macs"}
    assert wanted < row.keys()
    assert (row["map_at_all"], row["bits"], row["seconds"]) == (0.25, 48, None)


def test_the_terminal_table_is_aligned_and_ascii():
    lines = terminal_table([*three(), arm(backbone="a\x1b[31m", seconds=12345, bits=16)]).split("\n")
    assert terminal_table(three()).isascii()
    head, rule, *rows = lines
    starts = [m.start() for m in re.finditer(r"-+", rule)]
    ends = [m.end() for m in re.finditer(r"-+", rule)]
    assert len(starts) == 11
    for row in filter(None, [head, *rows]):
        cells = [row[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        assert cells == re.split(" {2,}", row)
    assert rows[3] == "" and rows[4].split()[1] == "a?[31m" and rows[4].endswith("12,345")


def relative_luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast_of_every_colour(theme):
    css = resources.files("distilhash.experiments").joinpath("report.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", re.findall(r":root \{(.*?)\}", css, re.DOTALL)[theme]))

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
