"""The score tables of a run, summed up from its shards: each is read once."""

from collections.abc import Sequence

import pyarrow as pa

from shapray.driver.plan import Plan
from shapray.driver.resume import shard_reader
from shapray.driver.summary import Totals
from shapray.errors import StorageError
from shapray.storage.aggregate import GroupSums
from shapray.storage.certainty import Certainty
from shapray.storage.shards import UnsoundShard
from shapray.worker.tasks import ScoreTask


class ScoreTables:
    """Sums of every group over the shards that are there, to which more may come.

    Attributes:
        totals: of all shards that were read.
    """

    def __init__(self, planned: Plan) -> None:
        self.totals = Totals()
        self._planned, self._read = planned, shard_reader(planned)
        self._sums = {
            group.name: GroupSums(group.name, group.n_units) for group in planned.setup.groups
        }
        self._n_read = dict.fromkeys(self._sums, 0)

    def certainty(self, tasks: Sequence[ScoreTask]) -> Certainty:
        """How sure a group is by now.

        Args:
            tasks: all of the group that are done, in image order: at least those of the last time.
        Raises:
            StorageError: a shard is not what its task has left.
        """
        return Certainty.of(self._summed(tasks).scores(self._balanced(tasks)))

    def taken(self, tasks: Sequence[ScoreTask]) -> tuple[pa.Table, pa.Table]:
        """A group's rows of both score tables, of which no more is kept here; see `certainty`."""
        sums = self._summed(tasks)
        del self._sums[sums.group]  # as large as the tables are
        return sums.scores(self._balanced(tasks)), sums.class_scores()

    def _summed(self, tasks: Sequence[ScoreTask]) -> GroupSums:
        group = tasks[0].group
        sums = self._sums[group]
        try:
            for task in tasks[self._n_read[group] :]:
                shard = self._read(task)
                self.totals.add(shard)
                sums.add(shard)
        except UnsoundShard as error:
            raise StorageError(
                f"a shard changed while the run was going: {error}; the same command computes it "
                "again"
            ) from error
        self._n_read[group] = len(tasks)
        return sums

    def _balanced(self, tasks: Sequence[ScoreTask]) -> bool:
        """Of all images there are nobody has fixed how many are of each label."""
        calibration = self._planned.setup.calibration
        to_spare = self._planned.setup.job.data.calibration.limit == "auto"
        return calibration.balanced and (not to_spare or tasks[-1].last < len(calibration))
