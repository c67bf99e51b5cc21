"""Broken plugins as they come in real life: separate distributions, installed with pip into an environment beside the bundles.

Each breaks in another way. All are installed at once: each must be named with its distribution, version and reason, and everything
else must go on working.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
from broken_packages import PACKAGES, write_package

from medvlp_core import __version__
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost

LIST = """\
hello
[MV302] warning: plugin 'loud' (acme-loud 1.2): loading it imports torch, and every command waits for that
    hint: import it in the modules that `build` names: they are loaded when something is built
broken plugins, skipped:
[MV302] plugin 'argument' (acme-argument 1.2): the hook medvlp_check_plan has no argument 'diagnostic'
    hint: did you mean 'diagnostics'? other arguments: plan
[MV306] plugin 'contract' (acme-contract 1.2): the spec of contract.gate fails on its own examples
    ZeroDivisionError: division by zero (in specs.py, line 13)
    contract.specs.GateSpec
[MV301] plugin 'dependency' (acme-dependency 1.2): it could not be loaded
    ModuleNotFoundError: No module named 'no_such_library' (in plugin.py, line 1)
    hint: install the package that brings the module 'no_such_library'
[MV307] plugin 'future' (acme-future 1.2): it is written for version 3 of the plugin interface, and CORE speaks 2
    hint: pip install --upgrade medvlp-core, or install an older acme-future
[MV302] plugin 'hook' (acme-hook 1.2): there is no hook 'medvlp_register_component'
    hint: did you mean 'medvlp_register_components'? other hooks: ...
[MV302] plugin 'mpma' (acme-claims 1.2): the namespace 'mpma' is already taken by medvlp-mpma 0.1.0
    hint: uninstall one of the two, or ask its author for another name of the entry point
[MV301] plugin 'newer_core' (acme-newer-core 1.2): it could not be loaded
    ImportError: cannot import name 'Universe' from 'medvlp_core' (...) (in specs.py, line 1)
    hint: it may be written for another version than CORE: upgrade medvlp-core or acme-newer-core
[MV301] plugin 'no_attribute' (acme-no-attribute 1.2): its entry point `no_attribute = no_attribute.plugin:PLUGIN` leads nowhere: \
no_attribute.plugin has no 'PLUGIN'
    hint: repair the entry point in its pyproject.toml, or the list of packages to install
[MV301] plugin 'no_module' (acme-no-module 1.2): its entry point `no_module = no_module.plugins` leads nowhere: \
there is no module 'no_module.plugins'
    hint: repair the entry point in its pyproject.toml, or the list of packages to install
[MV302] plugin 'outside' (acme-outside 1.2): component 'standard.bert' is outside the plugin's namespace
    hint: name it 'outside.bert', or rename the entry point
[MV304] plugin 'preset' (acme-preset 1.2): the preset 'preset:base' is registered twice
[MV301] plugin 'raises' (acme-raises 1.2): it could not be loaded
    RuntimeError: no licence file (in plugin.py, line 10)
[MV307] plugin 'silent' (acme-silent 1.2): it does not say which version of the plugin interface it is written for; CORE speaks 2
    hint: its author adds `MEDVLP_INTERFACE = 2` to silent.plugin
[MV302] plugin 'undecorated' (acme-undecorated 1.2): medvlp_register_components is not marked as a hook
    hint: decorate it with @hookimpl from medvlp_core
