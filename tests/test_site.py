"The site: every page and every link inside it, no request to anybody else, and a search that finds."
import http.server, re, shutil, subprocess, sys, threading
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip('furo'); pytest.importorskip('myst_nb')
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'madd'
    done = subprocess.run([sys.executable, str(ROOT/'docs'/'site'/'build.py'), str(out)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out


@pytest.fixture(scope='module')
def pages(site): return {p: BeautifulSoup(p.read_text(encoding='utf-8'), 'html.parser') for p in site.rglob('*.html')}


def test_every_notebook_and_module_has_its_page(site):
    for nb in (ROOT/'nbs').glob('[0-9]*.ipynb'): assert (site/'nbs'/f'{nb.stem}.html').exists(), nb.name
    for py in (ROOT/'madd').glob('[a-z]*.py'): assert (site/'api'/py.name).with_suffix('.html').exists(), py.name


def test_links_inside_the_site_lead_somewhere(site, pages):
    ids = {p: {t['id'] for t in soup.find_all(id=True)} for p, soup in pages.items()}
    broken, followed = [], 0
    for page, soup in pages.items():
        for tag, key in (('a', 'href'), ('img', 'src'), ('link', 'href'), ('script', 'src')):
            for t in soup.find_all(tag, attrs={key: True}):
                url = urlsplit(t[key])
                if url.scheme or url.netloc: continue
                followed += 1
                target = (page.parent/unquote(url.path)).resolve() if url.path else page
                if target.is_dir(): target /= 'index.html'
                if not target.exists() or (url.fragment and target in ids and unquote(url.fragment) not in ids[target]): broken.append(f'{page.relative_to(site)}: {t[key]}')
    assert followed > 5000 and not broken, broken[:20]


def test_pages_load_nothing_from_anybody_else(pages):
    for page, soup in pages.items():
        for tag, key in (('img', 'src'), ('script', 'src'), ('iframe', 'src')):
            for t in soup.find_all(tag, attrs={key: True}): assert not urlsplit(t[key]).netloc, f'{page.name}: {t[key][:90]}'
        for t in soup.find_all('link', rel=lambda r: r and {'stylesheet', 'preload', 'preconnect', 'icon'} & set(r if isinstance(r, list) else [r])):
            assert not urlsplit(t.get('href', '')).netloc, f'{page.name}: {t["href"]}'


def test_a_lesson_shows_formulas_pictures_and_no_directives(pages):
    text = {p.stem: s for p, s in pages.items() if p.parent.name == 'nbs'}
    shown = [(name, line) for name, s in text.items() for pre in s.select('div.cell_input pre') for line in pre.get_text().splitlines()]
    assert len(shown) > 5000 and not (left := [x for x in shown if x[1].startswith('#|')]), left[:20]
    assert len(text['07_pooling'].find_all('math')) >= 5 and len(text['07_pooling'].find_all('img')) >= 3
    assert not any('\\frac' in m.get_text() for m in text['07_pooling'].find_all('math'))


def test_an_api_page_gives_shapes_and_sources(pages):
    page = next(s for p, s in pages.items() if p.parent.name == 'api' and p.stem == 'pooling')
    row = next(r for r in page.find_all('tr') if r.find('code') and r.find('code').get_text() == 'feats')
    assert 'b c h w' in row.get_text()
    assert any('madd/pooling.py#L' in a['href'] for a in page.find_all('a', href=True))


@pytest.mark.skipif(not shutil.which('chromium'), reason='needs chromium')
def test_search_and_dark_mode_in_a_browser(site):
    sync = pytest.importorskip('playwright.sync_api')
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f'http://127.0.0.1:{server.server_address[1]}'
    try:
        with sync.sync_playwright() as p:
            browser = p.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox', '--disable-dev-shm-usage'])
            page, strangers = browser.new_page(color_scheme='dark'), []
            page.on('request', lambda r: strangers.append(r.url) if not r.url.startswith((home, 'data:', 'blob:')) else None)
            page.goto(f'{home}/nbs/07_pooling.html')
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.goto(f'{home}/search.html?q=norm_bap')
            page.wait_for_selector('ul.search li a', timeout=20000)
            found = page.locator('ul.search li a').all_inner_texts()
            browser.close()
    finally: server.shutdown()
    assert sum(int(v) for v in re.findall(r'\d+', dark)[:3]) < 200
    assert any('pooling' in t.lower() for t in found) and not strangers
