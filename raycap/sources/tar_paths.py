"""Which tars a path means: one tar, a folder of tars, a glob, braces, or a list of tars."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from raycap.errors import UserError
from raycap.fetch.errors import FetchError, scrubbed
from raycap.fetch.trust import Trust, of_prefixes
from raycap.sources.braces import expanded
from raycap.sources.lines import LONGEST_URL, Lines, LongLine, name_unpacked
from raycap.sources.listing import walk
from raycap.sources.notes import MALFORMED_LINE, UNUSABLE_FILE, Notes, nothing
from raycap.sources.urls import ENDINGS as LIST_ENDINGS
from raycap.sources.urls import resolved
from raycap.storage.location import existing, locate
from raycap.uris import has_scheme, is_web

TAR = re.compile(r".*\.tar", re.IGNORECASE | re.DOTALL)
PACKED_TAR = re.compile(r".*\.(?:tgz|tbz2?|txz|tar\.\w+)", re.IGNORECASE | re.DOTALL)
WILD = re.compile(r"[*?\[{]")


class Tar(NamedTuple):
    """One tar, which may or may not be there."""

    uri: str
    below: str  # its path below the root; of one elsewhere, its URI


@dataclass(frozen=True)
class TarPaths:
    """What a user gave as the path of tars. `trusted` is what a list may name besides."""

    path: str
    trusted: tuple[str, ...] = ()

    def trust(self) -> Trust:
        """What a list may name, and where the tars are."""
        trust = Trust.below(self.root())
        return (
            trust.also(of_prefixes(self.trusted, "--source.trusted")) if self.is_list() else trust
        )

    def is_list(self) -> bool:
        return not is_web(self.path) and name_unpacked(self.path).endswith(LIST_ENDINGS)

    def _is_pattern(self) -> bool:
        if is_web(self.path):
            return "{" in self.path
        return WILD.search(self.path) is not None and not locate(self.path).exists()

    def root(self) -> str:
        """The folder of all tars: of a pattern, the one before its first wildcard."""
        path = self.path
        if self._is_pattern():
            path = path[: WILD.search(path).start()]  # type: ignore[union-attr]
            if is_web(path):
                return path[: path.rfind("/") + 1]
            if has_scheme(path):
                return path.rpartition("/")[0]
            return locate(path + "_").parent.uri
        if is_web(path):
            return path.partition("?")[0].rpartition("/")[0] + "/"
        location = locate(path)
        return location.uri if location.is_folder() else location.parent.uri

    def tars(self, notes: Notes) -> list[Tar]:
        found = list(self._found(notes))
        if not found:
            raise UserError(
                nothing(f"no *.tar in {self.path} (compressed ones do not count)", notes)
            )
        return found

    def _found(self, notes: Notes) -> Iterator[Tar]:
        if self._is_pattern():
            root = self.root()
            for name in expanded(self.path):
                yield from self._matching(name, root)
        elif is_web(self.path):
            yield Tar(self.path, path_of_url(self.path).rpartition("/")[2])
        elif self.is_list() and existing(self.path).is_file():
            yield from self._listed(notes)
        else:
            location = existing(self.path)
            if not location.is_folder():
                yield Tar(location.uri, location.name)
                return
            files = []
            for entry in walk(location, notes):
                if entry.is_folder or not TAR.fullmatch(entry.path):
                    continue
                if entry.error:
                    notes.add(UNUSABLE_FILE, f"{(location / entry.path).uri}: {entry.error}")
                else:
                    files.append(entry.path)
            for path in sorted(files):
                yield Tar((location / path).uri, path)

    def _matching(self, name: str, root: str) -> Iterator[Tar]:
        """The tars that one name without braces means, which may still have wildcards."""
        if is_web(name):
            if re.search(r"[*\[]", name):
                raise UserError(
                    f"{name} has wildcards, and a web server does not list its files: name the "
                    "tars with braces, as in {00000..00099}.tar, or in a text file"
                )
            path, above = path_of_url(name), path_of_url(root)
            yield Tar(name, path.removeprefix(above).lstrip("/"))
            return
        location, above = locate(name), locate(root).path.rstrip("/")
        if not re.search(r"[*?\[]", name) or location.exists():
            yield Tar(location.uri, location.path.removeprefix(above).lstrip("/"))
            return
        from fsspec import filesystem

        # Globbed paths lack the beginning of the URI, such as "s3://".
        start = location.uri[: len(location.uri) - len(location.path)]
        found = (location.filesystem or filesystem("file")).glob(location.path)
        paths = [path for path in found if TAR.fullmatch(path) or PACKED_TAR.fullmatch(path)]
        if not paths:
            raise UserError(f"no tar matches {name}")
        for path in sorted(paths):
            below = path.removeprefix(above).lstrip("/")
            if location.filesystem is None:
                yield Tar(locate(path).uri, below)
            else:
                yield Tar(start + path, below)

    def _listed(self, notes: Notes) -> Iterator[Tar]:
        file = existing(self.path)
        folder, trust = file.parent, self.trust()
        for line in Lines(file, LONGEST_URL).or_faults():
            if isinstance(line, LongLine):
                notes.add_line(MALFORMED_LINE, file.name, line.number, line.reason)
                continue
            name = line.strip()
            if not name or name.startswith("#"):
                continue
            uri = resolved(name, folder)
            try:
                trust.check(uri)
            except FetchError as error:
                reason = error.reason.replace("--fetch.trust", "--source.trusted")
                notes.add(UNUSABLE_FILE, f"{scrubbed(uri)}: {reason}")
                continue
            below = uri.removeprefix(folder.uri.rstrip("/") + "/")
            yield Tar(uri, below.partition("?")[0] if is_web(uri) else below)


def path_of_url(url: str) -> str:
    """Returns the path of a URL, decoded; "" if it is none."""
    try:
        return unquote(urlsplit(url).path)
    except ValueError:
        return ""
