"""Trials in, tables and a headline out: what is missing, what is marked, what is refused."""

import csv
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from distilhash.errors import DistilhashError
from distilhash.experiments.comparison import MISSING, Findings, leaves, pairs_of, settings_apart
from distilhash.experiments.page import Report, write_report
from distilhash.experiments.tables import csv_text, markdown_page, markdown_table, terminal_table
from distilhash.experiments.trials import PAPER, Grid, read_trials
from markup import Balanced
from trial_rows import CURVES, SMALL, grid_of, hostile, page_of, row, tables

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def rows_of(markdown):
    """The texts of every table line, by what its first one says; escaped bars do not part them."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    split = [[text.strip() for text in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {texts[0]: texts[1:] for texts in split}


def text_of(html):
    return re.sub(r"\n+", "", "".join(Balanced(html).text))


def report_of(rows, **parts):
    return Report(title="A title", trials=read_trials(rows), **parts)


def test_mean_and_spread_over_seeds():
    values = [0.61, 0.5874, 0.6126]
    rows = [row(value=value, seed=seed) for seed, value in enumerate(values)]
    markdown = markdown_table(rows, SMALL)
    assert rows_of(markdown)["method"][1:3] == ["CSQ 16", "CSQ 64"]
    assert rows_of(markdown)["Distilled student"] == [
        "v1", MISSING, f"{np.mean(values):.3f} (0.587 to 0.613)", "3.437 M", "1.000 k",
    ]  # fmt: skip
    assert "seeds 0, 1, 2" in markdown
    for grid in (SMALL, Grid()):  # the matrix of code lengths, and the table of one
        html = page_of(rows, grid)
        assert f".603.587{MISSING}.613" in text_of(html)
        assert 'href="#trial-0-0-' in html


def test_a_single_seed_has_no_spread():
    markdown = markdown_table([row(value=0.5)], SMALL)
    assert rows_of(markdown)["Distilled student"][2] == "0.500"
    assert "to highest" not in markdown
    assert "stroke-opacity" not in page_of([row(value=0.5)])  # no whisker


def test_unequal_numbers_of_seeds_are_told_at_each_entry():
    rows = [row(value=0.5), row(value=0.7, seed=1), row(value=0.4, bits=16)]
    own = rows_of(markdown_table(rows, SMALL))["Distilled student"]
    assert own[1:3] == ["0.400 (1 seed)", "0.600 (0.500 to 0.700, 2 seeds)"]
    text = text_of(page_of(rows))
    assert ".400n = 1" in text and f".600.500{MISSING}.700n = 2" in text


def test_missing_entries_are_dashes_and_counted():
    rows = [row(), row("scratch", None), row("scratch", 0.4, bits=16)]
    assert "2 of 4 " in markdown_table(rows, SMALL)
    assert rows_of(markdown_table(rows, SMALL))["Student from scratch"][1:3] == ["0.400", MISSING]
    parsed = Balanced(page_of(rows))
    assert parsed.count("td", "none") == 2 * 2  # in the results, and in the table of selected epochs
    assert "2 of 4" in "".join(parsed.text)
    assert "1 of 32 " in markdown_table([row()])
    assert "0 of 32 " in markdown_table([row(value=None)])
    assert "0 of 32 " in page_of([row(value=None)], PAPER)


def test_without_a_grid_the_trials_are_the_plan():
    rows = [row(), row("scratch", None), row("teacher_frozen", 0.7), row(framework="dch")]
    (table,) = tables(rows, Grid())
    assert (len(table.entries), len(table.planned)) == (3, 4)
    parsed = Balanced(page_of(rows, Grid()))
    assert parsed.count("td", "none") >= 1  # planned, and not done
    assert "3 of 4" in "".join(parsed.text)


def test_what_is_beyond_the_plan_is_shown():
    rows = [row(bits=128, **CURVES), row("teacher_frozen", 0.7), row(backbone="v2", value=0.5)]
    (table,) = tables(rows)
    assert table.columns == [("csq", 16), ("csq", 64), ("csq", 128)]
    assert table.rows == [("distilled", "v1"), ("distilled", "v2"), ("scratch", ""), ("teacher_frozen", "resnet50")]
    assert "Distilled student, v2" in text_of(page_of(rows))  # two of one arm: the legend tells them apart


def test_several_labels_at_a_depth_are_a_table_of_their_own():
    rows = [row(), row("scratch", None), row(at=5000, value=0.8, dataset="nuswide", protocol="nuswide"),
            row("scratch", None, dataset="nuswide", protocol="nuswide")]  # fmt: skip
    first, second = tables(rows)
    assert (first.metric, first.name, len(first.planned)) == ("mAP@all", "CIFAR-10, paper budget", 4)
    assert (second.metric, second.name, len(second.planned)) == ("mAP@5000", "NUS-WIDE, paper budget", 4)
    assert "**NUS-WIDE, paper budget**: mAP@5000, protocol nuswide" in markdown_table(rows, SMALL)
    html = page_of(rows)
    assert "mAP@5000, expected" in html and "CSQ · NUS-WIDE, paper budget" in html
    metrics = [line["metric"] for line in csv.DictReader(io.StringIO(csv_text(read_trials(rows))))]
    assert metrics == ["mAP@all", "mAP@5000"]


def test_budgets_and_protocols_are_never_pooled():
    rows = [row(value=0.1, budget="smoke"), row(value=0.6), row(value=0.7, protocol="cifar10-1")]
    found = tables(rows)
    assert [(t.budget, t.protocol) for t in found] == [
        ("paper", "cifar10"),
        ("paper", "cifar10-1"),
        ("smoke", "cifar10"),
    ]
    assert [entry.mean for table in found for entry in table.entries.values()] == [0.6, 0.7, 0.1]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (grid_of([0.6] * 4, [0.5] * 4, [0.8] * 4),
         "The distilled student is above the same student from scratch in all 4 settings (+.100 on average) and"
         f" below the fine-tuned teacher in all 4 settings ({MINUS}.200 on average), with 4.0{TIMES} fewer"
         " multiply-adds than that teacher."),
        (grid_of([0.6, 0.4, 0.5, 0.6], [0.5] * 4), "from scratch in 2 of 4 settings (+.025 on average)."),
        (grid_of([0.3, 0.4, 0.5, 0.6], [0.5] * 4), f"from scratch in 1 of 4 settings ({MINUS}.050 on average)."),
        (grid_of([0.4] * 4, [0.5] * 4), f"is below the same student from scratch in all 4 settings ({MINUS}.100 on"),
        (grid_of([0.5002] * 4, [0.4998] * 4), "level with the same student from scratch in all 4 settings (±.000 on"),
        (grid_of([0.573], [0.456], [0.77], arm="teacher_frozen"),
         f"The distilled student reaches .573 mAP at 16 bits with CSQ, with 4.0{TIMES} fewer multiply-adds than its"
         " teacher: .117 above the same student from scratch and .197 below the frozen teacher."),
        (grid_of([0.4], [0.456], [0.3]), ": .056 below the same student from scratch and .100 above the fine-tuned"),
        (grid_of([0.6], [], [0.5], macs=700), "with as many multiply-adds as its teacher: .100 above"),
        ([*grid_of([0.6]), row("teacher_frozen", 0.5, bits=16, macs=650)], f"with 1.5{TIMES} more multiply-adds than"),
        ([*grid_of([0.6]), row("teacher_frozen", 0.5, bits=16, macs=None)], "with CSQ: .100 above the frozen teacher."),
        (grid_of([0.6], [0.6]), "level with the same student from scratch."),
        (grid_of([0.50051], [0.50049]), ".001 above"),  # what is compared is .501 and .500, the digits shown
        ([row(value=0.5), row(value=0.6, seed=1), row("scratch", 0.5)],
         "reaches .550 mAP (mean of 2 seeds) at 64 bits with CSQ: .050 above the same student"),
        (grid_of([0.6, 0.9], []), "reaches .600 mAP at 16 bits with CSQ; no baseline"),  # the first, not the best
        (grid_of([], [0.6]), "No distilled student is measured yet: 1 of 8 "),
        (grid_of([0.6], [0.5], budget="smoke"), "At the smoke budget, the distilled student reaches .600"),
        (grid_of([0.9], [0.1], budget="smoke") + grid_of([0.6], [0.5]),
         "At the paper budget, the distilled student reaches .600 mAP at 16 bits with CSQ: .100 above the same"),
        (grid_of([0.6], [0.5], backbone="v2") + grid_of([0.7], []), "reaches .600 mAP at 16 bits with CSQ: .100 above"),
        (grid_of([0.6], [], [0.8]) + grid_of([], [], [0.9], backbone="alexnet"), "no baseline"),
        (grid_of([0.6], settings={"distill": {"teacher": {"name": "alexnet"}}}) + grid_of([], [], [0.8])
         + grid_of([], [], [0.9], backbone="alexnet at 224 px"), ": .300 below the fine-tuned teacher"),
        ([*grid_of([0.6, 0.7], [0.5], []), row("teacher_frozen", 0.8)],
         "is .100 above the same student from scratch at 16 bits with CSQ and .100 below the frozen teacher at 64"),
    ],
)  # fmt: skip
def test_the_headline_is_true_whichever_way_it_falls(rows, said):
    grid = Grid(arms=("distilled", "scratch"), frameworks=("csq", "dch"), bits=(16, 64))
    assert said in Findings(tables(rows, grid)).headline()


@pytest.mark.parametrize("splits", [(4, 4), (None, None), (1, 2)])
def test_the_interval_of_a_difference_is_paired_over_queries(splits):
    """Of queries that differ far more than the hashers do; against a bootstrap of the queries."""
    draw = np.random.default_rng(0)
    hard = draw.uniform(0.2, 0.7, 300)
    rows, differences = [], []
    for seed, split in enumerate(splits):
        ours = hard + draw.normal(0.05, 0.02, 300)
        differences.append(ours - hard)
        for arm, values in (("distilled", ours), ("scratch", hard)):
            rows.append(row(arm, values.mean(), seed=seed, split_seed=split, average_precision=values.tolist()))
    (pair,) = pairs_of(tables(rows), "scratch")
    of_query = np.mean(differences, axis=0) if splits == (4, 4) else np.concatenate(differences)
    means = of_query[draw.integers(0, len(of_query), (4000, len(of_query)))].mean(axis=1)
    assert pair.interval == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=3e-4)
    assert pair.interval[1] - pair.interval[0] < 0.01 < 2 * 1.96 * np.std(hard) / 300**0.5
    assert "95%" in Findings(tables(rows)).headline()
    del rows[-1]["average_precision"]  # not known of one seed: no interval
    assert pairs_of(tables(rows), "scratch")[0].interval is None


def test_the_facts_are_the_numbers_of_the_headline():
    facts = Findings(tables(grid_of([0.6], [0.5], [0.8]), Grid())).facts()
    assert [number for number, _ in facts] == [".600", "+.100", "75 %", "25 %", "15 %"]
    facts = Findings(tables(grid_of([0.6, 0.5], [0.5, 0.6], [0.8, 0.8]), SMALL)).facts()
    assert [number for number, _ in facts] == ["6 of 6", "±.000", "69 %", "25 %", "15 %"]


def test_what_was_selected_on_the_test_set_is_marked_wherever_it_stands():
    plain = [row(), row("scratch", 0.5)]
    for text in (page_of(plain), markdown_page(tables(plain), "t")):
        assert "test set" not in text and "‡" not in text
    tested = [row(best_on_test={"epoch": 25, "map": 0.777}), row("scratch", best_on_test={"epoch": 1, "map": 0.5})]
    html = page_of(tested)
    assert "optimistic" in html
    shown = re.findall(r">([^<>]*\.777[^<>]*)<", html)
    assert shown == [".777‡", ".777, epoch 25"]
    assert 'data-label="selected on test set ‡">.777, epoch 25<' in html
    assert "best" not in re.findall(r"<td[^>]*>\s*<span><a[^>]*>\.777", html)[0]
    head, *lines = [
        line for line in markdown_page(tables(tested), "t").splitlines() if "last epoch |" in line or "0.777" in line
    ]
    assert "optimistic" in head.split("|")[-2]
    assert lines == ["| Distilled student | v1 | CSQ | 64 | 0.600 | 0.620 | 0.777 |"]
    (line, _) = csv.DictReader(io.StringIO(csv_text(read_trials(tested))))
    assert (line["test_selected_map"], line["validation_chosen_map"]) == ("0.777", "0.62")


def test_settings_are_told_once_and_what_differs_is_told_apart():
    settings = {"hash": {"bits": 64, "seed": 3, "mean": [1, 2]}, "stem": None}
    assert leaves(settings) == {"hash.bits": "64", "hash.seed": "3", "hash.mean": "1, 2", "stem": "None"}
    rows = [row(settings=settings), row("scratch", 0.5, settings={"hash": {"bits": 32, "mean": [1, 2]}})]
    shared, apart = settings_apart(tables(rows)[0].entries)
    assert shared == {"epochs": "30", "input side, pixels": "224", "hash.mean": "1, 2"}
    assert list(apart.values()) == [{"hash.bits": "64"}, {"hash.bits": "32"}]


def test_seeds_with_different_settings_are_marked():
    same = [row(settings={"seed": 0}), row(seed=1, settings={"seed": 1})]
    assert "†" not in markdown_table(same)
    mixed = [row(), row(seed=1, epochs=3)]
    assert "0.600† (0.600 to 0.600)" in markdown_table(mixed)
    for grid in (SMALL, Grid()):
        assert ".600†" in page_of(mixed, grid)


def test_hostile_text_breaks_no_table(tmp_path):
    text = "a|b\n| c | [x](y) <i> =1"
    markdown = markdown_page(tables(hostile(text)), text)
    assert "<i>" not in markdown and "[x](" not in markdown
    assert len({len(texts) for texts in rows_of(markdown.split("last epoch")[0]).values()}) == 1
    write_report(report_of(hostile('=1+1, "x"\n')), tmp_path)
    rows = list(csv.DictReader((tmp_path / "trials.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 2
    assert rows[0]["backbone"] == '\'=1+1, "x"\n'  # the mark keeps a spreadsheet from running it


def test_files_hold_the_numbers_and_a_mistake_leaves_them_alone(tmp_path):
    rows = json.loads(json.dumps([row(value=0.123456789), row("scratch", None), row("scratch", 0.1, bits=16)]))
    folder = tmp_path / "new"
    write_report(report_of(rows, grid=SMALL), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "table.md", "trials.csv"]
    lines = list(csv.DictReader((folder / "trials.csv").open(encoding="utf-8", newline="")))
    assert [float(line["expected_map_last_epoch"]) for line in lines] == [0.123456789, 0.1]
    assert (lines[0]["parameters"], lines[0]["seconds"], lines[0]["test_selected_map"]) == ("3437000", "61.4", "")
    assert json.loads(lines[0]["settings"]) == rows[0]["settings"]
    assert (folder / "table.md").read_text(encoding="utf-8").startswith("# A title\n")
    assert markdown_table(rows, SMALL) in (folder / "table.md").read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DistilhashError):
        write_report(report_of([]), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    write_report(report_of(rows, grid=SMALL), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before  # the same trials, the same bytes


def test_the_terminal_table_shows_every_number_in_any_width():
    rows = [*grid_of([0.6], [0.5]), row(backbone="a\x1b[31m", seconds=12345)]
    for width in (80, 200):
        console = Console(file=io.StringIO(), width=width)
        console.print(terminal_table(read_trials(rows)))
        text = console.file.getvalue()
        assert "\x1b" not in text and "…" not in text and "12,345" in text
        scratch = next(line for line in text.splitlines() if re.search(r" 0 \.500 ", line))
        assert " ".join(scratch.split()).endswith("CSQ 16 0 .500 .601 .500 3.437 M 1.000 k 61")
    assert "a?[31m" in text


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
        ({"parameters": 10**400}, "parameters"),  # more than a float holds
        ({"macs": 1e308}, "macs"),  # the sum of two would be infinite
        ({"protocol": None}, "protocol"),
        ({"chosen": {"map": 0.5}}, "epoch"),
        ({"chosen": [1, 0.5]}, "chosen"),
        ({"settings": "none"}, "settings"),
        ({"curves": {"recall": [0.0, 1.0], "precision": [0.5]}}, "curves"),
        ({"curves": {"recall": [0.0], "precision": ["x"]}}, "precision"),
        ({"map_at_5000": 0.1, "map_at_100": 0.1}, "map_at_5000"),
    ],
)
def test_an_unsound_row_is_refused_by_name(changes, said):
    with pytest.raises(DistilhashError, match=said):
        read_trials([row(**changes)])


def test_one_trial_twice_is_refused():
    with pytest.raises(DistilhashError, match="seed 0"):
        read_trials([row(), row(value=0.7)])
    with pytest.raises(DistilhashError, match="list"):
        read_trials([["arm"]])
    assert len(read_trials([row(value=None), row()])) == 2  # planned, and done
