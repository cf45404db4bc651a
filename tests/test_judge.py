"Many files at once: inputs of every kind, outputs that are whole, runs that are killed or run beside each other"
import html, http.server, io, json, multiprocessing, os, re, shutil, signal, subprocess, sys, threading, time
from dataclasses import asdict
from pathlib import Path

import matplotlib; matplotlib.use('agg')
import numpy as np
import pandas as pd
import pytest
import jsonschema

from madd.core import SCORE_NOTE, UserError, house_style, safe_name
from madd.judge import (Judged, Reader, boxes_at, case_name, face_rows, file_row, is_link, list_files, plain_link, predict_paths,
                        prediction_page, read_list, score_lines, timeline, verdict_schema, write_csv)
from madd.media import BadMedia, read_frames, save_image, video_info, write_video
from madd.predict import FLAGS, VERDICTS, Detector, FaceLook, FrameLook, JudgeSettings, Person, Verdict

linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork and /proc')


class Rule:
    "An engine without a network: the bluer a crop, the more it is called fake"
    runtime, size, notes = 'rule', None, dict(size=64, margin=.3)
    def __init__(self, fingerprint='rule00000000', pause=0.): self.fingerprint, self.pause, self.calls = fingerprint, pause, 0
    def __call__(self, crops):
        self.calls += 1; time.sleep(self.pause)
        blue = crops[..., 2].astype(np.float32) - crops[..., 0]
        logit = blue.mean((1, 2))/12 + 2
        return np.stack([np.zeros_like(logit), logit], 1), np.clip(blue + 60, 0, None)[:, None, ::8, ::8]/120

def rule(**how): return Detector(Rule(**how), JudgeSettings(size=64), 'cpu')


@pytest.fixture(scope='module')
def face():
    from skimage.data import astronaut
    return np.ascontiguousarray(astronaut()[:256, 96:352])

@pytest.fixture
def inbox(face, tmp_path):
    "Two pictures, a clip of two people, an empty file"
    d = tmp_path/'in'
    save_image(d/'a.png', face); save_image(d/'b.jpg', np.clip(face*np.array([.7, .9, 1.4]), 0, 255).astype(np.uint8))
    pair = np.concatenate([face, face[:, ::-1]], 1)
    write_video(d/'clip.mp4', [np.roll(pair, t, 1) for t in range(10)], fps=5)
    (d/'empty.mp4').touch()
    return d


# --- what is there to judge

def test_lists_of_every_kind():
    assert read_list(b'') == [] and read_list(b'\n\n') == [] and read_list(b'a\r\nb') == ['a', 'b'] and read_list(b'\xef\xbb\xbfa') == ['a']
    assert read_list(b' a b \n') == [' a b '] and read_list(b'a\nb\0c') == ['a\nb', 'c']

def test_names_on_standard_input(inbox, tmp_path, monkeypatch):
    "`-` stands for a list, in the middle of other names, and NUL-separated names may hold line ends"
    shutil.copy(inbox/'a.png', inbox/'two\nlines.png')
    for data in (f'{inbox/"a.png"}\0{inbox}/two\nlines.png\0http://x/y.jpg\0'.encode(), f'{inbox/"a.png"}\nhttp://x/y.jpg\nlost.jpg\n'.encode()):
        monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(data)))
        files, links, bad = list_files(['-', inbox/'b.jpg'], 'out')
        assert [f.name for f in files] == ['a.png', 'b.jpg'] + ['two\nlines.png']*(b'\0' in data)
        assert links == ['http://x/y.jpg'] and list(bad) == ([] if b'\0' in data else ['lost.jpg'])

