"""Rows of results.json for the tests: a plain one, a grid of them, one with any text in every place."""

from distilhash.experiments.comparison import tables_of
from distilhash.experiments.page import Report, page
from distilhash.experiments.trials import Grid, read_trials

CURVES = {  # left out of a plain row, because each is drawn
    "curves": {"recall": [0.0, 0.5, 1.0], "precision": [0.9, 0.6, 0.1]},
    "precision_at_n": {"n": [1, 10, 100], "precision": [0.9, 0.8, 0.7]},
}
SMALL = Grid(arms=("distilled", "scratch"), frameworks=("csq",), bits=(16, 64))


def row(arm="distilled", value=0.6, at="all", **changes):
    student = arm in ("distilled", "scratch")
    values = {
        "arm": arm, "backbone": "v1" if student else "resnet50", "framework": "csq", "bits": 64, "seed": 0,
        "dataset": "cifar10", "protocol": "cifar10", f"map_at_{at}": value, "stable_map": 0.601,
        "chosen": {"epoch": 20, "map": 0.62}, "best_on_test": None, "precision_at_radius_2": 0.5, "seconds": 61.4,
        "parameters": 3_437_000 if student else 23_639_000, "macs": 1_000 if student else 4_000, "input_size": 224,
        "epochs": 30, "budget": "paper", "machine": "Linux x86_64, 2 cores", "command": "distilhash reproduce",
        "settings": {"hash": {"bits": 64, "gamma": 20.0}},
    }  # fmt: skip
    return {**values, **changes}


def tables(rows, grid=SMALL):
    return tables_of(read_trials(rows), grid)


def page_of(rows, grid=SMALL, title="t", **parts):
    return page(Report(title=title, trials=read_trials(rows), grid=grid, **parts))


def grid_of(distilled, scratch=(), teacher=(), arm="teacher_finetuned", **changes):
    columns = ((16, "csq"), (64, "csq"), (16, "dch"), (64, "dch"))
    found = []
    for name, values in (("distilled", distilled), ("scratch", scratch), (arm, teacher)):
        found += [row(name, v, bits=b, framework=f, **changes) for (b, f), v in zip(columns, values, strict=False)]
    return found


def hostile(text):
    return [row(arm, 0.5, backbone=text, framework=text, dataset=text, protocol=text, budget=text, machine=text,
                command=text, settings={text: text}) for arm in ("distilled", "scratch")]  # fmt: skip
