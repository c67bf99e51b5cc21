"""Problems, how they are collected and how a user sees them. Light: standard library and attrs only.

Every message of medvlp has one anatomy::

    configs/mixed.yaml:14:12 [MV203] model.fusion (mpma.memory_fusion): heads=8 must divide Dt, and Dt is 500
        Dt=500 comes from standard.hf_text (configs/mixed.yaml:9:19)
        hint: 4, 5 or 10 heads divide 500

Checks do not stop at the first problem: they add each to a :class:`Diagnostics` and raise once, at the end.
"""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

#: Libraries that call an author's code, or that the core calls for it: an error's place in them says nothing.
_FRAMEWORKS = frozenset({"python", "torch", "pluggy", "attr"})
_STDLIB = sysconfig.get_path("stdlib")

#: Every code, with its meaning in one line. ``docs/errors.md`` has an entry for each (a test compares).
CODES: dict[str, str] = {
    "MV001": "the file cannot be read",
    "MV002": "the file is not valid YAML",
    "MV003": "a key stands twice in one mapping",
    "MV004": "a YAML feature that medvlp does not accept (tags, several documents)",
    "MV005": "`extends` names a preset or file that does not exist, or extends itself",
    "MV006": "a `${...}` reference cannot be resolved",
    "MV007": "a command-line override cannot be applied",
    "MV008": "the format version in `medvlp:` is missing or not supported",
    "MV101": "unknown component",
    "MV102": "unknown parameter or block",
    "MV103": "a parameter has the wrong type",
    "MV104": "a parameter is out of its range",
    "MV105": "a required block or parameter is missing",
    "MV106": "the component has another role than its slot",
    "MV107": "`losses:` names a term that no component emits",
    "MV108": "a bundle that `requires:` names is missing or has another version",
    "MV109": "a component or parameter is deprecated",
    "MV201": "no component gives a port that another one needs",
    "MV202": "two components disagree about a dimension",
    "MV203": "a constraint on a dimension does not hold",
    "MV204": "two components disagree about dtype or token layout of a port",
    "MV205": "a view is needed that the model does not produce",
    "MV206": "a built part does not keep what its contract declares",
    "MV207": "an evaluator does not apply to this model and is skipped",
    "MV208": "a component gives nothing that is used",
    "MV209": "two components give the same port, or two slots share a name",
    "MV210": "a pre-trained part gets other inputs than it was trained with",
    "MV211": "a field that records may lack reaches a loss that does not know which are missing",
    "MV212": "what a contrast takes or gives does not allow it to be one over the whole step",
    "MV301": "a plugin could not be loaded",
    "MV302": "a plugin declares something that is not allowed",
    "MV303": "a component could not be built",
    "MV304": "a preset is already taken, or does not exist on disk",
    "MV305": "a new package cannot be written",
    "MV306": "a plugin's own code failed",
    "MV307": "a plugin is written for another version of the interface",
    "MV401": "a kernel backend that was asked for cannot serve",
    "MV402": "a kernel gets tensors that do not fit together",
    "MV403": "a kernel does not have the derivative that is asked for",
    "MV501": "an image cannot be read",
    "MV502": "a manifest cannot be used",
    "MV503": "a split is empty or does not exist",
    "MV504": "a text is empty",
    "MV505": "a tensor has the wrong dtype or shape",
    "MV506": "a tokenizer cannot be loaded or trained",
    "MV507": "a checkpoint cannot be read or written",
    "MV508": "a run folder cannot be used",
    "MV509": "the weights that `init_from` names cannot be taken",
    "MV510": "a model cannot be exported",
    "MV511": "a file or folder that the recipe names does not exist",
    "MV512": "a record's field cannot be used",
    "MV601": "training cannot continue",
    "MV602": "an ablation has no metric of that name",
    "MV603": "the cost of a run cannot be told",
    "MV604": "a run needs more memory than a GPU has",
    "MV605": "a tracker cannot be used",
    "MV606": "the memory of a GPU is full",
    "MV607": "another training process is gone",
}


@attrs.frozen
class Position:
    """A place in a file or in a command-line override.

    ``line`` and ``column`` count from 1; 0 means "the whole file".
    """

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


