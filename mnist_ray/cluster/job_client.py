"""Submits jobs with Ray's own client, which uploads the code, and names the job that this process is.

submission/ uses plain HTTP for all other requests.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from mnist_ray.cluster.ray_private import add_job_metadata
from mnist_ray.config.placement import job_config, on_cluster
from mnist_ray.text.escape import say_line


def send_job(
    address: str,
    headers: Mapping[str, str],
    entrypoint: str,
    job_id: str,
    runtime_env: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Uploads the working directory of the runtime environment and submits a job.

    Raises:
      RuntimeError: the cluster refuses the job or the token.
      OSError: no connection.
    """
    try:
        client = JobSubmissionClient(address, headers=dict(headers))
        # The client logs its upload at INFO.
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        client.submit_job(
            entrypoint=entrypoint, submission_id=job_id, runtime_env=dict(runtime_env), metadata=dict(metadata)
        )
    except AuthenticationError as error:
        raise RuntimeError(str(error)) from error


def name_job(name: str) -> None:
    """Stores the name of its result with the job that this process is, unless it was submitted with one.

    A job that can't be named runs all the same; a line on stderr says so.
    """
    metadata = job_config().get("metadata", {})
    job_id = metadata.get("job_submission_id")
    if not on_cluster() or job_id is None or "run" in metadata:
        return
    try:
        add_job_metadata(os.environ["RAY_ADDRESS"], job_id, {"run": name})
    except (RuntimeError, RayError) as error:
        say_line(f"warning: the list of jobs shows this job without its name: {' '.join(str(error).split())[:300]}")