def test_whatever_is_not_there_is_listed(inbox, tmp_path):
    (tmp_path/'nothing').mkdir(); (tmp_path/'dangling.jpg').symlink_to(tmp_path/'gone'); (tmp_path/'round.jpg').symlink_to(tmp_path/'round.jpg')
    names = [tmp_path/'nothing', 'lost', 'lost*.jpg', 'a\0b', 'x'*300, '~nobody_has_this_name/x.jpg', 'file:///etc/passwd', 'ftp://h/x.jpg', 'data:image/png;base64,AA', tmp_path/'dangling.jpg', tmp_path/'round.jpg', '']
    files, links, bad = list_files([*names, inbox], tmp_path/'out')
    assert len([f for f in files if f.parent == inbox]) == 4 and links == []
    assert {str(n) for n in names} - set(bad) <= {str(tmp_path/'dangling.jpg'), str(tmp_path/'round.jpg')}, 'those are judged, and get a reason there'
    rows = predict_paths(names, rule(), tmp_path/'out', figures=False)
    assert all(r['verdict'] == 'no verdict' and r['reason'] for r in rows) and len(rows) == len(names)

def test_a_clip_under_a_wrong_name(inbox, tmp_path):
    "Named like a picture it is judged; without an ending it is passed over with a remark, here and on the page, and judged when it is named itself"
    box = tmp_path/'box'; box.mkdir()
    for name in ('clip.jpg', 'CLIP0007', *([os.fsdecode(b'M\xfcller')] if sys.platform == 'linux' else [])): shutil.copy(inbox/'clip.mp4', box/name)   # a name may be no text
    with pytest.warns(UserWarning, match='other files? .* CLIP0007'): row, = predict_paths(box, rule(), tmp_path/'out', n_frames=4, figures=False)
    assert row['kind'] == 'clip' and len(row['frames']) == 4
    assert 'CLIP0007' in (tmp_path/'out'/'predictions.html').read_text()
    row, = predict_paths(box/'CLIP0007', rule(), tmp_path/'out', n_frames=4, figures=False)
    assert row['kind'] == 'clip' and len(row['frames']) == 4 and 'other file' not in (tmp_path/'out'/'predictions.html').read_text()

def test_a_link_is_no_request_unless_allowed(tmp_path, monkeypatch):
    import socket
    monkeypatch.setattr(socket, 'create_connection', lambda *a, **k: pytest.fail('somebody went to the network'))
    r, = predict_paths('https://me:secret@example.org/x.jpg', rule(), tmp_path/'out')
    assert 'allow' in r['reason'] and 'secret' not in json.dumps(r) and not (tmp_path/'out'/'downloads').exists()
    assert 'secret' not in (tmp_path/'out'/'predictions.html').read_text() + (tmp_path/'out'/'predictions.csv').read_text()

def test_names_from_strangers():
    assert safe_name('../../etc/pass wd') == '.._.._etc_pass_wd' and safe_name('..') == '_' and len(safe_name('x'*500 + '.mp4')) == 60 and safe_name('a'*99 + '.mp4').endswith('.mp4')
    assert case_name('/a/x.png') != case_name('/b/x.png') and re.fullmatch(r'[A-Za-z0-9._-]+', case_name('/a/<b>&"\udcff\n.png'))
    assert plain_link('HTTP://u:p@h:8/a?b=@c') == 'HTTP://h:8/a?b=@c' and is_link('HTTPS://h') and not is_link('x/https://h') and not is_link('file://h')


# --- reading at arm's length

def test_a_reader_gives_what_the_library_gives(inbox):
    from madd.predict import open_file
    with Reader() as reader:
        for name, n in (('clip.mp4', 4), ('clip.mp4', None), ('a.png', 4)):
            (info, frames), (mine, far) = open_file(inbox/name, n), reader.read(inbox/name, n)
            assert info == mine
            for (i, s, rgb), (j, t, got) in zip(frames, far, strict=True): assert i == j and s == pytest.approx(t) and np.array_equal(rgb, got) and got.flags.writeable

def test_a_reader_says_why(inbox, tmp_path):
    with Reader() as reader:
        for name, word in (('empty.mp4', 'empty'), ('lost.mp4', 'no such file'), ('.', 'folder')):
            info, frames = reader.read(inbox/name, 3)
            with pytest.raises(BadMedia, match=word): list(frames)
            assert info is None and not reader.gave_up

