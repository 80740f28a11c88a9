"""Asks a cluster's autoscaler for GPUs and waits until they are there; 0 lets them go.

A job takes the GPUs that its cluster has when it starts, and an autoscaled cluster has none at first. So:

    ray job submit --address http://127.0.0.1:8265 --working-dir deploy -- python request_gpus.py 4

The request stands until the next one: nodes that are taken away are replaced, and idle ones stay and cost. End with 0.
"""

import os
import sys
import time

import click
import ray
from ray.autoscaler.sdk import request_resources

_POLL_S = 1.0
# The label of nodes in cluster.yaml whose price is fixed and that nobody takes away.
_ON_DEMAND = {"market-type": "on-demand"}


@click.command(context_settings={"max_content_width": 110})
@click.argument("num_gpus", type=click.IntRange(min=0))
@click.option(
    "--spot-minutes",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="After so long, ask for nodes with the label market-type=on-demand instead of those still missing.",
)
@click.option(
    "--timeout-minutes",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="After so long, let all go and end with exit code 5.",
)
def main(num_gpus: int, spot_minutes: float, timeout_minutes: float) -> None:
    """Asks the autoscaler of this Ray cluster for NUM_GPUS nodes with a GPU each and waits until they are there.

    Runs on the cluster, as a job. The request stands until the next one; 0 lets the nodes go when they are idle.
    """
    # Not "auto": that attaches to any Ray that runs on this machine.
    address = os.environ.get("RAY_ADDRESS")
    if not address or "://" in address:
        _say("error: no job of a cluster; submit it: ray job submit --working-dir deploy -- python request_gpus.py 4")
        sys.exit(5)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    _request(num_gpus, num_on_demand=0)
    started = time.monotonic()
    num_there, num_on_demand = -1, 0
    while (now := _num_gpus_there()) < num_gpus:
        minutes = (time.monotonic() - started) / 60
        if now != num_there:
            num_there = now
            _say(f"{num_there} of {num_gpus} GPUs after {minutes:.1f} minutes")
        if minutes > timeout_minutes:
            _request(0, num_on_demand=0)
            _say(
                f"error: num_gpus={num_gpus}: {num_there} came in {timeout_minutes:g} minutes and are let go again; "
                "'ray status' and the autoscaler's log say why (quota, capacity, max_workers); ask for less or later"
            )
            sys.exit(5)
        if minutes > spot_minutes and num_on_demand < num_gpus - num_there:
            # Never fewer again: those that come would be taken for the others, and spot be asked for in their place.
            num_on_demand = num_gpus - num_there
            _request(num_gpus, num_on_demand=num_on_demand)
            _say(f"asks for {num_on_demand} on-demand nodes in place of spot nodes")
        time.sleep(_POLL_S)
    _say(f"{now} GPUs are there" if num_gpus else "all GPUs are let go; idle nodes end after idle_timeout_minutes")


def _request(num_gpus: int, *, num_on_demand: int) -> None:
    # One GPU a bundle, since a node of cluster.yaml has one; a bundle isn't spread over nodes.
    selectors: list[dict[str, str]] = [{}] * (num_gpus - num_on_demand) + [_ON_DEMAND] * num_on_demand
    request_resources(bundles=[{"GPU": 1}] * num_gpus, bundle_label_selectors=selectors)


def _num_gpus_there() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _say(text: str) -> None:
    print(f"request_gpus: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
