"""The parts that every section is made of."""

from collections.abc import Iterable, Sequence

from dropforge_core.report.markup import Markup, tag


def section(ident: str, title: str, *children: object) -> Markup:
    """A section with its heading as its label."""
    return tag(
        "section", tag("h2", title, id=f"{ident}-title"), children, id=ident, aria_labelledby=f"{ident}-title"
    )


def missing(ident: str, title: str, document: str) -> Markup:
    """A section whose document is not there."""
    return section(
        ident,
        title,
        tag(
            "p",
            tag("code", document),
            " is not among the run\u2019s documents, so this part cannot be shown.",
            class_="muted",
        ),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where the page is narrow; `numeric` columns are set right."""

    def css(column: int) -> str | None:
        return "number" if column in numeric else None

    return tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                tag("tr", [tag("th", text, scope="col", class_=css(i)) for i, text in enumerate(head)]),
            ),
            tag(
                "tbody",
                [tag("tr", [tag("td", cell, class_=css(i)) for i, cell in enumerate(row)]) for row in rows],
            ),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=", ".join(head),
    )


def facts(pairs: Iterable[tuple[str, object]]) -> Markup:
    """Terms and their values; pairs without a value are left out."""
    return tag(
        "dl",
        [
            tag("div", tag("dt", term), tag("dd", value))
            for term, value in pairs
            if value is not None and value != ""
        ],
        class_="facts",
    )
