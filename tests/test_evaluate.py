"Numbers that mean what they say, and the page they are shown on. Every test is named after the mistake it prevents."
import json, math, re, time, warnings

import matplotlib; matplotlib.use('agg')
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from madd.calibrate import calibration_of, fit_shift, fit_temperature, store_calibration, temperature_loss, tempered, verdict_thresholds
from madd.core import ATTENTION_NOTE, FAKE, REAL, SCORE_NOTE, UserError
from madd.evaluate import (WEIGHTED, best_threshold, bootstrap, bootstrap_interval, compare, evaluate, metrics, metrics_table, resample_weights,
                           run_protocol, score_crops, slices, video_scores)
from madd.manifest import video_row
from madd.media import save_image
from madd.model import PlainDetector, load
from madd.predict import read_settings
from madd.judge import Judged, prediction_page
from madd.report import Picture, Section, caveats, headline, verdict_words, write_metrics, write_report


class Brightness(torch.nn.Module):
    "A detector that answers with the mean brightness: its scores are known in advance"
    notes = {'margin': .3}
    def __init__(self): super().__init__(); self.scale = torch.nn.Parameter(torch.tensor(4.))
    def forward(self, x): z = self.scale*x.mean((1, 2, 3)); return torch.stack([-z/2, z/2], 1)


def frame_scores(seed=0, n=12, frames=3, compressions=('c23', 'c40'), methods=('Deepfakes', 'FaceSwap'), shift=1., dataset='toy'):
    rng, rows = np.random.default_rng(seed), []
    for c in compressions:
        for m in ('original', *methods):
            for i in range(n):
                base = rng.normal() + (shift if m != 'original' else -shift)
                for f in range(frames):
                    rows.append(video_row(f'{i:03}.mp4', int(m != 'original'), dataset, m, c, split='test') | dict(frame=f, prob=float(1/(1 + np.exp(-base - .3*rng.normal())))))
    return pd.DataFrame(rows)


@pytest.fixture
def crops(tmp_path):
    "Crops whose brightness is their score; two rows have no face"
    rng, rows = np.random.default_rng(0), []
    for m in ('original', 'Deepfakes'):
        for i in range(6):
            for f in range(2):
                v, crop = int(rng.integers(0, 255)), f'{m}{i}{f}.png'
                save_image(tmp_path/crop, np.full((24, 24, 3), v, np.uint8))
                rows.append(video_row(f'{i}.mp4', int(m != 'original'), 'toy', m, 'c23', split='test') | dict(frame=f, crop=crop, value=v, margin=.3, size=24, reason=''))
    df = pd.DataFrame(rows)
    df.loc[[1, 15], ['crop', 'reason']] = ['', 'no face was found']
    return df, tmp_path


# The probability must be that of *fake* (class 1), and belong to its own row.
def test_scores_are_p_fake_and_stay_in_their_rows(crops):
    df, root = crops
    got = score_crops(Brightness(), df.sample(frac=1, random_state=1), root, batch_size=5)
    want = 1/(1 + np.exp(-4*(got.value/127.5 - 1)))
    have = got.crop != ''
    assert np.allclose(got.prob[have], want[have], atol=1e-6) and got.prob[~have].isna().all()


# A frame without a face must not become 0.5, and must not vanish from the count.
def test_missing_faces_are_neither_half_nor_forgotten(crops):
    df, root = crops
    table = evaluate({'plain': Brightness()}, df, root, n=20)
    row = table[(table.level == 'frame') & (table.method == 'all')].iloc[0]
    assert row.n == len(df) - 2 and math.isclose(row.coverage, 1 - 2/len(df))


# A model trained with another crop margin gives other scores: nobody may use it without being told.
def test_another_margin_is_not_used_in_silence(crops):
    df, root = crops
    with pytest.warns(UserWarning, match='margin'): score_crops(Brightness(), df.assign(margin=.5), root)
    with warnings.catch_warnings():
        warnings.simplefilter('error'); score_crops(Brightness(), df, root)


# Only the asked split is measured; a split that does not exist is an error and not an empty table.
def test_training_rows_are_not_measured(crops):
    df, root = crops
    half = df.assign(split=np.where(df.index % 4 < 2, 'train', 'test'))
    assert evaluate({'plain': Brightness()}, half, root, n=5).n.max() < len(df)/2 + 1
    with pytest.raises(UserError, match="split 'val'"): evaluate({'plain': Brightness()}, half, root, split='val')


