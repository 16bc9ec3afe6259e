"""The page in a headless browser: it works, asks for nothing from outside and fits every screen."""

import shutil

import pytest
from simulated_run import CLASSES, simulated_run

from shapray.report.page import report

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
QUIETLY = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]
LONG = "<script>alert('x')</script> مرحبا 🦜 " + "a" * 300


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of a usual run and of one with hostile names."""
    folder = tmp_path_factory.mktemp("report")
    usual = simulated_run(str(folder / "usual"), {"conv1": 8, "layer1.0.conv1": 12}, CLASSES)
    names = [LONG, "b" * 300, "</script><script>document.title='gone'</script>"]
    sizes = {LONG: 6, "c" * 300: 5}
    hostile = simulated_run(str(folder / "hostile"), sizes, names, side=8, name=LONG)
    for store in (usual, hostile):
        store.publish("report.html", report(store))
    return {
        "usual": f"file://{usual.root}/report.html",
        "hostile": f"file://{hostile.root}/report.html",
    }


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=QUIETLY)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, files):
    """Opens a page of a width; afterwards, nothing may have gone wrong in any."""
    contexts, wrong = [], []

    def open_page(which="usual", width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith("data:") or request.url.split("#")[0] == files[which]
                else wrong.append(request.url)
            ),
        )
        page.goto(files[which])
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def unfolded(page):
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280, 2560])
@pytest.mark.parametrize("which", ["usual", "hostile"])
def test_the_page_fits_the_screen_with_everything_unfolded(opened, which, width):
    page = opened(which, width)
    unfolded(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        """[...document.querySelectorAll('figure svg text')].map(
            (one) => one.getBoundingClientRect().height)"""
    )
    assert sizes
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll('figure svg')].map((svg) =>
            svg.getBoundingClientRect().width / svg.viewBox.baseVal.width * Math.min(
              ...[...svg.querySelectorAll('text')].map(
                (one) => parseFloat(getComputedStyle(one).fontSize)))))"""
    )
    assert smallest >= 10


@pytest.mark.slow
def test_all_figures_and_tables_can_be_seen(opened):
    page = opened()
    unfolded(page)
    for what, least in (("figure svg", 15), ("table", 12), ("svg.crop", 100), ("td > svg", 2)):
        found = page.locator(what)
        assert found.count() >= least
        boxes = [one.bounding_box() for one in found.all()]
        assert all(box and box["width"] > 0 and box["height"] > 0 for box in boxes)


@pytest.mark.slow
def test_pictures_of_cards_are_decoded(opened):
    page = opened()
    assert page.evaluate(
        """Promise.all([...document.querySelectorAll('defs image')].map((one) => {
            const picture = new Image();
            picture.src = one.getAttribute('href');
            return picture.decode().then(() => picture.width > 0);
        }))"""
    ) == [True, True]


def column(page, place):
    rows = page.locator("#verdict table tbody tr")
    return [row.locator("th, td").nth(place).inner_text() for row in rows.all()]


def test_a_table_is_sorted_by_click_and_by_keyboard(opened):
    page = opened()
    head = page.locator("#verdict table thead th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    shares = [float(text.split("%")[0]) for text in column(page, 1)]
    assert shares == sorted(shares, reverse=True)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text.split("%")[0]) for text in column(page, 1)] == sorted(shares)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    names = column(page, 0)
    assert names == sorted(names)
    assert head.get_attribute("aria-sort") is None


@pytest.mark.slow
def test_what_has_no_value_stays_at_the_end(opened):
    page = opened()
    button = page.locator("#verdict table thead button").last
    for _ in range(2):
        button.click()
        assert column(page, -1)[0].startswith("+2.10")


@pytest.mark.slow
def test_a_link_to_a_card_unfolds_it(opened):
    page = opened()
    link = page.locator("#classes a", has_text="layer1.0.conv1").first
    target = page.locator(link.get_attribute("href"))
    assert not target.is_visible()
    link.click()
    target.wait_for(state="visible")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_figures_are_to_be_read_in_both_schemes(opened, scheme):
    page = opened(color_scheme=scheme)
    colours = page.evaluate(
        """[getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.body).color,
            getComputedStyle(document.querySelector('figure text')).fill]"""
    )
    paper, ink, label = (
        sum(map(int, colour.split("(")[1].rstrip(")").split(",")[:3])) / 765 for colour in colours
    )
    assert (paper > 0.9) == (scheme == "light")
    assert abs(paper - ink) > 0.7
    assert abs(paper - label) > 0.7


@pytest.mark.slow
def test_it_prints(opened):
    page = opened(width=720, color_scheme="dark")  # of a sheet of A4 within its margins
    page.emulate_media(media="print")
    unfolded(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.slow
def test_names_of_the_job_are_shown_and_run_nothing(opened):
    page = opened("hostile")
    assert page.title().startswith("<script>alert('x')</script>")
    assert page.locator("h1").inner_text().startswith("<script>alert('x')</script>")


@pytest.mark.slow
def test_a_script_from_elsewhere_would_not_run(browser, files):
    page = browser.new_page()
    page.goto(files["usual"])
    page.evaluate(
        """() => { const one = document.createElement('script');
            one.textContent = "document.title = 'ran'"; document.body.append(one); }"""
    )
    assert page.title() != "ran"
    page.close()
