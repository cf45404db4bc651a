"Does it generalise: clips of the people asked for, tables that can be written down by hand, and a study that survives being stopped"
import importlib.util, os, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from madd import generalise as g
from madd.core import UserError, read_json
from madd.endless import FAMILIES
from madd.evaluate import UNITS, video_scores
from madd.forge import portrait
from madd.sources import face_source, portraits_table

ROOT = Path(__file__).parents[1]
RECORD = ROOT/'bench'/'results'/'generalise.json'
ENV = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1')


def scores(n=30, seed=0, gap=1., method='FaceSwap', frames=1):
    rng = np.random.default_rng(seed)
    rows = [dict(dataset='forge', compression='c23', method=m, label=y, video=f'forge/{m}/c23/{k:03d}', target=f'{k:03d}', frame=f, prob=float(stats.norm.cdf(rng.normal(y*gap))))
            for k in range(n) for y, m in ((0, 'original'), (1, method)) for f in range(frames)]
    return pd.DataFrame(rows)


@pytest.fixture(scope='module')
def bench():
    sys.path.insert(0, str(ROOT/'bench'))
    spec = importlib.util.spec_from_file_location('bench_generalise', ROOT/'bench'/'generalise.py')
    module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT/'bench'))


# --- clips ---

def test_clips_show_the_people_asked_for_and_nobody_else(tmp_path):
    source = face_source(None, 9)
    names = [source[i][0] for i in (8, 1, 6, 3, 4, 0)]
    crops, root = g.test_clips(names, source, tmp_path, 64, .05, 2, (23,))
    assert {p['name'] for p in read_json(tmp_path/'data'/'forge.json')['identities'].values()} == set(names)
    assert set(crops.split) == {'test'} and set(crops.method) == {'original', *FAMILIES} and set(crops['size'].dropna()) == {64} and set(crops.margin.dropna()) == {.05}
    assert crops.target.nunique() == 6 and crops.video.nunique() == 6*6 and (crops.crop != '').mean() > .9
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'data').rglob('*.mp4')}
    again, _ = g.test_clips(names, source, tmp_path, 64, .05, 2, (23,))
    assert again.equals(crops) and {p: p.stat().st_mtime_ns for p in (tmp_path/'data').rglob('*.mp4')} == before      # nothing was made twice
    other, at = g.test_clips(names, source, tmp_path, 48, 0., 2, (23,))
    assert set(other['size'].dropna()) == {48} and at != root and {p: p.stat().st_mtime_ns for p in (tmp_path/'data').rglob('*.mp4')} == before


def test_unknown_people_are_named():
    with pytest.raises(UserError, match="first is 'x'"): g.Only(face_source(None, 3), ['identity_0_0000', 'x'])


# --- tables ---

def test_the_mean_over_trainings_is_the_mean_and_the_order_of_rows_does_not_count():
    a, b = scores(seed=1), scores(seed=2)
    both, one, two = g.mean_auc([a, b]), g.mean_auc([a]), g.mean_auc([b])
    assert both.value == pytest.approx((one.value + two.value)/2) and (both.low, both.high, both.n) == (min(one.value, two.value), max(one.value, two.value), 2)
    assert both.lo < both.value < both.hi and both.hi - both.lo < one.hi - one.lo
    assert g.mean_auc([a.sample(frac=1, random_state=0), b]) == both
    assert g.mean_auc([a], n=50) == g.mean_auc([a], n=50)


def test_an_interval_needs_people():
    assert np.isnan(g.mean_auc([scores(3)]).lo) and np.isfinite(g.mean_auc([scores(6)]).lo)


def test_frames_of_one_person_are_no_more_people():
    one, many = g.mean_auc([scores(25, 3)]), g.mean_auc([pd.concat([scores(25, 3)]*4)])
    assert (many.lo, many.hi) == pytest.approx((one.lo, one.hi))


def test_gain_is_paired():
    a = scores(60, 4, .8); b = a.assign(prob=np.where(a.label == 1, a.prob*.7, a.prob))
    d, own = g.gain([a], [b]), g.mean_auc([a])
    assert d.value == pytest.approx(own.value - g.mean_auc([b]).value) and d.lo > 0 and d.hi - d.lo < own.hi - own.lo
    back = g.gain([b], [a]); assert (back.value, back.lo, back.hi) == pytest.approx((-d.value, -d.hi, -d.lo))
    assert g.said(d.lo, d.hi) == 'helps' and g.said(back.lo, back.hi) == 'hurts' and g.said(np.nan, np.nan) == 'unknown'