@linux
def test_a_reader_that_is_killed_is_replaced(inbox):
    with Reader() as reader:
        frames = reader.read(inbox/'clip.mp4', None)[1]
        next(frames); os.kill(reader.process.pid, signal.SIGKILL)
        with pytest.raises(BadMedia, match='SIGKILL'): list(frames)
        assert len(list(reader.read(inbox/'clip.mp4', 3)[1])) == 3

@linux
def test_a_file_that_never_ends(tmp_path, face):
    "A pipe that nobody writes to, named as a picture, is refused at once; a clip that takes for ever is given up, and is not remembered as judged"
    os.mkfifo(tmp_path/'pipe.mp4')
    row = predict_paths(tmp_path/'pipe.mp4', rule(), tmp_path/'out', timeout=20)[0]
    assert 'not an ordinary file' in row['reason']
    write_video(tmp_path/'long.mp4', [face]*40, fps=10)
    slow = rule(pause=.3); slow.batch_size = 1
    row, = predict_paths(tmp_path/'long.mp4', slow, tmp_path/'out', n_frames=40, timeout=1.5, figures=False)
    assert row['probability'] is not None and 1 <= len(row['frames']) < 40 and 'longer than the limit of 1.5' in ' '.join(row['notes'])
    quick = rule(); row, = predict_paths(tmp_path/'long.mp4', quick, tmp_path/'out', n_frames=40, figures=False)
    assert len(row['frames']) == 40 and not any('limit' in n for n in row['notes'])

@linux
def test_a_reader_dies_with_its_master(tmp_path):
    code = 'import os, time\nfrom madd.judge import Reader\nr = Reader(); r.start(); print(r.process.pid, flush=True); time.sleep(60)'
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as master:
        pid = int(master.stdout.readline()); master.kill()
    for _ in range(100):
        try: state = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
        except OSError: return
        if state == 'Z': return
        time.sleep(.1)
    pytest.fail('the reader lives on')

def test_an_error_in_the_judging_of_one_file_is_a_reason(inbox, tmp_path):
    d = rule(); look = d.faces
    d.faces = lambda rgb: 1/0 if rgb.shape[1] == 512 else look.everyone(rgb)
    rows = predict_paths(inbox, d, tmp_path/'out', figures=False)
    assert [r['reason'].split(' (')[0] for r in rows] == ['', '', 'it cannot be judged', 'the file is empty']


# --- downloads

