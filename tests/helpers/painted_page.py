"""Parses a page of colored text."""

import html.parser

from charjax.rendering.visible_text import name_character


class PaintedPage(html.parser.HTMLParser):
    """Parses a page: its elements, the original text, and the tooltips.

    What tooltips say is decoded here a second time, from the description in charjax/rendering/html_page.py.

    Attributes:
        elements: tags, in order.
        attributes: (tag, name, value) of all of them.
        content: text inside each kind of tag.
        facts: the text of each cell of its tables.
        text: the colored text.
        pieces: (piece, its color's letter and its class) of each element in it.
        tips: (character, tooltip) of each character of it.
    """

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements, self.attributes, self.open = [], [], []
        self.content, self.facts, self.text, self.pieces, self.shown = {}, [], "", [], []
        self.details, self.names = "", ""
        self.feed(page)
        self.close()
        self.tips = list(self.decode())

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
            if tag != "h2":
                self.text += data
                self.shown += list(data)
            if tag == "b":
                self.pieces.append((data, " ".join(name if value is None else value for name, value in attrs.items())))
        for name in ("details", "names"):
            if attrs.get("id") == name:
                setattr(self, name, data)

    def decode(self):
        settings = {name: value for tag, name, value in self.attributes if tag == "div" and name.startswith("data-")}
        lines = self.details.splitlines()
        assert len(lines) == len(self.shown)
        for character, line in zip(self.shown, lines, strict=True):
            yield character, self.described(name_character(character), line, settings)

    def described(self, name, line, settings):
        digits, names = settings["data-digits"], self.names.split("\n")
        rest = list(line)

        def number(count):
            return sum(digits.index(rest.pop(0)) * len(digits) ** n for n in reversed(range(count)))

        def named():
            if rest[0] == settings["data-escape"]:
                rest.pop(0)
                return names[number(3)]
            return names[number(1)]

        if line == "-":
            return f"{name}  nothing comes before it, so it does not count"
        value = float(settings["data-low"]) + float(settings["data-step"]) * number(3)
        shown = [f"{name}  {value:+.3f}"]
        if settings["data-bits"] == "yes":
            percent = 100 * 2**-value
            shown = [
                f"{name}  {value:.2f} bits  {percent:.3g}%"
                if percent >= 1e-3
                else f"{name}  {value:.2f} bits  {percent:.1e}%"
            ]
        if rest and rest[0] == settings["data-instead"]:
            rest.pop(0)
            shown.append(f"instead of {named()}:")
        while rest:
            expected, code = named(), number(1)
            share = code if code <= 50 else 50 + 2 * (code - 50)
            shown.append(f"{expected}  {f'{share}%' if share else '<1%'}")
        return "\n".join(shown)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")