def test_the_table_has_a_row_per_slice_and_counts_what_it_used():
    s = pd.concat([scores(12, 5, frames=3), scores(12, 6, 2., 'SelfBlend', 3).query('label == 1')])
    s = pd.concat([s, s.assign(compression='c40', video=s.video.str.replace('c23', 'c40'), prob=s.prob*.9)])
    table = g.held_out_table(pd.concat([s.assign(training=0), s.assign(training=1, prob=1 - s.prob)]))
    assert len(table) == 2*3 and set(table.method) == {'all', 'FaceSwap', 'SelfBlend'} and (table.trainings == 2).all() and (table.tested == 12).all()
    assert np.allclose(table.auc, .5) and np.allclose(table.low + table.high, 1)         # a training and its opposite
    assert table.set_index(['compression', 'method']).fakes['c23', 'all'] == 24
    v = video_scores(s[(s.compression == 'c40') & ((s.label == 0) | (s.method == 'SelfBlend'))])
    row = g.held_out_table(s).set_index(['compression', 'method']).loc[('c40', 'SelfBlend')]
    assert row.auc == pytest.approx(g.mean_auc([v]).value) and row.auc != row.frame_auc


def test_faces_that_were_not_found_count_neither_way():
    s = scores(20, 7, frames=2); gone = s.assign(prob=s.prob.where((s.frame == 0) | (s.target != '003')))
    assert g.held_out_table(gone).tested.eq(20).all() and np.isfinite(g.held_out_table(gone)[['auc', 'lo', 'frame_auc']]).all(axis=None)


@pytest.mark.parametrize('called,n', [(0, 8), (1, 20), (3, 60), (5, 5)])
def test_intervals_of_counts_are_the_exact_ones(called, n):
    got = g.called_fake(pd.DataFrame(dict(prob=[1.]*called + [0.]*(n - called))), .5).iloc[0]
    lo = stats.beta.ppf(.025, called, n - called + 1) if called else 0.
    hi = stats.beta.ppf(.975, called + 1, n - called) if called < n else 1.
    assert (got.lo, got.hi, got.share) == pytest.approx((lo, hi, called/n))


def test_nobody_is_still_a_row():
    got = g.called_fake(pd.DataFrame(dict(prob=[np.nan])), .5).iloc[0]
    assert got.n == 0 and np.isnan(got.share) and (got.lo, got.hi) == (0, 1)


# --- skin colour ---

def test_the_angle_does_not_depend_on_what_is_no_skin():
    p = portrait(face_source(None, 1)[0][1]); tone = g.skin_tone(p)
    where = g.cheeks(p); assert 300 < where.sum() < .2*where.size
    other = p.image.copy(); other[~where] = 0, 0, 255
    assert g.skin_tone(type(p)(other, p.landmarks)) == tone and tone.reason == '' and g.tone_name(tone.ita) == tone.name
    darker = [g.skin_tone(type(p)((p.image*k).astype(np.uint8), p.landmarks)).ita for k in (1., .8, .6)]
    assert darker[0] > darker[1] > darker[2]


def test_the_built_in_people_have_more_than_one_colour():
    source = face_source(None, 12)
    tones = [g.skin_tone(portrait(source[i][1])) for i in range(12)]
    assert len({t.name for t in tones if t.name}) >= 3 and all(bool(t.name) != bool(t.reason) for t in tones)


def test_recorded_people_are_portraits():
    known, names = g.portrait_people(), {Path(n).stem for n in portraits_table()['name']}
    assert set(known) <= names and set(known.values()) == {'F', 'M'} and len(known) > .95*len(names)


# --- the study ---

def test_the_plan_trains_nothing_twice(bench):
    plan = bench.cells(g.STUDIES, 2, bench.CROWDS)
    assert set(plan) == set(g.STUDIES) and len(plan['lomo']) == 2*2*len(FAMILIES) and len(plan['identities']) == 2*len(bench.CROWDS)
    every = {c for cells in plan.values() for c in cells}
    assert len({bench.name(c) for c in every}) == len(every) < sum(map(len, plan.values()))
    assert set(plan['source']) <= every and set(plan['people']) <= set(plan['source'])


