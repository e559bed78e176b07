"""Files of text as they come: linked, packed, in other encodings, no text at all."""

import gzip
import os
from pathlib import Path

import pytest
from numcodecs import Zstd

from icl_jax.config import UserError
from icl_jax.data.text.documents import python_documents, text_documents
from icl_jax.data.text.reading import find_files, read_text

TEXT = "Zwölf Boxkämpfer jagen Viktor.\n" * 3

READ = {
    "plain": TEXT.encode(),
    "with a byte order mark": TEXT.encode("utf-8-sig"),
    "gzip": gzip.compress(TEXT.encode()),
    "gzip with a mark inside": gzip.compress(TEXT.encode("utf-8-sig")),
    "zstd": bytes(Zstd().encode(TEXT.encode())),
}
REFUSED = {
    "UTF-16": (TEXT.encode("utf-16"), "is UTF-16 text: must be UTF-8 text, or such text in .gz or .zst"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "is UTF-16 or UTF-32 text without a byte order mark"),
    "UTF-16, the other end": (TEXT.encode("utf-16-be"), "is UTF-16 or UTF-32 text without a byte order mark"),
    "UTF-32": (TEXT.encode("utf-32"), "is UTF-32 text"),
    "Latin-1": (TEXT.encode("latin-1"), "not UTF-8 text (byte 2); save it as UTF-8"),
    "gzip of UTF-16": (gzip.compress(TEXT.encode("utf-16")), "is UTF-16 text"),
    "gzip cut short": (gzip.compress(TEXT.encode())[:20], "is damaged, or no gzip or Zstandard file"),
    "zstd cut short": (bytes(Zstd().encode(TEXT.encode()))[:20], "is damaged, or no gzip or Zstandard file"),
    "ZIP": (b"PK\3\4....", "is a ZIP archive or an office document"),
    "PDF": (b"%PDF-1.7", "is a PDF"),
    "Parquet": (b"PAR1....", "is a Parquet file"),
}


@pytest.mark.parametrize("kind", READ)
def test_text_is_taken_as_it_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(READ[kind])
    assert read_text(tmp_path / "a.txt") == TEXT
    assert list(text_documents(str(tmp_path))) == [TEXT]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_text_is_named(kind: str, tmp_path: Path) -> None:
    data, said = REFUSED[kind]
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(text_documents(str(tmp_path)))
    assert f"a.txt: {said}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_packed_files_of_a_folder_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(READ["gzip"])
    (tmp_path / "b.txt.zst").write_bytes(READ["zstd"])
    (tmp_path / "c.gz").write_bytes(b"something else")
    assert list(text_documents(str(tmp_path))) == [TEXT, TEXT]


def test_each_file_once_by_what_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("one")
    (folder / "z.txt").write_text("two")
    (folder / "deep" / "copy.txt").write_text("one")
    os.link(folder / "z.txt", folder / "deep" / "hard.txt")
    (folder / "soft.txt").symlink_to(folder / "deep" / "a.txt")
    for name in ("self", "again", "deep/up"):  # two circles: as many paths as one likes
        (folder / name).symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("three")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    expected = ["deep/copy.txt", "linked/b.txt", "soft.txt", "z.txt"]
    for pattern in (folder, folder / "**", folder / "**" / "*.txt"):
        found, _ = find_files(str(pattern))
        assert [path.relative_to(folder).as_posix() for path in found] == expected


def test_globs_mean_what_they_mean_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/.hidden/f.txt", ".g.txt", "b/x1.md", "b/x2.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for pattern in ("*", "**", "**/*.txt", "b/**", "b/x[12].md", "b/x?.md", "*/*.txt", "b/../*.txt", ".*", "b/.*/*",
                    "**/d/*", "b/**/e.txt", "./**/c.txt", f"{tmp_path}/**/*.md"):  # fmt: skip
        import glob

        expected = sorted(
            {os.path.realpath(name) for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)}
        )
        assert sorted(os.path.realpath(path) for path in find_files(pattern)[0]) == expected, pattern


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "other"
    path.write_text("one")
    before, times = text_documents(str(path)).identity, path.stat()
    other.write_text("two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert text_documents(str(path)).identity != before
    replaced = text_documents(str(path)).identity
    path.write_text("six")  # in place, and its time put back
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert text_documents(str(path)).identity != replaced


def test_what_can_be_read_once_only_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe': is no regular file, and documents are read more than once; save it"):
        text_documents(str(tmp_path / "pipe"))
    with pytest.raises(UserError, match="is no regular file"):
        text_documents("/dev/null")


def test_the_standard_library_is_taken_as_it_stands(tmp_path: Path) -> None:
    """Its marks too: numbers of it are published."""
    (tmp_path / "a.py").write_bytes("x = 1\n".encode("utf-8-sig"))
    (tmp_path / "b.py").write_bytes("x = 2\n".encode("utf-16"))
    documents = python_documents(tmp_path)
    assert list(documents) == ["\ufeffx = 1\n"]
    assert documents.is_cut
