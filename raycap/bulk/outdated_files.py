"""Which files of a finished table must be made again without the model."""

from raycap.bulk.file_tasks import FileTasks
from raycap.bulk.finishing import (
    CommonCaptions,
    add_digests,
    common_captions,
    different_pictures,
    files_with_other_flags,
    finishings_of_files,
    pictures_of_captions,
)
from raycap.finishing import Finishing
from raycap.flags import Flags
from raycap.schema import SAME_AS_MANY


def outdated_files(
    files: FileTasks, paths: list[str], finishing: Finishing
) -> tuple[set[str], set[str]]:
    """Files whose captions were finished with other options, or in which the flag same_as_many is
    not where it belongs; and the digests of captions that many pictures have."""
    digests = files.each(finishings_of_files, paths)
    outdated = {
        path for path, digest in zip(paths, digests, strict=True) if digest != finishing.digest()
    }
    many = captions_of_many(files, paths, finishing.flags)
    counts = files.counts()
    to_look_at = [
        path
        for path in paths
        if path not in outdated and (many or counts[path].flags[SAME_AS_MANY])
    ]
    outdated |= set(files.each(files_with_other_flags, to_look_at, many))
    return outdated, many


def captions_of_many(files: FileTasks, paths: list[str], flags: Flags) -> set[str]:
    """The digests of captions that many different pictures have."""
    if not flags.many:
        return set()
    most = round(4 / flags.many_share)
    common = CommonCaptions(most)
    for some in files.groups(common_captions, paths, most):
        common.add(some)
    least = max(flags.many, flags.many_share * common.rows)
    possible = {key for key, rows in common.counts.items() if rows + common.error >= least}
    if not possible:
        return set()
    pictures: dict[str, set[int]] = {}
    for found in files.groups(pictures_of_captions, paths, possible):
        for key, digests in found.items():
            add_digests(pictures.setdefault(key, set()), digests)
    return {key for key, digests in pictures.items() if different_pictures(digests) >= least}
