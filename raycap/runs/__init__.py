"""What is whole and what is not: a run is one folder, its files appear complete, and its facts are written last."""

from raycap.runs.files import check_stays, whole_file, write_json
from raycap.runs.folder import RunFolder, output_folder
from raycap.runs.identity import differences
from raycap.runs.lease import Lease

__all__ = ["Lease", "RunFolder", "check_stays", "differences", "output_folder", "whole_file", "write_json"]
