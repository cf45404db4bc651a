"The widgets in a real browser: JupyterLab and Voila, turned by keyboard. Skipped where there is no Chromium, playwright, JupyterLab or Voila"
import json, os, secrets, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next((p for name in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(name))), None)
sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
psutil = pytest.importorskip('psutil')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')]
PATIENCE = 90_000   # milliseconds for things that take two seconds on an idle machine
PANEL, WORDS = '.madd-panel', '.madd-panel figcaption'


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status < 500
    except urllib.error.HTTPError as e: return e.code < 500
    except OSError: return False


class Server:
    "A server on loopback with folders of its own; on leaving, it and everything it started are gone"
    def __init__(self, tmp, *command): self.tmp, self.command, self.port = tmp, command, free_port()

    def __enter__(self):
        home = {name: str(self.tmp/name.lower()) for name in ('HOME', 'JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR', 'MPLCONFIGDIR')}
        for folder in home.values(): Path(folder).mkdir(exist_ok=True)
        env = os.environ | home | dict(HF_HUB_OFFLINE='1', TQDM_DISABLE='1', OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
        self.log = open(self.tmp/'server.log', 'w')
        self.process = psutil.Popen([sys.executable, '-m', *(o.replace('PORT', str(self.port)) for o in self.command)], cwd=self.tmp, env=env,
                                    stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self.seen, self.url, end = [], f'http://127.0.0.1:{self.port}', time.time() + 60
        try:
            while not answers(f'{self.url}/static/favicon.ico'):
                if self.process.poll() is not None or time.time() > end: raise RuntimeError(f'The server did not start: {(self.tmp/"server.log").read_text()[-2000:]}')
                time.sleep(.2)
        except BaseException: self.__exit__(); raise
        return self

    def look(self): self.seen = list({p.pid: p for p in [*self.seen, *self.process.children(recursive=True)]}.values()) if self.process.is_running() else self.seen

    def __exit__(self, *_):
        self.look()
        for stop in ('terminate', 'kill'):
            left = [p for p in (self.process, *self.seen) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
            for p in left if stop == 'kill' else left[:1]: getattr(p, stop)()
            psutil.wait_procs(left, timeout=10)
        self.log.close()


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-dev-shm-usage'])
        yield b
        b.close()


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT/'nbs'/'explorer.ipynb', tmp_path)
    return tmp_path


def pixels(page):
    "What the picture looks like on the screen"
    shot = page.locator(f'{PANEL} img').first.screenshot(timeout=PATIENCE)
    return cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR).astype(int)


def turn_by_keyboard(page, shots):
    "Walk to the first slider with Tab, turn it with an arrow key: words and pixels must follow"
    words = page.locator(WORDS).first
    try: words.wait_for(timeout=PATIENCE)
    except sync_api.TimeoutError: shots('failed'); raise
    assert 'after epoch 6' in words.inner_text()
    before = pixels(page); shots('before')
    page.locator(f'{PANEL} select').first.focus()
    on_slider = "document.activeElement.getAttribute('role') === 'slider'"
    for _ in range(12):
        page.keyboard.press('Tab')
        if page.evaluate(on_slider): break
    assert page.evaluate(on_slider), 'no slider can be reached with Tab'
    for _ in range(3): page.keyboard.press('ArrowLeft')
    page.wait_for_function(f"document.querySelector('{WORDS}')?.innerText.includes('after epoch 3')", timeout=PATIENCE)
    page.wait_for_function("!document.querySelector('.madd-late')", timeout=PATIENCE)
    page.wait_for_timeout(500)   # the picture stops being dimmed
    after = pixels(page); shots('after')
    assert after.shape == before.shape and (np.abs(after - before) > 30).mean() > .005
    assert page.locator(f'{PANEL} img').first.get_attribute('alt').startswith('Trained without RIL and AGDA, after epoch 3')


def shooter(page, folder, name):
    "Pictures to look at: in the test's folder, or in $MADD_SHOTS"
    folder = Path(os.environ.get('MADD_SHOTS', folder))
    folder.mkdir(exist_ok=True, parents=True)
    return lambda what: page.screenshot(path=folder/f'{name}_{what}.png')


def start_kernel(url, token, path):
    "Give the notebook its kernel before the page opens: a page that starts one itself may be asked to run before it is there"
    body = json.dumps(dict(path=path, name=path, type='notebook', kernel=dict(name='python3'))).encode()
    head = {'Authorization': f'token {token}', 'Content-Type': 'application/json'}
    with urllib.request.urlopen(urllib.request.Request(f'{url}/api/sessions', body, head), timeout=60) as answer: assert answer.status == 201


def test_jupyterlab(browser, folder):
    pytest.importorskip('jupyterlab'); token = secrets.token_hex(8)
    command = ('jupyterlab', '--no-browser', '--ip=127.0.0.1', '--port=PORT', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={folder}', '--allow-root',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.news_url=', '--LabApp.expose_app_in_browser=True')
    with Server(folder, *command) as server:
        start_kernel(server.url, token, 'explorer.ipynb')
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.goto(f'{server.url}/lab/tree/explorer.ipynb?token={token}&reset', timeout=PATIENCE)
        page.wait_for_function("document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')", timeout=PATIENCE)
        server.look()
        page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); return 1 }")   # not waited for
        turn_by_keyboard(page, shooter(page, folder, 'lab'))
        assert 'Traceback' not in page.content()
        page.close()
    assert not [p for p in server.seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_voila(browser, folder):
    pytest.importorskip('voila')
    with Server(folder, 'voila', 'explorer.ipynb', '--no-browser', '--Voila.ip=127.0.0.1', '--port=PORT') as server:
        page = browser.new_page(viewport=dict(width=1000, height=1000))
        page.goto(server.url, timeout=PATIENCE); server.look()
        turn_by_keyboard(page, shooter(page, folder, 'voila'))
        page.get_by_role('button', name='RIL', exact=True).focus(); page.keyboard.press('Enter')
        page.wait_for_function(f"document.querySelector('{WORDS}')?.innerText.startsWith('Step 15')", timeout=PATIENCE)
        page.set_viewport_size(dict(width=420, height=900)); shooter(page, folder, 'voila')('narrow')
        assert page.evaluate('document.documentElement.scrollWidth') <= 440, 'a narrow screen must not scroll sideways'
        assert page.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.madd-shot'))"), 'the picture scrolls in its own frame'
        assert 'import' not in page.locator('body').inner_text()     # an app shows no code
        page.close()
    assert not [p for p in server.seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
