"""Other forms of a caption table: text files, JSON lines, WebDataset, imagefolder.

A new sink is one class and one line in ALL_SINKS. What it writes depends on one part of the table
alone, its files appear whole, and writing twice is as once. `bulk.exports` knows which parts are
to be written, and which ones are not in the table any more.
"""

from typing import TYPE_CHECKING, Literal

from raycap.sinks.lines import ImageFolder, JsonLines
from raycap.sinks.sink import Sink, SinkSettings, TextMode, write_part
from raycap.sinks.text_files import TextFiles
from raycap.sinks.webdataset import WebDatasetTars

ALL_SINKS: tuple[Sink, ...] = (
    TextFiles(),
    JsonLines(),
    WebDatasetTars(),
    ImageFolder(),
)
SINKS: dict[str, Sink] = {sink.name: sink for sink in ALL_SINKS}
if TYPE_CHECKING:
    SinkName = str
else:
    SinkName = Literal[tuple(SINKS)]

__all__ = ["ALL_SINKS", "SINKS", "Sink", "SinkName", "SinkSettings", "TextMode", "write_part"]
