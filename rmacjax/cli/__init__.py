"""The command line: one function per command, its docstring is its help.

Commands import what they need inside their bodies: help appears at once, and only those who work
with a network wait for JAX. What a command reports goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrongly called, 130 interrupted.
"""

import _thread
import gc
import inspect
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from itertools import pairwise
from shutil import get_terminal_size

from rmacjax import __version__
from rmacjax.cli.generated import forget
from rmacjax.finetune.interruption import undisturbed

SUMMARIES = {
    "demo": "See it work: find outlined objects in generated photos, or in your own.",
    "index": "Describe photos and keep them in a collection.",
    "add": "Add photos to a collection.",
    "remove": "Take photos out of a collection.",
    "search": "Find the photos that show an outlined object, and where.",
    "evaluate": "Measure the search on photos with known answers.",
    "whiten": "Learn whitening from your photos.",
    "finetune": "Train a network on your photos, or on generated ones.",
    "weights": "Convert, fetch or look at a network's weights.",
}
"""Each command in one line, in the order of the help."""

WEIGHTS_SUMMARIES = {
    "convert": "Turn a file of another program into a weights file.",
    "fetch": "Download a network's published weights.",
    "show": "Say what is in a weights file.",
}

MODULES = {
    "demo": "demo",
    "index": "index",
    "add": "index",
    "remove": "index",
    "search": "search",
    "evaluate": "evaluate",
    "whiten": "whiten",
    "finetune": "finetune",
    "weights convert": "weights",
    "weights fetch": "weights",
    "weights show": "weights",
}
"""The file in this folder that holds each command."""

INTERRUPTED = 130

COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")

KEPT = {
    "index": "What was described so far is kept. Run the same command again to go on from there.",
    "add": "What was described so far is kept. Run the same command again to go on from there.",
    "evaluate": "What was described so far is kept (not with --no-cache). Run it again to go on.",
    "finetune": "Checkpoints, if any, are kept. Run the same command again to go on from the last.",
    "demo": "Photos described so far are kept. Run the same command again to go on from there.",
    "remove": "Photos are removed all at once: either all of them are gone, or none.",
    "weights fetch": "A file is only kept when it is complete. Run the same command again.",
}

FIRST_STEPS = """\
First steps:
  rmacjax demo                                              see what it does
  rmacjax index ~/Pictures holiday                          describe photos, once
  rmacjax search holiday church.jpg --box 120 80 460 390    find the outlined object

  rmacjax COMMAND --help shows a command's options and examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None takes this process's.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrongly called, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _hear_ctrl_c()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:  # again
        with undisturbed(then_go_on=True):
            code = _say(INTERRUPTED, "Interrupted.")
    except BrokenPipeError:  # of an overview or a report, whose reader has seen enough
        code = 0
        _flush()
    except (AssertionError, ImportError, OSError) as error:
        # A shell that tyro does not know, or not without another package, or no place to write.
        if not _is_completion(words):
            raise
        code = _say(1 if isinstance(error, OSError) else 2, "rmacjax:", _sentence(error))
    if code == INTERRUPTED and argv is None:
        # Native threads may still be at work on what was interrupted; taking the interpreter down
        # under them can crash. All that is to be kept is on the disk already.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        forget()
        gc.collect()  # what is shared with other processes is given back
        _flush()
        os._exit(code)
    return code


def _hear_ctrl_c() -> None:
    """Let Ctrl-C come again when it fell into a callback, of JAX's say: there Python drops it."""
    before = sys.unraisablehook

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(0.05, _interrupt).start()
        else:
            before(dropped)

    sys.unraisablehook = hook


def _interrupt() -> None:
    """Ctrl-C, from another thread: a signal, which also ends a wait."""
    main_thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


def _dispatch(words: list[str]) -> int:
    if words and words[0].startswith("--tyro"):
        return _complete(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview("rmacjax", SUMMARIES, FIRST_STEPS), end="")
        return 0
    if words[0] in ("--version", "-V"):
        print(f"rmacjax {__version__}")
        return 0
    name, *rest = words
    if name == "weights":
        if not rest or rest[0] in ("-h", "--help"):
            print(_overview("rmacjax weights", WEIGHTS_SUMMARIES), end="")
            return 0
        if rest[0] not in WEIGHTS_SUMMARIES:
            return _unknown(rest[0], "rmacjax weights", WEIGHTS_SUMMARIES)
        name, rest = f"weights {rest[0]}", rest[1:]
    elif name not in SUMMARIES:
        return _unknown(name, "rmacjax", SUMMARIES)
    return _run(name, rest)


