"""Which process runs which tests."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class ByFile(LoadFileScheduling):
    """A file stays in one process. A test that ended its process is not run again.

    xdist would give it to the next process with the rest of its file, and then to the next.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Hand on what an ended process had left; return the test that it ran, if any."""
        for tests in self.assigned_work[node].values():
            for test, done in tests.items():
                if not done:
                    tests[test] = True
                    super().remove_node(node)
                    return test
        return super().remove_node(node)
