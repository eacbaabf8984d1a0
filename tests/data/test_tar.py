import io
import tarfile

import pytest

from hpctrain.data.tar import Archive
from hpctrain.errors import DataError


def write(path, members, kind=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def walk(path):
    with Archive(path) as archive:
        return list(archive.members())


def said(path):
    with pytest.raises(DataError) as caught:
        walk(path)
    return str(caught.value).replace(str(path), "FILE")


LONG = "deep/" * 40 + "é" * 30


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_lie_where_the_standard_library_finds_them(tmp_path, kind):
    names = ["a.jpg", "d/" * 60 + "b.cls", "./c.txt", "empty"]
    names += [LONG] * (kind != tarfile.USTAR_FORMAT)
    path = write(tmp_path / "x.tar", [(name, name.encode() * number) for number, name in enumerate(names)], kind)
    found = walk(path)
    assert [member.name for member in found] == [name.removeprefix("./") for name in names]
    with tarfile.open(path) as archive:
        assert [(m.data, m.size) for m in found] == [(m.offset_data, m.size) for m in archive]


def test_directories_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path, "here", recursive=False)
        archive.addfile(tarfile.TarInfo("a.jpg"))
    assert [member.name for member in walk(tmp_path / "x.tar")] == ["a.jpg"]


def test_a_size_beyond_8_gib_is_read_from_base_256_and_pax(tmp_path):
    size = 9 * 2**30
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("huge.bin")
        info.size = size
        path = tmp_path / "x.tar"
        with path.open("wb") as file:  # a file with a hole
            file.write(info.tobuf(kind))
            begin = file.tell()
            file.truncate(begin + size + 1024)
        [member] = walk(path)
        assert (member.data, member.size) == (begin, size)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a named pipe"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "of the unknown kind b'Z'"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path, kind, what):
    path = write(tmp_path / "x.tar", [("a.jpg", b"1")])
    info = tarfile.TarInfo("evil")
    info.type, info.linkname = kind, "/etc/passwd"
    path.write_bytes(path.read_bytes()[:1024] + info.tobuf() + bytes(1024))
    assert said(path) == (
        f"FILE: member evil, byte 1024: is {what}\n"
        "  make the archive anew, of plain files: tar --dereference --hard-dereference"
    )


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg", "b/.."])
def test_names_that_leave_the_directory_are_refused(tmp_path, name):
    for kind in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        path = write(tmp_path / "x.tar", [(name, b"1")], kind)
        assert said(path).startswith(f"FILE: member {name}, byte 0: a member's name may not leave the directory")


def test_a_name_in_a_pax_record_is_checked_like_any_other(tmp_path):
    path = write(tmp_path / "x.tar", [("../" + LONG, b"1")], tarfile.PAX_FORMAT)
    assert "a member's name may not leave the directory" in said(path)


def test_sparse_files_in_pax_records_are_refused(tmp_path):
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    assert said(tmp_path / "x.tar").startswith("FILE: member a.jpg, byte 1024: is a sparse file")


def test_a_huge_extended_header_is_not_read(tmp_path):
    info = tarfile.TarInfo("./PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**33 - 1
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(2**33 + 1024)
    assert said(path) == "FILE: byte 0: an extended header of 8589934591 bytes; at most 1048576 are read"


def test_a_cut_is_found_wherever_it_is(tmp_path):
    whole = write(tmp_path / "x.tar", [("a.jpg", b"x" * 700), ("a.cls", b"1")]).read_bytes()[: 512 * 6]
    for length in range(0, 512 * 5 + 1, 128):  # the last that is refused lacks all zeros of the end
        (tmp_path / "x.tar").write_bytes(whole[:length])
        assert "get it again" in said(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(whole)
    assert len(walk(tmp_path / "x.tar")) == 2


def test_a_cut_between_two_members_says_so(tmp_path):
    path = write(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", b"1")])
    path.write_bytes(path.read_bytes()[:1024])
    assert said(path) == (
        "FILE: byte 1024: the archive does not end with a block of zeros\n"
        "  it is truncated, or was not finished: get it again"
    )


def test_joined_archives_are_refused(tmp_path):
    path = write(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", b"1")])
    path.write_bytes(path.read_bytes() * 2)
    assert said(path).startswith("FILE: byte 2048: the archive ends here, and 18432 more bytes follow\n")


@pytest.mark.parametrize(("mode", "tool"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_archives_are_refused_with_what_to_type(tmp_path, mode, tool):
    with tarfile.open(tmp_path / "x.tar", mode) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.size = 2048
        archive.addfile(info, io.BytesIO(bytes(2048)))
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes() + bytes(512))
    assert said(tmp_path / "x.tar") == (
        f"FILE: byte 0: is compressed, so no sample can be found by its offset\n  {tool} it first"
    )


def test_what_is_no_tar_file_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"<html>" * 200)
    assert said(tmp_path / "x.tar").startswith("FILE: byte 0: there is no tar header\n")
    (tmp_path / "x.tar").write_bytes(b"")
    assert said(tmp_path / "x.tar").startswith("FILE: byte 0: is empty\n")
    (tmp_path / "x.tar").unlink()
    assert said(tmp_path / "x.tar") == "FILE cannot be read: No such file or directory"


def test_the_octal_size_of_a_member_must_be_one(tmp_path):
    path = write(tmp_path / "x.tar", [("a.jpg", b"x")])
    content = bytearray(path.read_bytes())
    content[124:136] = b"99999999999\0"
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + sum(content[156:512]) + 256)
    path.write_bytes(content)
    assert said(path) == "FILE: member a.jpg, byte 0: its size is no number"
