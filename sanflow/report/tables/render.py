"""Write a table as CSV, Markdown, LaTeX (booktabs) and a page of HTML that needs no other file.

Names of data sets, categories and experiments are the user's. Each format has characters that would be executed or
dropped; they are escaped here, so that a name is shown as it is.
"""

import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.io.formats.style import Styler
from tabulate import tabulate

from sanflow.files import atomic_path
from sanflow.report.names import TABLE_FORMATS
from sanflow.report.tables.cells import MISSING, PUBLISHED_MARK, Cell, Section, Table

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "×": r"$\times$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "◊": r"$\diamond$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    # At the start of a row LaTeX would read both as an argument of the line break before it.
    "[": "{[}",
    "*": "{*}",
}
MARKDOWN_SPECIAL = re.compile(r"[\\|*\[]")
# A spreadsheet takes a text that starts so for a formula and runs it (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r")

STYLE = """
  body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 1.5rem; }
  h1 { font-size: 1.25rem; margin: 0 0 .25rem; } h2 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
  p, li { max-width: 60rem; } .notes { color: #424a53; font-size: .87rem; padding-left: 0; list-style: none; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; margin: .5rem 0; }
  th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
  th { border-bottom: 1px solid; font-weight: 600; vertical-align: bottom; } td.left { text-align: left; }
  tbody tr:hover td { background: #f3f5f7; } td.footer { border-top: 1px solid; }
  .best { font-weight: 700; } .published { font-style: italic; color: #44546a; background: #f0f3f8; }
"""


def write_table(table: Table, folder: str | os.PathLike[str], formats: tuple[str, ...] = TABLE_FORMATS) -> list[Path]:
    """Write a table as `folder`/<name>.<format>, each file whole or not at all.

    Returns:
        The files, in the order of `formats`.

    Raises:
        StorageError: If the disk is full or the folder cannot be written.
    """
    render = {"csv": to_csv, "md": to_markdown, "tex": to_latex, "html": to_html}
    files = []
    for ending in formats:
        file = Path(folder) / f"{table.name}.{ending}"
        with atomic_path(file) as temporary:
            temporary.write_text(render[ending](table), "utf-8")
        files.append(file)
    return files


