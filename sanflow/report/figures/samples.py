"""Choose the test images of a contact sheet by a rule, the same for each experiment."""

from collections.abc import Sequence

import numpy as np

MOST = 8


def choose_samples(defect_types: Sequence[str], scores: np.ndarray, most: int = MOST) -> list[int]:
    """Choose test images: per kind of defect the one of median score, then its hardest; one or two good ones.

    Arguments:
        defect_types: Per image, "good" where there is none.
        scores: (N,) image scores of the first experiment.
        most: How many images at most.

    Returns:
        Good ones first, then by kind of defect.

    Example:
        >>> choose_samples(["good", "hole", "hole", "hole", "good"], np.array([0.1, 0.5, 0.9, 0.7, 0.3]), most=4)
        [0, 4, 3, 1]
    """
    kinds = sorted(set(defect_types) - {"good"})
    by_kind = {
        kind: sorted((i for i, own in enumerate(defect_types) if own == kind), key=lambda i: float(scores[i]))
        for kind in ["good", *kinds]
    }
    # A good image is hard where its score is high, a defective one where it is low.
    ranked = {
        kind: [members[(len(members) - 1) // 2], *(reversed(members) if kind == "good" else members)]
        for kind, members in by_kind.items()
        if members
    }
    chosen: dict[str, list[int]] = {kind: [] for kind in ranked}
    for place in range(most):
        for kind, members in ranked.items():
            if sum(map(len, chosen.values())) >= most or (kind == "good" and len(chosen[kind]) == 2):
                continue
            new = [i for i in members if i not in chosen[kind]]
            if new and len(chosen[kind]) <= place:
                chosen[kind].append(new[0])
    return [i for members in chosen.values() for i in members]
