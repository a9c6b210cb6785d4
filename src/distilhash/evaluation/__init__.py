"""What retrieval by codes is worth: metrics (arrays in, numbers out). Evaluation reads codes, never models.

Only what needs NumPy alone is imported here; whoever profiles a network imports ``distilhash.evaluation.profile``.
"""

from distilhash.evaluation.metrics import (
    RadiusCurve,
    RankCurve,
    average_precision,
    mean_average_precision,
    precision_at,
    precision_recall,
    relevant_share,
)

__all__ = [
    "RadiusCurve",
    "RankCurve",
    "average_precision",
    "mean_average_precision",
    "precision_at",
    "precision_recall",
    "relevant_share",
]
