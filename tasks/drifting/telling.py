"""Try to tell new images from old ones: a classifier that cannot do better than chance has found no difference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from threadpoolctl import threadpool_limits

CONFIDENCE = 0.95
MOST = 2_000
"""The most images of each kind that are used."""
_FOLDS = 5
_SEED = 20_002
_C = 0.01
"""How strongly the weights of 200 features are held near 0, so that 100 images are enough."""


@dataclass(frozen=True)
class Told:
    """How well new images are told from old ones."""

    p: float
    """The probability of at least this AUC, in [0, 1], if both are samples of the same distribution."""
    auc: float
    """The probability that of a new and an old image the new one looks newer; 0.5: they cannot be told apart."""
    low: float
    """The lower end of the 95% interval of `auc`."""
    high: float
    newness: np.ndarray
    """float64, shape (new images,): how new each looks, in [0, 1], to a classifier that has not seen it."""


def tell(old: np.ndarray, new: np.ndarray) -> Told:
    """Fit a logistic regression on four fifths of the images, and score the others; five times.

    The variance of each AUC is DeLong's. That of their mean is taken as twice what it would be of independent ones:
    each image that is scored is fitted on in the other folds, so that by chance all scores rise or fall together; for a
    linear score the variance is just doubled.

    Args:
        old: features, float32 of shape (n, features), finite.
        new: the same of new images, at most a few thousand.

    Source: D. Lopez-Paz and M. Oquab 2017, ICLR (the test); E. R. DeLong et al. 1988, Biometrics 44, 837-845.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    features = np.concatenate([old, new])
    is_new = np.repeat([0, 1], [len(old), len(new)])
    middle, scale = features.mean(axis=0), features.std(axis=0)
    features = ((features - middle) / np.where(scale > 0, scale, 1)).astype(np.float64)
    newness, areas, variances = np.empty(len(features)), list[float](), list[float]()
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    # After the imports: the limit is for libraries that are loaded.
    with threadpool_limits(1, "blas"):
        for fitted, scored in folds.split(features, is_new):
            model = LogisticRegression(C=_C, solver="newton-cholesky", class_weight="balanced")
            model.fit(features[fitted], is_new[fitted])
            newness[scored] = model.predict_proba(features[scored])[:, 1]
            area, variance = delong(newness[scored][is_new[scored] == 0], newness[scored][is_new[scored] == 1])
            areas.append(area)
            variances.append(variance)
    auc = float(np.mean(areas))
    # Never 0, even if both are told apart without a mistake: one of them might have been made.
    deviation = max(math.sqrt(2 * sum(variances)) / _FOLDS, 1 / (2 * min(len(old), len(new))))
    normal = NormalDist()
    half = normal.inv_cdf((1 + CONFIDENCE) / 2) * deviation
    p = normal.cdf((0.5 - auc) / deviation)
    return Told(p, auc, max(0.0, auc - half), min(1.0, auc + half), newness[len(old) :])


def delong(negative: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Return the area under the ROC curve of scores, and its variance; each of the two kinds has at least two.

    Source: X. Sun and W. Xu 2014, IEEE Signal Processing Letters 21, 1389-1393 (by ranks).
    """
    from scipy.stats import rankdata

    rows, others = len(positive), len(negative)
    together = rankdata(np.concatenate([positive, negative]))
    of_positive = (together[:rows] - rankdata(positive)) / others
    of_negative = 1 - (together[rows:] - rankdata(negative)) / rows
    variance = of_positive.var(ddof=1) / rows + of_negative.var(ddof=1) / others
    return float(of_positive.mean()), float(variance)
