"""A page as a browser would take it: its elements, attributes and text."""

from html.parser import HTMLParser

VOID = {"meta", "wbr", "link", "br", "image", "use", "path", "rect", "hr", "input", "img"}

INLINE = {"a", "bdi", "wbr", "code", "dfn", "em", "span", "strong"}


class Page(HTMLParser):
    """Attributes:
    tags: every element with its attributes, in order.
    text: what is shown, without scripts and styles.
    """

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.said: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.said += " " * (tag not in INLINE)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.said).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def ids(self) -> list[str]:
        return [found["id"] for _, found in self.tags if found.get("id")]

    @property
    def figures(self) -> list[str]:
        """What the figures say to those who do not see them."""
        return [found["aria-label"] for found in self.all("svg") if found.get("role") == "img"]
