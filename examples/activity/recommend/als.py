"""The challenger: items are alike if the same people look at them, by alternating least squares."""

from __future__ import annotations

from collections.abc import Sequence

FACTORS = 32
LIKE = 20
"""Similar items of each one that are kept."""


def similar(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Return for each item those most like it, with their cosine, from (person, item)."""
    import numpy as np  # heavy, and needed once in a night
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    people, rows = np.unique([person for person, _ in pairs], return_inverse=True)
    items, columns = np.unique([item for _, item in pairs], return_inverse=True)
    shape = (len(people), len(items))
    ones = np.ones(len(pairs), dtype=np.float32)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=FACTORS, random_state=1, num_threads=1)
        model.fit(csr_matrix((ones, (rows, columns)), shape), show_progress=False)
        found, scores = model.similar_items(np.arange(len(items)), N=min(LIKE + 1, len(items)))
    return {
        str(items[item]): {
            str(items[other]): round(float(score), 4)
            for other, score in zip(found[item], scores[item], strict=True)
            if other != item and score > 0
        }
        for item in range(len(items))
    }
