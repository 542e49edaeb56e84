"""A reward model that knows only the surface of a text: logistic regression on six features, fitted in a second on a
CPU.

It learns from preferences what such data teach (longer, more lists, closer to the instruction's words), does well on
other preferences and falls far below chance on Adversarial: the effect of the paper's table 3, whose 7B reward models
score 68-70 % on Natural and 31-38 % on Adversarial.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from llmbar.data import Instance

FEATURES = ("log words", "newlines", "list items", "similarity to the instruction", "type-token ratio", "word length")
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE)


class PreferenceModel:
    """Bradley-Terry on surface features: P(output_1 preferred) = sigmoid(w . (f_1 - f_2)), without an intercept."""

    def __init__(self) -> None:
        self._tfidf = TfidfVectorizer(sublinear_tf=True)
        # Scaled without centring: only differences matter, and a centre would cancel in them.
        self._scale = StandardScaler(with_mean=False)
        self._regression = LogisticRegression(fit_intercept=False, max_iter=1000)

    def fit(self, instances: Sequence[Instance]) -> PreferenceModel:
        """Fit on labelled pairs, each used in both signs so that the position carries nothing.

        Raises ValueError for fewer than two instances.
        """
        if len(instances) < 2:
            raise ValueError(f"a preference model needs at least two labelled pairs, not {len(instances)}")
        self._tfidf.fit([text for one in instances for text in (one.input, one.output_1, one.output_2)])
        features = self.features(instances)
        self._scale.fit(features.reshape(-1, features.shape[-1]))
        differences = (features[:, 0] - features[:, 1]) / self._scale.scale_
        preferred = np.array([one.label == 1 for one in instances])
        self._regression.fit(np.concatenate([differences, -differences]), np.concatenate([preferred, ~preferred]))
        return self

    def values(self, instances: Sequence[Instance]) -> np.ndarray:
        """(n, 2) rewards of output_1 and output_2."""
        return (self.features(instances) / self._scale.scale_) @ self._regression.coef_[0]

    @property
    def weights(self) -> dict[str, float]:
        """Feature -> weight, in standard deviations of the feature: what it has learned to like."""
        return dict(zip(FEATURES, map(float, self._regression.coef_[0]), strict=True))

    def features(self, instances: Sequence[Instance]) -> np.ndarray:
        """(n, 2, features), in the order of `FEATURES`."""
        inputs = self._tfidf.transform([one.input for one in instances])
        both = []
        for texts in ([one.output_1 for one in instances], [one.output_2 for one in instances]):
            outputs = self._tfidf.transform(texts)
            similarity = np.asarray(inputs.multiply(outputs).sum(axis=1)).ravel()
            both.append(np.column_stack([[_surface(text) for text in texts], similarity])[:, [0, 1, 2, 5, 3, 4]])
        return np.stack(both, axis=1)


def _surface(text: str) -> tuple[float, float, float, float, float]:
    """log words, newlines, list items, type-token ratio, mean word length."""
    words = text.split()
    distinct = len({word.lower() for word in words}) / len(words) if words else 0.0
    length = sum(map(len, words)) / len(words) if words else 0.0
    return float(np.log1p(len(words))), text.count("\n"), len(_LIST_ITEM.findall(text)), distinct, length
