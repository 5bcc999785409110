"""A table as CSV, Markdown, LaTeX (booktabs) and a page of HTML that opens by itself."""

import html
import os
from pathlib import Path

from tabulate import tabulate

from sanflow.files import atomic_path
from sanflow.report.tables.cells import MISSING, PUBLISHED_MARK, Cell, Section, Table

FORMATS = ("csv", "md", "tex", "html")

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
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "×": r"$\times$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "◊": r"$\diamond$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
}

STYLE = """
  body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 1.5rem; }
  h1 { font-size: 1.25rem; margin: 0 0 .25rem; } h2 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
  p, li { max-width: 60rem; } .notes { color: #424a53; font-size: .87rem; padding-left: 0; list-style: none; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid; margin: .5rem 0; }
  th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
  th { border-bottom: 1px solid; font-weight: 600; vertical-align: bottom; } .left { text-align: left; }
  tbody tr:hover td { background: #f3f5f7; } .footer td { border-top: 1px solid; }
  .best { font-weight: 700; } .published { font-style: italic; color: #44546a; background: #f0f3f8; }
"""


def write_table(table: Table, folder: str | os.PathLike[str], formats: tuple[str, ...] = FORMATS) -> list[Path]:
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
    """The numbers at full precision, one row per number, with what they are and where they come from."""
    return table.data.to_csv(index=False, lineterminator="\n")


def to_markdown(table: Table) -> str:
    """A Markdown page: best in bold, published in italics."""
    parts = [f"# {table.title}", table.caption]
    for section in table.sections:
        if section.heading:
            parts.append(f"## {section.heading}")
        rows = [[_markdown_cell(cell) for cell in row] for row in section.rows]
        alignment = ["left" if column < section.text_columns else "right" for column in range(len(section.header))]
        header = [name.replace("|", "\\|") for name in section.header]
        parts.append(tabulate(rows, header, tablefmt="pipe", colalign=alignment, disable_numparse=True))
    parts.extend(table.notes)
    return "\n\n".join(parts) + "\n"


def to_latex(table: Table) -> str:
    r"""LaTeX `table*` environments with booktabs rules, one a section.

    They need `\usepackage{booktabs,graphicx}` and `textcomp`, which LaTeX loads by itself since 2020.
    """
    lines = [f"% {table.title}. Needs \\usepackage{{booktabs,graphicx}}."]
    for section in table.sections:
        lines += _latex_section(table, section)
    if not table.sections:
        lines += ["% " + note for note in table.notes]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """One page of HTML without anything outside it."""
    title = html.escape(table.title)
    body = [f"<h1>{title}</h1>", f"<p>{html.escape(table.caption)}</p>"]
    for section in table.sections:
        if section.heading:
            body.append(f"<h2>{html.escape(section.heading)}</h2>")
        body.append(f'<div class="scroll">{html_section(section)}</div>')
    if table.notes:
        body.append('<ul class="notes">' + "".join(f"<li>{html.escape(note)}</li>" for note in table.notes) + "</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def escape_latex(text: str) -> str:
    r"""Text with LaTeX's special characters written out.

    Example:
        >>> print(escape_latex("metal_nut 98.1 ± 0.2 %"))
        metal\_nut 98.1 $\pm$ 0.2 \%
    """
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def _markdown_cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|")
    return f"**{text}**" if cell.best else f"*{text}*" if cell.published and text != MISSING else text


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else rf"\textit{{{text}}}" if cell.published else text


def _latex_section(table: Table, section: Section) -> list[str]:
    alignment = "l" * section.text_columns + "r" * (len(section.header) - section.text_columns)
    heading = f" ({section.heading})" if section.heading else ""
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in section.rows]
    if section.footer:
        rows.insert(len(rows) - section.footer, r"\midrule")
    tabular = [
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(escape_latex(name) for name in section.header) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
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


def html_section(section: Section) -> str:
    """One section as an HTML table; all texts are escaped."""

    def cell(row: list[Cell], column: int) -> str:
        names = {
            "left": column < section.text_columns,
            "best": row[column].best,
            "published": row[column].published,
        }
        classes = " ".join(name for name, holds in names.items() if holds)
        return f'<td class="{classes}">{html.escape(row[column].text)}</td>'

    def header_cell(column: int, name: str) -> str:
        kind = "left" if column < section.text_columns else "published" if PUBLISHED_MARK in name else ""
        return f'<th class="{kind}">{html.escape(name)}</th>'

    first_footer = len(section.rows) - section.footer
    rows = []
    for number, row in enumerate(section.rows):
        opening = '<tr class="footer">' if section.footer and number == first_footer else "<tr>"
        rows.append(opening + "".join(cell(row, column) for column in range(len(row))) + "</tr>")
    header = "".join(header_cell(column, name) for column, name in enumerate(section.header))
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
