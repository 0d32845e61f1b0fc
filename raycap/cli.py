"""The `raycap` command: builds the config from file and flags, and runs the command with it."""

import argparse
import dataclasses
import importlib
import itertools
import os
import re
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from raycap import __version__
from raycap.commands import ABOUT, COMMANDS, EXAMPLES, Command
from raycap.errors import UserError
from raycap.terminal import log_to_stderr, print_crash, write_err, write_out

if TYPE_CHECKING:
    from raycap.config import Config

# Short names of options that many use.
SHORT_NAMES = {
    "--prompt": "--captioner.prompt",
    "--min-score": "--flags.min-score",
    "--language": "--flags.language",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit code is 0 if all went well, 1 if rows failed, 2 after a
    UserError."""
    # Threads that wait for each other must sleep. By default they spin. On a busy machine two
    # threads that spin were measured to take 25 times as long as one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What torch lacks on Apple's GPUs is then computed by the processor.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    log_to_stderr()
    if arguments is None:
        sys.excepthook = print_crash
    # Else matplotlib and torch leave folders of their own, in the home folder and in /tmp.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "raycap" / "matplotlib"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "raycap" / "torchinductor"))
    try:
        exit_code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:
        if _is_read():  # another pipe, as between processes
            raise
        # `raycap ... | head`. 141 is the exit code of a process that SIGPIPE ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        write_err("raycap: stopped: the output pipe was closed\n")
        return 141
    except UserError as error:
        # A message may quote text from a file. No line of that may look like one of ours.
        write_err(f"raycap: {str(error).strip()}".replace("\n", "\n  ") + "\n")
        return 2
    except KeyboardInterrupt:
        write_err("raycap: interrupted\n")
        return 130


def _is_read() -> bool:
    """Whether the output pipe is still open."""
    output = select.poll()
    # Ask for no event: that the other end has closed is reported all the same.
    output.register(sys.stdout, 0)
    return not output.poll(0)


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="raycap",
        usage="raycap COMMAND [SOURCE] [OPTIONS]",
        description=f"{ABOUT}\n\ncommands:\n{_list_of_commands()}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"raycap {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not arguments:
        parser.print_help()
        return 2
    parsed = parser.parse_args(arguments)
    # Only now, so that `raycap --help` starts at once.
    from raycap.config import dumps
    from raycap.options import nearest

    if parsed.command not in COMMANDS:
        raise UserError(
            f"there is no command '{parsed.command}'{nearest(parsed.command, COMMANDS)}"
        )
    command = COMMANDS[parsed.command]
    config, print_only = configure(parsed.command, parsed.rest)
    if print_only:
        write_out(dumps(config))
        return 0
    module, function = command.function.split(":")
    exit_code: int = getattr(importlib.import_module(module), function)(config)
    return exit_code


def _list_of_commands() -> str:
    return "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())


def configure(name: str, arguments: Sequence[str]) -> "tuple[Config, bool]":
    """The config of a command: its defaults, then the file, then SOURCE and kinds, then dotted
    flags.

    Also returns whether the config is only to be printed.
    """
    from raycap.config import CHOICES, from_plain, load
    from raycap.search import Beam

    command = COMMANDS[name]
    arguments = list(arguments)
    words = _leading_words(arguments)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=f"raycap {name}")
    first.add_argument("--config")
    first.add_argument("--run", default="")
    first.add_argument("--print-config", action="store_true")
    choices = [section for section in command.sections if section in CHOICES]
    for section in choices:
        first.add_argument(f"--{section}")
    has_references = bool(command.words) and "source" in command.sections
    if has_references:
        first.add_argument("--references")
    filled = command.several if len(words) > 1 and command.several else command.words
    chosen, flags = first.parse_known_args(arguments if filled else [*words[1:], *arguments])

    if chosen.run and not chosen.config:
        raise UserError(
            f"--run {chosen.run} names one of the runs of a file: say which with --config "
            "FILE.yaml"
        )
    # Other defaults belong to a model that is fine-tuned.
    tuned = _value_of_flag(flags, "--model", "--train.model") if name == "train" else ""
    changes = {"train": {"model": tuned}} if tuned else {}
    config = load(chosen.config, chosen.run, changes) if chosen.config else from_plain(changes)
    path = None if filled else next(iter(words), None)
    if has_references:
        path = chosen.references
    if filled and words:
        own = dataclasses.replace(getattr(config, name), **{filled: tuple(words)})
        config = dataclasses.replace(config, **{name: own})
    for section in choices:
        kind = getattr(chosen, section)
        config = _choose(config, section, kind, path if section == "source" else None)
    if name == "train":
        config, flags = _with_model_to_tune(config, flags)
    elif "captioner" in command.sections:
        config, flags = _with_kind_of_model(config, flags)
    # A captioner has its own search. Another one is meant only if a captioner is trained, or by a
    # --search flag.
    trains = "decoder" in command.sections
    if config.search is None and (trains or any(flag.startswith("--search.") for flag in flags)):
        config = dataclasses.replace(config, search=Beam())
    return _with_flags(config, name, command, flags), chosen.print_config


def _leading_words(arguments: list[str]) -> list[str]:
    """Take the words before the first flag off the arguments."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    del arguments[: len(words)]
    return words


def _choose(config: "Config", section: str, kind: str | None, path: str | None) -> "Config":
    """Change the kind of a section: by name or, for a source, by what is at `path`. The same kind
    keeps its options."""
    from raycap.config import CHOICES
    from raycap.options import choose, kind_of
    from raycap.sources import detect

    present = getattr(config, section)
    if kind is None and path is None:
        return config
    if kind is None and path is not None:
        kind = detect(path)
    kind, _, model = str(kind).partition(":")  # timm:NAME is timm with that model
    part = choose(CHOICES[section], kind, section)
    if present is None or kind_of(present, CHOICES[section]) != kind:
        options = {}
        if section == "source" and (path or getattr(present, "path", "")):
            options["path"] = path or present.path  # without one, the kind's own: shapes has one
        present = part(**options)
    elif path is not None:
        present = dataclasses.replace(present, path=path)
    if model and not hasattr(present, "model"):
        raise UserError(f"{section} '{kind}' has no models to choose from: leave out ':{model}'")
    if model:
        present = dataclasses.replace(present, model=model)
    return dataclasses.replace(config, **{section: present})


def _with_kind_of_model(config: "Config", flags: list[str]) -> "tuple[Config, list[str]]":
    """Where the kind of the captioner is not given, it is found from the model. Short names become
    long ones."""
    from raycap.captioners.kinds import CAPTIONERS, Trained, kind_of_model

    if config.captioner is None:
        kind = kind_of_model(_value_of_flag(flags, "--model") or config.caption.model)
        # What raycap trained is asked by options of the command.
        captioner = None if kind == "trained" else CAPTIONERS[kind]()
        config = dataclasses.replace(config, captioner=captioner)
    asked = [
        flag.partition("=")[0]
        for flag in flags
        if re.match(r"--(captioner\.|prompt([=.]|$))", flag)
    ]
    if asked and isinstance(config.captioner, Trained | None):
        raise UserError(
            f"{asked[0]}: the captioner {config.caption.model} was made by raycap train and has "
            "no such option. Name another model (--model smolvlm, a folder, or the URL of a "
            "server), or its kind (--captioner huggingface)"
        )
    flags = [_long_name(flag) for flag in flags]
    if isinstance(config.captioner, Trained | None):
        return config, flags
    flags = [re.sub(r"^--prompt\.", "--captioner.prompts.", flag) for flag in flags]
    return _with_named_prompts(config, flags)


def _with_model_to_tune(config: "Config", flags: list[str]) -> "tuple[Config, list[str]]":
    """For `raycap train --model`: the captioner of the config is the model that is fine-tuned."""
    from raycap.captioners.huggingface.options import HuggingFaceModel

    if config.train.model and config.captioner is None:
        config = dataclasses.replace(config, captioner=HuggingFaceModel())
    asked = [flag for flag in flags if re.match(r"--(captioner\.|prompt(=|$))", flag)]
    if asked and not config.train.model:
        raise UserError(
            f"{asked[0].partition('=')[0]}: that is for a model that is fine-tuned; name it "
            "(--model smolvlm, or a folder), or leave it out"
        )
    if not config.train.model:  # a captioner in the file is for other commands
        config = dataclasses.replace(config, captioner=None)
    return config, [_long_name(flag) for flag in flags]


# --captioner.prompts.tags TEXT, --captioner.prompts.tags.max-tokens 40
_NAMED_PROMPT = re.compile(r"(--captioner\.prompts\.)(\w+)(\.[\w-]+)?(?==|$)")


def _with_named_prompts(config: "Config", flags: list[str]) -> "tuple[Config, list[str]]":
    """Add the prompts that flags name, in their order, so that tyro knows them."""
    from raycap.captioners.prompts import Prompt

    given: Any = config.captioner
    prompts = dict(given.prompts)
    changed = []
    for flag in flags:
        found = _NAMED_PROMPT.match(flag)
        if found is not None:
            start, name, option = found.groups()
            present = prompts.get(name, "")
            prompts[name] = present if isinstance(present, Prompt) else Prompt(text=present)
            # tyro writes hyphens where a name has underscores.
            flag = f"{start}{name.replace('_', '-')}{option or '.text'}{flag[found.end() :]}"
        changed.append(flag)
    return dataclasses.replace(
        config, captioner=dataclasses.replace(given, prompts=prompts)
    ), changed


def _long_name(flag: str) -> str:
    name, equals, value = flag.partition("=")
    return f"{SHORT_NAMES.get(name, name)}{equals}{value}"


def _value_of_flag(flags: list[str], *names: str) -> str:
    """The value of the last `--name VALUE` or `--name=VALUE`, with one of these names."""
    value = ""
    for flag, after in itertools.zip_longest(flags, flags[1:], fillvalue=""):
        name, equals, behind = flag.partition("=")
        if name in names:
            value = behind if equals else after
    return value


def _with_flags(config: "Config", name: str, command: Command, flags: list[str]) -> "Config":
    """The config with the values of flags."""
    from raycap.sources import with_absolute_paths

    sections = {section: getattr(config, section) for section in command.sections}
    given = {section: options for section, options in sections.items() if options is not None}
    if flags:
        given = _read_flags(given, name, command, flags)
    if given.get("source") is not None:
        given["source"] = with_absolute_paths(given["source"])
    return dataclasses.replace(config, **given)


def _read_flags(
    present: dict[str, Any], name: str, command: Command, flags: list[str]
) -> dict[str, Any]:
    """Let tyro read the flags over the sections that this command uses."""
    import tyro

    own = command.sections[0]
    fields: list[tuple[str, Any]] = [
        (
            section,
            Annotated[type(options), tyro.conf.arg(name="")] if section == own else type(options),
        )
        for section, options in present.items()
    ]
    shape = dataclasses.make_dataclass(name, fields, frozen=True)
    changed = tyro.cli(
        shape,
        default=shape(**present),
        args=[_without_prefix(flag, own) for flag in flags],
        prog=f"raycap {name} {_words(command)}",
        description=f"{name}: {command.summary}.\n\n{_common_flags(command)}",
    )
    return {section: getattr(changed, section) for section in present}


def _without_prefix(flag: str, own: str) -> str:
    """`--inspect.limit` is `--limit` for `raycap inspect`. Config files have the former, so flags
    may too."""
    return flag.replace(f"--{own}.", "--", 1) if flag.startswith(f"--{own}.") else flag


def _common_flags(command: Command) -> str:
    from raycap.config import CHOICES

    choices = [section for section in command.sections if section in CHOICES]
    kinds = [f"--{section} {{{','.join(CHOICES[section])}}}" for section in choices]
    references = []
    if command.words and "source" in command.sections:
        references = ["--references SOURCE (any dataset with human captions),"]
    return "\n".join(
        [
            f"{_words(command)} comes first. Also: --config FILE.yaml (flags override it), "
            "--print-config,",
            "--run NAME (if the file has several runs),",
            *references,
            *(f"{line} (its options are listed once it is known)" for line in kinds),
            *_short_names(command),
        ]
    )


def _short_names(command: Command) -> list[str]:
    """The short names that --model takes."""
    if "captioner" not in command.sections or command.words:
        return []
    from raycap.captioners.presets import preset_rows

    shown = [
        f"  {name:<16}{model:<46}{size:>6}{memory:>9}  {licence}"
        for name, model, _, size, memory, licence, _ in preset_rows()
    ]
    return [
        "",
        "Short forms: --prompt for --captioner.prompt; --min-score and --language for the options",
        "of --flags; and for --model (huggingface, vllm):",
        *shown,
    ]


def _words(command: Command) -> str:
    """What the words before the flags are: `TABLE...` for `tables`."""
    return f"{command.words.removesuffix('s').upper()}..." if command.words else "SOURCE"
