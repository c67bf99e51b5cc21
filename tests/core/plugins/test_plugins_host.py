"""Plugins: discovery, what they may declare, and that a broken one harms nobody."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from medvlp_core.errors import PluginError
from medvlp_core.kernels.dispatch import load_kernel
from medvlp_core.plugins.candidate import hook_arguments
from medvlp_core.plugins.hooks import hookimpl
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost, hooks, install_hint, load_plugins
from medvlp_core.plugins.import_string import load_object
from medvlp_core.plugins.registry import ComponentRegistry
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.contract import Contract
from medvlp_core.spec.kernel import KernelOp
from medvlp_core.spec.roles import Role


def make_spec(name: str) -> type[ComponentSpec]:
    @component(name, role=Role.DATA, build="acme.data:Pairs")
    @attrs.frozen(kw_only=True)
    class PairsSpec(ComponentSpec):
        """Pairs."""

        count: int = param(1, help="pairs")

        def contract(self) -> Contract:
            return Contract()

        @classmethod
        def examples(cls) -> tuple[ComponentSpec, ...]:
            return (cls(), cls(count=2))

    return PairsSpec


def registering(*names: str) -> Callable[..., None]:
    def medvlp_register_components(registry: Any) -> None:
        for name in names:
            registry.add(make_spec(name))

    return hookimpl(medvlp_register_components)


def make_op(name: str, build: str = "acme.ops:KERNEL") -> KernelOp:
    return KernelOp(name=name, summary="a gate", build=build)


def adding_kernels(*ops: Any) -> Callable[..., None]:
    def medvlp_register_kernels(registry: Any) -> None:
        for op in ops:
            registry.add(op)

    return hookimpl(medvlp_register_kernels)


def module(**members: Any) -> types.ModuleType:
    found = types.ModuleType("acme_plugin")
    vars(found).update({"MEDVLP_INTERFACE": 2, **members})
    return found


def good(namespace: str) -> types.ModuleType:
    return module(medvlp_register_components=registering(f"{namespace}.pairs"))


# ----------------------------------------------------------------------------------------------------------------- good ones


def test_a_plugin_brings_components_presets_and_hooks(tmp_path: Path) -> None:
    preset = tmp_path / "base.yaml"
    preset.write_text("medvlp: 1\n")

    @hookimpl
    def medvlp_register_presets(register: Any) -> None:
        register("base", preset)

    acme = module(medvlp_register_components=registering("acme.b", "acme.a"), medvlp_register_presets=medvlp_register_presets)
    host = PluginHost.from_modules({"acme": acme})
    assert not host.broken
    assert list(host.components) == ["acme.a", "acme.b"]
    assert host.presets == {"acme:base": preset}
    (plugin,) = host.plugins
    assert (plugin.namespace, plugin.module, plugin.components) == ("acme", "acme_plugin", ("acme.a", "acme.b"))
    assert plugin.presets == ("acme:base",)
    assert plugin.hooks == ("medvlp_register_components", "medvlp_register_presets")


def test_a_plugin_brings_kernels_by_name() -> None:
    gate, mix = make_op("acme.gate"), make_op("acme.mix")
    acme = module(medvlp_register_kernels=adding_kernels(mix, gate))
    host = PluginHost.from_modules({"acme": acme, "other": module(medvlp_register_kernels=adding_kernels(make_op("other.gate")))})
    assert not host.broken
    assert host.kernels == {"acme.gate": gate, "acme.mix": mix, "other.gate": make_op("other.gate")}
    assert [plugin.kernels for plugin in host.plugins] == [("acme.gate", "acme.mix"), ("other.gate",)]
    assert host.plugins[0].hooks == ("medvlp_register_kernels",)


def test_the_bundle_mpma_declares_its_kernels(host: PluginHost) -> None:
    assert list(host.kernels) == ["mpma.memory_attention", "mpma.memory_topk"]


def test_calls_reach_plugins_with_the_arguments_they_take() -> None:
    seen: list[Any] = []

    @hookimpl
    def medvlp_model_built(model: Any) -> None:
        seen.append(model)

    host = PluginHost.from_modules({"acme": module(medvlp_model_built=medvlp_model_built)})
    host.call("medvlp_model_built", plan="plan", model="model")
    assert seen == ["model"]


def test_hosts_do_not_share_anything() -> None:
    first, second = PluginHost.from_modules({"acme": good("acme")}), PluginHost.from_modules({})
    assert len(first.components) == 1
    assert len(second.components) == 0
    assert isinstance(second.components, ComponentRegistry)


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        ("medvlp_model_built", {"plan": 1}),
        ("medvlp_model_built", {"plan": 1, "model": 1, "extra": 1}),
        ("medvlp_model_build", {"plan": 1, "model": 1}),
    ],
)
def test_wrong_calls_raise(hook: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="medvlp_model_built"):
        PluginHost.from_modules({}).call(hook, **arguments)


def test_every_hook_is_known_and_documented() -> None:
    named = {name for name, _ in inspect.getmembers(hooks, inspect.isfunction) if name.startswith("medvlp_")}
    assert set(hook_arguments()) == named
    for name in named:
        assert inspect.getdoc(getattr(hooks, name)), name


# --------------------------------------------------------------------------------------------------------------- broken ones


@hookimpl
def medvlp_register_component(registry: Any) -> None: ...


def undecorated(registry: Any) -> None: ...


@hookimpl
def medvlp_model_built(plan: Any, modle: Any) -> None: ...


@hookimpl
def raising(registry: Any) -> None:
    registry.add(make_spec("acme.left_behind"))
    raise RuntimeError("no licence file")


@hookimpl
def adding_undeclared(registry: Any) -> None:
    registry.add(Role)


@hookimpl
def presets_missing(register: Any) -> None:
    register("base", Path("nowhere/base.yaml"))


@hookimpl
def presets_twice(register: Any) -> None:
    register("base", Path(__file__))
    register("base", Path(__file__))


@hookimpl
def presets_named_badly(register: Any) -> None:
    register("acme:base", Path(__file__))


BROKEN = {
    "unknown hook": (
        module(medvlp_register_component=medvlp_register_component),
        "MV302",
        "did you mean 'medvlp_register_components'",
    ),
    "undecorated": (module(medvlp_register_components=undecorated), "MV302", "@hookimpl"),
    "unknown argument": (module(medvlp_model_built=medvlp_model_built), "MV302", "did you mean 'model'?"),
    "raises": (module(medvlp_register_components=raising), "MV301", "RuntimeError: no licence file"),
    "foreign name": (module(medvlp_register_components=registering("acme.a", "other.b")), "MV302", "name it 'acme.b'"),
    "a name twice": (module(medvlp_register_components=registering("acme.a", "acme.a")), "MV302", "already registered"),
    "not a component": (module(medvlp_register_components=adding_undeclared), "MV302", "is not a component"),
    "foreign kernel": (
        module(medvlp_register_kernels=adding_kernels(make_op("acme.a"), make_op("other.b"))),
        "MV302",
        "name it 'acme.b'",
    ),
    "a kernel twice": (
        module(medvlp_register_kernels=adding_kernels(make_op("acme.a"), make_op("acme.a"))),
        "MV302",
        "registered twice",
    ),
    "not a kernel": (module(medvlp_register_kernels=adding_kernels("acme.a")), "MV302", "'acme.a' is not a KernelOp"),
    "preset missing": (module(medvlp_register_presets=presets_missing), "MV304", "does not exist"),
    "preset twice": (module(medvlp_register_presets=presets_twice), "MV304", "registered twice"),
    "preset name": (module(medvlp_register_presets=presets_named_badly), "MV302", "the namespace comes by itself"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_leaves_nothing_behind(case: str) -> None:
    acme, code, text = BROKEN[case]
    host = PluginHost.from_modules({"first": good("first"), "acme": acme, "last": good("last")})
    (broken,) = host.broken
    assert broken.namespace == "acme"
    assert broken.problem.code == code
    assert "plugin 'acme'" in broken.problem.text
    assert text in str(broken.problem)
    assert list(host.components) == ["first.pairs", "last.pairs"]
    assert [plugin.namespace for plugin in host.plugins] == ["first", "last"]
    assert not host.presets
    assert not host.kernels
    assert host.manager.get_plugin("acme") is None
    assert (host.install_hint("acme") or "").startswith("it is skipped: plugin 'acme': ")


def test_a_bad_namespace_is_refused() -> None:
    host = PluginHost.from_modules({"Acme.x": good("acme")})
    assert host.broken[0].problem.code == "MV302"


# ------------------------------------------------------------------------------------------------------------------ discovery

PLUGIN = """
import attrs
from medvlp_core.spec.component import ComponentSpec, component, param
from medvlp_core.spec.roles import Role
from medvlp_core.spec.contract import Contract
from medvlp_core.plugins.hooks import hookimpl

