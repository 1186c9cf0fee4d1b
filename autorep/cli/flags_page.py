"""docs/flags.md, made from the flags: `python -m autorep.cli.flags_page > docs/flags.md`."""

from __future__ import annotations

from typing import Any

from autorep.cli.flags import FLAGS, RECIPES, Flag, text


def flags_page() -> str:
    """The page in Markdown: a table of flags for each group of `--help`, then the recipes."""
    lines = ["# Flags", "", "Of `train_baseline.py` and `train_autorep.py`, by `python -m autorep.cli.flags_page`.",
             "An empty default means that the setting is off, or that the flag is needed.", ""]
    for group in dict.fromkeys(flag.group for flag in FLAGS.values()):
        lines += [f"## {group}", "", "| flag | meaning | train_baseline.py | train_autorep.py |", "|---|---|---|---|"]
        lines += [_row(flag) for flag in FLAGS.values() if flag.group == group] + [""]
    lines += ["## Recipes", "", "A recipe replaces defaults; flags that are given win over both.", "",
              "| script | `--recipe` | defaults that it replaces |", "|---|---|---|"]
    for kind, recipes in RECIPES.items():
        for name, values in recipes.items():
            own = " (default)" if FLAGS["recipe"].default(kind) == name else ""
            replaced = ", ".join(f"`--{flag} {text(value)}`" for flag, value in values.items()) or "none"
            lines.append(f"| train_{kind}.py | `{name}`{own} | {replaced} |")
    return "\n".join(lines) + "\n"


def _row(flag: Flag) -> str:
    values = ", ".join(f"`{choice}`" for choice in flag.choices)
    meaning = f"{flag.help}: {values}" if values else flag.help
    baseline = "(no effect)" if flag.search_only else _cell(flag.baseline)
    return f"| {', '.join(f'`{each}`' for each in flag.names)} | {meaning} | {baseline} | " \
           f"{_cell(flag.autorep)} |"


def _cell(default: Any) -> str:
    return "" if default is None else text(default)


if __name__ == "__main__":
    print(flags_page(), end="")
