"""The released detector a second time: plain functions from the equations, in float64, on tensors with the authors' names. Only the tests use it."""
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur

B0 = dict(depths=[1, 2, 2, 3, 3, 4, 1], strides=[1, 2, 2, 2, 1, 2, 1], kernels=[3, 3, 5, 3, 5, 5, 3], widths=[16, 24, 40, 80, 112, 192, 320], stem=32, last=1280)

B4 = dict(depths=[2, 4, 4, 6, 6, 8, 2], strides=B0['strides'], kernels=B0['kernels'], widths=[24, 32, 56, 112, 160, 272, 448], stem=48, last=1792)


def random_state(gen, m=4, hidden=256, net=B0):
    "Random weights with sensible sizes, float64, under the authors' names"
    s, n = {}, lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    def conv(name, out, inn, k, bias=False, gain=1.):
        s[f'{name}.weight'] = n(out, inn, k, k) * gain * (2/(inn*k*k))**.5
        if bias: s[f'{name}.bias'] = .1*n(out)
    def norm(name, c):
        s.update({f'{name}.weight': 1 + .1*n(c), f'{name}.bias': .1*n(c), f'{name}.running_mean': .1*n(c), f'{name}.running_var': 1 + .2*n(c).abs(), f'{name}.num_batches_tracked': torch.tensor(7)})
    def linear(name, out, inn): s.update({f'{name}.weight': n(out, inn) * inn**-.5, f'{name}.bias': .1*n(out)})
    conv('net._conv_stem', net['stem'], 3, 3); norm('net._bn0', net['stem'])
    i, width = 0, net['stem']
    for stage, (depth, k, out) in enumerate(zip(net['depths'], net['kernels'], net['widths'])):
        for _ in range(depth):
            b, mid = f'net._blocks.{i}', width*(6 if stage else 1)
            if stage: conv(f'{b}._expand_conv', mid, width, 1); norm(f'{b}._bn0', mid)
            conv(f'{b}._depthwise_conv', mid, 1, k); norm(f'{b}._bn1', mid)
            conv(f'{b}._se_reduce', width//4, mid, 1, True); conv(f'{b}._se_expand', mid, width//4, 1, True)
            conv(f'{b}._project_conv', out, mid, 1, gain=.3); norm(f'{b}._bn2', out)
            i, width = i + 1, out
    conv('net._conv_head', net['last'], width, 1); norm('net._bn1', net['last']); linear('net._fc', 2, net['last'])
    shallow, deep = net['widths'][1], net['widths'][4]
    s['attentions.mask'] = F.pad(torch.ones(1, 1, 20, 20, dtype=torch.float64), (2, 2, 2, 2))
    conv('attentions.conv_extract', deep, deep, 3, True); norm('attentions.bn1', deep); conv('attentions.conv2', m, deep, 1); norm('attentions.bn2', m)
    t = 'texture_enhance'
    conv(f'{t}.conv_extract', shallow, shallow, 3, True); conv(f'{t}.conv0', m*shallow, shallow, 5, True)
    for j in (1, 2, 3): conv(f'{t}.conv{j}', m*shallow, j*shallow, 3, True)
    conv(f'{t}.conv_last', m*shallow, 4*shallow, 1, True); norm(f'{t}.bn_last', m*shallow)
    for j in (1, 2, 3, 4): norm(f'{t}.bn{j}', j*m*shallow)
    linear('projection_local.0', hidden, m*shallow); linear('projection_local.2', hidden, hidden); linear('project_final', hidden, net['last'])
    linear('ensemble_classifier_fc.0', hidden, 2*hidden); linear('ensemble_classifier_fc.2', 2, hidden)
    s['auxiliary_loss.feature_centers'] = .1*n(m, shallow)
    s.update({'auxiliary_loss.alpha': torch.tensor(.05, dtype=torch.float64), 'auxiliary_loss.inner_margin': torch.tensor([.2, -.8], dtype=torch.float64)})
    return s


class Reference:
    "Forward passes over a state dict; running statistics are moved in `s` when `train` is set"
    def __init__(self, s, net=B0, momentum=None): self.s, self.net, self.train, self.momentum = s, net, False, momentum

    def norm(self, x, name, eps=1e-5, momentum=.1):
        p = [self.s[f'{name}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]
        if not self.train: return (x - p[0][:, None, None]) / (p[1][:, None, None] + eps).sqrt() * p[2][:, None, None] + p[3][:, None, None]
        momentum = self.momentum or momentum
        mean, var, n = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False), x.numel()/x.shape[1]
        with torch.no_grad():
            self.s[f'{name}.running_mean'] = p[0] + momentum*(mean - p[0])
            self.s[f'{name}.running_var'] = p[1] + momentum*(var*n/(n - 1) - p[1])
        return (x - mean[:, None, None]) / (var[:, None, None] + eps).sqrt() * p[2][:, None, None] + p[3][:, None, None]

    def conv(self, x, name, stride=1, groups=1):
        w, b = self.s[f'{name}.weight'], self.s.get(f'{name}.bias')
        total = w.shape[-1] - stride
        return F.conv2d(F.pad(x, (total//2, total - total//2)*2), w, b, stride, groups=groups)

    def backbone(self, x):
        slow = lambda x, name: self.norm(x, name, 1e-3, .01)
        x, maps, i = F.silu(slow(self.conv(x, 'net._conv_stem', 2), 'net._bn0')), {}, 0
        for stage, depth in enumerate(self.net['depths']):
            for first in [True] + [False]*(depth - 1):
                b, stride, y = f'net._blocks.{i}', self.net['strides'][stage] if first else 1, x
                if stage: y = F.silu(slow(self.conv(y, f'{b}._expand_conv'), f'{b}._bn0'))
                y = F.silu(slow(self.conv(y, f'{b}._depthwise_conv', stride, y.shape[1]), f'{b}._bn1'))
                gate = self.conv(F.silu(self.conv(y.mean((2, 3), keepdim=True), f'{b}._se_reduce')), f'{b}._se_expand')
                y = slow(self.conv(y*gate.sigmoid(), f'{b}._project_conv'), f'{b}._bn2')
                x, i = (x + y if y.shape == x.shape and not first else y), i + 1
            maps[f'b{stage + 1}'] = x
        maps['final'] = F.silu(slow(self.conv(x, 'net._conv_head'), 'net._bn1'))
        return maps

    def up(self, maps, size): return F.interpolate(maps, size, mode='bilinear', align_corners=True)

    def __call__(self, x):
        s, maps = self.s, self.backbone(x)
        a = self.conv(F.relu(self.norm(self.conv(maps['b5'], 'attentions.conv_extract'), 'attentions.bn1')), 'attentions.conv2')
        a = self.norm(a, 'attentions.bn2'); a = torch.where(a > 0, a + 1, a.exp())
        a = a * F.interpolate(s['attentions.mask'], a.shape[-2:], mode='nearest')
        f = self.conv(maps['b2'], 'texture_enhance.conv_extract')
        D = F.adaptive_avg_pool2d(f, a.shape[-2:])
        T = f - F.interpolate(D, f.shape[-2:], mode='nearest')
        gates, m, n = torch.tanh(self.up(a.detach(), f.shape[-2:])), a.shape[1], f.shape[1]
        ts = [self.conv(torch.cat([T*gates[:, k:k+1] for k in range(m)], 1), 'texture_enhance.conv0', groups=m)]
        together = lambda: torch.cat([t[:, k*n:(k+1)*n] for k in range(m) for t in ts], 1)
        for j in (1, 2, 3): ts.append(self.conv(F.relu(self.norm(together(), f'texture_enhance.bn{j}')), f'texture_enhance.conv{j}', groups=m))
        out = self.conv(F.relu(self.norm(together(), 'texture_enhance.bn4')), 'texture_enhance.conv_last', groups=m)
        out = F.relu(self.norm(out, 'texture_enhance.bn_last'))
        fine, coarse = self.up(a, f.shape[-2:]), self.up(a.sum(1, keepdim=True), maps['final'].shape[-2:]) + 1e-8
        P = F.normalize(torch.stack([(out[:, k*n:(k+1)*n]*fine[:, k:k+1]).sum((2, 3)) for k in range(m)], 1), dim=-1)
        G = (maps['final']*coarse).sum((2, 3)) / coarse.sum((2, 3))
        flat = (D - D.mean((2, 3), keepdim=True)) / (D.std((2, 3), keepdim=True) + 1e-8)
        V = F.normalize(torch.stack([(flat*a[:, k:k+1]).sum((2, 3)) for k in range(m)], 1), dim=-1)
        layer = lambda v, name: F.linear(v, s[f'{name}.weight'], s[f'{name}.bias'])
        local = F.hardswish(layer(F.hardswish(layer(P.flatten(1), 'projection_local.0')), 'projection_local.2'))
        both = torch.cat([local, F.hardswish(layer(G, 'project_final'))], 1)
        logits = layer(F.hardswish(layer(both, 'ensemble_classifier_fc.0')), 'ensemble_classifier_fc.2')
        return dict(maps, attention_maps=a, texture_residual_base=D, texture_pooled=P, V=V, ensemble_logit=logits, backbone_logits=layer(maps['final'].mean((2, 3)), 'net._fc'))


def ril_now(V, y, c, alpha, margin, inner):
    "The loss of the release as it is: (loss, new centres)"
    new = c + alpha*torch.stack([(v - c) if t == 0 else 0*c for v, t in zip(V, y)]).mean(0)
    intra = torch.stack([F.relu(inner[t].sign()*(v - new).pow(2).sum().sqrt() - inner[t]) for v, t in zip(V, y)]).mean()
    m = len(c)
    return intra + sum(F.relu(margin - (new[j] - new[k]).norm()) for j in range(m) for k in range(j + 1, m)) / m / alpha, new


def ril_older(V, y, c, alpha, margin, inner):
    "The older loss of the release: (loss, new centres)"
    new = c + alpha*(V - c).mean(0)
    intra = torch.stack([F.relu((v - new).norm(dim=-1) - inner[t]).mean() for v, t in zip(V, y)]).mean()
    return intra + sum(F.relu(margin - (new[j] - new[k]).norm()) for j in range(len(c)) for k in range(j + 1, len(c))), new


def agda(x, a, index, noise, threshold=.5, zoom=4., rate=.1):
    resize = lambda t, size: F.interpolate(t, size, mode='bilinear', align_corners=True)
    w = resize(torch.stack([a[i, k] for i, k in enumerate(index)])[:, None], x.shape[-2:])
    w = w / (w.amax((2, 3), keepdim=True) + 1e-8)
    sig = lambda t: 1/(1 + torch.exp(-torch.as_tensor(t, dtype=x.dtype)))
    w = (sig((w - threshold)*zoom) - sig(-threshold*zoom)) / (1 - sig(-threshold*zoom))
    small = gaussian_blur(resize(x, [n//2 for n in x.shape[-2:]]), [11, 11], [7., 7.]) + rate*noise
    return x*(1 - w) + resize(small, x.shape[-2:])*w


def evaluate(net, size, seed=1):
    "Only an evaluation, for a network of any size: (state dict, picture, outputs)"
    gen = torch.Generator().manual_seed(seed)
    settle = Reference(random_state(gen, net=net), net, momentum=1.); settle.train = True
    x = torch.randn(1, 3, size, size, generator=gen, dtype=torch.float64).clamp(-1, 1)
    with torch.no_grad():
        settle(x)
        return settle.s, x, Reference(settle.s, net)(x)


def record(seed=0, size=190):
    "The same keys as a recorded instance of the release, made from the equations alone"
    gen = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64)
    state, x, y = random_state(gen), rand(2, 3, size, size).clamp(-1, 1), torch.tensor([0, 1])
    settle = Reference(state, momentum=1.); settle.train = True; settle(x)      # statistics that fit the weights, then a little off
    state = {k: v*(1 + .1*rand(*v.shape).clamp(-2, 2)) if 'running' in k else v for k, v in settle.s.items()}
    d = dict(state_dict=dict(state), x=x, y=y, agda_index=torch.tensor([1, 3]), agda_noise=rand(2, 3, size//2, size//2))
    c, alpha, inner = (state[f'auxiliary_loss.{k}'] for k in ('feature_centers', 'alpha', 'inner_margin'))
    ref = Reference(dict(state))
    with torch.no_grad(): e = ref(x)
    d['eval'] = e
    d['eval_train_batch'] = dict(ensemble_loss=F.cross_entropy(e['ensemble_logit'], y), aux_loss=ril_now(e['V'], y, c, alpha, .8, inner)[0], feature_matrix=e['texture_pooled'], feature_matrix_d=e['V'])
    chances = (1 + e['attention_maps'].sum((2, 3))).sqrt()
    d['agda'] = dict(image=agda(x, e['attention_maps'], d['agda_index'], d['agda_noise']), image_no_noise=agda(x, e['attention_maps'], d['agda_index'], d['agda_noise'], rate=0),
                     index_probs=chances/chances.sum(1, keepdim=True))
    names = [k for k, v in state.items() if v.is_floating_point() and 'running' not in k and 'auxiliary' not in k and k != 'attentions.mask' and not k.startswith('net._fc')]
    leaves = {k: state[k].clone().requires_grad_() for k in names}
    ref = Reference(state | leaves); ref.train = True
    seen = ref(x); ce = F.cross_entropy(seen['ensemble_logit'], y); aux, moved = ril_now(seen['V'], y, c, alpha, .8, inner)
    d['train'] = dict(ensemble_loss=ce, aux_loss=aux, attention_maps=seen['attention_maps'], ensemble_logit=seen['ensemble_logit'], feature_matrix=seen['texture_pooled'], feature_matrix_d=seen['V'])
    grads = dict(zip(names, torch.autograd.grad(ce + .5*aux, [leaves[k] for k in names], retain_graph=True)))
    d['train_grad_norm'] = {k: g.norm() for k, g in grads.items()}
    d['train_buffers_after'] = {k: v for k, v in ref.s.items() if 'running' in k and k.count('.') < 3 } | {'auxiliary_loss.feature_centers': moved.detach()}
    after = ref(agda(x, seen['attention_maps'].detach(), d['agda_index'], d['agda_noise']))
    ce2 = F.cross_entropy(after['ensemble_logit'], y); aux2, twice = ril_now(after['V'], y, moved.detach(), alpha, .8, inner)
    match = sum(0 if k == d['agda_index'][i] else (after['V'][i, k] - seen['V'][i, k]).norm() for i in range(2) for k in range(4)) / 8
    total = ce + .5*aux + ce2 + .1*match
    d['train_agda'] = dict(AGDA_ensemble_loss=ce2, AGDA_aux_loss=aux2, match_loss=match, total_loss=total)
    d['train_agda_grad_norm'] = {k: g.norm() for k, g in zip(names, torch.autograd.grad(total, [leaves[k] for k in names]))}
    d['train_agda_centers_after'] = dict(feature_centers=twice.detach())
    raw, att, labels, centers = rand(6, 32, 23, 23), rand(6, 4, 23, 23).abs(), torch.tensor([0, 1, 1, 0, 0, 1]), .3*rand(4, 32)
    d['ril_inputs'] = dict(feature_map_d=raw, attentions=att, y=labels, centers=centers)
    for name, loss, margin, inner_, ys in (('ril_v2', ril_now, .8, [.2, -.8], labels), ('ril_v1', ril_older, .2, [.05, .1], labels),
                                           ('ril_v2_all_real', ril_now, .8, [.2, -.8], 0*labels), ('ril_v2_all_fake', ril_now, .8, [.2, -.8], 0*labels + 1)):
        leaf, inner_ = raw.clone().requires_grad_(), torch.tensor(inner_, dtype=torch.float64)
        V = F.normalize((leaf[:, None]*att[:, :, None]).sum((3, 4)), dim=-1)
        value, new = loss(V, ys, centers, .05, margin, inner_)
        d[name] = dict(loss=value, feature_matrix=V, centers_after=new.detach(), grad_feature_map_d=torch.autograd.grad(value, leaf)[0], margin=margin, inner_margin=inner_, alpha=.05)
    f4, f5, a = rand(2, 8, 40, 40), rand(2, 3, 8, 40, 40), rand(2, 3, 9, 9).abs()
    big = F.interpolate(a, (40, 40), mode='bilinear', align_corners=True)
    d['pool_inputs'], d['pool'] = dict(f4=f4, f5=f5, att=a), {}
    for name, f in (('f4', f4[:, None]), ('f5', f5)):
        total = (f*big[:, :, None]).sum((3, 4)); weight = big.sum((2, 3))[..., None]
        d['pool'] |= {f'{name}_norm0': total, f'{name}_norm1': (f*(big + 1e-8)[:, :, None]).sum((3, 4))/weight, f'{name}_norm2': F.normalize(total, dim=-1), f'{name}_norm3': total/weight}
    detach = lambda v: {k: detach(w) for k, w in v.items()} if isinstance(v, dict) else v.detach() if torch.is_tensor(v) else v
    return detach(d)
