"""The names of file systems by the type that statfs(2) gives, and which of them may be shared."""

from typing import Final

_NAMES: Final = {
    0xEF53: "ext4",  # ext2 and ext3 too
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x61756673: "aufs",
    0x2FC12FC1: "zfs",
    0xCA451A4E: "bcachefs",
    0xF15F: "ecryptfs",
    0x2011BAB0: "exfat",
    0x4D44: "vfat",
    0x5346544E: "ntfs",
    0x7366746E: "ntfs3",
    0x3153464A: "jfs",
    0x52654973: "reiserfs",
    0x3434: "nilfs2",
    0x482B: "hfsplus",
    0x24051905: "ubifs",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x517B: "smb",
    0x00C36400: "ceph",
    0x01021997: "9p",
    0x65735546: "fuse or virtiofs",  # one number for both
    0x5346414F: "afs",
    0x73757245: "coda",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x20030528: "orangefs",
    0x786F4256: "vboxsf",
    0xBACBACBC: "vmhgfs",
    0x7C7C6673: "prl_fs",
}

SHARED: Final = frozenset(
    {
        "nfs",
        "cifs",
        "smb2",
        "smb",
        "ceph",
        "9p",
        "fuse or virtiofs",
        "afs",
        "coda",
        "gfs2",
        "ocfs2",
        "lustre",
        "gpfs",
        "beegfs",
        "orangefs",
        "vboxsf",
        "vmhgfs",
        "prl_fs",
    }
)
"""File systems whose files a process may have open where this kernel does not see it: on another
machine, on the host of a virtual machine, or in the directory that a FUSE process shows."""


def file_system_name(kind: int) -> str:
    """Return the file system's name, or its type in hexadecimal where the name is not known."""
    return _NAMES.get(kind, f"{kind:#x}")
