"""The directory tree below the root: attributes, symlinks, directories. Knows no PCI.

Rule: an attribute's file is replaced by rename, so that a reader sees the old value or the new one, as sysfs
gives it. Files of equal mode and contents are hard links of one inode: a VF has fifty attributes of which
three are its own, and one link costs a fifth of a file. Nothing outside the root is touched.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_TEMPLATES = ".templates"


@dataclass(frozen=True, slots=True)
class File:
    """One attribute: its name (may contain directories), mode, contents, and how large a sparse file it is.

    `shared`: others have the same contents, so that a hard link will do.
    """

    name: str
    mode: int
    data: bytes = b""
    sparse_bytes: int = 0
    shared: bool = True


class Tree:
    """The tree at `root`, which must be empty or absent. Paths are relative to it. Raises
    FileExistsError."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        os.makedirs(self.root, exist_ok=True)
        if os.listdir(self.root):
            raise FileExistsError(errno.EEXIST, "the simulated host needs an empty directory", self.root)
        os.mkdir(f"{self.root}/{_TEMPLATES}")
        self._templates: dict[tuple[int, bytes, int], str] = {}
        self._serial = 0

    def path(self, relative: str) -> str:
        """The absolute path."""
        return f"{self.root}/{relative}"

    def make_directory(self, relative: str) -> None:
        """Create a directory, with its parents if they are missing."""
        path = self.path(relative)
        try:
            os.mkdir(path)
        except (FileNotFoundError, FileExistsError):
            os.makedirs(path, exist_ok=True)

    def make_new_directory(self, relative: str, unlike: Collection[int]) -> int:
        """Create a directory whose inode number is none of `unlike` and return it: a function's successors
        must be other objects, and file systems hand out freed numbers again."""
        path = self.path(relative)
        rejected = []
        os.mkdir(path)
        while (inode := os.stat(path).st_ino) in unlike:  # kept for a moment, so that its number is taken
            rejected.append(self._temporary_path())
            os.rename(path, rejected[-1])
            os.mkdir(path)
        for spare in rejected:
            os.rmdir(spare)
        return inode

    def populate(self, directory: str, files: Iterable[File]) -> None:
        """Create `files` in `directory`, which has none of them yet."""
        prefix = self.path(directory)
        for file in files:
            if file.shared:
                self._link(file, f"{prefix}/{file.name}")
            else:
                _create(f"{prefix}/{file.name}", file)

    def replace(self, directory: str, file: File) -> None:
        """Create or replace one file at once."""
        path = f"{self.root}/{directory}/{file.name}"
        temporary = self._temporary_path()
        if file.shared:
            self._link(file, temporary)
        else:
            _create(temporary, file)
        os.rename(temporary, path)
        if os.path.lexists(temporary):  # rename(2) does nothing between links of one inode
            os.unlink(temporary)

    def link(self, relative: str, target: str) -> None:
        """Make a relative symlink at `relative` to `target`."""
        os.symlink(relative_target(relative, target), self.path(relative))

    def unlink(self, relative: str) -> None:
        """Remove a file or symlink if it exists."""
        try:
            os.unlink(self.path(relative))
        except FileNotFoundError:
            return

    def remove_directory(self, relative: str) -> None:
        """Remove a directory with everything in it, if it exists."""
        path = self.path(relative)
        if os.path.lexists(path):
            _remove(path)

    def read(self, relative: str) -> bytes:
        """A file's contents."""
        with open(self.path(relative), "rb", buffering=0) as file:
            return file.read()

    def _link(self, file: File, path: str) -> None:
        key = (file.mode, file.data, file.sparse_bytes)
        template = self._templates.get(key)
        if template is None:
            template = self._make_template(key, file)
        try:
            os.link(template, path)
        except OSError as error:
            if error.errno != errno.EMLINK:  # ext4 allows 65,000 links
                raise
            os.link(self._make_template(key, file), path)

    def _make_template(self, key: tuple[int, bytes, int], file: File) -> str:
        template = self._temporary_path()
        _create(template, file)
        self._templates[key] = template
        return template

    def _temporary_path(self) -> str:
        self._serial += 1
        return f"{self.root}/{_TEMPLATES}/{self._serial}"


def relative_target(link: str, target: str) -> str:
    """What a symlink at `link` contains to point to `target`; both are relative to the root."""
    here, there = link.split("/")[:-1], target.split("/")
    common = 0
    while common < min(len(here), len(there)) and here[common] == there[common]:
        common += 1
    return "/".join([".."] * (len(here) - common) + there[common:])


def _create(path: str, file: File) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if file.data:
            os.write(fd, file.data)
        if file.sparse_bytes:
            os.ftruncate(fd, file.sparse_bytes)
        os.fchmod(fd, file.mode)
    finally:
        os.close(fd)


def _remove(directory: str) -> None:
    """shutil.rmtree without its safety against a hostile owner of the tree, at a third of its cost."""
    for entry in list(os.scandir(directory)):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(directory)
