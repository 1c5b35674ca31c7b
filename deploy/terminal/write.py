"""Generate the man page and the completion scripts in this folder from the program.

    .venv/bin/python deploy/terminal/write.py

The wheel installs them where man, bash, zsh and fish look.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "300"
import typer.main  # reads the width of the help at import

from reaper import __version__
from reaper.cli import app

HERE = Path(__file__).parent
BASH = """# Unlike typer's script, this does not split a session key at its colons.
_reaper_completion() {
    local line=${COMP_LINE:0:COMP_POINT} words current IFS=$' \\t\\n'
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]} - 1]}
    IFS=$'\\n'
    COMPREPLY=( $( env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \\
                   _REAPER_COMPLETE=complete_bash "$1" ) )
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*:}"}"}")
    return 0
}

complete -o default -F _reaper_completion reaper
"""
ZSH = """#compdef reaper
# Unlike typer's script, this completes options: there, _arguments treats them as its own.
_reaper() {
  local -a found
  found=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \\
    _REAPER_COMPLETE=complete_bash reaper)}")
  found=(${found:#})
  if (( $#found )); then compadd -a found; else _files; fi
}
_reaper "$@"
"""
HEAD = """.TH REAPER 1 "{date}" "openclaw\\-lock\\-reaper {version}" "User Commands"
.nh
.SH NAME
reaper \\- find stuck session locks of an OpenClaw gateway, and remove those that are safe to remove
.SH SYNOPSIS
.B reaper
.I COMMAND
[OPTIONS]
.SH DESCRIPTION
"""
ENDING = """.SH FILES
.TP
.I agents/*/sessions/*.jsonl.lock
below a state directory: the session locks. \\-\\-on\\-other remove also removes other locks.
No other file is removed.
.TP
.I sessions.json, *.trajectory.jsonl, *.jsonl
in the same folder: read to find out how a run ended.
.SH SEE ALSO
docs/deploying.md, docs/runbook.md and docs/faq.md of the project.
"""


def roff(text: str) -> str:
    """Return the text escaped for man."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def preformatted(paragraph: str) -> str:
    """Return the lines below a paragraph's heading; man does not wrap them again."""
    return f".nf\n{roff(paragraph.partition(':' + chr(10))[2])}\n.fi\n"


def option(parameter: Any, context: Any) -> str:  # noqa: ANN401  # typer's own click
    names, text = parameter.get_help_record(context)
    return f".TP\n.B {roff(names)}\n{roff(' '.join(text.split()))}\n"


def released() -> str:
    """Return the release date of this version from the changelog, "" if it has none yet."""
    changes = (HERE.parents[1] / "CHANGELOG.md").read_text()
    found = re.search(rf"^## \[?{re.escape(__version__)}\]?\D+([\d-]+)", changes, re.MULTILINE)
    return found[1] if found else ""


def man_page() -> str:
    """Return the man page, in man(7)."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("reaper", [], resilient_parsing=True)
    judging = ("list", "explain", "sweep", "watch")
    options: dict[str, dict[str, str]] = {}
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    for name, command in commands.items():
        inner = command.make_context(name, [], parent=context, resilient_parsing=True)
        options[name] = {
            param.name: option(param, inner)
            for param in command.params
            if param.param_type_name == "option" and not param.hidden
        }
    shared = {
        name: text
        for name, text in options["list"].items()
        if all(options[command].get(name) == text for command in judging)
    }
    examples, paragraph, exits = group.epilog.split("\n\n")
    head = HEAD.format(date=released(), version=__version__)
    parts = [head, f"{roff(group.help)}\n.PP\n{roff(' '.join(paragraph.split()))}\n.SH COMMANDS\n"]
    for name, command in commands.items():
        usage = " ".join(param.metavar or param.name.upper() for param in command.params
                         if param.param_type_name == "argument")  # fmt: skip
        text = "\n.PP\n".join(roff(" ".join(part.split())) for part in command.help.split("\n\n"))
        own = "".join(text for key, text in options[name].items() if key not in shared)
        parts.append(f".SS {roff(f'reaper {name} {usage}'.strip())}\n{text}\n{own}")
    parts.append(
        ".SH OPTIONS OF ALL COMMANDS THAT JUDGE LOCKS\n" + "".join(shared.values())
        + f".SH EXIT STATUS\n{preformatted(exits)}.SH EXAMPLES\n{preformatted(examples)}" + ENDING
    )  # fmt: skip
    return "".join(parts)


def completion(shell: str) -> str:
    """Return typer's completion script."""
    command = [sys.executable, "-c", "from reaper.cli import app; app(prog_name='reaper')"]
    environment = {**os.environ, "_REAPER_COMPLETE": f"source_{shell}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip() + "\n"


def pages() -> dict[str, str]:
    """Return the content of each file, by name."""
    return {
        "reaper.1": man_page(),
        "_reaper": ZSH,
        "reaper.bash": BASH,
        "reaper.fish": completion("fish"),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text)
