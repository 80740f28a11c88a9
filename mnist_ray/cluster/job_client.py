"""Submits jobs with Ray's own client, which uploads the code; submission/ uses plain HTTP for all other requests."""

import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient


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
