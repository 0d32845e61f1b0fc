"""`raycap report`: one page to look at, of caption tables, training runs or sweeps. Needs neither Ray nor torch."""

from raycap.config import Config
from raycap.report.page import write_page
from raycap.terminal import write_out


def report(config: Config) -> int:
    """Exit code 0 when the page was written, whatever it shows."""
    write_out(write_page(config))
    return 0
