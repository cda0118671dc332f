"""The system calls that a program may not make, as a filter for the kernel (seccomp-BPF)."""

from __future__ import annotations

import ctypes
import platform
import struct

# name: numbers on x86_64 and aarch64; -1 if the architecture lacks the call
HARMFUL = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "syslog": (103, 116), "vhangup": (153, 58), "personality": (135, 92),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "iopl": (172, -1), "ioperm": (173, -1), "socket": (41, 198),
    "bind": (49, 200), "connect": (42, 203), "memfd_create": (319, 279), "memfd_secret": (447, 447), "mq_open": (240, 180),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
}  # fmt: skip
WRITING = {
    "creat": (85, -1), "mkdir": (83, -1), "mkdirat": (258, 34), "rename": (82, -1), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
    "unlink": (87, -1), "unlinkat": (263, 35), "rmdir": (84, -1), "mknod": (133, -1), "mknodat": (259, 33),
    "truncate": (76, 45), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, -1),
    "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
FORKING = {"fork": (57, -1), "vfork": (58, -1)}
REACHING = {
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "setpriority": (141, 140), "ioprio_set": (251, 30),
}  # fmt: skip
"""Calls that signal other processes or change their priority."""
OWNERS = {"fcntl": ((72, 25), (8, 15)), "ioctl": ((16, 29), (0x8901, 0x8902))}
"""Calls whose second argument can select the process that gets a file's signals: F_SETOWN, F_SETOWN_EX, FIOSETOWN,
SIOCSPGRP."""
CLONE, CLONE3, OPENAT2, PRLIMIT = (56, 220), (435, 435), (437, 437), (302, 261)
OPEN, OPENAT, SOCKETPAIR = (2, -1), (257, 56), (53, 199)
KILL, TKILL, TGKILL = (62, 129), (200, 130), (234, 131)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

EPERM, EROFS, ENOSYS = 1, 30, 38
NAMESPACES, THREAD = 0x7E020080, 0x10000
FOR_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC and the bit of O_TMPFILE."""
DATAGRAMS = 2
"""The bit that only SOCK_DGRAM and SOCK_RAW have: each end of such a pair can send to any address."""
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


class Filter:
    """A filter for this architecture; `install` applies it irrevocably to this process.

    single: the process cannot start processes, and can signal only itself (pid). threads: it can start threads.
    read_only: it can neither open files for writing nor create, rename or remove files.
    """

    def __init__(self, *, single: bool, read_only: bool, threads: bool = True, pid: int = 0) -> None:
        self.column, architecture = ARCHITECTURES[platform.machine()]
        self.code: list[bytes] = []
        self._add(LOAD, 4)
        self._add(EQUAL, architecture, 1, 0)
        self._add(RETURN, KILL_PROCESS)
        self._add(LOAD, 0)
        if self.column == 0:  # the x32 calls of x86_64 have other numbers
            self._refuse_if(AT_LEAST, 0x40000000, EPERM)
        for numbers in HARMFUL.values():
            self._refuse(numbers, EPERM)
        self._refuse(CLONE3, ENOSYS)  # a filter cannot read its flags; the C library falls back to clone
        self._refuse_by_argument(CLONE, 0, [(ANY_BIT, NAMESPACES, EPERM)])
        self._refuse_by_argument(SOCKETPAIR, 1, [(ANY_BIT, DATAGRAMS, EPERM)])
        if single:
            for numbers in (*FORKING.values(), *REACHING.values()):
                self._refuse(numbers, EPERM)
            self._refuse_unless(CLONE, 0, ANY_BIT, THREAD if threads else 0)
            for call, commands in OWNERS.values():
                self._refuse_by_argument(call, 1, [(EQUAL, command, EPERM) for command in commands])
            for numbers in (KILL, TKILL, TGKILL):
                self._refuse_unless(numbers, 0, EQUAL, pid)
            self._refuse_unless(PRLIMIT, 0, EQUAL, 0)
        if read_only:
            for numbers in WRITING.values():
                self._refuse(numbers, EROFS)
            self._refuse(OPENAT2, ENOSYS)
            self._refuse_by_argument(OPEN, 1, [(ANY_BIT, FOR_WRITING, EROFS)])
            self._refuse_by_argument(OPENAT, 2, [(ANY_BIT, FOR_WRITING, EROFS)])
        self._add(RETURN, ALLOW)

    def install(self) -> None:
        """Applies the filter. Raises OSError if the kernel has no such filters."""
        libc = ctypes.CDLL(None, use_errno=True)
        code = ctypes.create_string_buffer(b"".join(self.code))
        program = struct.pack("HxxxxxxP", len(self.code), ctypes.addressof(code))
        if libc.prctl(22, ctypes.c_ulong(2), program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "no seccomp filters")

    def _add(self, code: int, value: int, then: int = 0, otherwise: int = 0) -> None:
        self.code.append(struct.pack("HBBI", code, then, otherwise, value))

    def _refuse_if(self, test: int, value: int, errno: int) -> None:
        self._add(test, value, 0, 1)
        self._add(RETURN, ERRNO | errno)

    def _refuse(self, numbers: tuple[int, int], errno: int) -> None:
        if numbers[self.column] >= 0:
            self._refuse_if(EQUAL, numbers[self.column], errno)

    def _refuse_by_argument(self, numbers: tuple[int, int], argument: int, tests: list[tuple[int, int, int]]) -> None:
        """Refuses a call if its argument passes a test."""
        number = numbers[self.column]
        if number < 0:
            return
        self._add(EQUAL, number, 0, 2 * len(tests) + 2)
        self._add(LOAD, 16 + 8 * argument)
        for test, value, errno in tests:
            self._refuse_if(test, value, errno)
        self._add(LOAD, 0)

    def _refuse_unless(self, numbers: tuple[int, int], argument: int, test: int, value: int) -> None:
        """Refuses a call unless its argument passes the test."""
        self._add(EQUAL, numbers[self.column], 0, 4)
        self._add(LOAD, 16 + 8 * argument)
        self._add(test, value, 1, 0)
        self._add(RETURN, ERRNO | EPERM)
        self._add(LOAD, 0)
