"""`raycap extract`: every picture of a source through the encoder, once, into a table of features
for training."""

import dataclasses

from raycap.bulk.features import features_job
from raycap.bulk.run import run_job
from raycap.commands.source import checked_source
from raycap.config import Config, dumps


def extract(config: Config) -> int:
    """Returns 0 if every picture was encoded, 1 if some could not be."""
    source = checked_source(config.source, "extract")
    encoder = config.encoder.build()
    job = features_job(
        config.encoder,
        encoder,
        source,
        config.extract,
        config.fetch,
        config.reading,
        config.cluster,
    )
    job = dataclasses.replace(job, config=dumps(config))
    return run_job(job, {"positions": encoder.positions, "width": encoder.width})
