"""The files of a new plug-in package, and writing them whole or not at all. Light.

Templates lie in ``templates/``: ``shared/`` for every package, and a folder for each role with its spec, module, preset and notes.
They are :class:`string.Template` texts; files without the ending ``.tmpl`` are copied as they are.
"""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

import attrs

from medvlp_core.errors import Diagnostics, PluginError, Problem, did_you_mean
from medvlp_core.plugins.candidate import RESERVED
from medvlp_core.plugins.host import KNOWN_BUNDLES, PluginHost
from medvlp_core.spec.component import INTERFACE_VERSION
from medvlp_core.spec.roles import Role

CODE = "MV305"
LONGEST_NAME = 40
_NAME = re.compile(r"[a-z](_?[a-z0-9])*")
TEMPLATES = Path(__file__).parent / "templates"


@attrs.frozen(kw_only=True)
class NewPackage:
    """What a new package is called: ``name`` is distribution, import package and namespace in one."""

    name: str
    role: Role
    component: str

    @property
    def class_name(self) -> str:
        """``gated_sum`` as ``GatedSum``."""
        return "".join(part.capitalize() for part in self.component.split("_"))

    @property
    def what(self) -> str:
        """The role as one says it: ``a fusion``, ``an image encoder``."""
        words = "data source" if self.role is Role.DATA else self.role.value.replace("_", " ")
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    @property
    def values(self) -> dict[str, str]:
        """What the templates' placeholders stand for."""
        return {
            "name": self.name,
            "distribution": self.name.replace("_", "-"),
            "role": self.role.value,
            "what": self.what,
            "What": self.what.capitalize(),
            "component": self.component,
            "Component": self.class_name,
            "slot": self.role.info.slot.replace("*", self.name),
            "interface": str(INTERFACE_VERSION),
            "package_data": '"py.typed", "presets/*.yaml"' + (', "sample/**/*"' if self.role is Role.DATA else ""),
        }


def describe(name: str, role: str, component: str | None, host: PluginHost) -> NewPackage:
    """Check the names.

    Raises:
        PluginError: every reason why no package can be called so (MV305).
    """
    diagnostics = Diagnostics()
    if role not in [one.value for one in Role]:
        diagnostics.add(CODE, f"there is no role {role!r}", hint=did_you_mean(role, [one.value for one in Role], what="roles"))
    for text, hint in name_faults(name, host):
        diagnostics.add(CODE, text, hint=hint)
    if component is not None and (fault := spelling_fault(component, "a component")) is not None:
        diagnostics.add(CODE, fault[0], hint=fault[1])
    diagnostics.raise_errors(PluginError)
    package = NewPackage(name=name, role=Role(role), component=component or Role(role).info.template)
    if keyword.iskeyword(package.class_name):
        text = f"--component {component} makes a class {package.class_name}, and that is a keyword of Python"
        _refuse(text, f"take a more telling name, e.g. {package.role.info.template}")
    return package


def spelling_fault(name: str, what: str) -> tuple[str, str] | None:
    """Why a word cannot name a package or component, whatever else there is; with a hint."""
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = "use lower-case letters, digits and single _ between them, a letter first: e.g. "
        return f"{name!r} cannot name {what}", hint + (near if _NAME.fullmatch(near) else "acme_fusion")
    if len(name) > LONGEST_NAME:
        return f"{name!r} has {len(name)} letters", f"use at most {LONGEST_NAME}"
    if keyword.iskeyword(name):
        return f"{name!r} is a keyword of Python and cannot name {what}", f"e.g. my_{name}"
    return None


def name_faults(name: str, host: PluginHost) -> Iterator[tuple[str, str]]:
    """Why a package cannot be called ``name``: spelling, a namespace that is taken, a module that it would shadow."""
    if (fault := spelling_fault(name, "a package")) is not None:
        yield fault
        return
    hint = f"take a name of your own, e.g. my_{name}"
    owners = {plugin.namespace: plugin.distribution for plugin in host.plugins}
    owners |= {plugin.namespace: plugin.distribution for plugin in host.broken} | KNOWN_BUNDLES | RESERVED
    if name in owners:
        yield f"the namespace {name!r} belongs to {owners[name] or 'an installed plugin'}", hint
    elif name in sys.stdlib_module_names:
        yield f"{name!r} is a module of Python's standard library, which the package would shadow", hint
    elif name == "tests":
        yield "'tests' is the folder of the new package's own tests", hint
    elif (spec := importlib.util.find_spec(name)) is not None and spec.origin is not None:  # no origin: merely a folder
        yield f"there is already a package {name!r} in this environment, which the new one would shadow", hint


# ----------------------------------------------------------------------------------------------------------------- rendering


def render(package: NewPackage) -> dict[str, bytes]:
    """Every file of the package, by its path below the package's folder.

    Raises:
        PluginError: a class of the component would be called like another one in its module (MV305).
    """
    values = package.values
    values["notes"] = Template((TEMPLATES / package.role.value / "notes.md").read_text(encoding="utf-8")).substitute(values).strip()
    found: dict[str, bytes] = {}
    for folder in (TEMPLATES / "shared", TEMPLATES / package.role.value):
        for source in (path for path in folder.rglob("*") if path.is_file() and path.name != "notes.md"):
            target = source.relative_to(folder).as_posix().replace("NAME", package.name)
            if target.endswith(".tmpl"):
                found[target.removesuffix(".tmpl")] = Template(source.read_text(encoding="utf-8")).substitute(values).encode()
            else:
                found[target] = source.read_bytes()
    _check_classes(package, found)
    return dict(sorted(found.items()))


def _check_classes(package: NewPackage, found: Mapping[str, bytes]) -> None:
    for path, content in found.items():
        if not path.endswith(".py"):
            continue
        nodes = list(ast.walk(ast.parse(content)))
        names = [alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
        names += [node.name for node in nodes if isinstance(node, ast.ClassDef)]
        if clash := next((name for name, count in Counter(names).items() if count > 1), None):
            text = f"--component {package.component} makes a class {clash}, and the module has another one of that name"
            _refuse(text, f"take a more telling name, e.g. {package.role.info.template}")


# ------------------------------------------------------------------------------------------------------------------- writing


def write(found: Mapping[str, bytes], folder: Path) -> None:
    """Write the files into a folder that is new or empty; when that fails, nothing of it stays.

    Raises:
        PluginError: the folder is in use or cannot be written (MV305).
    """
    if folder.exists() and not folder.is_dir():
        _refuse(f"{folder} is a file", "name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        _refuse(f"{folder}: the folder is not empty", "name a new folder with --out; nothing is ever overwritten")
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        for path, content in found.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    except BaseException as error:
        for one in [new[-1]] if new else list(folder.iterdir()):
            if one.is_dir():
                shutil.rmtree(one, ignore_errors=True)
            elif one.exists():
                one.unlink()
        if not isinstance(error, OSError):
            raise
        _refuse(f"{folder} cannot be written: {error.strerror}", "name another folder with --out")


def _refuse(text: str, hint: str) -> None:
    raise PluginError(Problem(code=CODE, text=text, hint=hint))
