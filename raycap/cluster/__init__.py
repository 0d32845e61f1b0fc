"""The Ray cluster: joining or starting one, its nodes, and the workers of a training run."""

from raycap.cluster.options import Cluster

__all__ = ["Cluster"]