def test_no_family_counts_twice_in_a_mean(bench):
    a, b = list(FAMILIES)[:2]
    groups = {('madd', a, 9): {0: 'a0', 1: 'a1'}, ('madd', b, 9): {0: 'b0'}, ('first stage', a, 9): {0: 'fa0', 1: 'fa1'}, ('first stage', b, 9): {0: 'fb0'}, ('madd', '', 9): {0: 'all'}}
    assert bench.left_outs(groups) == {'madd': {a: {0: 'a0'}, b: {0: 'b0'}}, 'first stage': {a: {0: 'fa0'}, b: {0: 'fb0'}}}     # the second seed of one family waits for the others
    groups['madd', b, 9][1] = 'b1'; groups['first stage', b, 9][1] = 'fb1'
    assert bench.left_outs(groups)['madd'] == {a: {0: 'a0', 1: 'a1'}, b: {0: 'b0', 1: 'b1'}}
    assert bench.left_outs({('madd', a, 9): {0: 'a0'}, ('madd', b, 9): {1: 'b1'}}) == bench.left_outs({}) == {}


def test_every_cell_is_a_configuration(bench):
    class o: faces, settings = 'portraits', bench.SETTINGS
    for c in {c for cells in bench.cells(g.STUDIES, 1, bench.CROWDS).values() for c in cells}:
        run = bench.config(c, o)
        assert run.forge['left_out'] == c[1] and run.forge.get('people', 0) == c[2] and run.seed == c[3] and run.pretrain_epochs == 0
        assert run.where == 0   # as in the records
        assert (run.model == 'PlainDetector') == (c[0] == 'plain') and (run.ril, run.agda) == (c[0] != 'no ril', c[0] != 'no agda')


@pytest.fixture
def call(bench, monkeypatch, capsys):
    "A call of the study without a process of its own: what it printed, and the sentence it ended with"
    def one(*words):
        monkeypatch.chdir(ROOT); monkeypatch.setenv('TQDM_DISABLE', '1')
        monkeypatch.setattr(sys, 'argv', ['bench/generalise.py', *words]); bench.KNOWN.clear(); capsys.readouterr()
        try: bench.main()
        except UserError as e: return capsys.readouterr().out, str(e)
        return capsys.readouterr().out, ''
    return one


def test_models_alone_are_measured_only_when_there_is_one(call):
    assert 'name a model' in call('--only', 'models')[1] and "no study 'model'" in call('--only', 'model')[1]


