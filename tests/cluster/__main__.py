"""`python -m tests.cluster`: the embedded cluster from a command line."""

from __future__ import annotations

import argparse
import sys

from tests.cluster import life
from tests.cluster.layout import ClusterFault, Mode, chosen_name

EXIT_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text)
        made.add_argument("--name", default=chosen_name(), help="which cluster (default: %(default)s; TWINPOD_CLUSTER)")
        return made

    up = verb("up", "build what is missing, start, return when it is ready; does nothing when it is")
    up.add_argument("--control-plane-only", action="store_true", help="API server and controllers, no nodes")
    down = verb("down", "stop, leave nothing behind but built programs and pushed images")
    down.add_argument(
        "--keep", action="store_true", help="keep its data for the next up, as when a machine is switched off"
    )
    verb("build", "build programs and install Debian packages, start nothing").add_argument(
        "--control-plane-only", action="store_true", help="only what that needs"
    )
    verb("status", "what runs; exit code 1 when something does not")
    for name, text in (
        ("kubeconfig", "path of the kubeconfig"),
        ("kubectl", "path of kubectl"),
        ("registry", "registry"),
    ):
        verb(name, f"print the {text}")
    verb("supervise", "(internal) own the processes until SIGTERM")
    return top


def main() -> int:
    """Run a verb."""
    given = parser().parse_args()
    name: str = given.name
    mode: Mode = "control-plane-only" if getattr(given, "control_plane_only", False) else "full"
    try:
        match given.verb:
            case "up":
                life.up(name, mode)
            case "down":
                life.down(name, keep=given.keep)
            case "build":
                life.build(name, mode)
            case "status":
                return life.status(name)
            case "supervise":
                life.supervise(name)
            case what:
                print(life.fact(name, what))
    except ClusterFault as fault:
        print(f"cluster: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ncluster: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
