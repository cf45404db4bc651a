"The page of `madd app` in a real browser: drop a picture, press the button, read the verdict; and nothing leaves the machine."
import shutil, socket

import pytest

pytest.importorskip('gradio')
sync = pytest.importorskip('playwright.sync_api')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not shutil.which('chromium'), reason='needs chromium')]

from skimage.data import astronaut

from madd.app import running_app
from madd.core import seed_everything
from madd.media import save_image
from madd.model import MADD
from madd.predict import Detector


@pytest.fixture(scope='module')
def detector():
    seed_everything(0)
    model = MADD('mobilenetv2_035', pretrained=False)
    model.notes.update(size=96, margin=.3, note='Never trained.')
    return Detector(model, device='cpu')


@pytest.fixture(scope='module')
def browser():
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield b
        b.close()


def test_drop_judge_read(detector, browser, tmp_path):
    save_image(tmp_path/'face.png', astronaut()[:320, 60:380])
    (tmp_path/'<img src=x>.png').write_bytes(b'no picture at all')
    with running_app(detector) as address:
        page, asked, errors = browser.new_page(viewport=dict(width=1100, height=900)), [], []
        page.on('request', lambda r: asked.append(r.url))
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.goto(address)
        page.wait_for_selector('#go', timeout=60000)
        page.set_input_files('#files input[type=file]', [str(tmp_path/'face.png'), str(tmp_path/'<img src=x>.png')])
        page.wait_for_function("document.querySelectorAll('#files table tr, #files .file-preview tr').length >= 2", timeout=30000)
        page.click('#go')
        page.wait_for_selector('#words table.verdicts', timeout=90000)
        words = page.inner_text('#words')
        page.wait_for_selector('#pictures img', timeout=30000)
        size = page.evaluate("(() => { const i = document.querySelector('#pictures img'); return [i.naturalWidth, i.complete] })()")
        page.wait_for_selector('#away a', timeout=30000)
        offered = page.inner_text('#away')
        page.screenshot(path=str(tmp_path/'app.png'), full_page=True)
        blocked = page.evaluate("fetch('https://example.org/').then(() => 'went out', e => 'stopped')")
        page.close()
    assert 'face.png' in words and 'Never trained' in words and 'no verdict' in words
    assert 'predictions.html' in offered.replace('\n', '') and size[0] > 100
    assert blocked == 'stopped' and not errors, errors
    strangers = [u for u in asked if not u.startswith((address, 'data:', 'blob:')) and 'example.org' not in u]
    assert not strangers, strangers


def test_the_button_without_a_file_says_what_to_do(detector, browser):
    with running_app(detector) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector('#go', timeout=60000)
        page.click('#go')
        page.wait_for_selector('text=Drop a picture or a clip first', timeout=30000)
        assert 'Traceback' not in page.content()
        page.close()


def test_only_this_machine_can_reach_it(detector):
    with running_app(detector) as address:
        port = int(address.rstrip('/').rsplit(':', 1)[1])
        own = [a for a in socket.gethostbyname_ex(socket.gethostname())[2] if not a.startswith('127.')]
        for a in own:
            with pytest.raises(OSError): socket.create_connection((a, port), timeout=2).close()
