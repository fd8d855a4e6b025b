"""A Slurm cluster for these tests, and the smoke study that ran on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from cluster import Cluster, missing, running_cluster
from driving import SMOKE, Checkout, Driver, GpuWatch, finished_jobs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@dataclass(frozen=True)
class Study:
    """A study that ran through: its checkout and driver, the GPUs seen, Slurm's records."""

    checkout: Checkout
    driver: Driver
    watch: GpuWatch
    jobs: list[dict[str, str]]


@pytest.fixture(scope="session")
def smoke(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The smoke study, run by the literal command."""
    checkout = Checkout.of_repository(tmp_path_factory.mktemp("smoke") / "clone")
    of_others = finished_jobs(cluster.finished_jobs)
    with GpuWatch(cluster) as watch:
        driver = checkout.run(*SMOKE)
    jobs = [job for job in finished_jobs(cluster.finished_jobs) if job not in of_others]
    return Study(checkout, driver, watch, jobs)