def function_of(name: str) -> Callable[..., None]:
    """The function behind a command such as "index" or "weights show"."""
    module = import_module(f"rmacjax.cli.{MODULES[name]}")
    function: Callable[..., None] = getattr(module, name.split()[-1])
    return function


def _run(name: str, words: list[str]) -> int:
    trace = bool(os.environ.get("RMACJAX_TRACEBACK"))
    begun = False
    try:
        with ExitStack() as beginning:
            beginning.enter_context(undisturbed())  # half an import leaves nothing to go on with
            import tyro

            function = function_of(name)

            @wraps(function)
            def command(*arguments: object, **options: object) -> None:
                nonlocal begun
                begun = True
                beginning.close()
                function(*arguments, **options)

            tyro.cli(
                command,
                description=_description(function),
                prog=f"rmacjax {name}",
                args=_with_dash(words),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        sys.stdout.flush()
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    except KeyboardInterrupt:
        with undisturbed(then_go_on=True):
            return _say(INTERRUPTED, "Interrupted.", KEPT.get(name, "Nothing was written."))
    except BrokenPipeError:
        # The reader has seen enough, as `head` does; of what was wrongly called nothing was done.
        _flush()
        asked = not {"-h", "--help"}.isdisjoint(words) or _is_completion(words)
        return 0 if begun or asked else 2
    except (ValueError, TypeError) as error:
        if trace:
            raise
        return _say(2, f"rmacjax {name}:", _sentence(error))
    except (OSError, RuntimeError, MemoryError) as error:
        if trace:
            raise
        return _say(1, f"rmacjax {name}:", _sentence(error))
    return 0


def _description(function: Callable[..., None]) -> str:
    """A command's docstring as its help shows it: the summary, the text below it, the examples.

    tyro joins lines unless they begin with a space, so what is wrapped here is indented.
    """
    text, _, _ = (inspect.getdoc(function) or "").partition("\n\nArgs:")
    about, _, examples = text.partition("\n\nFor example:\n\n")
    summary, *paragraphs = about.split("\n\n")
    width = min(78, max(40, get_terminal_size().columns - 2))
    lines = [summary]
    for paragraph in paragraphs:
        joined = " ".join(paragraph.split())
        lines += textwrap.wrap(joined, width, initial_indent="  ", subsequent_indent="  ")
    lines += ["", "For example:"]
    lines += [f"  {example.strip()}" for example in examples.splitlines()]
    return "\n".join(lines)


def _sentence(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory: take smaller photos, or fewer at once"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename!r}: {error.strerror}"
    return str(error) or type(error).__name__


def _say(code: int, *words: str) -> int:
    from rmacjax.cli.terminal import say

    try:
        say(" ".join(words))
    except BrokenPipeError:
        _flush()
    return code


def _flush() -> None:
    """Write what is buffered; what has nowhere to go any more goes nowhere, without a word."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _unknown(word: str, program: str, commands: dict[str, str]) -> int:
    close = get_close_matches(word, commands, n=1, cutoff=0.5)
    advice = f"Did you mean: {program} {close[0]}" if close else "Commands: " + ", ".join(commands)
    return _say(2, f"{program}: there is no command {word!r}.", advice)


def _overview(program: str, commands: dict[str, str], more: str = "") -> str:
    width = max(map(len, commands)) + 2
    lines = "".join(f"  {name:<{width}}{summary}\n" for name, summary in commands.items())
    about = "" if more == "" else "Find the object in your photos.\n\n"
    return f"usage: {program} COMMAND ...\n\n{about}Commands:\n{lines}" + (
        "\n" + more if more else ""
    )


def _with_dash(words: list[str]) -> list[str]:
    """`--json` without a file means stdout."""
    whole = []
    for word, following in pairwise([*words, "--"]):
        whole.append(word)
        if word == "--json" and following.startswith("--"):
            whole.append("-")
    return whole


def _is_completion(words: list[str]) -> bool:
    return any(word.replace("_", "-") in COMPLETION for word in words)


def _complete(words: list[str]) -> int:
    """Shell completion (`--tyro-print-completion bash`), which needs all commands at once."""
    import tyro

    commands = {name.replace(" ", ":"): function_of(name) for name in MODULES}
    tyro.extras.subcommand_cli_from_dict(commands, prog="rmacjax", args=words)
    return 0
