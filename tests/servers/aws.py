"""An AWS account of a test's own on the emulator that `scripts/services` runs."""

from __future__ import annotations

import random
from typing import Any

import botocore.session

from servers import server

REGION = "us-east-1"


class Account:
    """An AWS account of the test's own, so that no test meets another's topics and queues."""

    def __init__(self) -> None:
        self.server = server("sns_sqs")
        self.endpoint = f"http://{self.server.host}:{self.server.port}"
        account = random.randrange(10**11, 10**12)
        sts = self._client("sts", "testing", "testing")
        role = f"arn:aws:iam::{account}:role/oyez"
        self._keys: dict[str, str] = sts.assume_role(RoleArn=role, RoleSessionName="oyez")[
            "Credentials"
        ]

    def url(self, endpoint: str = "", options: str = "wait=1") -> str:
        keys = f"{self._keys['AccessKeyId']}:{self._keys['SecretAccessKey']}"
        keys = keys.replace("/", "%2F").replace("+", "%2B")
        return f"sns+sqs://{keys}@{REGION}?endpoint={endpoint or self.endpoint}&{options}"

    def client(self, service: str) -> Any:
        """The plain driver."""
        return self._client(service, self._keys["AccessKeyId"], self._keys["SecretAccessKey"])

    def _client(self, service: str, key: str, secret: str) -> Any:
        return botocore.session.get_session().create_client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )
