"""What stands for EC2 under Ray's autoscaler: nodes are processes of this machine, and there is no spot capacity."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE


class FakeEc2(FakeMultiNodeProvider):  # type: ignore[misc]
    """Starts no spot nodes, and refuses them as Ray's AWS provider passes it on."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._nodes[self._head_node_id]["tags"][TAG_RAY_USER_NODE_TYPE] = "head"

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        if node_config.get("InstanceMarketOptions"):
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is no spot capacity", None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