def _known_code(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    if value not in CODES:
        raise ValueError(f"unknown message code {value!r}; add it to medvlp_core.errors.CODES")


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong, with its place and what to do about it."""

    code: str = attrs.field(validator=_known_code)
    text: str
    position: Position | None = None
    details: tuple[str, ...] = ()
    hint: str | None = None
    is_warning: bool = False

    def __str__(self) -> str:
        head = f"[{self.code}] {'warning: ' if self.is_warning else ''}{self.text}"
        lines = [f"{self.position} {head}" if self.position else head]
        lines += [f"    {detail}" for detail in self.details]
        if self.hint:
            lines.append(f"    hint: {self.hint}")
        return "\n".join(lines)


class MedvlpError(Exception):
    """Base of every error that medvlp raises on purpose. Carries one or more problems."""

    def __init__(self, *problems: Problem | str) -> None:
        super().__init__(*problems)
        self.problems = tuple(problem for problem in problems if isinstance(problem, Problem))

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.args)


class SpecError(MedvlpError):
    """The recipe (YAML and overrides) cannot be planned or built."""


class PluginError(MedvlpError):
    """A plugin cannot be loaded or declares something that is not allowed."""


class KernelError(MedvlpError):
    """A kernel backend cannot serve a call, or the call does not fit together."""


class DataError(MedvlpError):
    """Images, texts, manifests, tokenizers or run folders cannot be used."""


@attrs.define
class Diagnostics:
    """Collects problems, so that a user sees all of them at once.

    Example:
        >>> diagnostics = Diagnostics()
        >>> diagnostics.add("MV001", "no such file", hint="check the path")
        >>> diagnostics.has_errors
        True
    """

    problems: list[Problem] = attrs.field(factory=list)

    def add(
        self,
        code: str,
        text: str,
        *,
        at: Position | None = None,
        details: Iterable[str] = (),
        hint: str | None = None,
        is_warning: bool = False,
    ) -> None:
        """Record one problem; an identical one is kept once."""
        problem = Problem(code=code, text=text, position=at, details=tuple(details), hint=hint, is_warning=is_warning)
        if problem not in self.problems:
            self.problems.append(problem)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that are not warnings."""
        return tuple(problem for problem in self if not problem.is_warning)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that do not stop anything."""
        return tuple(problem for problem in self if problem.is_warning)

    @property
    def has_errors(self) -> bool:
        """Whether anything stops the work."""
        return bool(self.errors)

    def raise_errors(self, kind: type[MedvlpError] = SpecError) -> None:
        """Raise ``kind`` with all errors, if there are any."""
        if self.has_errors:
            raise kind(*self.errors)

    def __iter__(self) -> Iterator[Problem]:
        """Problems in file order: by file, then line, then column, then code."""

        def key(problem: Problem) -> tuple[str, int, int, str]:
            at = problem.position or Position("")
            return (at.file, at.line, at.column, problem.code)

        return iter(sorted(self.problems, key=key))


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like ``name``, else one that begins with it, or None if none is near.

    Example:
        >>> nearest("mpma.gloabl_local", ["mpma.global_local", "standard.siglip"])
        'mpma.global_local'
    """
    known = list(candidates)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    longer = [one for one in known if name and one.startswith(name)]
    return next(iter(found or longer), None)


def did_you_mean(name: str, candidates: Iterable[str], *, what: str = "known names") -> str:
    """A hint that names the nearest candidate and then the others.

    Example:
        >>> did_you_mean("heds", ["heads", "slots"], what="parameters")
        "did you mean 'heads'? other parameters: slots"
    """
    names = sorted(set(candidates))
    near = nearest(name, names)
    if near is None:
        return f"{what}: {', '.join(names)}" if names else f"there are no {what}"
    others = [other for other in names if other != near]
    rest = f" other {what}: {', '.join(others)}" if others else ""
    return f"did you mean '{near}'?{rest}"


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says; some say nothing.

    Example:
        >>> first_line(EOFError())
        'no reason is given'
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")


def describe_error(error: BaseException) -> str:
    """An error of somebody's code in one line: type, text, and the last line of its author's code that it passed.

    Example:
        >>> describe_error(KeyError("width"))
        "KeyError: 'width'"
    """
    frame = _authors_frame(error)
    where = f" (in {Path(frame.filename).name}, line {frame.lineno})" if frame else ""
    return f"{type(error).__name__}: {error}{where}"


def traceback_of(error: BaseException) -> str:
    """The traceback of an error of somebody's code, without the lines of the core and of Python's import."""
    return "".join([*traceback.format_list(_foreign_frames(error)), *traceback.format_exception_only(error)])


def _authors_frame(error: BaseException) -> traceback.FrameSummary | None:
    """The last line of an author's code: of files that lie outside of libraries, else of the library that was called first."""
    frames = [frame for frame in _foreign_frames(error) if _library(frame.filename) not in _FRAMEWORKS]
    own = [frame for frame in frames if not _library(frame.filename)]
    first = [frame for frame in frames if _library(frame.filename) == _library(frames[0].filename)]
    return next(reversed(own or first), None)


def _library(file: str) -> str:
    """The installed library that a file belongs to, ``python`` for Python's own; empty for any other file."""
    parts = Path(file).parts
    installed = next((parts.index(folder) for folder in ("site-packages", "dist-packages") if folder in parts), None)
    if installed is not None:
        return parts[installed + 1]
    return "python" if Path(file).is_relative_to(_STDLIB) else ""


def _foreign_frames(error: BaseException) -> list[traceback.FrameSummary]:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<frozen", "<attrs"))]
    frames = [frame for frame in frames if "importlib" not in frame.filename]
    return [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(__file__).parent)]
