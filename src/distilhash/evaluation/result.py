"""What an evaluation found: its numbers by name, and each query behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distilhash.codes import CodeTable
from distilhash.errors import DistilhashError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Evaluation(dict[str, Any]):
    """Metrics by name, as of evaluate_tables but for its lists, which are attributes and methods here.

    Attributes:
        average_precision: (Q,) expected average precision of each query, over K ranks where ``at`` is given.
        curve: precision and recall by Hamming radius, and precision of the first n images.
        per_class: mean average precision of the queries of each class, by its name; a query of several counts in each.
    """

    def __init__(self, metrics: dict[str, Any], query: CodeTable) -> None:
        super().__init__(metrics)
        self.curve: dict[str, list[float]] = self.pop("curve")
        self.average_precision: NDArray[np.float64] = np.array(self.pop("average_precision"))
        self._names, labels = query.names, np.asarray(query.labels)
        classes = range(labels.shape[1]) if labels.ndim == 2 else np.unique(labels).tolist()
        of = {c: labels[:, c] == 1 if labels.ndim == 2 else labels == c for c in classes}
        self.per_class = {
            query.class_names[c] if len(query.class_names) else str(c): float(self.average_precision[queries].mean())
            for c, queries in of.items()
            if queries.any()
        }

    def worst(self, n: int = 10) -> list[tuple[str, float]]:
        """Name and average precision of the n queries that find least, the worst first."""
        return [(self._names[i], float(self.average_precision[i])) for i in self.average_precision.argsort()[:n]]

    def plot(self) -> Figure:
        """Precision against recall, by Hamming radius, as a figure of matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise DistilhashError("a plot needs matplotlib", error, "pip install matplotlib") from error
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.plot(self.curve["recall"], self.curve["precision"], marker=".")
        axes.set_title(f"{self['bits']} bits, mAP {self['map_at_all']:.3f}")
        return figure