# Video scores use the full key: the same name under another manipulation is another video.
def test_videos_of_one_name_are_not_averaged_together():
    v = video_scores(frame_scores(n=5))
    assert len(v) == 5*3*2 and (v.n_frames == 3).all()


# A manipulation is compared with reals of its own compression and of its own data set only.
def test_reals_of_another_compression_or_data_set_stay_out():
    both = pd.concat([frame_scores(0), frame_scores(1, dataset='other')])
    seen = {(d, c, m): rows for d, c, m, rows in slices(both)}
    assert len(seen) == 2*2*3
    for (d, c, m), rows in seen.items():
        assert set(rows.compression) == {c} and set(rows.dataset) == {d} and set(rows.method) <= {'original', m} | ({'Deepfakes', 'FaceSwap'} if m == 'all' else set())


# Every number of the table must be what scikit-learn says about the same rows.
def test_the_table_agrees_with_scikit_learn():
    d = frame_scores()
    d.loc[::7, 'prob'] = np.nan
    t = metrics_table({'plain': d}, n=10).set_index(['level', 'compression', 'method'])
    for (level, c, m), row in t.iterrows():
        part = (d if level == 'frame' else video_scores(d)).query('compression == @c').dropna(subset='prob')
        part = part if m == 'all' else part[part.method.isin(['original', m])]
        assert math.isclose(row.auc, roc_auc_score(part.label, part.prob)) and math.isclose(row.ap, average_precision_score(part.label, part.prob))
        assert math.isclose(row.log_loss, log_loss(part.label, part.prob)) and row.n == len(part)
        assert row.lo <= row.auc <= row.hi


# The fast weighted metrics are the slow ones on repeated rows, ties and all.
def test_fast_bootstrap_is_the_slow_one():
    rng = np.random.default_rng(1)
    d = pd.DataFrame({'video': np.repeat(np.arange(20), 2), 'label': np.repeat(rng.permutation([0]*8 + [1]*12), 2), 'prob': rng.integers(0, 6, 40)/5})
    w, draws = resample_weights(d, n=5, seed=3), bootstrap(d, list(WEIGHTED), n=5, seed=3)
    for k in range(5):
        rows = np.repeat(np.arange(40), w[k].astype(int))
        slow = metrics(d.label[rows], d.prob[rows])
        assert all(math.isclose(draws[name][k], slow[name], rel_tol=1e-5, abs_tol=1e-6) for name in WEIGHTED)


# A test set as large as FF++'s must not take minutes or gigabytes.
def test_the_bootstrap_is_fast_at_full_size():
    rng = np.random.default_rng(0)
    d = pd.DataFrame({'video': np.repeat(np.arange(700), 20), 'label': np.repeat((np.arange(700) >= 140).astype(int), 20), 'prob': rng.random(14000)})
    t = time.process_time(); i = bootstrap_interval(d); seconds = time.process_time() - t
    assert seconds < 12 and i.lo < .5 < i.hi


# Models are compared on the same rows, joined by key: the order of a table must not matter.
def test_paired_difference_does_not_depend_on_row_order():
    a, b = frame_scores(0), frame_scores(0).assign(prob=lambda d: d.prob**2)
    assert compare(a, b, n=50) == compare(a, b.sample(frac=1, random_state=0), n=50)
    assert compare(a, b.assign(prob=1 - b.prob), n=50).lo > 0


# A table without the plain backbone must say so.
def test_a_missing_control_is_mentioned():
    with pytest.warns(UserWarning, match='plain backbone'): metrics_table({'MADD': frame_scores()}, n=5)


# One class only: no AUC, no crash, no number made up, and no report.
def test_one_class_has_no_auc(tmp_path):
    d = frame_scores()
    only = d[d.label == FAKE]
    t = metrics_table({'plain': only, 'MADD': only}, n=5)
    assert t.auc.isna().all() and t.acc.notna().all()
    with pytest.raises(UserError, match='one class only'): write_metrics(tmp_path, t)


# Nothing was scored at all: zero coverage, not an exception in the middle of a night's run.
def test_no_scores_at_all_is_a_row_with_zero_coverage():
    t = metrics_table({'plain': frame_scores().assign(prob=np.nan)}, n=5)
    assert (t.coverage == 0).all() and (t.n == 0).all()


