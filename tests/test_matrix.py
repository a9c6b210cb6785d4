"""The comparison: numbers in, tables and a page out; what is missing, what is marked, what is refused."""

import csv
import io
import json
import re

import numpy as np
import pytest

from comparison_cells import SMALL, cell, grid_of, hostile, tables
from distilhash.errors import DistilhashError
from distilhash.experiments.matrix import Grid, headline, settings_apart
from distilhash.experiments.matrix_page import page, write_matrix
from distilhash.experiments.matrix_text import csv_text, markdown_page, markdown_table
from distilhash.experiments.results import MISSING
from distilhash.experiments.trials import leaves, read_trials
from markup import Balanced

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def rows_of(markdown):
    """The cells of every table line, by what its first cell says; escaped bars do not part cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [[text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {cells[0]: cells[1:] for cells in split}


def text_of(html):
    return "".join(Balanced(html).text)


def test_mean_and_spread_over_seeds():
    values = [0.61, 0.5874, 0.6126]
    cells = [cell(value=value, seed=seed) for seed, value in enumerate(values)]
    markdown = markdown_table(cells, SMALL)
    assert rows_of(markdown)["arm"][1:3] == ["CSQ 16", "CSQ 64"]
    assert rows_of(markdown)["Distilled student"] == [
        "v1", MISSING, f"{np.mean(values):.3f} (0.587 to 0.613)", "3.437 M", "1.000 k",
    ]  # fmt: skip
    assert "mean over seeds (lowest to highest)" in markdown and "seeds 0, 1, 2" in markdown
    html = page(read_trials(cells), grid=SMALL)
    assert '<span><a href="#run-0-0-1" title="cifar10, cifar10\nseeds: 0, 1, 2' in html
    assert f".603</a></span><small>.587{MISSING}.613</small>" in html


def test_a_single_seed_has_no_spread_and_says_so():
    markdown = markdown_table([cell(value=0.5)], SMALL)
    assert rows_of(markdown)["Distilled student"][2] == "0.500"
    assert "one seed, so a small difference may be chance" in markdown
    assert "to highest" not in markdown
    html = page(read_trials([cell(value=0.5)]), grid=SMALL)
    assert 'class="whisker' not in html and "the highest of the seeds" not in html


def test_unequal_numbers_of_seeds_are_told_cell_by_cell():
    cells = [cell(value=0.5), cell(value=0.7, seed=1), cell(value=0.4, bits=16)]
    own = rows_of(markdown_table(cells, SMALL))["Distilled student"]
    assert own[1:3] == ["0.400 (1 seed)", "0.600 (0.500 to 0.700, 2 seeds)"]
    text = text_of(page(read_trials(cells), grid=SMALL))
    assert ".400n = 1" in text and f".600.500{MISSING}.700n = 2" in text


def test_missing_cells_are_dashes_and_counted():
    cells = [cell(), cell("scratch", None), cell("scratch", 0.4, bits=16)]
    assert f"2 of 4 cells are done; {MISSING} is not done yet" in markdown_table(cells, SMALL)
    assert rows_of(markdown_table(cells, SMALL))["Student from scratch"][1:3] == ["0.400", MISSING]
    parsed = Balanced(page(read_trials(cells), grid=SMALL))
    assert parsed.count("td", "none") == 2 * 2  # in the results, and in the table of chosen epochs
    assert "2 of 4" in "".join(parsed.text)
    assert "1 of 32 cells is done" in markdown_table([cell()])
    assert "0 of 32 cells are done" in markdown_table([cell(value=None)])
    assert "No distilled student is measured yet: 0 of 32 cells are done." in page(read_trials([cell(value=None)]))


def test_what_is_beyond_the_plan_is_shown():
    cells = [cell(bits=128), cell("teacher_frozen", 0.7), cell(backbone="v2", value=0.5)]
    (table,) = tables(cells)
    assert table.columns == [("csq", 16), ("csq", 64), ("csq", 128)]
    assert table.rows == [("distilled", "v1"), ("distilled", "v2"), ("scratch", ""), ("teacher_frozen", "resnet50")]
    text = text_of(page(read_trials(cells), grid=SMALL))
    assert "Distilled student, v2" in text  # two of one arm: the legend tells them apart


def test_several_labels_at_a_depth_are_a_table_of_their_own():
    cells = [cell(), cell("scratch", None), cell(at=5000, value=0.8, dataset="nuswide", protocol="nuswide"),
             cell("scratch", None, dataset="nuswide", protocol="nuswide")]  # fmt: skip
    first, second = tables(cells)
    assert (first.metric, first.name, first.planned) == ("mAP@all", "CIFAR-10, paper budget", 4)
    assert (second.metric, second.name, second.planned) == ("mAP@5000", "NUS-WIDE, paper budget", 4)
    markdown = markdown_table(cells, SMALL)
    assert "**NUS-WIDE, paper budget**: mAP@5000, protocol nuswide" in markdown
    html = page(read_trials(cells), grid=SMALL)
    assert "mAP@5000, expected" in html and "CSQ · NUS-WIDE, paper budget" in html
    assert [row["metric"] for row in csv.DictReader(io.StringIO(csv_text(read_trials(cells))))] == [
        "mAP@all",
        "mAP@5000",
    ]


def test_budgets_and_protocols_are_never_pooled():
    cells = [cell(value=0.1, budget="smoke"), cell(value=0.6), cell(value=0.7, protocol="cifar10-1")]
    found = tables(cells)
    assert [(t.budget, t.protocol) for t in found] == [
        ("paper", "cifar10"),
        ("paper", "cifar10-1"),
        ("smoke", "cifar10"),
    ]
    assert [entry.mean for table in found for entry in table.entries.values()] == [0.6, 0.7, 0.1]


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (grid_of([0.6] * 4, [0.5] * 4, [0.8] * 4),
         "The distilled student is above the same student from scratch in all 4 settings (+.100 on average) and"
         f" below the fine-tuned teacher in all 4 settings ({MINUS}.200 on average), with 4.0{TIMES} fewer"
         " multiply-adds than that teacher."),
        (grid_of([0.6, 0.4, 0.5, 0.6], [0.5] * 4), "from scratch in 2 of 4 settings (+.025 on average)."),
        (grid_of([0.3, 0.4, 0.5, 0.6], [0.5] * 4), f"from scratch in 1 of 4 settings ({MINUS}.050 on average)."),
        (grid_of([0.4] * 4, [0.5] * 4), f"is below the same student from scratch in all 4 settings ({MINUS}.100 on"),
        (grid_of([0.5002] * 4, [0.4998] * 4), "level with the same student from scratch in all 4 settings (±.000 on"),
        (grid_of([0.6], [0.5]), "is .100 above the same student from scratch at 16 bits with CSQ."),
        (grid_of([0.6], [], [0.5], arm="teacher_frozen"), "is .100 above the frozen teacher at 16 bits with CSQ, with"),
        (grid_of([0.6], [0.6]), "is level with the same student from scratch at 16 bits"),
        (grid_of([0.6], []), "reaches .600 mAP at 16 bits with CSQ; no rival of it is measured yet."),
        (grid_of([], [0.6]), "No distilled student is measured yet: 1 of 8 cells is done."),
        (grid_of([0.6], [0.5], budget="smoke"), "At the smoke budget, the distilled student is .100 above"),
        (grid_of([0.9], [0.1], budget="smoke") + grid_of([0.6], [0.5]), 
         "At the paper budget, the distilled student is .100 above the same student from scratch at 16 bits"),
        (grid_of([0.6], [0.5], backbone="v2") + grid_of([0.6], []), "is .100 above the same student from scratch at"),
        (grid_of([0.6], [], [0.8]) + grid_of([], [], [0.9], backbone="alexnet"), "no rival of it is measured yet"),
        (grid_of([0.6], settings={"distill": {"teacher": {"name": "alexnet"}}}) + grid_of([], [], [0.8])
         + grid_of([], [], [0.9], backbone="alexnet at 224 px"), "is .300 below the fine-tuned teacher"),
    ],
)  # fmt: skip
def test_the_headline_is_true_whichever_way_it_falls(cells, said):
    grid = Grid(arms=("distilled", "scratch"), frameworks=("csq", "dch"), bits=(16, 64))
    assert said in headline(tables(cells, grid))


def test_what_was_selected_on_the_test_set_is_marked_wherever_it_stands():
    plain = [cell(), cell("scratch", 0.5)]
    for text in (page(read_trials(plain)), markdown_page(tables(plain), "t")):
        assert "elected on" not in text and "‡" not in text
    tested = [cell(best_on_test={"epoch": 25, "map": 0.777}), cell("scratch", best_on_test={"epoch": 1, "map": 0.5})]
    html = page(read_trials(tested), grid=SMALL)
    assert "Selected on the test set: the epoch was picked by the very queries" in html
    shown = re.findall(r">([^<>]*\.777[^<>]*)<", html)
    assert shown == [".777‡", ".777, epoch 25"]
    assert 'data-label="selected on test set ‡">.777, epoch 25<' in html
    assert "best" not in re.findall(r"<td[^>]*><span><a[^>]*>\.777", html)[0]
    head, *lines = [
        line for line in markdown_page(tables(tested), "t").splitlines() if "last epoch |" in line or "0.777" in line
    ]
    assert head.endswith("| selected on the test set (optimistic) |")
    assert lines == ["| Distilled student | v1 | CSQ | 64 | 0.600 | 0.620 | 0.777 |"]
    (row, _) = csv.DictReader(io.StringIO(csv_text(read_trials(tested))))
    assert (row["test_selected_map"], row["validation_chosen_map"]) == ("0.777", "0.62")


def test_settings_are_told_once_and_what_differs_is_told_apart():
    settings = {"hash": {"bits": 64, "seed": 3, "mean": [1, 2]}, "stem": None}
    assert leaves(settings) == {"hash.bits": "64", "hash.seed": "3", "hash.mean": "1, 2", "stem": "None"}
    cells = [cell(settings=settings), cell("scratch", 0.5, settings={"hash": {"bits": 32, "mean": [1, 2]}})]
    entries = list(tables(cells)[0].entries.values())
    shared, apart = settings_apart(entries)
    assert shared == {"epochs": "30", "input side, pixels": "224", "hash.mean": "1, 2"}
    assert [apart[id(entry)] for entry in entries] == [{"hash.bits": "64"}, {"hash.bits": "32"}]


def test_seeds_with_different_settings_are_marked():
    same = [cell(settings={"seed": 0}), cell(seed=1, settings={"seed": 1})]
    assert "†" not in markdown_table(same)
    mixed = [cell(), cell(seed=1, epochs=3)]
    assert "0.600† (0.600 to 0.600)" in markdown_table(mixed)
    assert "† its seeds were run with different settings" in markdown_table(mixed)
    assert ".600†" in page(read_trials(mixed))


def test_hostile_text_breaks_no_table(tmp_path):
    text = "a|b\n| c | [x](y) <i> =1"
    markdown = markdown_page(tables(hostile(text)), text)
    assert "<i>" not in markdown and "[x](" not in markdown
    assert len({len(cells) for cells in rows_of(markdown.split("last epoch")[0]).values()}) == 1
    write_matrix(hostile('=1+1, "x"\n'), tmp_path)
    rows = list(csv.DictReader((tmp_path / "cells.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 2
    assert rows[0]["backbone"] == '\'=1+1, "x"\n'  # the mark keeps a spreadsheet from running it


def test_files_hold_the_numbers_and_a_mistake_leaves_them_alone(tmp_path):
    cells = json.loads(json.dumps([cell(value=0.123456789), cell("scratch", None), cell("scratch", 0.1, bits=16)]))
    write_matrix(cells, tmp_path / "new", "A title", SMALL)
    folder = tmp_path / "new"
    assert sorted(path.name for path in folder.iterdir()) == ["cells.csv", "index.html", "table.md"]
    rows = list(csv.DictReader((folder / "cells.csv").open(encoding="utf-8", newline="")))
    assert [float(row["expected_map_last_epoch"]) for row in rows] == [0.123456789, 0.1]
    assert (rows[0]["parameters"], rows[0]["seconds"], rows[0]["test_selected_map"]) == ("3437000", "61.4", "")
    assert json.loads(rows[0]["settings"]) == cells[0]["settings"]
    assert (folder / "table.md").read_text(encoding="utf-8").startswith("# A title\n")
    assert markdown_table(cells, SMALL) in (folder / "table.md").read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for mistake in ([], [cell(value=2.0)]):
        with pytest.raises(DistilhashError):
            write_matrix(mistake, folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": "teacher"}, "teacher_frozen"),
        ({"backbone": ""}, "backbone"),
        ({"bits": 0}, "bits"),
        ({"bits": "64"}, "bits"),
        ({"seed": True}, "seed"),
        ({"map_at_all": 1.5}, "map_at_all"),
        ({"map_at_all": "0.5"}, "map_at_all"),
        ({"seconds": float("inf")}, "seconds"),
        ({"protocol": None}, "protocol"),
        ({"chosen": {"map": 0.5}}, "epoch"),
        ({"chosen": [1, 0.5]}, "chosen"),
        ({"settings": "none"}, "settings"),
        ({"curves": {"recall": [0.0, 1.0], "precision": [0.5]}}, "curves"),
        ({"curves": {"recall": [0.0], "precision": ["x"]}}, "precision"),
        ({"map_at_5000": 0.1, "map_at_100": 0.1}, "more than one mAP"),
    ],
)
def test_an_unsound_cell_is_refused_by_name(changes, said):
    with pytest.raises(DistilhashError, match=said):
        read_trials([cell(**changes)])


def test_one_run_twice_is_refused():
    with pytest.raises(DistilhashError, match="twice"):
        read_trials([cell(), cell(value=0.7)])
    with pytest.raises(DistilhashError, match="object"):
        read_trials([["arm"]])
    assert len(read_trials([cell(value=None), cell()])) == 2  # planned, and done
