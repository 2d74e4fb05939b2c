"""The tooltips of colored pages, in a browser: what a pointer and a finger see."""

import json
import re
import subprocess

import pytest
from helpers import chromium
from helpers.command_line import shows
from helpers.painted_page import PaintedPage

# Asks for the tooltips of some characters, at the middle of each, and leaves them in the title.
PROBE = """
const boxes = [], walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode;
  for (let at = 0; at < node.data.length; at++) {
    const range = document.createRange();
    range.setStart(node, at);
    range.setEnd(node, at + 1);
    boxes.push([node.data[at], range.getClientRects()[0], node.parentElement]);
  }
}
const found = boxes.slice(0, 300).map(([character, box, parent], number) => {
  if (!box || !box.width) return null;
  const x = box.left + 0.4 * box.width, y = box.top + box.height / 2;
  const kind = number % 2 ? ["pointermove", {pointerType: "mouse"}] : ["click", {}];
  document.elementFromPoint(x, y).dispatchEvent(
    new PointerEvent(kind[0], {clientX: x, clientY: y, bubbles: true, ...kind[1]}));
  return [character, tip.hidden ? null : tip.textContent];
});
document.title = JSON.stringify(found);
"""

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason="no chromium")


def tips_in_browser(page, tmp_path):
    """Returns [character, tooltip] of the first characters; null where a character has no place of its own."""
    # The policy allows no script but the page's own, so the probe becomes part of it.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace(
        "</script>", PROBE + "</script>"
    )
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [chromium.PROGRAM, *options, "--window-size=900,4000", "--dump-dom", f"file://{tmp_path / 'probed.html'}"]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    title = re.search("<title>(.*?)</title>", dumped, re.DOTALL)[1]
    return json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_a_pointer_and_a_finger_see_what_the_page_holds(trained, tmp_path, capsys):
    shows(capsys, "score", trained.run, trained.text, "--html", tmp_path / "page.html", "--html-chars", "400")
    page = (tmp_path / "page.html").read_text()
    expected = PaintedPage(page).tips[:300]
    found = tips_in_browser(page, tmp_path)
    seen = [(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours is not None]
    assert len(seen) > 280
    for (character, tip), (theirs, tip_of_page) in seen:
        assert character == theirs
        # Python and JavaScript round a tie, such as 5.125, differently.
        numbers, others = (re.findall(r"[\d.]+ bits  [\d.e-]+%", shown) for shown in (tip, tip_of_page))
        assert tip.replace("".join(numbers), "") == tip_of_page.replace("".join(others), "")
        for ours, other in zip(numbers, others, strict=True):
            assert [float(number) for number in re.findall(r"[\d.e-]+(?=%| bits)", ours)] == pytest.approx(
                [float(number) for number in re.findall(r"[\d.e-]+(?=%| bits)", other)], abs=0.011
            )
