"""Requests GPUs from a cluster's autoscaler and waits for them; 0 releases them.

A job uses the GPUs that its cluster has at the job's start, and an autoscaled cluster has none at first. So run:

    ray job submit --address http://127.0.0.1:8265 --working-dir deploy -- python request_gpus.py 4

The request holds until the next one: lost nodes are replaced, and idle nodes stay and cost. Request 0 at the end.
"""

import os
import sys
import time

import click
import ray
from ray.autoscaler.sdk import request_resources

_POLL_S = 1.0
# The label in cluster.yaml for on-demand nodes: fixed price, never reclaimed.
_ON_DEMAND = {"market-type": "on-demand"}


@click.command(context_settings={"max_content_width": 110})
@click.argument("num_gpus", type=click.IntRange(min=0))
@click.option(
    "--spot-minutes",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="After this time, request nodes with the label market-type=on-demand in place of the missing ones.",
)
@click.option(
    "--timeout-minutes",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    help="After this time, release all GPUs and exit with code 5.",
)
def main(num_gpus: int, spot_minutes: float, timeout_minutes: float) -> None:
    """Requests NUM_GPUS nodes with a GPU each from this Ray cluster's autoscaler and waits for them.

    Runs on the cluster, as a job. The request holds until the next one; 0 releases the nodes once they are idle.
    """
    # Not "auto": that attaches to any Ray that runs on this machine.
    address = os.environ.get("RAY_ADDRESS")
    if not address or "://" in address:
        _say("error: not a cluster job; submit it: ray job submit --working-dir deploy -- python request_gpus.py 4")
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
                f"error: num_gpus={num_gpus}: got {num_there} in {timeout_minutes:g} minutes and released them; "
                "'ray status' and the autoscaler's log say why (quota, capacity, max_workers); ask for fewer, or later"
            )
            sys.exit(5)
        if minutes > spot_minutes and num_on_demand < num_gpus - num_there:
            # Never decrease: arriving on-demand nodes would count for the spot bundles, and spot be requested again.
            num_on_demand = num_gpus - num_there
            _request(num_gpus, num_on_demand=num_on_demand)
            _say(f"requesting {num_on_demand} on-demand nodes in place of spot nodes")
        time.sleep(_POLL_S)
    _say(f"{now} GPUs are ready" if num_gpus else "all GPUs are released; idle nodes end after idle_timeout_minutes")


def _request(num_gpus: int, *, num_on_demand: int) -> None:
    # One GPU per bundle: a node in cluster.yaml has one GPU, and a bundle can't span nodes.
    selectors: list[dict[str, str]] = [{}] * (num_gpus - num_on_demand) + [_ON_DEMAND] * num_on_demand
    request_resources(bundles=[{"GPU": 1}] * num_gpus, bundle_label_selectors=selectors)


def _num_gpus_there() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _say(text: str) -> None:
    print(f"request_gpus: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