def test_the_study_is_killed_and_goes_on(tmp_path, call):
    words = lambda work: ['--faces', '', '--tiny', '--jobs', '1', '--seeds', '1', '--work', str(tmp_path/work), '--out', str(tmp_path/'out.json'), '--only', 'people']
    p = subprocess.Popen([sys.executable, 'bench/generalise.py', *words('work')], cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = tmp_path/'work'/'cells'/'madd-all-everybody-0'/'run'
    for _ in range(4000):   # a busy machine needs minutes until the first training has begun
        if (run/'log.txt').exists() or p.poll() is not None: break
        time.sleep(.1)
    p.send_signal(signal.SIGKILL); p.wait()
    first = read_json(tmp_path/'out.json')
    assert first['trainings'] == 0 and first['finished']['people'] == 0 and set(g.not_measured(first)) == set(g.STUDIES)
    go, kept = lambda *more: call(*words('work'), *more), lambda: sorted(f.name for f in (tmp_path/'out').glob('*/*'))
    assert go()[1] == ''
    record = read_json(tmp_path/'out.json')
    assert record['finished']['people'] == record['planned']['people'] == 1 and 'people' not in g.not_measured(record) and 'lomo' in g.not_measured(record)
    assert str(tmp_path) not in (tmp_path/'out.json').read_text() and {'date', 'command', 'hardware', 'settings', 'seeds', 'tested_on', 'intervals'} <= set(record)
    assert {r['dataset'] for r in record['tables']['scores']} == {'built-in', 'another crowd'} and len(record['tables']['scores']) == 2*2*6
    assert kept() == ['asis.parquet', 'cell.json', 'clips.parquet']
    shutil.rmtree(tmp_path/'out')                                            # a cell that finished when nobody was there to keep it is kept by the next call
    said, refused = go(); assert not refused and '1 of 1 trainings are done' in said and read_json(tmp_path/'out.json')['tables'] == record['tables']
    assert kept() == ['asis.parquet', 'cell.json', 'clips.parquet']
    other = subprocess.run([sys.executable, 'bench/generalise.py', *words('work'), 'epochs=2'], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=500)
    assert other.returncode and 'settings.epochs was 1 and is now 2' in other.stderr and 'Traceback' not in other.stderr
    elsewhere = lambda *more: call(*words('another'), *more)                 # another day: nothing but the record and the folder beside it
    assert 'other settings' in elsewhere('lr=1e-4')[1] and not (tmp_path/'another').exists()     # refused before anything was made
    said, refused = elsewhere(); assert not refused and '1 of 1 trainings are done' in said and read_json(tmp_path/'out.json')['tables'] == record['tables']


def test_the_longer_record_can_be_continued_by_its_own_command(bench, tmp_path, monkeypatch):
    from madd.runs import over, read_words
    record = read_json(RECORD.with_name('left_out.json'))
    words = record['command'].split(' --')[0].split()[2:]
    class o: faces, work, out, settings = 'portraits', tmp_path, RECORD.with_name('left_out.json'), over(bench.SETTINGS, read_words(words))
    monkeypatch.setattr(bench, 'FORGE_VERSION', 99)
    with pytest.raises(UserError, match='another forge'): bench.recalled(o)               # other pairs: not to be mixed
    monkeypatch.setattr(bench, 'FORGE_VERSION', record['cells'][0]['forge'])
    assert {f.name for f in bench.recalled(o)} == {c['cell'] for c in record['cells']}   # trained before a configuration knew of `where`
    for word in ('where=1', 'ema=.5'):
        o.settings = over(over(bench.SETTINGS, read_words(words)), read_words([word]))
        with pytest.raises(UserError, match='other settings'): bench.recalled(o)


@pytest.mark.skipif(not RECORD.exists(), reason='the study has not been recorded yet')
@pytest.mark.parametrize('name', ['generalise', 'left_out', 'left_out_long', 'left_out_plain', 'where', 'crossed', 'box'])
def test_every_number_of_the_record_lies_in_its_interval(name):
    path = RECORD.with_name(f'{name}.json')
    record = read_json(path)
    assert {'date', 'command', 'hardware', 'torch', 'seeds', 'settings', 'tested_on', 'intervals', 'planned', 'finished', 'tables', 'cells'} <= set(record)
    assert not any(w in path.read_text() for w in ('/tmp', '/home/', '/work')) and '--tiny' not in record['command']
    for table, value in (('scores', 'auc'), ('lomo_mean', 'auc'), ('gains', 'value'), ('groups', 'share'), ('models', 'auc')):
        for r in record['tables'].get(table, []):
            if r['lo'] is not None: assert r['lo'] - 1e-3 <= r[value] <= r['hi'] + 1e-3, (table, r)
    for c in record['cells'] if name != 'generalise' else []: assert {f.name for f in (path.with_suffix('')/c['cell']).iterdir()} - {'first_asis.parquet', 'first_clips.parquet'} == {'asis.parquet', 'cell.json', 'clips.parquet'}   # the study can be continued
    assert len(record['cells']) == record['trainings'] == len({c['cell'] for c in record['cells']}) and all(c['seconds'] > 0 and c['date'] for c in record['cells'])


def test_the_first_stage_stands_beside_the_whole_training():
    "Both means of the record, from the scores that were kept: five families that nobody trained on, with every seed"
    record = read_json(RECORD.with_name('left_out_long.json'))
    for kind, file in (('madd', 'clips'), ('first stage', 'first_clips')):
        for crf in ('c23', 'c40'):
            kept = [(f, pd.read_parquet(RECORD.parent/'left_out_long'/f'madd-{f}-everybody-{k}'/f'{file}.parquet')) for f in FAMILIES for k in range(record['seeds'])]
            clips = [t[(t.dataset == 'portraits') & (t.compression == crf) & t.method.isin(['original', f])] for f, t in kept]
            row, = (r for r in record['tables']['lomo_mean'] if (r['kind'], r['dataset'], r['compression']) == (kind, 'portraits', crf))
            assert row['families'] == 5 and row['trainings'] == len(clips) and g.mean_auc([UNITS['video'](c) for c in clips], n=2).value == pytest.approx(row['auc'], abs=1e-4)


@pytest.mark.parametrize('name', ['box', 'neural'])
def test_what_is_said_of_the_model_in_the_box_was_measured_with_these_weights(name):
    from madd.export import fingerprint
    assert read_json(RECORD.with_name(f'{name}.json'))['models']['madd-lite'] == fingerprint('madd-lite'), f'measure madd-lite again: bench/results/{name}.json holds the command'
