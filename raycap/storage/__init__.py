"""Files on disks and in object stores: reading any path or URI, atomic writes, the output folder
of a run and its lease."""

from raycap.storage.files import cache_folder, check_stays, whole_file, whole_path, write_json
from raycap.storage.filesystem import open_uri, read_uri
from raycap.storage.folder import RunFolder, differences, output_folder
from raycap.storage.lease import Lease

__all__ = [
    "Lease",
    "RunFolder",
    "cache_folder",
    "check_stays",
    "differences",
    "open_uri",
    "output_folder",
    "read_uri",
    "whole_file",
    "whole_path",
    "write_json",
]
