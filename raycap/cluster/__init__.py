"""Ray: joining a cluster or starting a local Ray, its nodes, and the workers of a training run."""

from raycap.cluster.options import Cluster

__all__ = ["Cluster"]
