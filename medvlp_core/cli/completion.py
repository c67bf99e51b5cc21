"""``medvlp completion SHELL``: the script that makes a shell complete what is typed behind ``medvlp``. Light."""

from __future__ import annotations

import argparse

from medvlp_core.cli.completion_words import offered, split_line

#: Each asks ``medvlp`` itself for the words, so that they are those of the installed bundles.
SCRIPTS = {
    "bash": r"""_medvlp() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}"
    COMPREPLY=($(medvlp completion bash --line "$line" 2>/dev/null))
    # bash cuts words at = and : too, and replaces only the last piece
    local word="${line##* }"
    local done="${word%"${word##*[$COMP_WORDBREAKS]}"}"
    COMPREPLY=("${COMPREPLY[@]#"$done"}")
    if [[ "${COMPREPLY[0]}" == *[=./] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _medvlp medvlp
""",
    "zsh": r"""_medvlp() {
    local -a found
    found=("${(@f)$(medvlp completion zsh --line "$LBUFFER" 2>/dev/null)}")
    if [[ -z "$found[1]" ]]; then _files; return; fi
    compadd -S '' -- ${(M)found:#*[=./]}
    compadd -- ${found:#*[=./]}
}
compdef _medvlp medvlp
""",
    "fish": r"""complete -c medvlp -a '(medvlp completion fish --line (commandline -cp) 2>/dev/null)'
""",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """The shell; ``--line`` is what its script asks with."""
    parser.add_argument("shell", metavar="SHELL", choices=SCRIPTS, help=f"one of {', '.join(SCRIPTS)}")
    parser.add_argument("--line", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or with ``--line`` the words that may stand at its end, one a line."""
    if arguments.line is None:
        print(SCRIPTS[arguments.shell], end="")
        return 0
    from medvlp_core.cli import COMMANDS, built_in, parser_of, plugin_commands

    def parser(name: str) -> argparse.ArgumentParser:
        return parser_of(built_in(name) if name in COMMANDS else plugin_commands()[name])

    words = split_line(arguments.line)
    for word in offered(words, lambda: [*COMMANDS, *plugin_commands()], parser):
        print(word)
    return 0
