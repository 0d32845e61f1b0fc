"""`raycap extract`: every picture of a source through the encoder, once, into a table of features for training."""

from raycap.bulk.features import features_work
from raycap.bulk.passes import perform
from raycap.bulk.work import source_of
from raycap.cluster.session import session
from raycap.config import Config


def extract(config: Config) -> int:
    """Exit code 0 when every picture was encoded, 1 when some could not be."""
    source = source_of(config, "extract")
    encoder = config.encoder.build()
    work = features_work(config, source, encoder)
    with session(config.cluster):
        return perform(work, {"positions": encoder.positions, "width": encoder.width})
