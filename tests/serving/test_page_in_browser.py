"""The page of a service in a real browser: a person drops an image and sees the classes."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from PIL import Image

from metasearch.serving.answers import Answer
from metasearch.serving.server import bound
from tests.browser import Browser
from tests.serving.asking import make_service, open_app

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-a-test"
CLASSES = [("ankle boot", 0.7), ("a sneaker with quite a long name", 0.2), ("<b>sandal</b>", 0.07), ("bag", 0.03)]
BEST = "document.getElementById('best').textContent"
PROBLEM = "document.getElementById('problem')"
ANSWERED = "!document.getElementById('answer').hidden"
BARS = "[...document.querySelectorAll('#bars li')].map((line) => line.innerText.split('\\n').filter((text) => text))"
WIDTHS = "[...document.querySelectorAll('.bar')].map((bar) => bar.getBoundingClientRect().width)"


async def shoes(bodies: list[bytes]) -> list[Answer]:
    """Refuse what is no PNG; the rest are shoes. Rows are shoes, too, unless they hold a null."""
    good = [body.startswith((b"\x89PNG", b"{")) and b"null" not in body for body in bodies]
    return [[CLASSES] if is_good else "is no image of PNG" for is_good in good]


@contextmanager
def served(*, shape: tuple[int, ...] = (1, 28, 28), token: str | None = None) -> Iterator[str]:
    """Serve a model that is a function, in a thread; yield the address."""
    app = open_app(make_service(shoes, shape=shape), token=token)
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def show(opened: Browser, address: str) -> None:
    opened.call("Page.navigate", url=address)
    opened.wait("document.readyState === 'complete' && document.getElementById('name').textContent.trim() !== ''")


def boot() -> bytes:
    """Return a small picture, PNG: a light boot on black."""
    image = Image.new("L", (28, 28))
    for box, grey in (((9, 2, 15, 20), 190), ((9, 14, 24, 22), 150), ((8, 22, 25, 25), 230)):
        image.paste(grey, box)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def drop(opened: Browser, content: bytes, name: str, kind: str, *, times: int = 1) -> None:
    """Drop a file on the page, or the same several times at once, as a person's mouse does."""
    opened.evaluate(
        f"""(() => {{
          const bytes = Uint8Array.from(atob({json.dumps(base64.b64encode(content).decode())}), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          const file = new File([bytes], {json.dumps(name)}, {{ type: {json.dumps(kind)} }});
          for (let number = 0; number < {times}; number++) dataTransfer.items.add(file);
          for (const kind of ["dragenter", "dragover", "drop"]) {{
            const event = new DragEvent(kind, {{ dataTransfer, bubbles: true, cancelable: true }});
            document.getElementById("drop").dispatchEvent(event);
          }}
        }})()"""
    )


def test_a_person_drops_an_image_and_sees_its_classes_as_bars(opened: Browser) -> None:
    with served() as address:
        show(opened, address)
        drop(opened, boot(), "boot.png", "image/png")
        opened.wait(ANSWERED)
        assert opened.evaluate(BEST) == "ankle boot"
        assert opened.evaluate(BARS) == [[name, f"{100 * share:.1f} %"] for name, share in CLASSES]
        widths = opened.evaluate(WIDTHS)
        assert widths[0] / widths[1] == pytest.approx(0.7 / 0.2, rel=0.05)
        opened.wait(
            "document.getElementById('picture').naturalWidth === 28 && !document.getElementById('picture').hidden"
        )
        assert opened.messages == []
        paths = {asked.removeprefix(address) for asked in opened.requests if asked.startswith("http")}
        assert paths == {"/", "/page.css", "/page.js", "/model", "/predict"}


def test_a_bad_image_gets_its_reason_and_the_next_one_its_answer(opened: Browser) -> None:
    with served() as address:
        show(opened, address)
        drop(opened, b"no image", "notes.txt", "text/plain")
        opened.wait(f"!{PROBLEM}.hidden")
        assert opened.evaluate(f"{PROBLEM}.textContent") == "notes.txt is no image of PNG"
        drop(opened, boot(), "boot.png", "image/png")
        opened.wait(ANSWERED)
        assert opened.evaluate(f"{PROBLEM}.hidden")


