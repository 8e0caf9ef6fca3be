"""Files come with the permissions of any other file, whoever wrote them first."""

from __future__ import annotations

import os

import pytest

from redlab.files.atomic import open_to_others
from redlab.lab.report import pdf


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


def test_a_report_in_pdf_is_readable(tmp_path, umask, monkeypatch):
    """Chromium makes its files private."""
    program = tmp_path / "chromium"
    program.write_text(
        '#!/bin/sh\numask 077\nfor word; do case $word in --print-to-pdf=*) touch "${word#*=}";; esac; done'
    )
    program.chmod(0o755)
    monkeypatch.setattr(pdf, "find_chromium", lambda: str(program))
    out = pdf.print_pdf(tmp_path / "page.html", tmp_path / "out" / "a.pdf")
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask
