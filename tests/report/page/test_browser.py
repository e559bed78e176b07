"""The page as a reader meets it: Chromium, a file, no network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.report.made_runs import HOSTILE, N_MEMBERS, WITHOUT
from tests.waiting import LAST_RESORT_S, wait_until

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_RUN = '[data-run="0"]'

# In CI the browser must be there: .ci/run installs it.
pytestmark = pytest.mark.skipif(_CHROMIUM is None and "CI" not in os.environ, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # In a container the browser has no right to sandboxes of its own, and it reads only a page made here.
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser: Browser, page: Path, **settings) -> tuple[Page, list[str]]:
    """The page, and a list that fills with what goes wrong: console errors, exceptions, dialogs, requests."""
    tab = browser.new_context(offline=True, **settings).new_page()
    tab.set_default_timeout(LAST_RESORT_S * 1e3)
    wrong: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    tab.on("console", note)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append(dialog.message) or dialog.dismiss())
    tab.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else wrong.append(request.url),
    )
    tab.goto(page.as_uri())
    return tab, wrong


def _wait(tab: Page, code: str) -> None:
    """Until the code is true. (Playwright's own wait evaluates text in the page, which its policy forbids.)"""
    wait_until(lambda: tab.evaluate(code))


def _see(tab: Page, selector: str) -> None:
    """Scroll to something that is drawn when seen, and wait for it."""
    tab.locator(selector).scroll_into_view_if_needed()
    drawn = "(e => e.matches('.pattern') ? e.width > 1 : e.data || e.childElementCount)"
    _wait(tab, f"{drawn}(document.querySelector('{selector}'))")


def _opacities(tab: Page, figure: str) -> list[float]:
    return tab.evaluate(f"document.querySelector('#{figure} .chart{_RUN}').data.map(trace => trace.opacity)")


def test_slider_and_heads_change_what_is_drawn(browser: Browser, page: Path) -> None:
    tab, wrong = _open(browser, page, viewport={"width": 1280, "height": 900})
    for figure in ("prefix_matching", "ablation_icl"):
        _see(tab, f"#{figure} .chart{_RUN}")
    assert _opacities(tab, "prefix_matching") == [1, 1]

    # The slider moves the curve, the bars of the heads and the pattern together.
    _see(tab, "#loss-at-moment-0")
    _see(tab, f"#moment {_RUN} .pattern")
    curve = "Array.from(document.getElementById('loss-at-moment-0').data[1].y)"
    pixels = "document.querySelector('#moment .pattern').toDataURL()"
    title = "document.querySelector('#moment .heads button').title"
    end = [tab.evaluate(code) for code in (curve, pixels, title)]
    assert tab.locator("#moment-out").inner_text().endswith("training tokens")
    tab.locator("#moment-slider").focus()
    tab.keyboard.press("Home")
    start = [tab.evaluate(code) for code in (curve, pixels, title)]
    assert tab.locator("#moment-out").inner_text() == "0 M training tokens"
    # At step 0 the hand-built head has its pattern but no gain: the loss is that of a uniform guess.
    assert start[0] == pytest.approx([2.398] * len(start[0]), abs=1e-3)
    assert end[0][-1] < 0.01
    assert start[1:] == end[1:]  # patterns and scores stand in the weights from the start

    # A click on a head isolates it in every figure of its model; Esc takes that back.
    tab.locator(f'#moment {_RUN} [data-head="1.0"]').click()
    assert _opacities(tab, "prefix_matching") == [0.12, 1]
    assert _opacities(tab, "ablation_icl") == [0.12, 1]
    assert tab.locator(f'#moment {_RUN} [data-head="1.0"]').get_attribute("aria-pressed") == "true"
    assert "head 1.0" in tab.locator("#selected").inner_text()
    tab.locator(f'#moment {_RUN} [data-head="0.0"]').focus()
    tab.keyboard.press("Enter")
    assert _opacities(tab, "prefix_matching") == [1, 0.12]
    assert tab.evaluate(pixels) != end[1]
    tab.keyboard.press("Escape")
    assert _opacities(tab, "prefix_matching") == [1, 1]
    assert tab.locator("#selected").is_hidden()

    # So does a click on a curve.
    chart = f"#ablation_icl .chart{_RUN}"
    _see(tab, chart)
    where = tab.evaluate(
        """(s) => { const e = document.querySelector(s), b = e.getBoundingClientRect(), l = e._fullLayout;
        return [b.x + l._size.l + l.xaxis.d2p(e.data[1].x[5]), b.y + l._size.t + l.yaxis.d2p(e.data[1].y[5])]; }""",
        chart,
    )
    tab.mouse.move(*where)
    tab.wait_for_timeout(100)  # Plotly finds what is under the pointer at most every 20 ms
    tab.mouse.click(*where)
    _wait(tab, "!document.getElementById('selected').hidden")
    assert _opacities(tab, "ablation_icl") == [0.12, 1]
    assert wrong == []
    tab.context.close()


def test_hostile_tokens_are_text(browser: Browser, page: Path) -> None:
    tab, wrong = _open(browser, page, viewport={"width": 1280, "height": 900})
    _see(tab, f"#text {_RUN} .text")
    shown = set()
    for row in range(8):
        tab.locator("#row").select_option(str(row))
        shown |= set(tab.locator(f"#text {_RUN} .text span").all_inner_texts())
    assert {HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[5], HOSTILE[8], HOSTILE[9], HOSTILE[10]} <= shown
    assert "\\u202eright to left" in shown
    assert tab.locator("main img, main b, main i:not(.bars i), main script").count() == 0
    assert tab.locator("h4").first.inner_text().startswith('<i>two & "layers"')
    assert tab.locator("#behaviours-table strong").first.inner_text() == "first <b>label</b>"

    # Token by token: colours follow the mode, and a token tells its loss.
    colours = f"[...document.querySelectorAll('#text {_RUN} .text span')].map(e => e.style.background)"
    change = tab.evaluate(colours)
    tab.locator('#text [data-mode="after"]').click()
    assert tab.evaluate(colours) != change
    tab.locator("#label").select_option("second_label")
    shown = tab.locator(f"#text {_RUN} .text span:not(.faded)")
    assert 0 < shown.count() < tab.locator(f"#text {_RUN} .text span").count()
    assert all("; second label" in title for title in tab.evaluate(
        f"[...document.querySelectorAll('#text {_RUN} .text span:not(.faded)')].map(e => e.title)"
    ))  # fmt: skip
    tab.locator(f"#text {_RUN} .text span").nth(3).hover()
    assert "nats before" in tab.locator(f"#text {_RUN} .readout").inner_text()

    # Into the charts' own text no markup gets either.
    _see(tab, f"#behaviours_over_training .chart{_RUN}")
    assert (
        "first <b>label</b>"
        in tab.locator(f"#behaviours_over_training .chart{_RUN} .legendtext").all_text_contents()[0]
    )
    assert wrong == []
    tab.context.close()


def test_dark_mode_follows_the_system_and_the_button(browser: Browser, page: Path) -> None:
    tab, wrong = _open(browser, page, viewport={"width": 1280, "height": 900}, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    _see(tab, f"#icl_score .chart{_RUN}")
    font = f"document.querySelector('#icl_score .chart{_RUN}').layout.font.color"
    on_dark = tab.evaluate(font)
    tab.locator("#theme").click()
    assert (tab.evaluate(background), dark) == ("rgb(255, 255, 255)", "rgb(21, 23, 27)")
    assert tab.evaluate(font) != on_dark
    assert wrong == []
    tab.context.close()


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    tab, wrong = _open(browser, page, viewport={"width": width, "height": 800})
    for section in ("#models", "#comparison", "#arguments", "#moment", "#analysis", "#behaviours", "#text"):
        tab.locator(section).scroll_into_view_if_needed()
    _see(tab, f"#icl_score .chart{_RUN}")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert wrong == []
    tab.context.close()


def test_print_draws_everything_in_light_colours(browser: Browser, page: Path) -> None:
    tab, wrong = _open(browser, page, viewport={"width": 1280, "height": 900}, color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    undrawn = "[...document.querySelectorAll('.cell:not([hidden]) .chart')].filter(e => !e.data).length"
    assert tab.evaluate(undrawn) == 0
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    # Nothing is wider than a sheet of 18 cm, which is 680 pixels.
    wide = "[...document.querySelectorAll('.cell:not([hidden]) .main-svg')].map(e => e.getBoundingClientRect().right)"
    assert max(tab.evaluate(wide)) <= 681
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert max(tab.evaluate(wide)) > 681
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert wrong == []
    tab.context.close()


def test_members_are_chosen_and_opened(browser: Browser, members_page: Path) -> None:
    tab, wrong = _open(browser, members_page, viewport={"width": 1280, "height": 900})
    scatter = "document.querySelector('#members_scatter .chart')"
    _see(tab, "#members_scatter .chart")
    assert tab.evaluate(f"{scatter}.data[0].customdata") == [k for k in range(N_MEMBERS) if k != WITHOUT]
    size = tab.evaluate(f"Array.from({scatter}.data[0].y)")
    tab.locator("#members-y").select_option("known_previous_token")
    assert tab.evaluate(f"Array.from({scatter}.data[0].y)") != size
    assert tab.evaluate(f"{scatter}.layout.yaxis.title.text") == "previous-token score before any change"

    # The last to change is a column of the page, the one before it is not.
    shown = "[...document.querySelectorAll('#models-table input:checked')].map(e => e.parentElement.textContent.trim())"
    box = tab.locator("#members_scatter .point").last.bounding_box()
    assert box is not None
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    _wait(tab, "document.querySelector('#members_scatter .hoverlayer text') !== null")
    tab.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    _wait(tab, "document.querySelector('.opened-member').textContent !== ''")
    assert tab.locator(".opened-member").inner_text() == "many/members/11: shown in the figures below."
    assert tab.evaluate(shown) == ["many/members/11"]
    _see(tab, "#members_curves .cell:nth-child(2) .chart")
    lines = "document.querySelector('#members_curves .cell:nth-child(2) .chart').data"
    opacities = tab.evaluate(f"{lines}.filter(trace => trace.meta?.member).map(trace => trace.opacity ?? 1)")
    assert len(opacities) == N_MEMBERS - 1
    tab.locator("#members button", has_text=f"member {WITHOUT}").click()
    assert f"many/members/{WITHOUT}: shown" in tab.locator(".opened-member").inner_text()
    faded = tab.evaluate(f"{lines}.filter(trace => trace.meta?.member).map(trace => trace.opacity)")
    assert set(faded) == {0.12}
    assert wrong == []
    tab.context.close()


def test_members_on_a_phone(browser: Browser, members_page: Path) -> None:
    tab, wrong = _open(browser, members_page, viewport={"width": 390, "height": 800})
    for figure in ("members_curves", "members_times", "members_heads", "members_scatter"):
        _see(tab, f"#{figure} .cell:nth-child(1) .chart")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert wrong == []
    tab.context.close()
