"""What --help promises: every setting with a text and a default, and the same commands in Python as in the shell."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import typing

import pytest

import distilhash
from distilhash import api, cli
from distilhash.config import Config


def flags_of(command: str) -> dict[str, object]:
    """Each flag of a command with its default, from the function and the dataclasses in its signature."""
    found: dict[str, object] = {}
    hints = typing.get_type_hints(cli.command_of(command))
    for name, parameter in inspect.signature(cli.command_of(command)).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            prefix = f"--{name}." if name in ("teacher", "student") else "--"
            for field in dataclasses.fields(hints[name]):
                found[prefix + field.name.replace("_", "-")] = getattr(parameter.default, field.name)
        elif parameter.kind is parameter.KEYWORD_ONLY:
            flag = {"ids": "id", "host_names": "host-name"}.get(name, name.replace("_", "-"))
            found[f"--{flag}"] = parameter.default
    return found


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_every_flag_with_a_text_and_its_default(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines()[1:])) <= 80  # tyro does not break the line of usage
    text = " ".join(out.replace("\u2502", " ").split())
    assert text.startswith(f"usage: distilhash {command}")
    flags = flags_of(command)
    assert "--json" in flags
    for flag, default in flags.items():
        said = text.split(f" {flag} ", 1)[1].split(" --", 1)[0]
        assert f"(default: {default})" in said or (default == () and "repeatable" in said), flag
        assert len(said.split("(default")[0].split()) > 2, flag


def test_every_field_of_a_config_has_a_docstring():
    from tyro._docstrings import get_field_docstring

    for config in Config.__subclasses__():
        for field in dataclasses.fields(config):
            assert get_field_docstring(config, field.name, ()), f"{config.__name__}.{field.name}"


def test_the_overview_names_every_command_in_80_columns(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command} " in out for command in cli.COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_help_needs_no_network_library():
    code = "import sys, distilhash.cli as c; c.main(['distill', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_python_and_the_shell_have_the_same_commands():
    for command in set(cli.COMMANDS) - {"list"}:
        assert getattr(distilhash, command) is getattr(api, command)
        assert command in dir(distilhash)
        assert inspect.getdoc(getattr(api, command))


def test_import_all_shadows_no_builtin():
    import builtins

    assert not set(distilhash.__all__) & set(dir(builtins))
    assert all(hasattr(distilhash, name) for name in distilhash.__all__)


def test_the_process_starts_once_more_with_what_libraries_read_at_their_start():
    program = (
        "import os, sys, distilhash.__main__ as m, distilhash.cli as c; "
        "c.main = lambda: print({n: os.environ.get(n) for n in m.ENVIRONMENT}, m.STARTED in os.environ); m.run()"
    )
    from distilhash.__main__ import ENVIRONMENT

    own = {"OMP_WAIT_POLICY": "ACTIVE", "PYTHONPATH": os.pathsep.join(sys.path)}
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", program], env=bare | own, capture_output=True, text=True, check=True)
    assert done.stdout == f"{ENVIRONMENT | {'OMP_WAIT_POLICY': 'ACTIVE'}} False\n"  # the user's own choice stays
