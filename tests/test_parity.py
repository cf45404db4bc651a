"""The recipe `released` against the release: recorded tensors of the authors' own code where they are at hand, and everywhere a stand-in computed from the equations in float64."""
import os
from dataclasses import replace
from pathlib import Path

import pytest, torch
import torch.nn.functional as F

from madd.model import MADD, from_released
from madd.pooling import bap, fit_maps, norm_bap
from madd.released import DistanceRIL, RealCenterLoss, SigmoidAGDA, draw_strong_maps, match_loss, place
from released_reference import B4, evaluate, record

FOLDER = Path(os.environ.get('MADD_PARITY', Path(__file__).resolve().parents[2]/'shared'/'parity'))
RECORDED = sorted(FOLDER.glob('released_*.pt')) if FOLDER.is_dir() else []


def single(d):
    "Everything the library gets is float32"
    if isinstance(d, dict): return {k: single(v) for k, v in d.items()}
    return d.float() if torch.is_tensor(d) and d.is_floating_point() else d


@pytest.fixture(scope='module', params=['stand-in', *[p.name for p in RECORDED]])
def d(request):
    if request.param == 'stand-in': return single(record()) | dict(rtol=3e-3)   # float64 against float32; the recordings are float32 themselves
    return torch.load(FOLDER/request.param, map_location='cpu', weights_only=True) | dict(rtol=1e-3)


@pytest.mark.skipif(not RECORDED, reason=f'NOT COMPARED WITH THE AUTHORS\' OWN NUMBERS: no released_*.pt in {FOLDER} (set MADD_PARITY to the folder that has them)')
def test_recorded_outputs_of_the_release_are_at_hand(): assert RECORDED


def model_of(d, train=False):
    "The checkpoint as a model, without its random dropping"
    model = from_released(d['state_dict'], verbose=False)
    model.recipe, model.head.whole[0].p = replace(model.recipe, map_drop=0.), 0.
    return model.train(train)


def loss_of(d): return from_released(d['state_dict'], part='loss', verbose=False).train()

def fixed_agda(**kw): return SigmoidAGDA(threshold=(.5, .5), slope=(4., 4.), **kw)

def maps_close(got, want): assert (got.reshape(want.shape) - want).abs().max() <= 1e-4*want.abs().max()

def loss_close(got, want): assert abs(float(got.detach()) - float(want)) <= 1e-4*max(1, abs(float(want)))

def logits_close(got, want): assert (got - want).abs().max() <= 1e-3


def test_evaluation(d):
    model, want = model_of(d), d['eval']
    with torch.no_grad(): feats, seen = model.backbone(d['x']), model.analyse(d['x'])
    for stage, name in ((model.texture_stage, 'b2'), (model.attention_stage, 'b5'), ('final', 'final')): maps_close(feats[stage], want[name])
    maps_close(seen.attention, want['attention_maps'])
    maps_close(seen.texture, want['texture_pooled'])
    with torch.no_grad(): maps_close(model.texture(feats[model.texture_stage], seen.attention)[1], want['texture_residual_base'])
    logits_close(seen.logits, want['ensemble_logit'])


def test_plain_classifier_on_the_same_backbone(d):
    with torch.no_grad(): logits_close(from_released(d['state_dict'], part='plain', verbose=False)(d['x']), d['eval']['backbone_logits'])


def test_evaluation_of_a_training_batch(d):
    model, want = model_of(d), d['eval_train_batch']
    with torch.no_grad(): seen, aux = model.analyse(d['x']), loss_of(d)(model.analyse(d['x']).semantic, d['y'])
    loss_close(F.cross_entropy(seen.logits, d['y']), want['ensemble_loss']); loss_close(aux, want['aux_loss'])
    maps_close(seen.semantic, want['feature_matrix_d']); maps_close(seen.texture, want['feature_matrix'])


def grads_close(model, want, depths, rtol):
    got, compared = dict(model.named_parameters()), 0
    for name, norm in want.items():
        if norm < 1e-4 or name.startswith('net._fc'): continue   # biases that a batch norm cancels: rounding
        g = got[place(name, depths)].grad.norm()
        assert abs(g - norm) <= rtol*norm, (name, float(g), float(norm)); compared += 1
    assert compared > 100


def test_training_pass_with_gradients_and_statistics(d):
    model, loss, want = model_of(d, train=True), loss_of(d), d['train']
    depths = [len(s) for s in model.backbone.net.blocks]
    seen = model.analyse(d['x'])
    ce, aux = F.cross_entropy(seen.logits, d['y']), loss(seen.semantic, d['y'])
    loss_close(ce, want['ensemble_loss']); loss_close(aux, want['aux_loss']); logits_close(seen.logits, want['ensemble_logit'])
    maps_close(seen.attention, want['attention_maps']); maps_close(seen.texture, want['feature_matrix']); maps_close(seen.semantic, want['feature_matrix_d'])
    (ce + model.recipe.loss_weight*aux).backward()
    grads_close(model, d['train_grad_norm'], depths, d['rtol'])
    for name, g in d.get('train_grad_sample', {}).items(): assert (dict(model.named_parameters())[place(name, depths)].grad - g).abs().max() <= 1e-3*g.abs().max(), name
    state = model.state_dict()
    for name, v in d['train_buffers_after'].items():
        maps_close(loss.centers if name.startswith('auxiliary') else state[place(name, depths)], v)


