"Damaged on purpose: every test is named after the mistake it prevents."
import warnings

import matplotlib; matplotlib.use('agg')
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from madd.core import UserError
from madd.evaluate import compare, score_crops, video_scores
from madd.manifest import video_row
from madd.media import save_image
from madd.stress import STRESSES, UNTOUCHED, cell_scores, cells_of, degrade, plot_stress, stress, stress_scores, stress_table


class Sharp(torch.nn.Module):
    "Says fake when neighbouring pixels differ; everything that smooths must change it"
    def __init__(self, **notes): super().__init__(); self.gain, self.notes = torch.nn.Parameter(torch.tensor(20.)), notes
    def forward(self, x): z = self.gain*((x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)) - .1); return torch.stack([-z/2, z/2], 1)


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    root, rng, rows = tmp_path_factory.mktemp('crops'), np.random.default_rng(0), []
    for m, rough in (('original', 10), ('Deepfakes', 22)):
        for i in range(6):
            for f in range(2):
                name = f'{m}{i}_{f}.png'
                save_image(root/name, np.clip(128 + (rough + 4*rng.normal())*rng.normal(size=(32, 32, 3)), 0, 255).astype(np.uint8))
                rows.append(video_row(f'{i}.mp4', int(m != 'original'), 'toy', m, 'c23', split='test') | dict(frame=f, crop=name, margin=.3, size=32, reason=''))
    return pd.DataFrame(rows), root


@st.composite
def clips(draw):
    n, side, seed = draw(st.integers(1, 3)), draw(st.sampled_from([16, 33, 64])), draw(st.integers(0, 10**6))
    return list(np.random.default_rng(seed).integers(0, 256, (n, side, side, 3)).astype(np.uint8))


# A damage must not change the number, the shape or the type of the frames, nor the frames it was given.
@settings(max_examples=25, deadline=None)
@given(clips(), st.sampled_from(list(STRESSES)), st.integers(0, 4))
def test_a_damage_keeps_the_form_and_its_input(frames, name, level):
    before = [f.copy() for f in frames]
    out = degrade(frames, name, STRESSES[name].levels[level])
    assert [o.shape for o in out] == [f.shape for f in frames] and all(o.dtype == np.uint8 for o in out)
    assert all((a == b).all() for a, b in zip(before, frames))


# Level 0 changes nothing, and the neutral values change nothing.
@settings(max_examples=25, deadline=None)
@given(clips())
def test_level_zero_is_the_identity(frames):
    for name, value in ((UNTOUCHED, None), ('resize', 1.), ('noise', 0.), ('brightness', 1.), ('jitter', 0.)):
        assert all((a == b).all() for a, b in zip(frames, degrade(frames, name, value))), name


# Five levels each, from weak to strong, none of them twice.
def test_there_are_seven_damages_at_five_levels():
    assert len(STRESSES) == 7 and all(len(set(s.levels)) == 5 and list(s.levels) in (sorted(s.levels), sorted(s.levels)[::-1]) for s in STRESSES.values())
    cells = cells_of()
    assert len(cells) == 36 and cells[0][:2] == (UNTOUCHED, 0) and {c[1] for c in cells[1:]} == {1, 2, 3, 4, 5}


# The sweep's baseline is the evaluation itself, also when the model wants another size.
@pytest.mark.parametrize('notes', [{}, dict(size=32), dict(size=20)])
def test_untouched_crops_score_as_in_evaluation(crops, notes):
    df, root = crops
    model = Sharp(**notes)
    got = cell_scores({'plain': model}, df, root, UNTOUCHED, batch_size=5)
    assert np.allclose(got.prob, score_crops(model, df, root).prob, atol=1e-6) and (got.video == df.video).all()


# A row's damage belongs to the row: not to the order of the table, the size of a batch, or the processes.
def test_scores_do_not_depend_on_order_batches_or_workers(crops):
    df, root = crops
    key = lambda d: d.set_index(['video', 'frame']).prob.sort_index()
    first = key(cell_scores({'m': Sharp()}, df, root, 'noise', .1))
    for other in (cell_scores({'m': Sharp()}, df.sample(frac=1, random_state=2), root, 'noise', .1, batch_size=3), cell_scores({'m': Sharp()}, df, root, 'noise', .1, num_workers=2)):
        assert np.allclose(first, key(other), atol=1e-6)
    assert not np.allclose(first, key(cell_scores({'m': Sharp()}, df, root, 'noise', .1, seed=1)), atol=1e-6)


# All models see the same damaged pixels: two equal models must get equal scores.
def test_models_see_the_same_pixels(crops):
    df, root = crops
    d = cell_scores({'a': Sharp(), 'b': Sharp()}, df, root, 'jitter', .2)
    assert (d.prob[d.model == 'a'].to_numpy() == d.prob[d.model == 'b'].to_numpy()).all()


