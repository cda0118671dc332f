"""Parses pages as a browser would, for tests that inspect elements instead of the source."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "img"}


@dataclass
class Node:
    """An element: its attributes, and its parts, which are text or elements."""

    tag: str
    attributes: dict = field(default_factory=dict)
    parts: list = field(default_factory=list)

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def all(self, tag=None, marked=None):
        """Elements below this one, in order, by tag and class."""
        for part in self.parts:
            if isinstance(part, Node):
                if tag in (None, part.tag) and (marked is None or marked in part.classes):
                    yield part
                yield from part.all(tag, marked)

    def one(self, tag=None, marked=None):
        (node,) = self.all(tag, marked)
        return node


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = [Node("document")]

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} stands twice"
        node = Node(tag, dict(attrs))
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1].tag == tag, f"{tag} closes {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].parts.append(data)


def parse(html):
    """Parses a document and asserts that every element is closed."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def tables(node):
    """By title: the rows of each table below a node, headings first."""
    return {
        piece.one("h3").text: [[cell.text for cell in row.all() if cell.tag in ("th", "td")] for row in piece.all("tr")]
        for piece in node.all(marked="piece")
        if any(piece.all("table"))
    }
