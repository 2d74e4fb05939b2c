"""Parses a page of colored text."""

import html.parser


class PaintedPage(html.parser.HTMLParser):
    """Parses a page: its elements, the original text, and the tooltips.

    Attributes:
        elements: tags, in order.
        attributes: (tag, name, value) of all of them.
        content: text inside each kind of tag.
        facts: the text of each cell of its tables.
        text: the colored text.
        tips: (piece, class, title or "") of each element in it.
    """

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.open = [], [], []
        self.content, self.facts, self.text, self.tips = {}, [], "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag != "meta":
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        self.content[tag] = self.content.get(tag, "") + data
        if tag in ("th", "td"):
            self.facts.append(data)
        if any(attrs.get("id") == "text" for _, attrs in self.open):
            if "X" in attrs.get("class", "").split():
                code = int(data.removeprefix("U+").removeprefix("0x"), 16)
                data = chr(code if data.startswith("U+") else 0xDC00 + code)
            self.text += data
            if tag == "b":
                self.tips.append((data, attrs.get("class", ""), attrs.get("title", "")))

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")