# The log loss is the logarithm's: not the one that ends at 0.313.
def test_the_log_loss_trap_is_not_ours():
    assert metrics([0, 1], [1e-9, 1 - 1e-9])['log_loss'] < 1e-6
    assert metrics([0, 1], [1e-9, 1 - 1e-9])['log_loss_clipped'] == pytest.approx(-math.log(.99))


# The same seed gives the same interval in every run.
def test_intervals_repeat():
    assert bootstrap_interval(frame_scores(), seed=4) == bootstrap_interval(frame_scores(), seed=4) != bootstrap_interval(frame_scores(), seed=5)


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp('report')
    scores = {'MADD': frame_scores(0, n=6).assign(crop='a.png', reason=''), 'plain': frame_scores(1, n=6, shift=.5).assign(crop='a.png', reason='')}
    save_image(out/'a.png', np.zeros((30, 30, 3), np.uint8))
    table = metrics_table(scores, n=50)
    path = write_report(out, table, scores, [Picture(np.zeros((9, 9, 3), np.uint8), 'maps', 'beside the mask'), Section('Training <curves>', [np.ones((9, 9, 3), np.uint8)])],
                        root=out, settings=dict(seed=0, nested=dict(lr=1e-3, nothing=float('nan'))))
    return path, path.read_text(), table


# A page that needs the internet, or files beside it, is broken as soon as it is mailed.
def test_the_page_stands_alone(page):
    _, html, _ = page
    refs = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert refs and all(r.startswith('data:image/') for r in refs)
    assert '<script' not in html and 'url(' not in html and '@import' not in html and str(page[0].parent) not in html


# What the page must always say.
def test_the_page_carries_both_notes_and_the_control(page):
    text = page[1].replace('&#39;', "'")
    assert SCORE_NOTE in text and ATTENTION_NOTE in text and 'plain backbone' in text and 'Missed fake' in text and 'Training &lt;curves&gt;' in text


# metrics.json: the four numbers on top, finite everywhere, equal to the table.
def test_metrics_json_is_finite_and_equal_to_the_table(page):
    path, _, table = page
    m = json.loads((path.parent/'metrics.json').read_text(), parse_constant=lambda c: pytest.fail(f'{c} in metrics.json'))
    row = table.query("model == 'MADD' and level == 'video' and compression == 'c23' and method == 'all'").iloc[0]
    assert m['video_auc'] == row.auc and list(m)[:4] == ['video_auc', 'frame_auc', 'control_video_auc', 'control_frame_auc']
    assert m['results']['plain']['frame']['c40']['FaceSwap']['n'] == 36 and 'nothing' not in m['settings']['nested']
    assert len(pd.read_csv(path.parent/'metrics.csv')) == len(table)


# The words must be able to say "no better" and "worse": a page that only knows praise is advertising.
def test_the_words_can_say_no(page):
    top = headline(page[2])
    assert 'within what chance' in verdict_words(top | dict(video_gain_interval=[-.1, .1]))[1]
    assert 'worse than its own backbone' in verdict_words(top | dict(video_gain_interval=[-.2, -.1]))[1]
    assert any('small' in c for c in caveats(page[2], top))


# Names of files are other people's text.
def test_file_names_cannot_inject_markup(tmp_path):
    evil = '<b onload=alert(1)>.mp4'
    p = prediction_page([Judged(evil, reason='<i>broken</i>')], tmp_path/'p.html')
    assert '<b onload' not in p.read_text() and '<i>broken' not in p.read_text() and 'onload=alert(1)' in p.read_text()


# Two or three real videos cannot carry an interval: none is given, and the page says so.
def test_a_handful_of_videos_gets_no_interval(tmp_path):
    scores = {'MADD': frame_scores(0, n=3).assign(crop='', reason=''), 'plain': frame_scores(1, n=3).assign(crop='', reason='')}
    table = metrics_table(scores, n=20)
    assert table.auc.notna().all() and table.lo.isna().all() and table.gain.notna().any() and table.gain_lo.isna().all()
    html = write_report(tmp_path, table, scores).read_text()
    assert 'too few videos for an interval' in html and 'nan' not in re.sub(r'data:image/[^"]*', '', html).lower().replace('finance', '')
    json.loads((tmp_path/'metrics.json').read_text(), parse_constant=lambda c: pytest.fail(c))


