"""Writes docs/configuration.md, the list of every option, from the option classes themselves.

python docs/configuration.py            # write the page
python docs/configuration.py --check    # exit with 1 if the page differs from the options
"""

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

from raycap.config import CHOICES, Config
from raycap.evaluation import MetricOptions

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """\
# Configuration reference

Every option of every command is one entry of one tree. `raycap COMMAND --print-config` prints
the tree as YAML, and `--config FILE` reads it back. A flag changes one entry:

```bash
raycap inspect photos/ --fetch.threads 128 --print-config > run.yaml
raycap inspect --config run.yaml --fetch.threads 64
```

The options of a command's own section need no prefix: for `raycap caption`, `--caption.batch 32`
is `--batch 32`. Where a section offers kinds, `--SECTION KIND` chooses one and `--SECTION.OPTION`
sets its options.

`docs/configuration.py` writes this page from the option classes; a test compares the two.
"""


def main() -> int:
    page = reference()
    if "--check" in sys.argv[1:]:
        return 0 if PAGE.read_text(encoding="utf-8") == page else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    hints = get_type_hints(Config)
    for section in dataclasses.fields(Config):
        if section.name in CHOICES:
            parts.append(f"\n## {section.name}\n\n`--{section.name} KIND` chooses one of these.\n")
            for kind, options in CHOICES[section.name].items():
                parts.append(f"\n### {section.name}: {kind}\n\n{described(options, section.name)}")
        else:
            parts.append(f"\n## {section.name}\n\n{described(hints[section.name], section.name)}")
    return "".join(parts)


def described(options: Any, prefix: str) -> str:
    """The summary of an option class and a table of its options; nested classes are flattened."""
    rows = list(table_rows(options, prefix))
    about = summary(options)
    if not rows:
        return f"{about}\n\nIt has no options.\n" if about else "It has no options.\n"
    lines = ["| option | default | |", "| --- | --- | --- |", *rows]
    return (f"{about}\n\n" if about else "") + "\n".join(lines) + "\n"


def table_rows(options: Any, prefix: str) -> Any:
    texts = option_texts(options)
    hints = get_type_hints(options)
    for option in dataclasses.fields(options):
        if not option.init:
            continue
        name = f"{prefix}.{option.name}"
        if dataclasses.is_dataclass(hints[option.name]):
            yield from table_rows(hints[option.name], name)
            continue
        text = " ".join(texts.get(option.name, "").split()).replace("|", "\\|")
        yield f"| `--{name.replace('_', '-')}` | {default_of(option)} | {text} |"


def default_of(option: Any) -> str:
    if option.default is not dataclasses.MISSING:
        value = option.default
    elif option.default_factory is not dataclasses.MISSING:
        value = option.default_factory()
    else:
        return "(required)"
    if value is None or value == "" or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def summary(options: Any) -> str:
    """The class's docstring on one line per paragraph; dataclasses write a signature where there
    is none."""
    about = inspect.getdoc(options) or ""
    if about.startswith(f"{options.__name__}(") or options is MetricOptions:
        return ""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in about.split("\n\n"))


def option_texts(options: Any) -> dict[str, str]:
    """The string under each field of the class and of those it inherits from."""
    texts: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        except (OSError, TypeError):  # made at run time, such as MetricOptions
            continue
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, text in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                texts[field.target.id] = str(text.value.value)  # type: ignore[union-attr]
    return texts


if __name__ == "__main__":
    sys.exit(main())
