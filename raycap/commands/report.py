"""`raycap report`: one page about caption tables, training runs or sweeps. Needs neither Ray nor
torch."""

from raycap.config import Config
from raycap.report.page import write_page
from raycap.terminal import write_out


def report(config: Config) -> int:
    """Exit code 0 when the page was written, whatever it shows."""
    message = write_page(
        config.report, config.source, config.evaluate, config.metric, config.fetch, config.reading
    )
    write_out(message)
    return 0