# --- one evaluator: what the issue asks for, line by line

# A warning each for margin, size and normalisation that differ from training, and silence when all agree.
@pytest.mark.parametrize('notes, given, word', [(dict(margin=.5), {}, 'margin'), (dict(size=48), {}, 'enlarged'), (dict(size=24), dict(size=16), 'size changes'),
                                                 (dict(input=dict(mean=[.4]*3, std=[.2]*3)), {}, 'normalised')])
def test_other_crops_than_in_training_are_not_used_in_silence(crops, notes, given, word):
    df, root = crops
    model = Brightness(); model.notes = notes
    with pytest.warns(UserWarning, match=word): score_crops(model, df, root, **given)


# A temperature must never change an order: the frame AUC is the same to the last digit.
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-800, 800), min_size=4, max_size=40), st.floats(.5, 20), st.randoms())
def test_a_temperature_keeps_every_order(z, T, random):
    z = [v/100 for v in z]
    y = [0, 1] + [random.randint(0, 1) for _ in z[2:]]
    d = pd.DataFrame(dict(video=[str(i) for i in range(len(z))], label=y, logit=z))
    assert roc_auc_score(y, z) == roc_auc_score(y, tempered(d, 1.).prob) == roc_auc_score(y, tempered(d, T).prob) == roc_auc_score(y, tempered(d, T, 1.5).prob)


# The fitted temperature is the best one, whatever the scores.
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(.2, 8), st.floats(.3, 4))
def test_no_other_temperature_is_better(seed, factor, skill):
    rng = np.random.default_rng(seed); y = np.arange(60) % 2
    z = factor*(skill*(2*y - 1) + 2*rng.normal(size=60)); w = np.full(60, 1/60)
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); T = fit_temperature(z, y)
    if ((2*y - 1)*z > 0).all(): assert T == 1
    else: assert all(temperature_loss(z, y, T, w) <= temperature_loss(z, y, t, w) + 1e-9 for t in np.geomspace(.051, 19.9, 60))


# With a shift: no temperature and shift nearby is better against the smoothed targets, and the numbers stay finite when one threshold separates all.
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(.2, 8), st.floats(-5, 5), st.floats(.3, 30))
def test_no_other_shift_is_better(seed, factor, lean, skill):
    rng = np.random.default_rng(seed); y = np.arange(60) % 2
    z = factor*(skill*(2*y - 1) + 2*rng.normal(size=60)) + lean
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); T, b = fit_shift(z, y)
    target = np.where(y == 1, 31/32, 1/32)
    def loss(T, b): u = (z - b)/T; return np.mean(np.logaddexp(0, u) - target*u)
    assert np.isfinite([T, b]).all() and .049 < T < 20.1
    assert all(loss(T, b) <= loss(t, b + e*T) + 1e-5 for t in (T*.9, T, T*1.1) if .05 <= t <= 20 for e in (-.1, 0, .1))


# Thresholds are in order, inside [0, 1], and keep their promise on the videos they were chosen on.
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=9, max_size=40), st.lists(st.floats(0, 1), min_size=9, max_size=40))
def test_verdict_thresholds_are_in_order_and_keep_their_word(real, fake):
    low, high = verdict_thresholds(pd.DataFrame(dict(label=[0]*len(real) + [1]*len(fake), prob=real + fake)), alpha=.1)
    assert 0 <= low < high <= 1 and low <= .5 <= high
    assert high == 1 or np.mean(np.array(real) >= high) <= .1
    assert low == 0 or np.mean(np.array(fake) <= low) <= .1


# A stored calibration is what evaluation and prediction read; the weights stay byte for byte.
def test_a_calibrated_folder_is_used_by_everything(crops, tmp_path):
    df, root = crops
    model = PlainDetector('tf_efficientnet_lite0', pretrained=False); model.notes.update(size=32, margin=.3); model.save(tmp_path/'m')
    before = (tmp_path/'m/model.safetensors').read_bytes()
    d = pd.concat([frame_scores(s, n=20, compressions=('c23',), methods=('Deepfakes',)).assign(split='val') for s in (0,)])
    cal = calibration_of(d.assign(logit=3*np.log(d.prob/(1 - d.prob))))
    assert cal.temperature > 1.1 and cal.low is not None
    store_calibration(tmp_path/'m', cal)
    again = load(tmp_path/'m')
    assert (tmp_path/'m/model.safetensors').read_bytes() == before and again.notes['margin'] == .3
    s = read_settings(again.notes)
    assert (s.low, s.high, s.calibrated, s.size) == (cal.low, cal.high, True, 32)
    df = df.assign(size=32)
    raw, used = score_crops(again, df, root, calibrated=False), score_crops(again, df, root)
    assert np.allclose(used.prob.dropna(), 1/(1 + np.exp(-(raw.logit.dropna() - cal.shift)/cal.temperature)), atol=1e-12)
    row = evaluate({'plain': again}, df, root, n=5).iloc[0]
    assert row.threshold_val == cal.thresholds['frame'] and 0 <= row.acc_val <= 1


