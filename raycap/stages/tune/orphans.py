"""Room that killed trials left taken, given back to Ray.

A trial's workers stand in a placement group that Ray Train makes and, when it ends in order, removes. After a kill
Ray keeps the group until the whole job ends. Train has a cleaner for this, but it asks the dashboard, and gives up
where several Rays run on one machine. Ray itself knows at once that the maker of a group is dead.
"""

import ray
from ray import ActorID, PlacementGroupID
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


def give_back() -> None:
    """Remove the placement groups of this job whose makers are dead."""
    job = ray.get_runtime_context().get_job_id()
    for told in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(told)  # type: ignore[attr-defined]  # made at run time
        by_actor = ActorID(group.creator_actor_id) != ActorID.nil()  # a driver's count as made by a dead one
        gone = group.state == gcs_pb2.PlacementGroupTableData.REMOVED  # type: ignore[attr-defined]
        if by_actor and group.creator_actor_dead and group.creator_job_id.hex() == job and not gone:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
