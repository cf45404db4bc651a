"Does attention matter: regions are equally large, fillings stay inside, a replaced map reaches the whole network and leaves no trace, and the statistics are what they say"
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from madd import causes as c
from madd.core import UserError, read_json
from madd.model import MADD, PlainDetector

RECORD = Path(__file__).parents[1]/'bench'/'results'/'causes.json'


@pytest.fixture(scope='module', params=['paper', 'released'])
def net(request):
    torch.manual_seed(0)
    return MADD('tf_efficientnet_lite0', recipe=request.param, n_maps=3, pretrained=False).eval()


@pytest.fixture(scope='module')
def x(): return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


class Bright(nn.Module):
    "Evidence: the mean brightness of the left upper quarter"
    def forward(self, x):
        q = x[..., :x.shape[-2]//2, :x.shape[-1]//2].mean((1, 2, 3))
        return torch.stack([-q, q], 1)


# --- regions and fillings ---

@pytest.mark.parametrize('size', [(32, 32), (48, 30)])
def test_regions_are_equally_large_and_hold_the_brightest(size):
    maps, area = c.random_maps(4, 3, 7), torch.tensor([1, 17, 200, 900])
    regions = c.brightest(maps, area, size)
    assert (regions.sum((2, 3)) == area[:, None]).all()
    big = torch.nn.functional.interpolate(maps, size, mode='bilinear', align_corners=False)
    for m, r in zip(big.flatten(0, 1), regions.flatten(0, 1)): assert r.all() or m[r].min() >= m[~r].max()
    assert torch.equal(c.brightest(maps*8, area, size), regions)                      # only the order counts
    assert not c.brightest(torch.zeros(2, 1, 4, 4), 9, size).any()


@pytest.mark.parametrize('how', list(c.FILLS))
def test_a_filling_stays_inside(x, how):
    region = torch.zeros(5, 64, 64, dtype=torch.bool); region[:, 20:40, 10:30] = True
    sharp, soft = c.fill(x, region, how, soft=0), c.fill(x, region, how)
    outside = ~region[:, None].expand_as(x)
    assert torch.equal(sharp[outside], x[outside]) and not torch.equal(sharp, x)
    assert torch.equal(soft[..., :15, :], x[..., :15, :]) and (soft - sharp).abs().max() > 0
    assert torch.equal(c.fill(x, region & False, how), x)
    before = x.clone(); c.fill(x, region, how); assert torch.equal(x, before)


def test_the_mean_keeps_the_colour_and_grey_keeps_nothing(x):
    region = torch.zeros(5, 64, 64, dtype=torch.bool); region[:, 20:40, 10:30] = True
    mean = c.fill(x, region, 'mean', soft=0)[..., 20:40, 10:30]
    assert torch.allclose(mean.mean((2, 3)), x[..., 20:40, 10:30].mean((2, 3)), atol=1e-5) and mean.flatten(2).std(-1).max() < 1e-5
    assert c.fill(x, region, 'grey', soft=0)[..., 20:40, 10:30].abs().max() == 0
    with pytest.raises(UserError, match='blur, mean, grey'): c.fill(x, region, 'black')


def test_drop_says_what_the_region_contributed(x):
    left = torch.zeros(5, 64, 64, dtype=torch.bool); left[:, :32, :32] = True
    table = c.drop(Bright(), x, {'read': left, 'not read': left.flip(-1).roll(0, -1), 'half': left & (torch.arange(64) < 16)}, 'grey')
    assert list(table) == ['read', 'not read', 'half'] and len(table) == 5
    whole = 2*x[..., :32, :32].mean((1, 2, 3)).numpy()
    assert np.corrcoef(table.read, whole)[0, 1] > .99 and table['not read'].abs().max() < .2*np.abs(whole).max() + .02


# --- operations inside the network ---

def test_own_maps_change_nothing_and_others_do(net, x):
    maps = net.analyse(x).attention.detach(); whole = c.evidence(net, x)
    assert torch.equal(c.evidence(net, x, maps), whole)
    assert torch.allclose(c.evidence(net, x, maps, batch_size=2), c.evidence(net, x, batch_size=2))     # every picture gets its own maps, whatever the batches
    moved = c.operate(net, x, maps, [1, 2, 3, 4, 0])
    assert list(moved) == ['A1 = 0', 'A2 = 0', 'A3 = 0', 'all = 0', 'flat', 'of another face'] and np.isfinite(moved).all(axis=None)
    assert (moved.abs().max() > 0).all()
    itself = c.operate(net, x, maps, range(5))['of another face']
    assert itself.abs().max() == 0
    assert torch.equal(c.evidence(net, x), whole)                                                       # nothing stays behind


def test_operations_do_what_they_are_called():
    maps = c.random_maps(4, 3, 5); ops = c.operations(maps, [3, 2, 1, 0])
    for k in range(3):
        got = ops[f'A{k+1} = 0']; rest = [j for j in range(3) if j != k]
        assert got[:, k].abs().max() == 0 and torch.equal(got[:, rest], maps[:, rest])
    assert torch.equal(ops['of another face'], maps.flip(0)) and ops['all = 0'].abs().max() == 0
    assert ops['flat'].flatten(2).std(-1).max() < 1e-6 and torch.allclose(ops['flat'].sum((2, 3)), maps.sum((2, 3)), atol=1e-4)   # as much attention as before


def test_the_hook_goes_also_after_an_error(net, x):
    with pytest.raises(ZeroDivisionError):
        with c.given(net, torch.zeros(1)): 1/0
    assert not net.attention._forward_hooks
    net.train(); c.evidence(net, x); assert net.training; net.eval()
    with pytest.raises(UserError, match='no attention block'):
        c.evidence(PlainDetector('tf_efficientnet_lite0', pretrained=False), x, torch.ones(5, 4, 4, 4))


# --- occlusion and Grad-CAM ---

def test_occlusion_finds_what_is_read(x):
    fall = c.occlusion(Bright(), x + 1, 4, 1., 'grey', 0.)            # all brighter than grey: every covered pixel that is read costs
    read = fall[:, :2, :2]; rest = fall.clone(); rest[:, :2, :2] = 0
    assert (read > 0).all() and rest.abs().max() < 1e-6
    total = c.evidence(Bright(), x + 1)
    assert torch.allclose(fall.sum((1, 2)), total, atol=1e-4)         # patches that tile a linear network share its evidence
    assert c.occlusion(Bright(), torch.rand(1, 3, 30, 44), 5).shape == (1, 5, 5)


def test_patches_are_squares_around_the_cells():
    p = c.patches((28, 28), 7, 2.)
    assert p.shape == (49, 28, 28) and p[24].sum() == 64 and p[0].sum() == 36              # the corner's is cut off
    assert (c.patches((30, 44), 5, 1.).sum(0) == 1).all()


def test_grad_cam_of_a_linear_head_can_be_written_down(x):
    pytest.importorskip('captum')
    torch.manual_seed(0)
    plain = PlainDetector('tf_efficientnet_lite0', pretrained=False).eval()
    with torch.no_grad():
        final, w = plain.backbone(x)['final'], plain.head.linear.weight
        by_hand = torch.einsum('c,bchw->bhw', w[1] - w[0], final).relu()/final[0, 0].numel()
    assert torch.allclose(c.grad_cam(plain, x, batch_size=2), by_hand, atol=1e-5) and by_hand.max() > 0
    assert all(p.grad is None for p in plain.parameters())


def test_grad_cam_says_what_it_needs(monkeypatch, x):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(UserError, match='pip install captum'): c.grad_cam(Bright(), x, nn.Identity())
    class Other: name, net = 'resnet18', nn.Identity()
    class Model: backbone = Other
    with pytest.raises(UserError, match='resnet18'): c.cam_layer(Model)


def test_rank_agreement():
    rng = np.random.default_rng(0); a, b = rng.random((6, 5, 5)), rng.random((6, 5, 5)).round(1)     # with ties
    expected = [stats.spearmanr(i.ravel(), j.ravel()).statistic for i, j in zip(a, b)]
    assert np.allclose(c.agreement(a, b), expected) and np.allclose(c.agreement(np.exp(a), b), expected)
    assert np.allclose(c.agreement(a, -a), -1) and np.isnan(c.agreement(a*0, b)).all()


# --- hits, intervals, consistency ---

def test_pointing_reads_foreign_masks():
    masks = torch.zeros(4, 8, 8); masks[:2, :4, :4] = 1; masks[2:, 4:, 4:] = 1
    found = c.pointing({'own': masks, 'corner': masks[:1].expand(4, -1, -1)}, masks, [2, 3, 0, 1])
    assert found.own.eq(1).all() and found['own, other mask'].eq(0).all() and found.chance.eq(.25).all()
    assert found.corner.tolist() == [1, 1, 0, 0] and found['corner, other mask'].tolist() == [0, 0, 1, 1]


def test_intervals_are_over_people():
    rng = np.random.default_rng(0); who = np.repeat(np.arange(30), 4); v = rng.normal(size=30)[who]
    people, faces = c.mean_interval(v, who), c.mean_interval(v, np.arange(120))
    assert people.lo < people.value < people.hi and people.value == pytest.approx(v.mean())
    assert 1.5 < (people.hi - people.lo)/(faces.hi - faces.lo) < 2.6                       # about the root of four
    assert c.mean_interval(v, who) == people                                              # the same every time
    assert np.isnan(c.mean_interval([np.nan]*3, list('abc'))).all()


def test_differences_are_taken_face_by_face():
    rng = np.random.default_rng(0); base = rng.normal(0, 10, 40)
    table = pd.DataFrame({'a': base + 1 + rng.normal(0, .1, 40), 'b': base})
    plain, paired = c.with_intervals(table, np.arange(40)), c.with_intervals(table, np.arange(40), minus='b')
    assert plain.loc['a', 'lo'] < 0 < .9 < paired.loc['a', 'lo'] < paired.loc['a', 'hi'] < 1.1 and list(paired.index) == ['a']


@pytest.mark.parametrize('what', ['names', 'cells'])
def test_shuffles_keep_what_they_should(what):
    maps = c.random_maps(6, 3, 5); got = c.shuffle_maps(maps, what, np.random.default_rng(0))
    assert got.shape == maps.shape and not torch.equal(got, maps)
    if what == 'cells': assert torch.equal(got.flatten(2).sort(-1).values, maps.flatten(2).sort(-1).values)
    else: assert all(sorted(map(tuple, g.flatten(1).tolist())) == sorted(map(tuple, m.flatten(1).tolist())) for g, m in zip(got, maps))


def test_consistency_knows_owned_places():
    maps = torch.rand(40, 2, 9, 9, generator=torch.Generator().manual_seed(0)); maps[:, 0, 2, 2] = 2.
    table = c.consistency(maps, 30)
    assert table.loc['A1', 'stability'] == 1 > table.loc['A1', 'cells top'] and table.loc['A2', 'stability'] < .5
    assert table.equals(c.consistency(maps, 30)) and c.peak_counts(maps)[0, 2, 2] == 1


def test_the_picture_of_intervals_refuses_nothing_and_hides_nothing():
    table = pd.DataFrame({'value': [1., 2], 'lo': [.5, np.nan], 'hi': [1.5, np.nan]}, index=['a', 'b'])
    fig = c.plot_intervals({'seed 0': table, 'seed 1': table + 1}, 'what', zero=0.)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ['a', 'b'] and len(fig.axes[0].collections) + len(fig.axes[0].containers) >= 2


# --- the record ---

def walk(o, at=''):
    if isinstance(o, dict):
        for k, v in o.items(): yield from walk(v, f'{at}/{k}')
    elif isinstance(o, list) and not (len(o) == 3 and all(isinstance(v, (int, float)) for v in o)):
        for v in o: yield from walk(v, at)
    else: yield at, o


def test_every_number_of_the_record_lies_in_its_interval():
    record = read_json(RECORD)
    assert {'date', 'command', 'hardware', 'torch', 'captum', 'trained_on', 'judged_on', 'intervals', 'runs', 'examples'} <= set(record) and '/tmp' not in str(record['command'])
    assert len({r['seed'] for r in record['runs']}) == len(record['runs']) >= 1
    parts = ('/pictures', '/network/', '/places/', '/networks/madd/auc', '/networks/plain/auc')
    triples = [(at, o) for r in record['runs'] for at, o in walk(r) if isinstance(o, list) and at.startswith(parts)]
    assert len(triples) > 100
    for at, (value, lo, hi) in triples: assert lo <= value + 1e-3 and value - 1e-3 <= hi, (at, value, lo, hi)
    for e in record['examples']: assert np.shape(e['maps']) == (28, 7) and e['method'] != 'original' and e['person'] == record['examples'][0]['person']