def test_training_pass_with_augmentation(d):
    model, loss, want, y = model_of(d, train=True), loss_of(d), d['train_agda'], d['y']
    r, seen = model.recipe, model.analyse(d['x'])
    ce, aux = F.cross_entropy(seen.logits, y), loss(seen.semantic, y)
    x_aug, index = fixed_agda()(d['x'], seen.attention.detach(), d['agda_index'], d['agda_noise'])
    after = model.analyse(x_aug)
    ce2, match = F.cross_entropy(after.logits, y), match_loss(seen.semantic, after.semantic, index)
    loss_close(ce2, want['AGDA_ensemble_loss']); loss_close(match, want['match_loss'])
    total = ce + r.loss_weight*aux + r.augment_weight*ce2 + r.match_weight*match
    loss_close(total, want['total_loss']); total.backward()
    grads_close(model, d['train_agda_grad_norm'], [len(s) for s in model.backbone.net.blocks], d['rtol'])
    loss_close(loss(after.semantic.detach(), y), want['AGDA_aux_loss'])      # the authors move the centres a second time; our training does not
    maps_close(loss.centers, d['train_agda_centers_after']['feature_centers'])


def test_augmentation(d):
    A = d['eval']['attention_maps']
    maps_close(fixed_agda()(d['x'], A, d['agda_index'], d['agda_noise'])[0], d['agda']['image'])
    maps_close(fixed_agda(noise=0.)(d['x'], A, d['agda_index'], d['agda_noise'])[0], d['agda']['image_no_noise'])


def test_which_map_is_drawn(d):
    want = d['agda']['index_probs']                                           # (B, M)
    torch.manual_seed(0)
    many, n = d['eval']['attention_maps'][:1].expand(20_000, -1, -1, -1), 20_000
    index = draw_strong_maps(many)
    assert (torch.bincount(index, minlength=want.shape[1])/n - want[0]).abs().max() < .015


@pytest.mark.parametrize('name, cls', [('ril_v2', RealCenterLoss), ('ril_v1', DistanceRIL)])
def test_auxiliary_loss_alone(d, name, cls):
    given, want = d['ril_inputs'], d[name]
    loss = cls(*given['centers'].shape, alpha=want['alpha'], margin_in=want['inner_margin'].tolist(), margin_out=want['margin'])
    loss.centers.copy_(given['centers'])
    D = given['feature_map_d'].clone().requires_grad_()
    V = norm_bap(D, given['attentions'], align_corners=True)
    value = loss(V, given['y'])
    maps_close(V, want['feature_matrix']); loss_close(value, want['loss']); maps_close(loss.centers, want['centers_after'])
    value.backward(); maps_close(D.grad, want['grad_feature_map_d'])


@pytest.mark.parametrize('name, label', [('ril_v2_all_real', 0), ('ril_v2_all_fake', 1)])
def test_auxiliary_loss_with_one_class(d, name, label):
    given, want = d['ril_inputs'], d[name]
    loss = RealCenterLoss(*given['centers'].shape); loss.centers.copy_(given['centers'])
    V = norm_bap(given['feature_map_d'], given['attentions'], align_corners=True)
    loss_close(loss(V, torch.full_like(given['y'], label)), want['loss']); maps_close(loss.centers, want['centers_after'])
    if label == 1: assert torch.equal(loss.centers, given['centers'])


def test_pooling_in_all_its_norms(d):
    A = d['pool_inputs']['att']
    for name in ('f4', 'f5'):
        f = d['pool_inputs'][name]; fine = fit_maps(A, f.shape[-2:], align_corners=True); weight = fine.sum((2, 3))[..., None]
        maps_close(bap(f, A, True), d['pool'][f'{name}_norm0']); maps_close(norm_bap(f, A, True), d['pool'][f'{name}_norm2'])
        maps_close(bap(f, fine + 1e-8)/(fine + 1e-8).sum((2, 3))[..., None], d['pool'][f'{name}_norm1']); maps_close(bap(f, A, True)/(weight + 1e-8), d['pool'][f'{name}_norm3'])


def test_the_wrong_padding_would_be_noticed():
    d = single(record(size=190))
    model = from_released(d['state_dict'], verbose=False)
    timms = MADD('tf_efficientnet_b0', recipe='released', port='timm', pretrained=False).eval(); timms.load_state_dict(model.state_dict())
    with torch.no_grad(): assert (timms(d['x']) - d['eval']['ensemble_logit']).abs().max() > 1e-3


def test_b4_at_its_nominal_size_has_maps_of_23_by_23():
    state, x, want = evaluate(B4, 380)
    model = from_released(single(state), verbose=False)
    assert (model.backbone.name, model.texture_stage, model.attention_stage) == ('tf_efficientnet_b4', 'L2', 'L5')
    with torch.no_grad(): seen = model.analyse(x.float())
    assert seen.attention.shape[-2:] == (23, 23)
    maps_close(seen.attention, want['attention_maps']); maps_close(seen.texture, want['texture_pooled']); logits_close(seen.logits, want['ensemble_logit'])
