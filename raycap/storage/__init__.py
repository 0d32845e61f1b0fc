"""What is whole and what is not: a run is one folder, its files appear complete, and its facts are written last."""

from raycap.storage.files import cache_folder, check_stays, whole_file, write_json
from raycap.storage.folder import RunFolder, output_folder
from raycap.storage.identity import differences
from raycap.storage.lease import Lease

__all__ = [
    "Lease",
    "RunFolder",
    "cache_folder",
    "check_stays",
    "differences",
    "output_folder",
    "whole_file",
    "write_json",
]