`medvlp list --traceback` shows where they raise
"""

CHECKED = """\
[MV306] warning: plugin 'hooks' (acme-hooks 1.2): its hook medvlp_check_plan failed: RuntimeError: no licence (in plugin.py, ...
"""

#: What `medvlp check micro.yaml --use model.fusion=NAME.gate` says, with further overrides.
CHECKS = {
    ("good",): CHECKED + "micro.yaml: ok, 9 components, 4 loss terms, 8 calls a step, 1 warning\n",
    ("raises",): """\
--use model.fusion=raises.gate [MV101] unknown fusion 'raises.gate': its plugin is skipped
    plugin 'raises' (acme-raises 1.2): it could not be loaded
    RuntimeError: no licence file (in plugin.py, line 10)
    hint: repair or reinstall acme-raises 1.2; `medvlp list` shows what works
micro.yaml: 1 error
""",
    ("future",): """\
--use model.fusion=future.gate [MV101] unknown fusion 'future.gate': its plugin is skipped
    plugin 'future' (acme-future 1.2): it is written for version 3 of the plugin interface, and CORE speaks 2
    hint: pip install --upgrade medvlp-core, or install an older acme-future
micro.yaml: 1 error
""",
    ("spec", "--set", "model.fusion.heads=7"): """\
--use model.fusion=spec.gate [MV306] model.fusion (spec.gate): its spec failed: \
ZeroDivisionError: division by zero (in specs.py, line 13)
    spec.specs.GateSpec from acme-spec 1.2
    hint: its author must repair it
micro.yaml: 1 error
""",
    ("spec", "--set", "model.fusion.heads=6"): """\
--use model.fusion=spec.gate [MV306] model.fusion (spec.gate): its spec failed: \
AttributeError: 'int' object has no attribute 'bits' (in specs.py, line 21)
    spec.specs.GateSpec from acme-spec 1.2
    hint: its author must repair it
micro.yaml: 1 error
""",
}

OBSERVED = """\
[MV306] warning: plugin 'hooks' (acme-hooks 1.2): its hook medvlp_model_built failed: RuntimeError: no licence (in ... 19)
    hint: the work continues; this hook of the plugin is not called again
[MV306] warning: plugin 'hooks' (acme-hooks 1.2): its hook medvlp_train_event failed: RuntimeError: no licence (in ... 24)
    hint: the work continues; this hook of the plugin is not called again
"""

BUILT = """\
--use model.fusion=builds.gate [MV303] model.fusion (builds.gate) could not be built: OSError: no such weights (in ... 6)
    builds.modules:Gate from acme-builds 1.2
--use model.fusion=optional.gate [MV303] model.fusion (optional.gate) cannot be built: importing 'optional.modules:Gate' failed
    ModuleNotFoundError: No module named 'no_such_library' (in modules.py, line 1)
    optional.modules:Gate from acme-optional 1.2
    hint: pip install acme-optional[vit]
--use model.fusion=container.gate [MV206] model.fusion (container.gate) returned tuple of 2, expected ...
    container.modules:Gate from acme-container 1.2
good.gate works
mpma.memory_fusion works
"""

BUILD = """\
from medvlp_core.planning.compose import plan_recipe
from medvlp_core.errors import Diagnostics, MedvlpError
from medvlp_core.plugins.host import load_plugins
from medvlp_core.recipe.load import parse_override

host = load_plugins()
from medvlp_core.model.build import build_run

for name in ("builds.gate", "optional.gate", "container.gate", "good.gate", "mpma.memory_fusion"):
    try:
        plan = plan_recipe("micro.yaml", [parse_override("use", f"model.fusion={name}", Diagnostics())], host=host)
        run = build_run(plan, seed=0)
        batch = next(iter(run.pipeline.loader("val", batch_size=2)))
        assert run.model(batch).loss.isfinite()
        print(name, "works")
    except MedvlpError as error:
        print(error)
for _ in range(2):
    host.observe("medvlp_train_event", event=None)
"""


@attrs.frozen
class Environment:
    """A virtual environment with all packages, beside the framework of the running one."""

    python: Path
    folder: Path

    def run(self, *arguments: str, allow: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("MEDVLP_PLUGINS", "COLUMNS")}
        environment |= {"MEDVLP_PLUGINS": ",".join(allow)} if allow else {}
        command = [str(self.python), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=environment, check=False)

    def medvlp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "medvlp_core.cli", *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, micro: str) -> Environment:
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(own) / "framework.pth").write_text(line, encoding="utf-8")
    sources = [str(write_package(folder / "sources", space, package)) for space, package in PACKAGES.items()]
    options = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), *options, *sources]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "micro.yaml").write_text(micro, encoding="utf-8")
    return Environment(python, folder)


def same(shown: str, found: str) -> None:
    """Compare line by line; ``...`` stands for anything, CORE for the core with its version."""
    wanted = shown.replace("CORE", f"medvlp-core {__version__}").splitlines()
    for one, other in zip(wanted, found.splitlines(), strict=False):
        head, dots, tail = one.partition("...")
        assert (other.startswith(head) and other.endswith(tail)) if dots else other == one
    assert len(found.splitlines()) == len(wanted)


def test_list_shows_every_broken_package_and_all_that_works(installed: Environment, host: PluginHost) -> None:
    done = installed.medvlp("list")
    same(LIST, done.stderr)
    assert "hello" not in done.stdout
    assert done.returncode == 0
    shown = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert set(host.components) | set(host.presets) | set(host.kernels) <= shown
    working = {"good", "builds", "container", "hooks", "loud", "optional", "spec"}
    assert {name for name in shown if name.endswith(".gate")} == {f"{space}.gate" for space in working}
    assert {name for name in PACKAGES if f"'{name}' (acme-" in done.stderr} == set(PACKAGES) - working - {"claims"} | {"loud"}


def test_what_is_used_of_a_broken_package_is_named_and_the_rest_works(installed: Environment) -> None:
    commands = [["check", "micro.yaml", "--use", f"model.fusion={space}.gate", *rest] for space, *rest in CHECKS]
    commands.append(["check", "raises:small"])
    commands.append(["list", "--traceback"])
    code = f"from medvlp_core.cli import main\nfor command in {commands!r}:\n    print(main(command), flush=True)\n"
    # Without the package that imports torch: the others are quick.
    done = installed.run("-c", code, allow=sorted({*PACKAGES, *KNOWN_BUNDLES} - {"loud"}))
    codes = [0, *[1] * (len(CHECKS) - 1), 1]
    preset = """\
[MV005] there is no preset 'raises:small'
    hint: it is skipped: plugin 'raises' (acme-raises 1.2): it could not be loaded: RuntimeError: ... 10)
raises:small: 1 error
"""
    wanted = "".join(f"{text}{code}\n" for text, code in zip([*CHECKS.values(), preset], codes, strict=True))
    same(wanted, done.stdout.partition("data:\n")[0])
    trace = done.stderr.partition("[MV301] plugin 'raises'")[2].splitlines()[2:5]
    assert [line.strip() for line in trace if "File" not in line] == [
        "raise RuntimeError('no licence file')",
        "RuntimeError: no licence file",
    ]


def test_what_fails_to_build_or_run_is_named_and_the_rest_works(installed: Environment) -> None:
    done = installed.run("-c", BUILD)
    same(BUILT, done.stdout)
    same("hello\n" + OBSERVED, done.stderr)
    assert done.returncode == 0