class Pages(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        type(self).asked.append(self.path)
        self.send_response(200); self.send_header('Content-Type', 'image/png'); self.send_header('Content-Length', str(len(type(self).data))); self.end_headers(); self.wfile.write(type(self).data)

def test_a_download_is_judged_once_and_named_safely(inbox, tmp_path, monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    Pages.data, Pages.asked = (inbox/'a.png').read_bytes(), []
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f'http://127.0.0.1:{server.server_port}/..%2f..%2fa%20b%3Cx%3E.png?token=1'
        for _ in range(2): row, = predict_paths([url], rule(), tmp_path/'out', allow_download=True, figures=False)
    finally: server.shutdown(); server.server_close()
    assert len(Pages.asked) == 1 and row['probability'] is not None and row['source'] == url
    assert Path(row['path']).parent == tmp_path/'out'/'downloads' and re.fullmatch(r'[A-Za-z0-9._-]+', Path(row['path']).name)
    assert list(list_files(tmp_path/'out', tmp_path/'out')[0]) == [], 'a download belongs to its address'


# --- the record

def test_the_published_schema_is_current():
    published = Path(__file__).parent.parent/'docs'/'predictions.schema.json'
    assert json.loads(published.read_text()) == json.loads(json.dumps(verdict_schema())), 'run nbs/14b_judge.ipynb: it writes docs/predictions.schema.json'

def test_every_line_keeps_to_the_schema(inbox, tmp_path):
    rows = predict_paths([inbox, 'lost.jpg', 'https://x/y'], rule(), tmp_path/'out', n_frames=4, video=True)
    check = jsonschema.Draft202012Validator(verdict_schema())
    for line in (tmp_path/'out'/'predictions.jsonl').read_text().splitlines():
        row = json.loads(line, parse_constant=lambda c: pytest.fail(c))
        check.validate(row); assert set(row) == set(verdict_schema()['properties']) and row['caution'] == SCORE_NOTE
    assert len(rows) == 6 and {r['verdict'] for r in rows} <= set(VERDICTS)
    for case in (tmp_path/'out'/'files').glob('*.json'): check.validate(json.loads(case.read_text())['row'])

def test_the_schema_says_everything_the_record_has():
    schema = verdict_schema()
    for kind, part in ((Judged, schema), (Person, schema['$defs']['Person']), (FrameLook, schema['$defs']['FrameLook']), (FaceLook, schema['$defs']['FaceLook'])):
        names = {f for f in kind.__dataclass_fields__}
        assert set(part['properties']) == names == set(part['required'])
    assert schema['properties']['flags']['items']['enum'] == list(FLAGS)


# --- again, killed, side by side

def test_nothing_is_judged_twice(inbox, tmp_path):
    d = rule(); first = predict_paths(inbox, d, tmp_path/'out', n_frames=4); calls = d.engine.calls
    assert predict_paths(inbox, rule(), tmp_path/'out', n_frames=4) == first
    again = rule(); assert predict_paths(inbox, again, tmp_path/'out', n_frames=4) == first and again.engine.calls == 0
    for change in (dict(n_frames=3), dict(detector=rule(fingerprint='another')), dict(detector=Detector(Rule(), JudgeSettings(size=64, low=.1), 'cpu'))):
        other = change.pop('detector', None) or rule(); predict_paths(inbox, other, tmp_path/'out', figures=False, **(dict(n_frames=4) | change))
        assert other.engine.calls > 0, change
    assert calls > 0

def test_a_damaged_or_edited_case_is_judged_again(inbox, tmp_path):
    predict_paths(inbox, rule(), tmp_path/'out', figures=False)
    cases = sorted((tmp_path/'out'/'files').glob('*.json'))
    good = json.loads(cases[0].read_text())
    cases[0].write_text('{'); cases[1].write_text('[]'); cases[2].write_text(json.dumps(good | {'row': {'path': 1}})); cases[3].write_bytes(b'\xff')
    rows = predict_paths(inbox, rule(), tmp_path/'out', figures=False)
    assert [r['verdict'] for r in rows][3] == 'no verdict' and [Path(r['path']).name for r in rows] == ['a.png', 'b.jpg', 'clip.mp4', 'empty.mp4']
    assert all(json.loads(c.read_text())['row']['path'] for c in cases)

def test_only_what_is_missing_is_drawn(inbox, tmp_path):
    house_style()
    rows = predict_paths(inbox, rule(), tmp_path/'out', n_frames=4, figures=False)
    assert not any(r['figure'] or r['video'] for r in rows)
    d = rule(); rows = predict_paths(inbox, d, tmp_path/'out', n_frames=4, video=True)
    figures = {r['figure'] for r in rows} - {''}
    assert len(figures) == 3 and [bool(r['video']) for r in rows] == [False, False, True, False]
    stamps = {p.name: p.stat().st_mtime_ns for p in (tmp_path/'out'/'files').iterdir()}
    predict_paths(inbox, rule(), tmp_path/'out', n_frames=4, video=True)
    assert stamps == {p.name: p.stat().st_mtime_ns for p in (tmp_path/'out'/'files').iterdir()}

def _whole(out):
    "Everything that is there under its final name can be read"
    for p in Path(out).rglob('*'):
        if p.is_dir() or '.part' in p.name: continue
        if p.suffix == '.json': json.loads(p.read_text())
        if p.suffix == '.jsonl': [json.loads(line) for line in p.read_text().splitlines()]
        if p.suffix == '.png': from_image(p)
        if p.suffix == '.mp4': assert video_info(p).frames
        if p.suffix == '.html': assert p.read_text().rstrip().endswith('</html>')
        if p.suffix == '.csv': pd.read_csv(p)

def from_image(p):
    from PIL import Image
    Image.open(p).verify()

def _run(inbox, out, fingerprint='rule00000000'):
    os.environ['TQDM_DISABLE'] = '1'
    predict_paths(inbox, rule(fingerprint=fingerprint), out, n_frames=4, video=True)

@linux
def test_killed_at_any_moment_nothing_is_half_written(inbox, tmp_path):
    "Killed after ever longer times, in one folder; the last run finishes and agrees with one that was never disturbed"
    way, out, killed = multiprocessing.get_context('fork'), tmp_path/'out', 0
    for wait in np.linspace(.05, 1.2, 10):
        p = way.Process(target=_run, args=(inbox, out, f'run{wait:.2f}'))    # another model each time: everything is judged and drawn again
        p.start(); p.join(wait)
        if p.is_alive(): p.kill(); killed += 1
        p.join(); _whole(out)
    assert killed >= 2
    _run(inbox, out); _run(inbox, tmp_path/'calm')
    assert [json.loads(l) for l in (out/'predictions.jsonl').read_text().splitlines()] == [json.loads(l) for l in (tmp_path/'calm'/'predictions.jsonl').read_text().splitlines()]

@linux
def test_two_runs_in_one_folder(inbox, tmp_path):
    way, out = multiprocessing.get_context('fork'), tmp_path/'out'
    both = [way.Process(target=_run, args=(inbox, out)) for _ in range(2)]
    for p in both: p.start()
    while any(p.is_alive() for p in both): _whole(out); time.sleep(.02)
    assert [p.exitcode for p in both] == [0, 0]
    _whole(out); assert not [p for p in out.rglob('*') if '.part' in p.name]
    _run(inbox, tmp_path/'calm')
    assert (out/'predictions.jsonl').read_text() == (tmp_path/'calm'/'predictions.jsonl').read_text()


# --- outputs

def looked(track, p, x=0.): return FaceLook(track, [x, 0., x + 40, 50.], [x]*10, .9, p)

def a_clip(name='x.mp4', **more):
    frames = [FrameLook(10*k, k/2., [looked(0, .2 + .07*k, 10.*k)] + ([looked(1, .5, 200.)] if k in (2, 3, 7) else [])) for k in range(9)]
    people = [Person(0, 'uncertain', .48, 9, 0., 4., {'blurred': 3}), Person(1, 'uncertain', .5, 3, 1., 3.5)]
    return Judged(name, 'clip', 'uncertain', .5, people=people, frames=frames, width=320, height=240, seconds=4.5, notes=['<i>a note</i>'], **more)

def test_boxes_move_between_judged_frames_and_scores_do_not():
    v = a_clip()
    assert [(n, float(b[0]), a.probability) for n, b, a in boxes_at(v, 13)] == [(0, 13., pytest.approx(.27))]
    assert [n for n, _, _ in boxes_at(v, 25)] == [0, 1] and [n for n, _, _ in boxes_at(v, 45)] == [0] and [n for n, _, _ in boxes_at(v, 71)] == [0, 1] and [n for n, _, _ in boxes_at(v, 75)] == [0]
    assert boxes_at(v, 500) == [] and len(boxes_at(v, 0)) == 1
    late = Verdict('x', frames=[FrameLook(5, .2, [looked(0, .5)])])
    assert boxes_at(late, 0) == [] and len(boxes_at(late, 4)) == 1

def test_lines_break_where_nobody_was_judged():
    assert [len(r) for r in score_lines(a_clip())[1]] == [2, 1] and len(score_lines(a_clip())[0]) == 1
    t = timeline(a_clip()); assert len(t['people']) == 2 and len(t['people'][1]['runs']) == 1 and len(t['people'][1]['dots']) == 3
    assert timeline(Verdict('x', frames=[FrameLook(0, 0., [looked(0, .5)])])) is None

def test_the_page_escapes_and_loads_nothing(tmp_path):
    from html.parser import HTMLParser
    evil = '<script>alert(1)</script><b onload=alert(2)>"\' \udcff.mp4'
    rows = [a_clip(evil, source='https://h/"><script>x</script>'), Judged('b.png', reason='<i>broken</i>', notes=['<u>n</u>'])]
    page = prediction_page(rows, tmp_path/'p.html').read_text()
    class Tags(HTMLParser):
        seen, refs = set(), []
        def handle_starttag(self, tag, attrs): self.seen.add(tag); self.refs += [(k, v) for k, v in attrs if k in ('src', 'href', 'action', 'data', 'poster', 'srcset') or k.startswith('on')]
    t = Tags(); t.feed(page)
    assert not t.seen & {'script', 'u', 'iframe', 'link', 'object', 'embed', 'form'} and '<b onload' not in page and all(k == 'href' and v.startswith('#f') for k, v in t.refs)
    assert 'url(' not in page and '@import' not in page and '&lt;script&gt;' in page and SCORE_NOTE in html.unescape(page) and page.count('<polyline') == 2
    assert '<i>broken' not in page and '<i>a note' not in page and '&lt;i&gt;broken' in page.lower()

@pytest.mark.skipif(not shutil.which('chromium'), reason='no browser here')
@pytest.mark.parametrize('width', [1200, 500])
def test_the_page_fits_a_wide_and_a_narrow_window(tmp_path, width):
    "In a real browser: nothing sticks out of the page, whatever the names are"
    rows = [a_clip('very_long_name_'*20 + '.mp4'), a_clip('b c.mp4'), Judged('https://example.org/' + 'x'*300, reason='there is no such file')]
    page = prediction_page(rows, tmp_path/'p.html')
    page.write_text(page.read_text().replace('</main>', '</main><script>document.title = document.documentElement.scrollWidth + " of " + document.documentElement.clientWidth</script>'))
    dom = subprocess.run(['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', f'--user-data-dir={tmp_path/"browser"}', f'--window-size={width},900', '--dump-dom', page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    inside, window = map(int, re.search(r'<title>(\d+) of (\d+)</title>', dom).groups())
    assert inside <= window

def test_tables_of_records(tmp_path):
    v = asdict(a_clip('=1+1.mp4')); faces = face_rows(v)
    assert file_row(v)['judged'] == 12 == len(faces) and {f['person'] for f in faces} == {1, 2}
    write_csv(tmp_path/'t.csv', ['path', 'notes', 'probability'], [file_row(v), dict(path='\udcff', probability=None)])
    t = pd.read_csv(tmp_path/'t.csv'); assert t.path[0] == './=1+1.mp4' and np.isnan(t.probability[1])

def test_an_annotated_clip_keeps_the_time(face, tmp_path):
    "As many frames, as long, H.264, constant memory: frames are made one by one"
    from madd.judge import annotated
    pair = np.concatenate([face, face[:, ::-1]], 1)
    write_video(tmp_path/'c.mp4', [np.roll(pair, t, 1) for t in range(30)], fps=10)
    row, = predict_paths(tmp_path/'c.mp4', rule(), tmp_path/'out', n_frames=4, figures=False, video=True)
    made, was = video_info(tmp_path/'out'/'files'/row['video']), video_info(tmp_path/'c.mp4')
    assert (made.frames, made.fps) == (was.frames, was.fps) and made.height > was.height and made.width == 512
    asked = []
    def frames():
        for i, s, rgb in read_frames(tmp_path/'c.mp4'): asked.append(i); yield i, s, rgb
    film = annotated(Verdict.from_dict(row), frames(), 10); next(film); next(film)
    assert asked == [0, 1]

def test_a_model_that_is_none_is_said_before_anything_is_written(tmp_path, inbox):
    from madd.core import UserError
    with pytest.raises(UserError): predict_paths(inbox, tmp_path/'no model', tmp_path/'out')
    assert not (tmp_path/'out').exists()


def _reads(path):
    "In a worker: what a reader says"
    reader = Reader()
    try: reader.read(path, 1)
    except UserError as e: return str(e)
    finally: reader.stop()


def test_a_worker_of_a_pool_is_told_what_works(tmp_path):
    import multiprocessing
    with multiprocessing.get_context('fork').Pool(1) as pool: assert 'ProcessPoolExecutor' in pool.apply(_reads, (str(tmp_path/'a.jpg'),))
