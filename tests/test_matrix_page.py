"""The page of a comparison: its figures, its links, and that text from outside stays text."""

import re

import numpy as np
import pytest

from comparison_cells import SMALL, cell, grid_of, hostile
from distilhash.errors import DistilhashError
from distilhash.experiments.svg import Curve, line_chart
from distilhash.experiments.matrix_page import page
from distilhash.experiments.trials import read_cells
from markup import HOSTILE, Balanced

MINUS = "\N{MINUS SIGN}"


def test_the_better_student_is_marked_and_a_tie_is_not():
    cells = grid_of([0.6, 0.4], [0.5, 0.4], [0.9, 0.9])
    best = re.findall(r"<td class=\"[^\"]*best\"[^>]*><span><a[^>]*>(.*?)</a>", page(read_cells(cells), grid=SMALL))
    assert best[0] == ".600" and ".900" not in best and ".400" not in best
    assert ">+.100</span>" in page(read_cells(cells), grid=SMALL)
    assert ">±.000</span>" in page(read_cells(cells), grid=SMALL)


def test_a_chosen_epoch_is_set_against_the_last_one():
    cells = [
        cell(value=0.6, chosen={"epoch": 5, "map": 0.63}),
        cell(value=0.7, seed=1, chosen={"epoch": 9, "map": 0.66}),
    ]
    html = page(read_cells(cells), grid=SMALL)
    assert f".645</a></span><small>{MINUS}.005</small>" in html
    assert "last epoch .650; picked: epoch 5, epoch 9" in html
    cells[1]["chosen"] = None  # a mean of those that happen to be there would not be one of the cell
    assert "Choice of the epoch" not in page(read_cells(cells), grid=SMALL)


def test_the_better_student_of_a_chosen_epoch_is_that_of_its_own_table():
    cells = [cell(value=0.6, chosen={"epoch": 5, "map": 0.55}), cell("scratch", 0.5, chosen={"epoch": 5, "map": 0.65})]
    best = re.findall(r"<td class=\"[^\"]*best\"[^>]*><span><a[^>]*>(.*?)</a>", page(read_cells(cells)))
    assert best == [".600", ".650"]


def test_curves_have_whiskers_from_the_lowest_seed_to_the_highest():
    curve = Curve("a", [16, 32, 64], [0.5, 0.6, 0.7], spread=[(0.4, 0.6), (0.6, 0.6), (0.6, 0.9)])
    svg = line_chart([curve], title="t", x_label="x", y_label="y", x_marks=[16, 32, 64])
    paths = {a["class"].split()[0]: a["d"] for t, a in Balanced(svg).tags if t == "path"}
    whiskers = [a["d"] for t, a in Balanced(svg).tags if t == "path" and a["class"].startswith("whisker")]
    assert len(whiskers) == 2  # none where all seeds agree
    points = np.array([pair.split() for pair in re.split(r"[ML]", paths["line"])[1:]], dtype=float)
    pixels_of_a_unit = (points[0, 1] - points[2, 1]) / 0.2
    for d, i, low, high in ((whiskers[0], 0, 0.4, 0.6), (whiskers[1], 2, 0.6, 0.9)):
        (x, bottom), (_, top) = [tuple(map(float, pair.split())) for pair in re.split(r"[ML]", d)[1:3]]
        assert x == pytest.approx(points[i, 0], abs=0.11)
        assert bottom - top == pytest.approx((high - low) * pixels_of_a_unit, abs=0.5)
        assert points[0, 1] - bottom == pytest.approx((low - 0.5) * pixels_of_a_unit, abs=0.5)
    assert re.findall(r'class="tick mid">(\d+)<', svg) == ["16", "32", "64"]
    with pytest.raises(DistilhashError, match="spread"):
        Curve("a", [1, 2], [1, 2], spread=[(0, 1)])


def test_an_arm_keeps_its_line_whoever_is_beside_it():
    both = page(read_cells([*grid_of([0.6], [0.5], [0.8]), cell("scratch", 0.4, framework="dch")]))
    lines = re.findall(r'class="line c-(\w+)" stroke-dasharray="([^"]*)"', both)
    assert {arm: {dash for name, dash in lines if name == arm} for arm, _ in lines} == {
        "distilled": {"none"}, "scratch": {"7 4"}, "teacher_finetuned": {"9 4 2 4"},
    }  # fmt: skip


def test_figures_show_the_length_with_most_arms_not_the_best():
    cells = [*grid_of([0.3, 0.9], [0.2]), cell("teacher_frozen", 0.4, bits=16)]  # three arms at 16 bits, one at 64
    html = page(read_cells(cells), grid=SMALL)
    trade = html.split('id="trade-off"')[1].split("</section>")[0]
    assert "CSQ · 16 bits" in trade and "CSQ · 64 bits" not in trade
    assert ">+.100</text>" in trade
    assert trade.count('class="disc') == 2 * 3  # drawn wide, and again for a phone
    curves = html.split('id="precision-recall"')[1].split("</section>")[0]
    first, folded = curves.split("<details>")
    assert "CSQ · 16 bits" in first and "CSQ · 64 bits" in folded


def test_every_number_leads_to_its_record():
    cells = [*grid_of([0.6, 0.7], [0.5]), *grid_of([0.4], [0.3], dataset="mosaics")]
    parsed = Balanced(page(read_cells(cells)))
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    links = [a["href"][1:] for t, a in parsed.tags if t == "a"]
    assert len(ids) == len(set(ids)) and set(links) <= set(ids)
    assert len({link for link in links if link.startswith("run-")}) == 5
    titles = [a["title"] for t, a in parsed.tags if t == "a" and "title" in a]
    assert "cifar10, cifar10\nseeds: 0\npaper budget\n30 epochs\nLinux x86_64, 2 cores\ndistilhash reproduce" in titles
    assert "".join(parsed.text).count("distilhash reproduce") == 5


def test_hostile_text_stays_text():
    plain = Balanced(page(read_cells(hostile("text")), "text"))
    parsed = Balanced(page(read_cells(hostile(HOSTILE)), HOSTILE))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in parsed.tags]
    assert [list(a) for _, a in plain.tags] == [list(a) for _, a in parsed.tags]
    assert "".join(parsed.text).count(HOSTILE) >= 8


def test_the_page_asks_for_nothing():
    text = page(read_cells(grid_of([0.6], [0.5], [0.8])))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.split("<script>")[0])
    for tag, attributes in Balanced(text).tags:
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), tag
