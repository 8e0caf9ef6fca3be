"""Code that the user names: which file runs, how often, and what is said where it doesn't."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from redlab.zoo.code import Code, call_code, code_of, load_code

NET = "class Net:\n    def __init__(self):\n        self.size = 3\nnet = Net()\n"


@pytest.fixture(autouse=True)
def _modules():
    """What a test imports is forgotten."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith("/tmp"):
            del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_code_is_told_by_its_form():
    assert code_of("a b/nets.py:Net") == Code("a b/nets.py", "Net")
    assert code_of("C:\\nets\\mine.py:Net") == Code("C:\\nets\\mine.py", "Net")
    assert code_of("package.module:Net.small") == Code("package.module", "Net.small")
    for text in ("digits/mlp", "nets.py", "nets.py:", ":Net", "nets.py:1", "a-b:Net", "timm/hf-hub:x", ""):
        assert code_of(text) is None, text


def test_a_file_runs_once_and_again_when_it_changed(tmp_path):
    text = "import builtins\nbuiltins.runs = getattr(builtins, 'runs', 0) + 1\nclass Net: size = {}\n"
    file = write(tmp_path, "counted.py", text.format(1))
    first = load_code(f"{file}:Net")
    assert load_code(f"{file}:Net") is first
    file.write_text(text.format(2))  # in the same second, as long as before
    assert load_code(f"{file}:Net").size == 2
    import builtins

    assert builtins.__dict__.pop("runs") == 2


