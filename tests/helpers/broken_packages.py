"""Small plugin packages for test_plugins_installed.py: one that works, and the ways in which others do not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import attrs

SPECS = """\
import attrs
from medvlp_core import ComponentSpec, Contract, Role, component, param


@component("{space}.gate", role=Role.FUSION, build="{space}.modules:Gate")
@attrs.frozen(kw_only=True)
class GateSpec(ComponentSpec):
    '''Adds nothing to the words.'''

    heads: int = param(2, help="heads", at_least=1)

    def contract(self):
        return Contract(needs={"text_tokens": "B L D"}, gives={"fused_text_tokens": "B L D"})

    @classmethod
    def examples(cls):
        return (cls(), cls(heads=1))
"""

PLUGIN = """\
from medvlp_core import hookimpl
from {space}.specs import GateSpec

MEDVLP_INTERFACE = 2


@hookimpl
def medvlp_register_components(registry):
    registry.add(GateSpec)
"""

MODULES = """\
from medvlp_core.nn import FusedFeatures, Fusion


class Gate(Fusion):
    def __init__(self, spec, dims):
        super().__init__(spec, dims)

    def forward(self, text_tokens):
        return FusedFeatures(fused_text_tokens=text_tokens)
"""


@attrs.frozen(kw_only=True)
class Package:
    """One distribution: what differs from a plugin that works."""

    plugin: str = PLUGIN
    specs: str = SPECS
    modules: str = MODULES
    entry: str = "{space} = '{space}.plugin'"


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


HOOK_THAT_RAISES = "\n\n@hookimpl\ndef {hook}({argument}):\n    raise RuntimeError('no licence')\n"
PRESET_TWICE = """

@hookimpl
def medvlp_register_presets(register):
    register('base', __file__)
    register('base', __file__)
"""

PACKAGES = {
    "good": Package(),
    # ---------------------------------------------------------------------------------- left out when they are loaded
    "argument": Package(plugin=PLUGIN + "\n\n@hookimpl\ndef medvlp_check_plan(plan, diagnostic):\n    pass\n"),
    "claims": Package(entry="mpma = '{space}.plugin'"),
    "contract": Package(specs=changed(SPECS, "        return Contract(", "        1 / 0\n        return Contract(")),
    "dependency": Package(plugin="import no_such_library\n" + PLUGIN),
    "future": Package(plugin=changed(PLUGIN, "MEDVLP_INTERFACE = 2", "MEDVLP_INTERFACE = 3")),
    "hook": Package(plugin=changed(PLUGIN, "medvlp_register_components", "medvlp_register_component")),
    "newer_core": Package(specs="from medvlp_core import Universe\n" + SPECS),
    "no_attribute": Package(entry="{space} = '{space}.plugin:PLUGIN'"),
    "no_module": Package(entry="{space} = '{space}.plugins'"),
    "outside": Package(specs=changed(SPECS, '"{space}.gate"', '"standard.bert"')),
    "preset": Package(plugin=PLUGIN + PRESET_TWICE),
    "raises": Package(plugin=PLUGIN + "raise RuntimeError('no licence file')\n"),
    "silent": Package(plugin=changed(PLUGIN, "MEDVLP_INTERFACE = 2", "")),
    "undecorated": Package(plugin=changed(PLUGIN, "@hookimpl\n", "")),
    # --------------------------------------------------------------------------------- loaded, and broken when they are used
    "builds": Package(modules=changed(MODULES, "super().__init__(spec, dims)", "raise OSError('no such weights')")),
    "container": Package(modules=changed(MODULES, "FusedFeatures(fused_text_tokens=text_tokens)", "(text_tokens, None)")),
    "hooks": Package(
        plugin=PLUGIN
        + HOOK_THAT_RAISES.format(hook="medvlp_check_plan", argument="plan")
        + HOOK_THAT_RAISES.format(hook="medvlp_model_built", argument="model")
        + HOOK_THAT_RAISES.format(hook="medvlp_train_event", argument="event")
    ),
    "loud": Package(plugin="import torch\nprint('hello')\n" + PLUGIN),
    "optional": Package(
        specs=changed(
            SPECS, 'build="{space}.modules:Gate"', 'build="{space}.modules:Gate", install="pip install acme-optional[vit]"'
        ),
        modules="import no_such_library\n" + MODULES,
    ),
    "spec": Package(
        specs=changed(SPECS, "        return Contract(", "        10 / (self.heads - 7)\n        return Contract(")
        + "\n    def problems(self):\n        return [self.heads.bits] if self.heads == 6 else ()\n"
    ),
}


def write_package(folder: Path, space: str, package: Package) -> Path:
    root = folder / space
    texts = {
        "pyproject.toml": f"""\
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "acme-{space.replace("_", "-")}"
            version = "1.2"
            [project.entry-points."medvlp.plugins"]
            {package.entry}
            [tool.setuptools]
            packages = ["{space}"]
            """,
        f"{space}/__init__.py": "",
        f"{space}/plugin.py": package.plugin,
        f"{space}/specs.py": package.specs,
        f"{space}/modules.py": package.modules,
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).replace("{space}", space), encoding="utf-8")
    return root