def test_an_answer_that_comes_late_is_not_shown_under_the_next_image(opened: Browser) -> None:
    answer = "Response.json({ class: 'late', probability: 1, top: [], model: { digest } })"
    late = "held.shift()(); new Promise((done) => setTimeout(done, 50))"
    waiting = "document.getElementById('answer').classList.contains('waiting')"
    with served() as address:
        show(opened, address)
        opened.wait("digest !== ''")
        opened.evaluate(f"held = []; fetch = () => new Promise((go) => held.push(() => go({answer}))); 0")
        drop(opened, boot(), "first.png", "image/png")
        drop(opened, boot(), "second.png", "image/png", times=2)
        assert "second.png, the first of 2 files" in opened.evaluate("document.getElementById('drop').innerText")
        opened.evaluate(late)
        assert opened.evaluate(waiting)
        opened.evaluate("mostBytes = 10")
        drop(opened, boot(), "third.png", "image/png")
        opened.evaluate(late)
        assert opened.evaluate(f"{PROBLEM}.textContent").startswith("third.png is larger than")
        assert not opened.evaluate(ANSWERED)
        assert not opened.evaluate(waiting)


def test_a_service_that_did_not_answer_is_asked_again(opened: Browser) -> None:
    with served() as address:
        show(opened, address)
        opened.evaluate("fetched = fetch; fetch = () => Promise.reject(); showModel(); 0")
        opened.wait("!document.getElementById('again').hidden")
        assert opened.evaluate(f"{PROBLEM}.textContent")
        opened.evaluate("fetch = fetched; document.getElementById('again').click()")
        opened.wait("document.getElementById('again').hidden")
        opened.wait(f"{PROBLEM}.hidden")
        assert not opened.evaluate("document.getElementById('drop').hidden")


def test_the_keyboard_reaches_the_file_chooser(opened: Browser) -> None:
    with served() as address:
        show(opened, address)
        opened.press("Tab")
        assert opened.evaluate("document.activeElement.id") == "file"
        assert opened.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"


def test_a_token_is_asked_for_and_used(opened: Browser) -> None:
    with served(token=TOKEN) as address:
        show(opened, address)
        assert opened.evaluate("!document.getElementById('access').hidden && document.activeElement.id") == "token"
        assert opened.evaluate("document.getElementById('drop').hidden")
        assert opened.evaluate(f"{PROBLEM}.hidden")
        enter = "document.getElementById('token').value = '{}'; document.querySelector('#access button').click()"
        opened.evaluate(enter.format("another"))
        opened.wait(f"!{PROBLEM}.hidden")
        assert opened.evaluate(f"{PROBLEM}.textContent") == "This token is not the service's."
        opened.evaluate(enter.format(TOKEN))
        opened.wait("!document.getElementById('drop').hidden")
        drop(opened, boot(), "boot.png", "image/png")
        opened.wait(ANSWERED)
        assert opened.evaluate(BEST) == "ankle boot"


def test_a_row_of_numbers_is_classified(opened: Browser) -> None:
    with served(shape=(3,)) as address:
        show(opened, address)
        enter = "document.getElementById('row').value = '{}'; document.querySelector('#vector button').click()"
        opened.evaluate(enter.format("1, 2.5 -3"))
        opened.wait(ANSWERED)
        assert opened.evaluate(BEST) == "ankle boot"
        opened.evaluate(enter.format("1, two, 3"))
        opened.wait(f"!{PROBLEM}.hidden")
        dropped = "new DragEvent('drop', { dataTransfer: new DataTransfer(), bubbles: true, cancelable: true })"
        assert opened.evaluate(f"document.getElementById('row').dispatchEvent({dropped})")  # the text goes in


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_is_wider_than_the_window(opened: Browser, width: int) -> None:
    with served() as address:
        opened.view(width, 800, phone=width < 500)
        show(opened, address)
        drop(opened, boot(), "a-picture-with-a-very-long-name-that-never-ends-at-all.png", "image/png")
        opened.wait(ANSWERED)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width


def test_a_dark_page_has_light_text(opened: Browser) -> None:
    with served() as address:
        colors: Callable[[], list[str]] = lambda: opened.evaluate(  # noqa: E731 - said twice below
            "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
        )
        show(opened, address)
        light = colors()
        opened.view(1200, dark=True)
        opened.wait(f"getComputedStyle(document.body).backgroundColor !== {light[1]!r}")
        assert colors() == ["rgb(232, 234, 237)", "rgb(20, 23, 27)"]
