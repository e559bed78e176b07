"""Documents out of files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from icl_jax.config import UserError
from icl_jax.data.text.documents import measure_documents, python_documents, text_documents


def write(folder: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_the_standard_library_is_taken_without_packages_copies_and_broken_files(tmp_path: Path) -> None:
    write(
        tmp_path, b_py="two\r\n", a__z_py="one", a__copy_py="two\r\n", latin_py=b"caf\xe9", blank_py=" \n", c_txt="no"
    )
    write(tmp_path / "site-packages", x_py="package")
    write(tmp_path / "a" / "dist-packages", x_py="package")
    write(tmp_path / "__pycache__", x_py="cache")
    # By relative path: a/copy.py comes before b.py, which says the same.
    assert list(python_documents(tmp_path)) == ["two\r\n", "one"]


def test_the_running_interpreter_has_a_library() -> None:
    documents = python_documents()
    assert documents.n_bytes > 5_000_000
    first = next(iter(documents))
    assert first.strip()


def test_a_folder_without_python_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.source = 'python': no .py files"):
        python_documents(tmp_path)


def test_a_path_a_folder_and_a_glob(tmp_path: Path) -> None:
    write(tmp_path, b_txt="B", a_txt="A", sub__c_txt="C", d_md="D", blank_txt="\n")
    assert list(text_documents(str(tmp_path / "d.md"))) == ["D"]
    assert list(text_documents(str(tmp_path))) == ["A", "B", "C"]
    assert list(text_documents(str(tmp_path / "*.txt"))) == ["A", "B"]
    assert list(text_documents(str(tmp_path / "**" / "*.txt"))) == ["A", "B", "C"]
    assert list(text_documents(str(tmp_path / "**"))) == ["A", "B", "D", "C"]


def test_a_file_with_a_name_like_a_glob_is_itself(tmp_path: Path) -> None:
    for name in ("x[1].txt", "x1.txt"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert list(text_documents(str(tmp_path / "x[1].txt"))) == ["x[1].txt"]
    odd = tmp_path / "odd[ab]"
    odd.mkdir()
    (odd / "in.txt").write_text("in", encoding="utf-8")
    assert list(text_documents(str(odd))) == ["in"]


def test_copies_in_the_users_text_stay(tmp_path: Path) -> None:
    write(tmp_path, a_txt="same", b_txt="same")
    assert list(text_documents(str(tmp_path))) == ["same", "same"]


@pytest.mark.parametrize("pattern", ["no/such.txt", "no/*.txt", ""])
def test_no_match_is_the_users_to_mend(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"data.source = 'text:.*(no file matches|no .txt file)") as caught:
        text_documents(str(tmp_path / pattern))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="fine", b_txt=b"caf\xe9 and more")
    with pytest.raises(UserError, match=r"b\.txt: not UTF-8 text \(byte 3\)"):
        list(text_documents(str(tmp_path)))


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    write(tmp_path, a_txt="fine")
    documents = text_documents(str(tmp_path))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a\.txt: cannot read: No such file"):
        list(documents)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change", [touch, lambda path: path.write_text("longer"), lambda path: path.rename(path.with_name("z.txt"))]
)
def test_identity_follows_the_files(tmp_path: Path, change: Callable[[Path], None]) -> None:
    write(tmp_path, a_txt="one", b_txt="two")
    before = text_documents(str(tmp_path)).identity
    assert text_documents(str(tmp_path)).identity == before
    change(tmp_path / "a.txt")
    assert text_documents(str(tmp_path)).identity != before


def test_identity_tells_files_apart_that_differ_in_place_alone(tmp_path: Path) -> None:
    for name, text in (("here", "one"), ("there", "two")):
        write(tmp_path / name, a_txt=text)
        touch(tmp_path / name / "a.txt")
    here, there = (text_documents(str(tmp_path / name)).identity for name in ("here", "there"))
    assert here != there


def test_the_measure_is_of_the_texts_not_of_their_place(tmp_path: Path) -> None:
    write(tmp_path / "here", a_txt="öne", b_txt="two")
    write(tmp_path / "there", x_txt="öne", y_txt="two", z_txt=" ")
    here, there = (text_documents(str(tmp_path / name)) for name in ("here", "there"))
    assert measure_documents(here) == measure_documents(there)
    assert measure_documents(here)[1] == 7
    write(tmp_path / "here", a_txt="önet", b_txt="wo")
    assert measure_documents(text_documents(str(tmp_path / "here")))[0] != measure_documents(there)[0]
