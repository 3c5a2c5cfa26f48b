"""Files that appear whole under their final name, or not at all."""

import contextlib
import errno
import os
import secrets
import shutil


@contextlib.contextmanager
def atomic(path):
    """Binary file that takes the place of `path` when the block ends, and vanishes if it raises.

    The bytes go to a temporary file in the same folder and are on disk before the name changes, so
    that a reader, a crash or a full disk finds the old file or the new one, never a part. A symlink
    stays and what it points to is replaced; a replaced file's permissions are kept.

    Raises OSError naming `path`: a folder or other special file as target, a folder that is missing
    or may not be written, a full disk.
    """
    path = os.fsdecode(path)
    target = os.path.realpath(path)
    if os.path.isdir(target) or path.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, "expected a file to write, got a folder", path)
    if os.path.lexists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "expected a regular file to write", path)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if os.path.exists(target):
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror, path) from error
        raise
    _sync_folder(folder)


def _sync_folder(folder):
    # Some file systems cannot sync a folder; the file is whole there all the same.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