# A stopped sweep goes on with the missing cells, and gives what an unbroken one gives.
def test_a_stopped_sweep_goes_on(crops, tmp_path, monkeypatch):
    df, root = crops
    models = {'MADD': Sharp(), 'plain': Sharp(temperature=2.)}
    whole = stress(models, df, root, tmp_path/'whole', names=['jpeg'], n=20)
    import madd.stress as module
    real, done = module.cell_scores, []
    def stops(*args, **kwargs):
        if len(done) == 3: raise KeyboardInterrupt
        done.append(args[3]); return real(*args, **kwargs)
    monkeypatch.setattr(module, 'cell_scores', stops)
    with pytest.raises(KeyboardInterrupt): stress(models, df, root, tmp_path/'cut', names=['jpeg'], n=20)
    assert len(list((tmp_path/'cut/cells').iterdir())) == 3
    calls = []
    monkeypatch.setattr(module, 'cell_scores', lambda *a, **k: calls.append(a[3]) or real(*a, **k))
    pd.testing.assert_frame_equal(stress(models, df, root, tmp_path/'cut', names=['jpeg'], n=20), whole)
    assert len(calls) == 3
    assert {p.name for p in (tmp_path/'cut').iterdir()} == {'cells', 'sweep.json', 'scores.parquet', 'stress.parquet', 'stress.csv', 'stress.png'}


# One folder, one experiment: other weights, crops or seeds are refused.
def test_a_folder_belongs_to_one_experiment(crops, tmp_path):
    df, root = crops
    stress_scores({'m': Sharp()}, df, root, tmp_path, names=['brightness'], levels={'brightness': (.5,)})
    changed = Sharp()
    with torch.no_grad(): changed.gain += 1
    for models, rows, seed in (({'m': changed}, df, 0), ({'m': Sharp(temperature=3.)}, df, 0), ({'m': Sharp()}, df[:-1], 0), ({'m': Sharp()}, df, 1)):
        with pytest.raises(UserError, match='choose a new folder'): stress_scores(models, rows, root, tmp_path, names=['brightness'], seed=seed)


# Drop and gain are paired: they equal the paired comparison of evaluation, and what changes nothing has drop 0.
def test_drop_and_gain_are_paired(crops, tmp_path):
    df, root = crops
    models = {'MADD': Sharp(), 'plain': Sharp(temperature=2.)}
    scores = stress_scores(models, df, root, tmp_path, names=['blur', 'brightness'], levels={'blur': (1.,), 'brightness': (1.,)})
    t = stress_table(scores, n=50).set_index(['unit', 'model', 'stress'])
    same = t.loc[('video', 'MADD', 'brightness')]
    assert same['drop'] == same.drop_lo == same.drop_hi == 0 and t.loc[('video', 'MADD', 'blur')].gain == 0
    part = lambda m, s: scores[(scores.model == m) & (scores.stress == s)]
    want, got = compare(part('MADD', 'blur'), part('MADD', UNTOUCHED), n=50), t.loc[('frame', 'MADD', 'blur')]
    assert (got['drop'], got.drop_lo, got.drop_hi) == pytest.approx((want.value, want.lo, want.hi))
    v = video_scores(part('plain', 'blur')); assert len(v) == 12 and t.loc[('video', 'plain', 'blur')].n == 12


# The picture has one panel per damage and one curve per model.
def test_the_picture_shows_every_damage_and_model(crops, tmp_path):
    df, root = crops
    t = stress({'MADD': Sharp(), 'plain': Sharp()}, df, root, tmp_path, names=['jpeg', 'resize', 'blur', 'noise', 'brightness'], n=20)
    axes = [a for a in plot_stress(t).axes if a.axison]
    assert [a.get_title() for a in axes] == [STRESSES[k].words for k in ('jpeg', 'resize', 'blur', 'noise', 'brightness')]
    assert all(sum(len(l.get_xdata()) == 6 for l in a.lines) == 2 for a in axes)


# Two data sets are not one curve: each has a picture of its own.
def test_every_data_set_has_its_picture(crops, tmp_path):
    df, root = crops
    more = pd.concat([df, df.assign(dataset='else++', video='else/' + df.video)], ignore_index=True)
    t = stress({'MADD': Sharp()}, more, root, tmp_path, names=['blur'], n=20)
    with pytest.raises(UserError, match='one by one'): plot_stress(t)
    assert sorted(p.name for p in tmp_path.glob('*.png')) == sorted(f'stress_{n}.png' for n in ('else_', df.dataset.iloc[0]))
    for n in t.dataset.unique():
        for a in (a for a in plot_stress(t[t.dataset == n]).axes if a.axison): assert a.get_xticklabels()[0].get_text() == '-' and all(len(set(l.get_xdata())) == len(l.get_xdata()) for l in a.lines if len(l.get_xdata()) > 2)


# Wrong names, and nothing to damage: one sentence.
def test_mistakes_are_sentences(crops, tmp_path):
    df, root = crops
    for call in (lambda: cells_of(['fog']), lambda: cells_of(levels={'fog': (1,)}), lambda: degrade([np.zeros((8, 8, 3), np.uint8)], 'fog', 1)):
        with pytest.raises(UserError, match='no stress'): call()
    with pytest.raises(UserError, match="split 'val'"): stress_scores({'m': Sharp()}, df, root, tmp_path, split='val')
