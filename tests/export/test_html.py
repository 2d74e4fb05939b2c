"""The page that runs a model, in a real browser: it computes what charjax does, and lets nothing out or in."""

import re
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from helpers import chromium
from helpers.command_line import shows
from helpers.small_run import TEXT

from charjax.analysis.score import score
from charjax.config import ModelConfig
from charjax.data.vocab import Vocab
from charjax.errors import UserError
from charjax.export.html import write_html
from charjax.metrics import bits_per_char
from charjax.runs.metadata import CorpusInfo, Progress, RunInfo
from charjax.runs.model_file import load_model, parameter_shapes, write_info, write_parameters

HOSTILE = "</script><script>alert(1)</script><!-- & \"'$title \x00\x1b\u2028\u202e\u0301\ud800\U0001f600é\t\r\n"
# Resolves when everything is read and written.
IDLE = """new Promise(done => {
  const scroller = document.getElementById("scroller");
  const look = () => scroller.getAttribute("aria-busy") === "false" && done();
  new MutationObserver(look).observe(scroller, { attributes: true });
  look();
})"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.PROGRAM is None:
        pytest.skip("no chromium")
    with chromium.started(tmp_path_factory.mktemp("profile")) as page:
        yield page


def save_model(folder, vocab, *, hidden=12, layers=1, corpus="coffee.txt", bias=None):
    """Saves a model with random weights, or one that always has the same logits."""
    rng = np.random.default_rng(0)
    config = ModelConfig(hidden_dim=hidden, hidden_layers=layers, dtype="float32")
    info = RunInfo(model=config, vocab=vocab, corpus=CorpusInfo(name=corpus))
    arrays = {}
    for name, shape in parameter_shapes(info).items():
        scale = 2.0 if name == "layer_0.cell.w_ih" else 1.2 / np.sqrt(hidden)
        arrays[name] = rng.normal(0, scale, shape).astype(np.float32)
    if bias is not None:
        arrays |= {"head.kernel": np.zeros((hidden, vocab.size), np.float32), "head.bias": np.float32(bias)}
    folder.mkdir(exist_ok=True)
    write_info(folder, info)
    write_parameters(folder, unflatten_dict(arrays, sep="."), Progress(step=1))
    return folder


def open_page(browser, run, page, **options):
    write_html(run, page, **options)
    browser.open(page)
    browser.run(IDLE)


def type_text(browser, text, *, length=0):
    """Replaces the text by typing -> what the page shows of the loss."""
    browser.run(f"document.getElementById('length').value = {length}; text.focus(); text.select()")
    browser.call("Input.insertText", text=text)
    browser.run(IDLE)
    return browser.run("document.getElementById('loss').textContent")


def continuation(browser, **settings):
    """Changes settings by their ids, and returns the continuation."""
    for name, value in settings.items():
        browser.run(f"document.getElementById('{name.replace('_', '-')}').value = '{value}'")
    browser.run("document.getElementById('settings').dispatchEvent(new Event('input'))")
    browser.run(IDLE)
    return browser.run("rest.textContent")


def complaints(browser):
    """What went wrong in the page since it was opened."""
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event for event in browser.events if event["method"] in kinds]


def test_the_loss_is_that_of_score(browser, tmp_path, uninterrupted):
    chars = "".join(sorted(set(TEXT))) + "éа漢\U0001f600"
    models = {
        "trained": (uninterrupted[1], TEXT[:2000]),
        # More units than are summed up at once, and no whole number of groups.
        "chars": (save_model(tmp_path / "chars", Vocab.from_text(chars), hidden=257), (chars + TEXT)[:300]),
        "bytes": (save_model(tmp_path / "bytes", Vocab.bytes(), hidden=18, layers=3), "Aé漢\U0001f600" + TEXT[:1000]),
    }
    for name, (run, text) in models.items():
        model, params, vocab = load_model(run)
        expected = score(model.clone(dtype="float32"), params, vocab.encode(text)[None])[0]
        open_page(browser, run, tmp_path / f"{name}.html")
        shown = type_text(browser, text)
        found = np.array(browser.run("reader.judged.map(one => one.nats)"))[1:]
        assert abs(found.mean() - expected.mean()) < 1e-3
        np.testing.assert_allclose(found, expected, atol=0.1)
        unit = "byte" if name == "bytes" else "character"
        assert shown == f"Loss {found.mean():.4f} nats ({bits_per_char(found.mean()):.2f} bits) per {unit}"
        assert not complaints(browser)


def test_an_edited_text_is_read_as_if_typed_at_once(browser, tmp_path):
    open_page(browser, save_model(tmp_path / "run", Vocab.ascii()), tmp_path / "x.html")
    whole = type_text(browser, TEXT[:200])
    colors = browser.run("units.map(unit => unit.element.className)")
    type_text(browser, TEXT[:100] + "\n\n" + TEXT[100:220])
    browser.run("text.setSelectionRange(100, 102)")
    browser.call("Input.insertText", text="")
    browser.run("text.setSelectionRange(200, 220)")
    browser.call("Input.insertText", text="")
    browser.run(IDLE)
    assert browser.run("document.getElementById('loss').textContent") == whole
    assert browser.run("units.map(unit => unit.element.className)") == colors
    assert len(set(colors)) > 5
    assert browser.run("painted.innerText") == TEXT[:200]


def test_a_seed_gives_the_same_text(browser, tmp_path):
    open_page(browser, save_model(tmp_path / "run", Vocab.ascii()), tmp_path / "x.html", context="The ")
    assert browser.run("text.value") == "The "
    first = continuation(browser, length=60, seed=3)
    assert len(first) == 60
    assert continuation(browser, seed=4) != first
    browser.run("document.getElementById('another').click()")
    browser.run(IDLE)
    assert browser.run("document.getElementById('seed').value") == "5"
    assert continuation(browser, seed=3) == first
    browser.run("document.getElementById('pause').click()")  # continues
    browser.run(IDLE)
    longer = browser.run("rest.textContent")
    assert longer.startswith(first)
    assert longer == continuation(browser, length=120)
    most_likely = continuation(browser, length=20, temperature=0)
    assert most_likely == continuation(browser, temperature=1, top_k=1, seed=9)
    assert browser.run("document.querySelectorAll('#bars li:not([hidden])').length") == 1
    browser.run("document.getElementById('keep').click()")
    browser.run(IDLE)
    assert browser.run("text.value") == f"The {most_likely}"


def test_the_next_character_is_taken_from_its_bar(browser, tmp_path):
    # 0xC3 begins "é", and 0xA9, which is the most likely byte, completes it.
    bias = np.full(256, -np.inf)
    bias[[0xC3, 0xA9, ord(" "), 0]] = np.log([0.3, 0.4, 0.2, 0.1])
    open_page(browser, save_model(tmp_path / "run", Vocab.bytes(), bias=bias), tmp_path / "x.html")
    type_text(browser, "caf")
    rows = browser.run("[...document.querySelectorAll('#bars li:not([hidden])')].map(row => row.innerText)")
    assert [row.split() for row in rows] == [["␣", "20%"], ["é", "12%"], ["U+0000", "10%"]]
    browser.run("document.querySelectorAll('#bars button')[1].click()")
    browser.run(IDLE)
    assert browser.run("text.value") == "café"


def test_pointing_at_a_character_tells_its_surprise(browser, tmp_path):
    open_page(browser, save_model(tmp_path / "run", Vocab.ascii()), tmp_path / "x.html")
    type_text(browser, "It\u2019s a café\n")
    surprise = re.compile(r"a  \d+\.\d\d bits, [<\d.]+%\nexpected: (\S+ [<\d.]+%(  )?){5}")
    place = "const at = units[8].element.getBoundingClientRect(); [at.x + 2, at.y + 2]"
    x, y = browser.run(f"{{ {place} }}")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert surprise.fullmatch(browser.run("tip.textContent"))
    browser.run("text.setSelectionRange(10, 10)")
    browser.call("Input.dispatchKeyEvent", type="keyUp", key="ArrowLeft")
    assert browser.run("tip.textContent") == "é is not in the model's alphabet: it is not read"
    assert browser.run("units[10].element.className") == "unread pointed"
    assert browser.run("reader.ids.map(id => vocab.characters[id]).join('')") == "It's a caf\n"
    browser.call("Input.insertText", text="x")
    assert browser.run("tip.hidden")


def test_the_page_fits_narrow_windows_and_labels_everything(browser, tmp_path):
    open_page(browser, save_model(tmp_path / "run", Vocab.ascii(), hidden=8), tmp_path / "x.html", title="x" * 100)
    browser.call("Emulation.setDeviceMetricsOverride", width=320, height=600, deviceScaleFactor=1, mobile=True)
    type_text(browser, f"{TEXT[:400]}\n\n{'w' * 99}  \n\n")
    assert browser.run("document.documentElement.scrollWidth") == 320
    # The colors lie under the text line by line.
    browser.run("text.style.height = '0'")
    assert browser.run("text.scrollHeight - painted.offsetHeight") == 0
    browser.call("Emulation.clearDeviceMetricsOverride")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "spinbutton", "textbox"}
    names = [
        (n["role"]["value"], n["name"]["value"]) for n in nodes if not n["ignored"] and n["role"]["value"] in roles
    ]
    assert {role for role, _ in names} == roles
    assert all(name for _, name in names)


@pytest.mark.parametrize("kind", ["chars", "bytes"])
def test_hostile_names_alphabets_and_texts_are_shown_as_text(browser, tmp_path, kind):
    name = "<img src=x onerror=alert(1)>$policy"
    vocab = Vocab.from_text(HOSTILE) if kind == "chars" else Vocab.bytes()
    run = save_model(tmp_path / name, vocab, corpus="</p><script>alert(2)</script>")
    open_page(browser, run, tmp_path / "x.html", context="</script><!--<script>")
    assert browser.run("document.title") == name
    assert browser.run("document.querySelector('h1').textContent") == name
    assert "</p><script>alert(2)</script>" in browser.run("document.querySelector('header p').textContent")
    assert browser.run("text.value") == "</script><!--<script>"
    assert browser.run("document.scripts.length") == 3
    assert browser.run("document.images.length") == 0
    assert len(continuation(browser, length=300)) > 100
    assert not complaints(browser)


def test_nothing_is_requested(browser, tmp_path):
    open_page(browser, save_model(tmp_path / "run", Vocab.ascii()), tmp_path / "x.html")
    type_text(browser, "A text.", length=20)
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert requests == [(tmp_path / "x.html").as_uri()]
    assert not complaints(browser)
    script = """new Promise(done => {
      addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
      fetch("data:,x").catch(() => 0);
    })"""
    assert browser.run(script) == "connect-src"


def test_the_policy_allows_nothing_but_this_script_and_style(tmp_path):
    write_html(save_model(tmp_path / "run", Vocab.ascii()), tmp_path / "new" / "x.html")
    page = (tmp_path / "new" / "x.html").read_text()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    digest = "'sha256-[A-Za-z0-9+/]{43}='"
    expected = f"default-src 'none'; style-src {digest}; script-src {digest}; base-uri 'none'; form-action 'none'"
    assert re.fullmatch(expected, policy)
    assert not re.search(r"https?:|//www|innerHTML|\beval\b|<[^>]* (on\w+|style|src|href)=", page)


def test_the_size_of_a_page(tmp_path, capsys):
    run = save_model(tmp_path / "run", Vocab.ascii(), hidden=256, layers=2)
    assert "Open it in a browser." in shows(capsys, "export", run, "--to", "html", "--out", tmp_path / "x.html")
    assert (tmp_path / "x.html").stat().st_size < 1_500_000


def test_what_cannot_be_exported(tmp_path):
    run = save_model(tmp_path / "run", Vocab.from_text("abc"))
    with pytest.raises(UserError, match="run is a folder; name a file in it"):
        write_html(run, run)
    with pytest.raises(UserError, match=r"config\.json is a file of the run, which this would replace"):
        write_html(run, run / "config.json")
    with pytest.raises(UserError, match="the context contains characters not in the chars vocabulary: 'd'"):
        write_html(run, tmp_path / "x.html", context="abd")
    with pytest.raises(NotADirectoryError, match=r"model\.safetensors/x\.html"):
        write_html(run, run / "model.safetensors" / "x.html")
    assert [path for path in Path(tmp_path).iterdir() if path != run] == []
