"""py-spy's flame graph as an image in a page: colours that mean something, names that fit, no script, no background."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

LEAST: Final = 0.3
"""Frames below this share of all samples, in percent, would be slivers: they are left out."""
OWNERS: Final = (
    ("store", "#e3b23c", r"dispatcher/store/"),
    ("services and core", "#e58a4e", r"dispatcher/|actors/"),
    ("the benchmark", "#c9a6d9", r"bench/|simulate/|local\.py"),
    ("asyncpg", "#7fb56b", r"asyncpg/"),
    ("numpy", "#74aede", r"numpy/"),
    ("others", "#b9b9b9", r""),
)
"""Whose code a frame is, by where it lies: the first that fits. Black text is readable on every colour."""
_SVG: Final = "http://www.w3.org/2000/svg"
_CHARACTER: Final = 7.2
"""Width of one, in the 12 pixels of py-spy's text."""
_STYLE: Final = "text { font-family: monospace; font-size: 12px }"


def tidied(svg: str) -> str:
    """The graph that py-spy has written, ready to be looked at as an image: no frame can be clicked in one."""
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(svg)
    frames = next(child for child in root if child.get("id") == "frames")
    for child in list(root):
        if child is not frames:
            root.remove(child)
    for gone in ("onload", "version"):
        root.attrib.pop(gone, None)
    ElementTree.SubElement(root, f"{{{_SVG}}}style").text = _STYLE
    _add_legend(root)
    width = float(frames.get("width", "0"))
    for frame in list(frames):
        title, rect, text = frame
        said = re.fullmatch(r"(.*) \((.*?)(?::\d+)?\) \((?:.*, )?([\d.]+)%\)", title.text or "")
        share = 100.0 if said is None else float(said[3])
        if share < LEAST:
            frames.remove(frame)
            continue
        name, place = ("all", "") if said is None else (said[1], said[2])
        title.text = f"{name} ({place}) {share:.1f} %" if place else name
        rect.set("fill", next(colour for _, colour, begin in OWNERS if re.match(begin, place)))
        text.text = _fitting(name, int(share / 100 * width / _CHARACTER) - 1)
        for own in [key for key in rect.attrib if key.startswith("{")]:
            del rect.attrib[own]  # for the script
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _fitting(name: str, characters: int) -> str:
    """As much of a name as there is room for: rather without its class than cut off."""
    if len(name) > characters:
        name = name.rpartition(".")[2]
    return name if len(name) <= characters else f"{name[: characters - 1]}…" if characters > 3 else ""


def _add_legend(root: ElementTree.Element) -> None:
    """A row of the owners in their colours, above the frames."""
    for number, (owner, colour, _) in enumerate(OWNERS):
        x = 10 + number * 150
        box = {"x": str(x), "y": "16", "width": "140", "height": "18", "fill": colour}
        ElementTree.SubElement(root, f"{{{_SVG}}}rect", box)
        ElementTree.SubElement(root, f"{{{_SVG}}}text", {"x": str(x + 6), "y": "29"}).text = owner
