"""Workers of a cluster that a command starts for itself."""

from __future__ import annotations

import pytest
import ray

from pathor1.ray_cluster import may_fork, ray_cluster


@pytest.mark.skipif(not may_fork(), reason="nothing is forked where libraries are for a GPU")
def test_they_are_forked_from_what_has_imported_ray_data_once() -> None:
    def look() -> tuple[str, bool, str]:
        """The process that has made this worker, whether Ray Data is loaded, and a variable."""
        import os
        import sys

        import psutil

        parent = psutil.Process().parent()
        assert parent is not None
        return parent.cmdline()[0], "ray.data" in sys.modules, os.environ["OF_THE_RUN"]

    with ray_cluster({"OF_THE_RUN": "yes"}, log_to_driver=False):
        found = ray.get([ray.remote(look).remote() for _ in range(2)], timeout=120)
    assert found == [("pathor1.fork_server", True, "yes")] * 2
