"""A real S3 server on loopback, and the options by which snakemake keeps results there."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer


class Store:
    """A bucket of its own, because the servers of one process share their objects.

    Arguments:
        address: Of the server.

    Attributes:
        place: Address of the folder of all files.
        options: Of snakemake; the Kubernetes profile has the same.
        environment: Variables for snakemake.
    """

    def __init__(self, address: str) -> None:
        self._bucket = f"measured-{uuid.uuid4().hex[:8]}"
        self.place = f"s3://{self._bucket}/here"
        self.options = ("--default-storage-provider", "s3", "--default-storage-prefix", self.place)
        self.environment = {
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": address,
            "SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "anybody",
            "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "anything",
        }
        self._client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="anybody",
            aws_secret_access_key="anything",
        )

    def files(self) -> set[str]:
        """Return the names of all files, as they would be below the folder in which snakemake runs."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix="here/")
        return {found["Key"].removeprefix("here/") for page in pages for found in page.get("Contents", [])}

    def copy_to(self, folder: Path) -> None:
        """Copy all files to a folder."""
        for name in self.files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file(self._bucket, f"here/{name}", str(folder / name))


@contextmanager
def object_store() -> Iterator[Store]:
    """Start a server that holds nothing yet, and stop it afterwards."""
    # One line for each request would hide what a failed test says.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Store("http://{}:{}".format(*server.get_host_and_port()))
    finally:
        server.stop()
