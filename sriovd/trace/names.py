"""The words for the numbers of a trace, the same in every output and in C.

Rule: tables and no logic. Errors are the kernel's (include/uapi/asm-generic/errno-base.h and errno.h), as
most architectures number them; one that is not named here is shown as a number.
"""

from __future__ import annotations

from enum import IntEnum

ERROR_NAMES: dict[int, str] = {
    1: "EPERM", 2: "ENOENT", 3: "ESRCH", 4: "EINTR", 5: "EIO", 6: "ENXIO", 7: "E2BIG", 8: "ENOEXEC",
    9: "EBADF", 10: "ECHILD", 11: "EAGAIN", 12: "ENOMEM", 13: "EACCES", 14: "EFAULT", 15: "ENOTBLK",
    16: "EBUSY", 17: "EEXIST", 18: "EXDEV", 19: "ENODEV", 20: "ENOTDIR", 21: "EISDIR", 22: "EINVAL",
    23: "ENFILE", 24: "EMFILE", 25: "ENOTTY", 26: "ETXTBSY", 27: "EFBIG", 28: "ENOSPC", 29: "ESPIPE",
    30: "EROFS", 31: "EMLINK", 32: "EPIPE", 33: "EDOM", 34: "ERANGE", 35: "EDEADLK", 38: "ENOSYS",
    61: "ENODATA", 62: "ETIME", 71: "EPROTO", 74: "EBADMSG", 75: "EOVERFLOW", 90: "EMSGSIZE",
    92: "ENOPROTOOPT", 93: "EPROTONOSUPPORT", 95: "EOPNOTSUPP", 98: "EADDRINUSE", 99: "EADDRNOTAVAIL",
    100: "ENETDOWN", 104: "ECONNRESET", 105: "ENOBUFS", 107: "ENOTCONN", 108: "ESHUTDOWN",
    110: "ETIMEDOUT", 111: "ECONNREFUSED", 114: "EALREADY", 115: "EINPROGRESS", 116: "ESTALE",
    121: "EREMOTEIO", 125: "ECANCELED",
}  # fmt: skip


def name_member(member: IntEnum) -> str:
    """The word for a type, direction or status: `hand-over`."""
    return member.name.lower().replace("_", "-")


def name_error(number: int) -> str:
    """The name of an errno, or `errno N`."""
    return ERROR_NAMES.get(number) or f"errno {number}"
