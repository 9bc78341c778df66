"""A disk that forgets in a power cut what was not synced: LazyFS, https://github.com/dsrhaslab/lazyfs.

    disk = LazyFs(folder, at=mount_point)
    await disk.mount()      from now on what is written there is kept in memory until it is fsynced
    ... kill whoever has files open there ...
    await disk.power_cut()  the rest is gone

A FUSE file system in a process of its own, built elsewhere (its licence is not ours): MAILFLOW_TEST_LAZYFS is the path
of its executable. Its worst case is worse than a kernel's, which writes back by itself after some tens of seconds; it
forgets no directory entry and tears no write.
"""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.processes import Process
from tests.support.waiting import eventually

_CLEAR = b"lazyfs::clear-cache\n"
_CLEARED = b"finished::clear-cache\n"


def why_not() -> str | None:
    """What is missing for it here; None: nothing."""
    path = os.environ.get("MAILFLOW_TEST_LAZYFS")
    if not path:
        return "MAILFLOW_TEST_LAZYFS is not set to the executable of LazyFS (https://github.com/dsrhaslab/lazyfs)"
    if not os.access(path, os.X_OK):
        return f"MAILFLOW_TEST_LAZYFS={path} is not an executable"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not there, or not for this user"
    if shutil.which("fusermount3") is None:
        return "fusermount3 is missing (Debian: fuse3)"
    return None


class LazyFs(Process):
    """Mounted at `at`, which is made; what is synced lies in a folder beside."""

    def __init__(self, folder: Path, *, at: Path) -> None:
        self.at = at
        root = folder / "lazyfs-synced"
        for path in (at, root):
            path.mkdir(parents=True)
        self._faults, self._done = folder / "lazyfs-faults", folder / "lazyfs-done"
        for path in (self._faults, self._done):
            os.mkfifo(path)
        config = folder / "lazyfs.toml"
        config.write_text(
            f'[faults]\nfifo_path="{self._faults}"\nfifo_path_completed="{self._done}"\n'
            '[cache]\napply_eviction=false\n[cache.simple]\ncustom_size="0.25gb"\nblocks_per_page=1\n'
            '[filesystem]\nlog_all_operations=false\nlogfile=""\n'
        )
        # Both ends of each, for opening one end waits for the other.
        self._say = os.open(self._faults, os.O_RDWR | os.O_NONBLOCK)
        self._hear = os.open(self._done, os.O_RDWR | os.O_NONBLOCK)
        options = ["-o", "modules=subdir", "-o", f"subdir={root}", "-f"]
        lazyfs = os.environ["MAILFLOW_TEST_LAZYFS"]
        super().__init__("lazyfs", [lazyfs, str(at), "--config-path", str(config), *options], folder)

    async def mount(self) -> None:
        """Waits until it is there."""
        self.start()
        await eventually(lambda: os.path.ismount(self.at), within_s=30, what=f"{self.at} mounted")

    async def power_cut(self) -> None:
        """Forgets all that was not synced."""
        os.write(self._say, _CLEAR)
        said = b""

        def cleared() -> bool:
            nonlocal said
            try:
                said += os.read(self._hear, 4096)
            except BlockingIOError:
                return False
            return said.endswith(_CLEARED)

        await eventually(cleared, within_s=30, what="the cache cleared")

    def unmount(self) -> None:
        """For good."""
        subprocess.run(["fusermount3", "-u", "-z", str(self.at)], capture_output=True)
        self.kill()
        os.close(self._say)
        os.close(self._hear)
