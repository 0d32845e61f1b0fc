"""Memory of a worker that opens rows with large bodies: a few of them, however many rows there
are."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from server import serving
from small_captioner import photos

from raycap.schema import CAPTIONS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")

ROWS = 60
BODY = 12_000_000
# What the process and its libraries need. (malloc keeps up to as much as the bodies take, in
# pieces between them.)
REST = 300e6

# What a worker does with its rows, in a process of its own; it prints its peak and what became of
# the rows.
OPEN = """
import json, sys
from collections import Counter
import pyarrow as pa
from raycap.fetch import BYTES_IN_MEMORY, Fetch
from raycap.fetch.trust import ANYTHING
from raycap.images import Reading, Square
from raycap.bulk.pictures import load_table
from raycap.schema import MANIFEST

uris = json.load(open(sys.argv[1]))
row = {"key": "", "split": "", "references": [], "bytes": None, "error": ""}
table = pa.Table.from_pylist([{**row, "uri": uri} for uri in uris], MANIFEST)
options = Fetch(allow_private=True, deadline=600, read_timeout=600)
opened = load_table(table, options, ANYTHING, Reading(), Square(64), keep_pixels=True)
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(json.dumps([int(peak) * 1024, BYTES_IN_MEMORY, Counter(opened["status"].to_pylist())]))
"""

WRITE = """
import json, sys
from raycap.fetch import BYTES_IN_MEMORY, Fetch
from raycap.fetch.trust import ANYTHING
from raycap.storage import RunFolder
from raycap.sinks import SINKS, SinkSettings

options = Fetch(allow_private=True, deadline=600, read_timeout=600)
settings = SinkSettings(RunFolder(sys.argv[1]), "skip", False, options, ANYTHING)
SINKS["webdataset"].write("captions/a.parquet", settings)
peak = open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
print(json.dumps([int(peak) * 1024, BYTES_IN_MEMORY, {}]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo with a film behind it, as phones make them."""
    folder = photos(tmp_path_factory.mktemp("large"), range(1))
    picture = folder / "00000.png"
    picture.write_bytes(picture.read_bytes() + bytes(BODY))
    return picture


def measured(program: str, argument: Path) -> tuple[int, int, dict[str, int]]:
    """The peak of a process, the budget for bodies in it, and how many rows came to what."""
    command = [sys.executable, "-c", program, str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    peak, budget, statuses = json.loads(done.stdout)
    print(f"{peak / 1e6:.0f} MB, of which {budget / 1e6:.0f} MB are for bodies")
    return peak, budget, statuses


@pytest.mark.parametrize("where", [pytest.param("web", marks=pytest.mark.thorough), "disk"])
def test_a_worker_holds_a_few_bodies_however_many_rows_it_opens(
    where: str, large: Path, tmp_path: Path
) -> None:
    with serving({"/0.png": large.read_bytes()}) as server:
        uri = server.url("/0.png") if where == "web" else str(large)
        (tmp_path / "uris.json").write_text(json.dumps([uri] * ROWS))
        peak, budget, statuses = measured(OPEN, tmp_path / "uris.json")
    assert statuses == {"success": ROWS}
    assert peak < 2 * (budget + BODY) + REST < ROWS * BODY


@pytest.mark.thorough
def test_the_webdataset_sink_holds_a_few_bodies(large: Path, tmp_path: Path) -> None:
    with serving({"/0.png": large.read_bytes()}) as server:
        row = {
            "caption": "a",
            "score": 0.0,
            "alternatives": [],
            "status": "success",
            "error_message": "",
        }
        row |= {"width": 1, "height": 1, "sha256": ""}
        rows = [
            {**row, "key": f"{number}.png", "uri": server.url("/0.png")} for number in range(ROWS)
        ]
        (tmp_path / "captions").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, CAPTIONS), tmp_path / "captions" / "a.parquet")
        peak, budget, _ = measured(WRITE, tmp_path)
    with tarfile.open(tmp_path / "webdataset" / "a.tar") as tar:
        found = {member.name: member.size for member in tar}
    assert [name for name in found if name.endswith("png")] == [
        f"{number:06d}.png" for number in range(ROWS)
    ]
    assert {size for name, size in found.items() if name.endswith("png")} == {large.stat().st_size}
    assert peak < 2 * (budget + BODY) + REST < ROWS * BODY
    assert not list((tmp_path / "_staged").iterdir())
