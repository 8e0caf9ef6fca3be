"""Files come with the permissions of any other file, whoever wrote them first."""

from __future__ import annotations

import os

import pytest

from redlab.files.atomic import open_to_others, replaced_file, replaced_folder


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_private_file_becomes_like_any_other(tmp_path, umask):
    path = tmp_path / "a"
    os.close(os.open(path, os.O_CREAT, 0o600))
    open_to_others(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def interrupted(path):
    with replaced_file(path) as part:
        part.write_text("new")
        raise KeyboardInterrupt


def full(path):
    with replaced_folder(path) as part:
        (part / "a").write_text("new")
        raise OSError(28, "No space left on device")


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(file)
    with pytest.raises(OSError, match=r"could not write .*folder, what was there is unchanged: No space left"):
        full(folder)
    assert sorted(tmp_path.iterdir()) == [file, folder]
    assert file.read_text() == (folder / "a").read_text() == "old"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for name in ("a", "b"):
        with replaced_folder(tmp_path / "new" / "folder") as part:
            (part / name).write_text("new")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]
