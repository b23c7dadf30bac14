"""Writes SVG: elements with escaped text, numbers without noise."""

from __future__ import annotations

from html import escape

FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
INK, FAINT, PAPER = "#1f2430", "#8a909e", "#ffffff"


def number(value: float) -> str:
    """At most two decimals, no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def element(tag: str, *children: str, **attributes) -> str:
    """One element; an underscore in an attribute's name stands for a hyphen, floats are shortened, None is left out."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(number(v) if isinstance(v, float) else str(v), quote=True)}"'
        for name, v in attributes.items()
        if v is not None
    )
    return f"<{tag}{shown}>{''.join(children)}</{tag}>" if children else f"<{tag}{shown}/>"


def text(x: float, y: float, content: str, size: float = 12, fill: str = INK, anchor: str = "start", **more) -> str:
    """A line of text whose baseline starts (or ends, or is centred) at x, y."""
    return element(
        "text", escape(content), x=float(x), y=float(y), font_size=float(size), fill=fill, text_anchor=anchor, **more
    )


def rect(x: float, y: float, width: float, height: float, fill: str, **more) -> str:
    return element("rect", x=float(x), y=float(y), width=float(width), height=float(height), fill=fill, **more)


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = INK, **more) -> str:
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=stroke, **more)


def hover(content: str) -> str:
    """The text that a viewer shows when the pointer rests on the element it is put in."""
    return element("title", escape(content))


def document(width: float, height: float, title: str, *parts: str) -> str:
    """A complete file."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" width="{number(width)}" '
        f'height="{number(height)}" font-family="{escape(FONT)}">\n<title>{escape(title)}</title>\n'
        f"{rect(0, 0, width, height, PAPER)}\n{body}\n</svg>\n"
    )