MEDVLP_INTERFACE = 2

@component("{space}.pairs", role=Role.DATA, build="nowhere:Pairs")
@attrs.frozen(kw_only=True)
class PairsSpec(ComponentSpec):
    '''Pairs.'''

    def contract(self):
        return Contract()

    @classmethod
    def examples(cls):
        return (cls(), cls())

@hookimpl
def medvlp_register_components(registry):
    registry.add(PairsSpec)
"""


def install(folder: Path, space: str, text: str, *, distribution: str | None = None) -> None:
    """Lay out what pip would install: a module and the metadata with the entry point."""
    name = distribution or space
    (folder / f"{name}_plugin.py").write_text(text.replace("{space}", space))
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[medvlp.plugins]\n{space} = {name}_plugin\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("MEDVLP_PLUGINS", raising=False)
    return tmp_path


def test_entry_points_are_found_with_their_distribution(site: Path) -> None:
    install(site, "found_one", PLUGIN)
    host = load_plugins(["found_one"])
    (plugin,) = host.plugins
    assert (plugin.distribution, plugin.version) == ("found_one", "1.2")
    assert host.components.distribution("found_one.pairs") == "found_one 1.2"
    assert host.install_hint("found_one") == "pip install --upgrade found_one"


def test_a_plugin_that_fails_on_import_is_isolated(site: Path) -> None:
    install(site, "found_two", PLUGIN)
    install(site, "breaks_on_import", "import os\nimport no_such_module_at_all\n")
    install(site, "leaves", "raise SystemExit(3)\n")
    host = load_plugins(["found_two", "breaks_on_import", "leaves"])
    assert list(host.components) == ["found_two.pairs"]
    assert {broken.namespace for broken in host.broken} == {"breaks_on_import", "leaves"}
    first = next(broken for broken in host.broken if broken.namespace == "breaks_on_import")
    assert first.distribution == "breaks_on_import 1.2"
    assert str(first.problem).splitlines() == [
        "[MV301] plugin 'breaks_on_import' (breaks_on_import 1.2): it could not be loaded",
        "    ModuleNotFoundError: No module named 'no_such_module_at_all' (in breaks_on_import_plugin.py, line 2)",
        "    hint: install the package that brings the module 'no_such_module_at_all'",
    ]


def test_a_namespace_has_one_owner(site: Path) -> None:
    install(site, "shared", PLUGIN, distribution="owner_a")
    install(site, "shared", PLUGIN, distribution="owner_b")
    host = load_plugins(["shared"])
    assert [plugin.distribution for plugin in host.plugins] == ["owner_a"]
    assert "already taken by owner_a" in host.broken[0].problem.text


def test_a_third_party_cannot_push_a_bundle_of_this_repository_out(site: Path) -> None:
    install(site, "mpma", PLUGIN, distribution="a_third_party")
    host = load_plugins(["mpma"])
    assert [plugin.distribution for plugin in host.plugins] == ["medvlp-mpma"]
    assert [broken.distribution for broken in host.broken] == ["a_third_party 1.2"]


def test_the_names_of_the_core_are_not_to_be_had(site: Path) -> None:
    install(site, "kit", PLUGIN, distribution="first_aid")
    host = load_plugins(["kit"])
    assert not host.plugins
    assert host.broken[0].problem.text == "plugin 'kit' (first_aid 1.2): the namespace 'kit' belongs to the conformance kit"


def test_the_environment_limits_what_is_loaded(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "found_three", PLUGIN)
    monkeypatch.setenv("MEDVLP_PLUGINS", "found_three, mpma_typo")
    host = load_plugins()
    assert list(host.components) == ["found_three.pairs"]
    assert host.broken[0].problem.text == "plugin 'mpma_typo': it is not installed"
    assert host.install_hint("standard") == "MEDVLP_PLUGINS=found_three,mpma_typo excludes the plugin 'standard'"
    monkeypatch.setenv("MEDVLP_PLUGINS", "")
    assert not load_plugins().plugins
    assert not load_plugins().broken


def test_install_hints_name_the_bundles_of_this_repository() -> None:
    assert install_hint("mpma") == "pip install medvlp-mpma"
    assert install_hint("acme") is None
    root = Path(__file__).parents[3] / "plugins"
    for space, distribution in KNOWN_BUNDLES.items():
        text = (root / space / "pyproject.toml").read_text()
        assert f'name = "{distribution}"' in text
        assert f'{space} = "' in text


# -------------------------------------------------------------------------------------------------------------- import strings


def test_import_strings_are_resolved_when_built() -> None:
    assert load_object("pathlib:Path", owner="acme.paths") is Path


@pytest.mark.parametrize(
    ("build", "reason", "hint"),
    [
        ("pathlib:Pth", "AttributeError", None),
        ("pathlib.nothing:Path", "ModuleNotFoundError", None),
        ("needs_timm_plugin:Vit", "ModuleNotFoundError", "install the package that brings the module 'no_timm_here'"),
        ("has_a_bug:Vit", "ZeroDivisionError: division by zero (in has_a_bug.py, line 1)", None),
    ],
)
def test_import_strings_that_fail_say_why(site: Path, build: str, reason: str, hint: str | None) -> None:
    (site / "needs_timm_plugin.py").write_text("import no_timm_here\n")
    (site / "has_a_bug.py").write_text("1 / 0\n")
    with pytest.raises(PluginError) as caught:
        load_object(build, owner="acme.vit")
    (problem,) = caught.value.problems
    assert problem.code == "MV303"
    assert build in problem.text
    assert "acme.vit" in problem.text
    assert reason in problem.details[0]
    assert problem.hint == hint


def test_a_kernel_is_imported_when_it_is_used(site: Path) -> None:
    (site / "ops_of_acme.py").write_text(
        "from medvlp_core.kernels.dispatch import Backend, Kernel\n"
        "BACKENDS = (Backend(name='composite', unsupported_reasons=lambda call: ()),)\n"
        "KERNEL = Kernel(name='acme.gate', backends=BACKENDS, order=lambda call: ('composite',))\n"
    )
    kernel = load_kernel(make_op("acme.gate", "ops_of_acme:KERNEL"))
    assert kernel.select("auto", kernel.example) == "composite"
    for op, code, text in (
        (make_op("acme.gate", "ops_of_acme:KERNAL"), "MV303", "acme.gate cannot be built: importing 'ops_of_acme:KERNAL' failed"),
        (make_op("acme.gate", "pathlib:Path"), "MV302", "acme.gate: pathlib:Path is not a Kernel"),
        (make_op("acme.mix", "ops_of_acme:KERNEL"), "MV302", "acme.mix: ops_of_acme:KERNEL is the kernel of 'acme.gate'"),
    ):
        with pytest.raises(PluginError) as caught:
            load_kernel(op)
        assert (caught.value.problems[0].code, caught.value.problems[0].text) == (code, text)


def test_a_missing_optional_dependency_says_how_to_install_it(site: Path) -> None:
    (site / "needs_a_library.py").write_text("import no_such_library\n")
    (site / "has_another_bug.py").write_text("1 / 0\n")
    for build, hint in (("needs_a_library:Vit", "pip install acme[vit]"), ("has_another_bug:Vit", None)):
        with pytest.raises(PluginError) as caught:
            load_object(build, owner="acme.vit", install="pip install acme[vit]")
        assert caught.value.problems[0].hint == hint