# Never on a test set, and not on what a coin could have said.
def test_calibration_refuses_test_rows():
    d = frame_scores(n=20); d['logit'] = np.log(d.prob/(1 - d.prob))
    with pytest.raises(UserError, match='never on test data'): calibration_of(d)
    with pytest.warns(UserWarning, match='at least 19'): cal = calibration_of(d.assign(split='val').query("compression == 'c23' and target < '010'"))
    assert cal.low is None and 'verdict' not in cal.notes() and json.dumps(cal.notes(), allow_nan=False)


# The validation threshold comes from validation rows, is applied to test rows, and stands under its own name.
def test_accuracy_at_the_validation_threshold(crops):
    df, root = crops
    both = pd.concat([df.assign(split='val', video='v' + df.video), df], ignore_index=True)
    t = evaluate({'plain': Brightness()}, both, root, n=5).query("level == 'frame' and method == 'all'").iloc[0]
    s = score_crops(Brightness(), df, root).dropna(subset='prob')
    assert t.threshold_val == best_threshold(s.assign(split='val'))
    assert t.acc_val == pytest.approx(((s.prob >= t.threshold_val) == s.label).mean()) and t.acc == pytest.approx(((s.prob >= .5) == s.label).mean())
    assert 'acc_val' not in evaluate({'plain': Brightness()}, df, root, n=5)


# From a folder in Celeb-DF's layout to the four files, in one call and resumable; 1 means real in its list.
def test_the_celeb_df_protocol_is_one_call(tmp_path):
    from madd.media import write_video
    from madd.sources import AstronautFaces
    root, faces = tmp_path/'Celeb-DF-v2', AstronautFaces(n=4, size=160)
    names = ['Celeb-real/id0_0000', 'YouTube-real/00170', 'Celeb-synthesis/id0_id1_0000', 'Celeb-synthesis/id1_id0_0001']
    for i, n in enumerate(names): write_video(root/f'{n}.mp4', [faces[i][1]]*2)
    (root/'List_of_testing_videos.txt').write_text(''.join(f'{int("real" in n.lower())} {n}.mp4\n' for n in names))
    model = Brightness(); model.notes = dict(margin=.1, size=48)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore'); table = run_protocol({'plain': model}, root, tmp_path/'out', workers=1)
    frame = table.query("level == 'frame' and method == 'all'").iloc[0]
    assert frame.dataset == 'celeb-df-v2' and frame.n == 8 and frame.n_fake == 4 and np.isfinite(frame.auc)
    made = pd.read_parquet(tmp_path/'out/scores.parquet')
    assert set(made.margin) == {.1} and set(made['size']) == {48} and set(made.label[made.method == 'original']) == {0}
    assert json.loads((tmp_path/'out/results.json').read_text())['about']['protocol'] == 'celeb-df' and '64.29' in (tmp_path/'out/results.md').read_text()
    crops_at = {f: f.stat().st_mtime_ns for f in (tmp_path/'out/crops/crops').rglob('*.png')}
    with pytest.warns(UserWarning, match='takes 30 frames'): again = run_protocol({'plain': model}, root, tmp_path/'out', workers=1)
    pd.testing.assert_frame_equal(table, again)
    assert {f: f.stat().st_mtime_ns for f in crops_at} == crops_at and len(crops_at) == 8


# Several faces of one frame are several rows; comparing two models must not mix them up.
def test_several_faces_in_a_frame_can_be_compared():
    a = frame_scores(n=5); two = pd.concat([a.assign(track=0), a.assign(track=1, prob=1 - a.prob)])
    assert compare(two, two.sample(frac=1, random_state=1), n=20).value == 0