def to_csv(table: Table) -> str:
    """Write the numbers at full precision, one row per number, with meaning and source.

    Texts that a spreadsheet would run as a formula begin with an apostrophe.
    """

    def inert(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

    return table.data.map(inert).to_csv(index=False, lineterminator="\n")


def to_markdown(table: Table, level: int = 1) -> str:
    """Write Markdown: best in bold, published in italics.

    Arguments:
        table: To write.
        level: Of its heading: 1 for a page of its own, 2 for a part of a page.
    """
    parts = [f"{'#' * level} {escape_markdown(table.title)}", escape_markdown(table.caption)]
    for section in table.sections:
        if section.heading:
            parts.append(f"{'#' * (level + 1)} {escape_markdown(section.heading)}")
        rows = [[_markdown_cell(cell) for cell in row] for row in section.rows]
        alignment = ["left" if column < section.text_columns else "right" for column in range(len(section.header))]
        header = [escape_markdown(name) for name in section.header]
        parts.append(tabulate(rows, header, tablefmt="pipe", colalign=alignment, disable_numparse=True))
    parts.extend(map(escape_markdown, table.notes))
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table) -> str:
    r"""Write LaTeX `table*` environments with booktabs rules, one a section.

    They need `\usepackage{booktabs,graphicx}` and `textcomp`, which LaTeX loads by itself since 2020.
    """
    lines = [f"% {table.title}. Needs \\usepackage{{booktabs,graphicx}}."]
    for section in table.sections:
        lines += _latex_section(table, section)
    if not table.sections:
        lines += ["% " + note for note in table.notes]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """Write one page of HTML that needs no other file."""
    title = html.escape(table.title)
    body = [f"<h1>{title}</h1>", f"<p>{html.escape(table.caption)}</p>"]
    for number, section in enumerate(table.sections):
        if section.heading:
            body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body.append(f'<div class="scroll">{html_section(section, f"{table.name}{number}")}</div>')
    if table.notes:
        body.append('<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in table.notes) + "</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def escape_latex(text: str) -> str:
    r"""Escape LaTeX's special characters in a text.

    Example:
        >>> print(escape_latex("metal_nut 98.1 ± 0.2 %"))
        metal\_nut 98.1 $\pm$ 0.2 \%
    """
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def escape_markdown(text: str) -> str:
    r"""Escape a text so that its marks, tags and bars are shown as they are.

    Example:
        >>> print(escape_markdown("<b>a|b*"))
        &lt;b&gt;a\|b\*
    """
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", html.escape(text, quote=False))


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.best else f"*{text}*" if cell.published and text != MISSING else text


def _styler(section: Section, escape: Callable[[str], str], identity: str = "") -> Styler:
    """Lay out the escaped texts of a section; its columns are numbered, because names may repeat."""
    texts = [[cell.text for cell in row] for row in section.rows]
    frame = pd.DataFrame(texts, columns=range(len(section.header)))

    def name_of(column: Any) -> str:
        return escape(section.header[column])

    # The identity is fixed, so that the same table gives the same bytes.
    styler = Styler(frame, uuid=identity, cell_ids=False)
    return styler.hide(axis="index").format(lambda text: escape(str(text))).format_index(name_of, axis="columns")


def _of_cells(section: Section, say: Callable[[Cell, int, int], str]) -> pd.DataFrame:
    """Apply a function to each cell, its row and its column."""
    return pd.DataFrame(
        [[say(cell, row, column) for column, cell in enumerate(cells)] for row, cells in enumerate(section.rows)]
    )


def _latex_section(table: Table, section: Section) -> list[str]:
    def command(cell: Cell, row: int, column: int) -> str:
        return "textbf: --rwrap" if cell.best else "textit: --rwrap" if cell.published else ""

    styler = _styler(section, escape_latex).apply(lambda _: _of_cells(section, command), axis=None)
    alignment = "l" * section.text_columns + "r" * (len(section.header) - section.text_columns)
    tabular = styler.to_latex(column_format=alignment, hrules=True).splitlines()
    if section.footer:
        tabular.insert(tabular.index(r"\bottomrule") - section.footer, r"\midrule")
    heading = f" ({section.heading})" if section.heading else ""
    if len(section.header) > 7:
        tabular = [r"\resizebox{\linewidth}{!}{%", *tabular[:-1], tabular[-1] + "}"]
    notes = [r"\par\smallskip\raggedright\footnotesize " + escape_latex(note) for note in table.notes]
    return [
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(f'{table.title}{heading}. {table.caption}')}}}",
        *tabular,
        *notes,
        r"\end{table*}",
    ]


def html_section(section: Section, identity: str) -> str:
    """Write one section as an HTML table; all texts are escaped.

    Arguments:
        section: To show.
        identity: Of the table among those of the page.
    """
    first_footer = len(section.rows) - section.footer

    def classes(cell: Cell, row: int, column: int) -> str:
        names = {
            "left": column < section.text_columns,
            "best": cell.best,
            "published": cell.published,
            "footer": row == first_footer,
        }
        return " ".join(name for name, holds in names.items() if holds)

    published = "font-style: italic; color: #44546a; background: #f0f3f8"
    heads: list[Any] = [
        {"selector": f"th.col{left}", "props": "text-align: left"} for left in range(section.text_columns)
    ]
    heads += [
        {"selector": f"th.col{column}", "props": published}
        for column, name in enumerate(section.header)
        if PUBLISHED_MARK in name
    ]
    styler = _styler(section, html.escape, identity).set_td_classes(_of_cells(section, classes))
    return styler.set_table_styles(heads).to_html()
