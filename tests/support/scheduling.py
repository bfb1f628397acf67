"""Which process runs which tests."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

APART = ("tests/chaos/",)
"""Where each test has a home, a worker and engines of its own: nothing is lost when a file's tests are run apart."""


class ByFile(LoadFileScheduling):
    """A file stays in one process, but for those of `APART`. A test that ended its process is not run again.

    xdist would give it to the next process with the rest of its file, and then to the next.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Return what stays together: the test's file, or the test alone."""
        return nodeid if nodeid.startswith(APART) else super()._split_scope(nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """Hand on what an ended process had left; return the test that it ran, if any."""
        for tests in self.assigned_work[node].values():
            for test, done in tests.items():
                if not done:
                    tests[test] = True
                    super().remove_node(node)
                    return test
        return super().remove_node(node)