def test_a_relative_path_starts_in_the_current_folder_and_a_home_is_expanded(tmp_path, monkeypatch):
    write(tmp_path, "here.py", "class Net: pass\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_code("~/here.py:Net").__name__ == "Net"
    with pytest.raises(ValueError, match="there is no file"):
        load_code("here.py:Net")
    monkeypatch.chdir(tmp_path)
    assert load_code("here.py:Net").__name__ == "Net"


def test_files_of_one_name_in_two_folders_are_told_apart_with_what_they_import(tmp_path):
    for where in ("a", "b"):
        write(tmp_path / where, "blocks.py", f"size = {where!r}\n")
        write(tmp_path / where, "same.py", f"import blocks\nclass Net: size, place = blocks.size, {where!r}\n")
    for where in ("a", "b", "a"):
        found = load_code(f"{tmp_path / where / 'same.py'}:Net")
        assert (found.size, found.place) == (where, where)
    write(tmp_path / "a", "blocks.py", "size = 'changed'\n")
    assert load_code(f"{tmp_path / 'a' / 'same.py'}:Net").size == "changed"


def called(file: Path) -> str:
    return call_code(f"{file}:make", load_code(f"{file}:make"))


def test_what_a_function_imports_is_told_apart_by_folder_too_and_seen_when_it_changed(tmp_path):
    files = {}
    for where in ("fa", "fb"):
        write(tmp_path / where, "lazyhelp.py", f"size = {where!r}\n")
        text = "def make():\n    import lazyhelp\n    return lazyhelp.size\n"
        files[where] = write(tmp_path / where, f"lz_{where}.py", text)
    assert [called(files[where]) for where in ("fa", "fb", "fa")] == ["fa", "fb", "fa"]
    made = {where: load_code(f"{file}:make") for where, file in files.items()}
    assert [call_code(f"{files[where]}:make", made[where]) for where in ("fa", "fb", "fa")] == ["fa", "fb", "fa"]
    same = load_code(f"{files['fa']}:make")
    assert load_code(f"{files['fa']}:make") is same
    write(tmp_path / "fa", "lazyhelp.py", "size = 'changed'\n")
    assert called(files["fa"]) == "changed"


def test_a_file_beside_one_that_changed_can_still_be_pickled(tmp_path):
    nets, data = write(tmp_path, "mynets.py", NET), write(tmp_path, "mydata.py", "size = 1\n")
    net = load_code(f"{nets}:net")
    load_code(f"{data}:size")
    write(tmp_path, "mydata.py", "size = 22\n")
    assert load_code(f"{data}:size") == 22
    assert type(pickle.loads(pickle.dumps(net))) is type(net)


def test_a_helper_that_fails_in_a_call_is_read_again_once_it_is_mended(tmp_path):
    write(tmp_path, "lazybroken.py", "def size(): return 1 / 0\n")
    text = "def make():\n    import lazybroken\n    return lazybroken.size()\n"
    file = write(tmp_path, "lz_c.py", text)
    with pytest.raises(ValueError, match=r"lz_c\.py:make: ZeroDivisionError"):
        called(file)
    write(tmp_path, "lazybroken.py", "def size(): return 'mended'\n")
    assert called(file) == "mended"
    other = write(tmp_path, "lz_d.py", text)
    write(tmp_path, "lazybroken.py", "def size(): return 'anew'\n")
    assert called(other) == "anew"  # the first file had imported the older one
    assert called(file) == "anew"


@pytest.mark.parametrize(
    "text", ["import sys\nsys.exit(3)\n", "import argparse\nargparse.ArgumentParser().parse_args(['--no'])\n"]
)
def test_a_file_that_ends_the_process_is_named(text, tmp_path):
    file = write(tmp_path, "script.py", text)
    with pytest.raises(ValueError, match=r"script\.py:make: it ends the process .*under if __name__ == '__main__'"):
        load_code(f"{file}:make")
    write(tmp_path, "script.py", "def make(): raise SystemExit('done')\n")
    with pytest.raises(ValueError, match=r"script\.py:make: it ends the process \(SystemExit: done\)"):
        called(file)
    write(tmp_path, "script.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_code(f"{file}:make")


def test_classes_pickle_here_and_unpickle_elsewhere(tmp_path):
    file = write(tmp_path, "pickled_net.py", NET)
    load_code(f"{file}:Net")
    content = pickle.dumps(load_code(f"{file}:net"))
    assert type(pickle.loads(content)).__name__ == "Net"
    (tmp_path / "net.pickle").write_bytes(content)
    code = "import pickle; print(pickle.load(open('net.pickle', 'rb')).size)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "3\n"


@pytest.mark.parametrize("stem", ["json", "torch", "pytest", "redlab"])
def test_a_file_that_would_hide_another_module_is_refused(stem, tmp_path):
    before = sys.modules.get(stem)
    file = write(tmp_path, f"{stem}.py", "class Net: pass\n")
    with pytest.raises(ValueError, match=f"'{stem}' is the name of another module .*rename {stem}.py"):
        load_code(f"{file}:Net")
    assert sys.modules.get(stem) is before


def test_a_file_that_fails_keeps_its_message_and_leaves_nothing(tmp_path):
    file = write(tmp_path, "broken.py", "import no_such_package\n")
    with pytest.raises(
        ValueError, match=r"broken\.py:Net: ModuleNotFoundError: No module named 'no_such_package'"
    ) as error:
        load_code(f"{file}:Net")
    assert isinstance(error.value.__cause__, ModuleNotFoundError)
    assert "broken" not in sys.modules
    file.write_text("class Net:\n  x = 1 +\n")
    with pytest.raises(ValueError, match=r"broken\.py:Net: SyntaxError: .*line 2"):
        load_code(f"{file}:Net")
    file.write_text("class Net: pass\n")
    assert load_code(f"{file}:Net").__name__ == "Net"


def test_a_name_that_is_missing_lists_those_that_are_there(tmp_path):
    file = write(tmp_path, "some.py", "import json\nfrom pathlib import Path\n" + NET)
    with pytest.raises(ValueError, match=r"has no 'Nett' \(did you mean Net\?\); it holds Net, net$"):
        load_code(f"{file}:Nett")
    with pytest.raises(ValueError, match=r"collections has no 'deqeu' \(did you mean deque\?\)"):
        load_code("collections:deqeu")


def test_what_is_not_there_is_said_without_running_code(tmp_path):
    with pytest.raises(ValueError, match="no module 'no_such_package' is installed; the code of a file is"):
        load_code("no_such_package.nets:Net")
    with pytest.raises(ValueError, match=r"there is no file .*gone\.py"):
        load_code(f"{tmp_path}/gone.py:Net")
    with pytest.raises(ValueError, match=r"rename v1\.2\.py"):
        load_code(f"{write(tmp_path, 'v1.2.py', '')}:Net")
    with pytest.raises(ValueError, match="names no code"):
        load_code("digits/mlp")


def test_a_file_may_ask_for_its_own_code(tmp_path):
    text = "from redlab.zoo.code import load_code\nclass Net: pass\nagain = load_code(__file__ + ':Net')\n"
    file = write(tmp_path, "mirror.py", text)
    assert load_code(f"{file}:again") is load_code(f"{file}:Net")
