"""Speed beside what a user would write without metasearch, and what the methods gain:
`python -m tests.bench [--quick] [NAME ...]`.

Prints one table each, with how it was measured. Exit code 1 if a stated target is missed.
"""

from __future__ import annotations

import argparse
import sys

from tests.bench import (
    bundles,
    cifar_domains,
    cluster,
    distillation,
    drivers,
    episodes,
    faults,
    few_shot,
    latency,
    omniglot,
    overhead,
    policy_network,
    pruning,
    queries,
    report,
    scale,
    serve,
    sinusoid,
    strategies,
    throughput,
    unlabelled,
)
from tests.bench.transfer import report as transfer

BENCHMARKS = {
    "overhead": overhead.run,
    "throughput": throughput.run,
    "episodes": episodes.run,
    "queries": queries.run,
    "report": report.run,
}
STUDIES = {
    "distillation": distillation.run,
    "unlabelled": unlabelled.run,
    "pruning": pruning.run,
    "latency": latency.run,
    "few_shot": few_shot.run,
    "cifar_domains": cifar_domains.run,
    "policy_network": policy_network.run,
    "strategies": strategies.run,
    "sinusoid": sinusoid.run,
    "omniglot": omniglot.run,
    "transfer": transfer.run,
    "cluster": cluster.run,
    "faults": faults.run,
    "drivers": drivers.run,
    "scale": scale.run,
    "bundles": bundles.run,
    "serve": serve.run,
}
"""What is measured of the methods, or with a cluster, rather than of the program's speed: by name only."""


def main() -> int:
    """Run the benchmarks that the command line names, all by default; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measured speed, against its targets.")
    known = BENCHMARKS | STUDIES
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; {' and '.join(BENCHMARKS)} by default"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; no target is judged")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in known:
            parser.error(f"{name}: must be one of {', '.join(known)}")
    verdicts = [known[name](quick=arguments.quick) for name in arguments.names or BENCHMARKS]
    print()
    for verdict in verdicts:
        word = {True: "met", False: "MISSED", None: "not judged"}[verdict.met]
        print(f"{verdict.name}: {word}: {verdict.text}")
    return int(any(verdict.met is False for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
