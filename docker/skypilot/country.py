"""Prints the country of the cloud region that SkyPilot chose, for the option `country=`.

SkyPilot describes the cluster in SKYPILOT_CLUSTER_INFO, in JSON: {"cloud": "AWS", "region": …}.
Amazon's regions are below, by its list of regions; Google's are in CodeCarbon's table. Of any other
place nothing is known, and `world` is printed: green-tune then says that the intensity is assumed.
A country is what its grid emits on average; what a provider buys elsewhere is not in it.
"""

import csv
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

UNKNOWN = "world"
AWS = {
    "af-south-1": "ZAF", "ap-east-1": "HKG", "ap-east-2": "TWN", "ap-northeast-1": "JPN",
    "ap-northeast-2": "KOR", "ap-northeast-3": "JPN", "ap-south-1": "IND", "ap-south-2": "IND",
    "ap-southeast-1": "SGP", "ap-southeast-2": "AUS", "ap-southeast-3": "IDN",
    "ap-southeast-4": "AUS", "ap-southeast-5": "MYS", "ap-southeast-6": "NZL",
    "ap-southeast-7": "THA", "ca-central-1": "CAN", "ca-west-1": "CAN", "eu-central-1": "DEU",
    "eu-central-2": "CHE", "eu-north-1": "SWE", "eu-south-1": "ITA", "eu-south-2": "ESP",
    "eu-west-1": "IRL", "eu-west-2": "GBR", "eu-west-3": "FRA", "il-central-1": "ISR",
    "me-central-1": "ARE", "me-south-1": "BHR", "mx-central-1": "MEX", "sa-east-1": "BRA",
    "us-east-1": "USA", "us-east-2": "USA", "us-west-1": "USA", "us-west-2": "USA",
}  # fmt: skip


def country(info: str) -> str:
    """The ISO code for SkyPilot's description of a cluster; UNKNOWN where there is none."""
    cluster = json.loads(info or "{}")
    known = {"AWS": lambda: AWS, "GCP": _google}.get(cluster.get("cloud", ""), dict)()
    return known.get(cluster.get("region", ""), UNKNOWN)


def _google() -> dict[str, str]:
    """CodeCarbon's table, read as a file."""
    spec = find_spec("codecarbon")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "cloud" / "impact.csv"
    with path.open(encoding="utf-8-sig") as file:
        rows = [row for row in csv.DictReader(file) if row["provider"] == "gcp"]
    return {row["region"]: row["countryIsoCode"] for row in rows}


if __name__ == "__main__":
    sys.stdout.write(country(os.environ.get("SKYPILOT_CLUSTER_INFO", "")) + "\n")
