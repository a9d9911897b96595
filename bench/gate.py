"""The gate's promises, simulated with the very code that judges real runs; see doc/gate.md.

    .venv/bin/python -m bench.gate [--trials 400] [--seed 0]

Exits with 1 where a promise is broken. Shares come with Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
import time

from app.training.gate.simulate import SCENARIOS
from app.training.gate.statistics import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--trials", type=int, default=400, help="Simulated runs of each promise; series count twenty runs each."
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| simulated | share | 95 % interval | trials | promised |\n|---|---|---|---|---|")
    begun, broken = time.monotonic(), 0
    for scenario in SCENARIOS:
        tally = scenario.tally(max(1, arguments.trials), arguments.seed)
        low, high = wilson(tally.hits, tally.trials)
        kept = scenario.kept(tally)
        broken += not kept
        sign = "≤" if scenario.at_most else "≥"
        share = f"{tally.hits / tally.trials:.1%}"
        line = f"| {scenario.says} | {share} | {low:.1%} to {high:.1%} | {tally.trials} | {sign} {scenario.bound:.0%}"
        print(line + (" |" if kept else " **broken** |"), flush=True)
    print(f"\n{time.monotonic() - begun:.0f} s. {f'{broken} promises are broken.' if broken else 'All promises are kept.'}")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
