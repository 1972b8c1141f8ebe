"""The challenger: items are alike if the same people look at them, by alternating least squares."""

from __future__ import annotations

from collections.abc import Sequence

FACTORS, LIKE = 32, 20
"""What each item is described by, and the similar items of each one that are kept."""


def similar(pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Return for each item those most like it, with their cosine, from (person, item)."""
    import numpy as np  # heavy, and needed once in a night
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    _, people = np.unique([person for person, _ in pairs], return_inverse=True)
    items, columns = np.unique([item for _, item in pairs], return_inverse=True)
    seen = csr_matrix((np.ones(len(pairs), dtype=np.float32), (people, columns)))
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(factors=FACTORS, random_state=1, num_threads=1)
        model.fit(seen, show_progress=False)
        found, scores = model.similar_items(np.arange(len(items)), N=min(LIKE + 1, len(items)))
    near: dict[str, dict[str, float]] = {}
    rows = zip(items.tolist(), items[found].tolist(), scores.tolist(), strict=True)
    for item, others, likes in rows:
        likely = dict(zip(others, likes, strict=True))
        near[item] = {each: round(like, 4) for each, like in likely.items() if like > 0}
        near[item].pop(item, None)
    return near
