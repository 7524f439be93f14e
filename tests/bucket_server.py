"""A server that speaks the protocol of S3, for tests, and what Snakemake needs to know of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

ACCESS = {"access_key": "of-a-test", "secret_key": "of-a-test"}


@dataclass
class ServedBucket:
    """A bucket of a server on this machine."""

    address: str
    client: Any
    name: str

    def environment(self) -> dict[str, str]:
        """Return the variables by which snakemake-storage-plugin-s3 finds the server."""
        values = {"endpoint_url": self.address, **ACCESS}
        return {f"SNAKEMAKE_STORAGE_S3_{name.upper()}": value for name, value in values.items()}

    def upload(self, folder: Path, prefix: str) -> None:
        """Upload the files of a folder."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.upload_file(str(file), self.name, f"{prefix}/{file.relative_to(folder)}")

    def sizes(self) -> dict[str, int]:
        """Return key -> bytes of what is in the bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content


@contextmanager
def served_bucket(name: str) -> Iterator[ServedBucket]:
    """Serve an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it says each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": ACCESS["access_key"], "aws_secret_access_key": ACCESS["secret_key"]}
        client = boto3.client("s3", endpoint_url=address, region_name="us-east-1", **keys)
        client.create_bucket(Bucket=name)
        yield ServedBucket(address, client, name)
    finally:
        server.stop()
