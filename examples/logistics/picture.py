"""The picture of a run: the legs, the tours of one round, and what the predictions are worth."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from check import Findings

NEW_YORK = (-73.9, 40.7)


def draw(found: Findings, file: Path) -> None:
    """Write the picture as SVG; its coordinates are longitude and latitude."""
    import matplotlib as mpl  # 300 ms: only at the end of a run

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, (legs, tours, errors) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    depots = Counter((row["depot"], row["lon"], row["lat"]) for row in found.rows["rounds"])
    for number, ((depot, lon, lat), rounds) in enumerate(sorted(depots.items())):
        width = 5 * rounds / max(depots.values())
        legs.plot((NEW_YORK[0], lon), (NEW_YORK[1], lat), "C0-", lw=width, alpha=0.6)
        legs.annotate(f"{depot} {rounds}", (lon, lat), va=("top", "bottom")[number % 2])
    legs.plot(*NEW_YORK, "k*", ms=12)
    legs.set(title="rounds at each depot, flown in from New York", aspect=1.3)
    row = max(found.rows["rounds"], key=lambda each: (each["version"], each["round_id"]))
    home = (row["lon"], row["lat"])
    places = {stop["parcel_id"]: (stop["lon"], stop["lat"]) for stop in json.loads(row["stops"])}
    plans = [each for each in found.rows["plans"] if each["round_id"] == row["round_id"]]
    for route in json.loads(plans[0]["routes"]) if plans else ():
        line = [home, *(places[parcel] for parcel in route["parcels"]), home]
        tours.plot(*zip(*line, strict=True), "o-", ms=4, label=route["van"])
    tours.set(title=f"{row['round_id']}: the first of {len(plans)} plans", aspect=1.3)
    tours.legend()
    for by, label in (("lands", "timetable"), ("eta", "learned")):
        off = sorted(abs(row["landed"] - row[by]) / 60 for row in found.rows["predictions"])
        errors.plot(off, [100 * n / len(off) for n in range(1, len(off) + 1)], label=label)
    errors.set(title="error of the arrival", xlabel="minutes", ylabel="% of legs", xlim=(0, 120))
    errors.legend()
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)
    plt.close(figure)
