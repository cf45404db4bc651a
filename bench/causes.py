"""Does an attention map matter, and does it point at the forgery?  python bench/causes.py [--out bench/results/causes.json]

Trains the detector of the paper (RIL and AGDA on) and its plain control exactly as `bench/degradation.py` does (same people, same settings), several
seeds each, then measures them with `madd.causes` on people of whom no network has seen a picture: another crowd of embedded identities, every forgery
of them once. Trained networks are kept in --work and not repeated."""
import argparse, base64, os, time
from pathlib import Path

import captum, cv2, numpy as np, pandas as pd, timm, torch
import torch.nn.functional as F

from common import command, cpu, today
from degradation import BACKBONE, BATCH, FRAMES, IDENTITIES, SIZE, data
from madd.causes import agreement, brightest, cam_layer, consistency, drop, evidence, grad_cam, occlusion, operate, peak_counts, pointing, random_maps, with_intervals
from madd.core import normalise, read_json, reuse_memory, seed_everything, write_json
from madd.data import dataloaders, index, read_crop
from madd.evaluate import bootstrap_interval
from madd.extract import extract
from madd.forge_set import forge_set
from madd.interpret import maps_of
from madd.manifest import crop_file
from madd.model import MADD, PlainDetector, load
from madd.sources import face_source
from madd.train import train

EPOCHS, CROWD = 6, 1   # CROWD: the seed of the people who are judged; those of the training set have seed 0
SHARES = (.05, .1, .2, .4, .6)   # of the picture, for the question how much the size of a region counts
KINDS = {'madd': MADD, 'plain': PlainDetector}


def strangers(work, people):
    "Crops of another crowd, one frame per clip"
    at = work/'strangers'/'crops'/'manifest.parquet'
    if not at.exists():
        forge_set(work/'strangers'/'data', face_source(None, people, CROWD), people, 1, CROWD, crfs=(23,))
        extract(index(work/'strangers'/'data'), at.parent, size=SIZE, n_frames=1, margin=0.)
    return pd.read_parquet(at), at.parent


def network(kind, seed, work):
    "One trained network and the AUC of its epochs; read back when it was finished before"
    out = work/'networks'/f'{kind}_{seed}'
    if not (out/'done.json').exists():
        crops, root = data(work/'deg')
        seed_everything(seed); start = time.perf_counter()
        dls = dataloaders(crops, root, size=SIZE, bs=BATCH, augment='flip', seed=seed)
        _, history = train(dls, net := KINDS[kind](BACKBONE), EPOCHS, seed, lr=1e-3)
        net.save(out)
        write_json(out/'done.json', dict(seconds=round(time.perf_counter() - start), val_auc=[round(float(v), 4) for v in history.auc]))
        print(kind, seed, read_json(out/'done.json'), flush=True)
    return load(out), read_json(out/'done.json')


def faces(work, people):
    "The forged strangers with masks, the same people as they are, and for each forged face another person's, forged the same way"
    df, root = strangers(work, people)
    df = df[df.crop != ''].sort_values(['method', 'target']).reset_index(drop=True)
    fake, real = df[(df.label == 1) & (df.mask_crop != '')].reset_index(drop=True), df[df.label == 0].reset_index(drop=True)
    read = lambda d, key: np.stack([read_crop(crop_file(r, root, key), SIZE) for r in d.to_dict('records')])
    masks = read(fake, 'mask_crop')[..., 0] > 127
    place = fake.groupby('method').cumcount(); count = fake.groupby('method').target.transform('size')
    at = {(m, i): j for j, (m, i) in enumerate(zip(fake.method, place))}
    other = np.array([at[m, (i + 7) % n] for m, i, n in zip(fake.method, place, count)])   # 7: not the partner, with whom faces were exchanged
    return dict(fake=fake, real=real, fakes=read(fake, 'crop'), reals=read(real, 'crop'), masks=masks, other=other,
                occluded=(fake.target.astype(int) % 2 == 0).to_numpy(copy=True))   # every second person: occlusion takes 50 passes per face


def number(v): return None if np.isnan(v) else round(float(v), 4)


def rows(table, people, **kwargs):
    "Column -> [mean, low, high]"
    return {k: [number(v) for v in r] for k, r in with_intervals(table, people, **kwargs).T.items()}


def auc(fake, real, f):
    "AUC on the strangers with its interval over people, from the evidence on their fakes and reals"
    z = np.concatenate([fake, real])
    df = pd.DataFrame(dict(label=[1]*len(fake) + [0]*len(real), prob=1/(1 + np.exp(-z)), target=[*f['fake'].target, *f['real'].target], video=[*f['fake'].video, *f['real'].video]))
    return [number(v) for v in bootstrap_interval(df, 'auc', by='target')]


def regions_of(maps, area, other=None, mask=None):
    "Equally large regions: every map's, the sum's, a random one, and where there is one, the sum of another face and the mask"
    both = torch.cat([maps, maps.sum(1, keepdim=True), random_maps(len(maps), 1, maps.shape[-1])], 1)
    out = dict(zip([*(f'A{k+1}' for k in range(maps.shape[1])), 'sum', 'random'], brightest(both, area, (SIZE, SIZE)).unbind(1)))
    if other is not None: out['sum of another face'] = out['sum'][other]
    if mask is not None: out['forged mask'] = torch.as_tensor(mask)
    return out


def measure_pictures(nets, f, maps, cams, x, z):
    "Section 2 of the notebook: regions out of the picture, for two fillings, in forged and in real faces, and how the size of the region counts"
    area = torch.as_tensor(f['masks'].sum((1, 2))); usual = int(area.float().median())
    take = dict(fakes=regions_of(maps['fakes'], area, f['other'], f['masks']) | {'Grad-CAM, plain': brightest(cams['plain, final'][:, None], area, (SIZE, SIZE))[:, 0]},
                reals=regions_of(maps['reals'], usual))
    out = {}
    for how in ('blur', 'mean'):
        cut = {k: drop(nets['madd'], x[k], r, how) for k, r in take.items()}
        out[how] = dict(fakes=rows(cut['fakes'], f['fake'].target), reals=rows(cut['reals'], f['real'].target), above_random=rows(cut['fakes'], f['fake'].target, minus='random'),
                        above_random_reals=rows(cut['reals'], f['real'].target, minus='random'))
    plain = {k: take['fakes'][k] for k in ('forged mask', 'random', 'Grad-CAM, plain', 'sum')}
    out['plain network'] = {how: rows(drop(nets['plain'], x['fakes'], plain, how), f['fake'].target, minus='random') for how in ('blur', 'mean')}
    rivals = {k: torch.cat([v.sum(1, keepdim=True), random_maps(len(v), 1, v.shape[-1])], 1) for k, v in maps.items()}
    out['by size'] = {}
    for share in SHARES:
        cut = {k: drop(nets['madd'], x[k], dict(zip(('sum', 'random'), brightest(v, round(share*SIZE*SIZE), (SIZE, SIZE)).unbind(1)))) for k, v in rivals.items()}
        out['by size'][str(share)] = dict(fakes=rows(cut['fakes'], f['fake'].target), reals=rows(cut['reals'], f['real'].target), auc={k: auc(z['fakes'] - cut['fakes'][k], z['reals'] - cut['reals'][k], f) for k in ('sum', 'random')})
    return out


def measure_network(net, f, maps, x, z):
    "Section 3: operations on the maps, on the evidence and on the AUC"
    turn = dict(fakes=f['other'], reals=np.roll(np.arange(len(x['reals'])), 7))
    moved = {k: operate(net, x[k], maps[k], turn[k]) for k in x}
    return dict(fakes=rows(moved['fakes'], f['fake'].target), reals=rows(moved['reals'], f['real'].target), size=rows(moved['fakes'].abs(), f['fake'].target),
                auc={k: auc(z['fakes'] - moved['fakes'][k], z['reals'] - moved['reals'][k], f) for k in moved['fakes']})


def measure_places(f, maps, cams, falls):
    "Sections 4 and 5: hits, on the own and on foreign masks, and rank correlations with what occlusion says"
    who, every = f['fake'].target, {f'A{k+1}': m for k, m in enumerate(maps['fakes'].unbind(1))} | {'sum': maps['fakes'].sum(1)}
    every |= {f'Grad-CAM {k}': v for k, v in cams.items()}
    some, slow = np.flatnonzero(f['occluded']), {f'occlusion of {k}': v.clamp(min=0) for k, v in falls.items()}   # occlusion was tried on some of the faces only
    def on(masks): return pointing(every, masks).join(pointing({k: v[some] for k, v in slow.items()}, masks[some]).drop(columns='chance').set_index(some))
    own, foreign = (on(m) for m in (f['masks'], f['masks'][f['other']]))
    chance, own, foreign = own.pop('chance'), own, foreign.drop(columns='chance')
    share = F.adaptive_avg_pool2d(torch.as_tensor(f['masks']).float(), 7)
    pairs = {'attention sum, madd': (every['sum'], falls['madd']), 'attention sum of another face, madd': (every['sum'][f['other']], falls['madd']), 'Grad-CAM L5, madd': (cams['madd, L5'], falls['madd']),
             'Grad-CAM L5, plain': (cams['plain, L5'], falls['plain']), 'mask, madd': (share, falls['madd']), 'mask, plain': (share, falls['plain']),
             'mask of another face, madd': (share[f['other']], falls['madd']), 'attention sum, mask': (every['sum'], share), 'attention sum of another face, mask': (every['sum'][f['other']], share),
             'both occlusions': (falls['madd'], falls['plain'])}
    pairs |= {f'A{k+1}, madd': (m, falls['madd']) for k, m in enumerate(maps['fakes'].unbind(1))}
    return dict(hits=rows(own, who), chance=round(float(chance.mean()), 4), other_masks=rows(foreign, who), beyond_habit=rows(own - foreign, who),
                above_chance=rows(own.sub(chance, axis=0), who), above_cam=rows(own, who, minus='Grad-CAM plain, final'),
                agreement=rows(pd.DataFrame({k: agreement(*p) for k, p in pairs.items()}), who), agreement_with='occlusion (mean filling, patch of 2 x 2 cells), unless a mask is named')


def measure_habit(f, maps, cams):
    "Section 5, the stricter question: the same person forged in another way. Does the peak go along with the forged region?"
    who, place = f['fake'].target, f['fake'].reset_index().pivot(index='target', columns='method', values='index')
    turned = pd.DataFrame(np.roll(place.to_numpy(), 1, axis=1), place.index, place.columns).stack()      # every method once in the place of another: as many large masks as before
    elsewhere = f['fake'].set_index(['target', 'method']).index.map(turned).to_numpy().astype(int)
    share = F.adaptive_avg_pool2d(torch.as_tensor(f['masks']).float(), 7)
    every = {f'A{k+1}': m for k, m in enumerate(maps.unbind(1))} | {'sum': maps.sum(1)} | {f'Grad-CAM {k}': v for k, v in cams.items()} | {'the mask itself': share}
    own, person, method = (pointing(every, f['masks'][i])[list(every)] for i in (np.arange(len(who)), f['other'], elsewhere))
    alike = {f'{n}, {w}': agreement(m, m[i]) for n, m in (('sum', every['sum']), ('mask', share)) for w, i in (('another person', f['other']), ('another method', elsewhere))}
    return dict(own_minus_other_person=rows(own - person, who), own_minus_other_method=rows(own - method, who), likeness=rows(pd.DataFrame(alike), who))


def measure(seed, f, work):
    "Everything about one pair of networks"
    nets, done = {}, {}
    for kind in KINDS: nets[kind], done[kind] = network(kind, seed, work)
    x = {k: normalise(f[k]) for k in ('fakes', 'reals')}
    z = {kind: {k: evidence(net, v).numpy() for k, v in x.items()} for kind, net in nets.items()}
    maps = {k: maps_of(nets['madd'], f[k]) for k in x}
    cams = {f'{kind}, {level}': grad_cam(net, x['fakes'], cam_layer(net, level)) for kind, net in nets.items() for level in ('final', 'L5')}
    habit = measure_habit(f, maps['fakes'], cams)
    falls = {kind: torch.full((len(f['fakes']), 7, 7), torch.nan) for kind in nets}
    for kind, net in nets.items(): falls[kind][f['occluded']] = occlusion(net, x['fakes'][f['occluded']])
    out = dict(seed=seed, networks={k: done[k] | dict(auc=auc(v['fakes'], v['reals'], f), evidence_fakes=rows(pd.DataFrame({'e': v['fakes']}), f['fake'].target)['e'],
               evidence_reals=rows(pd.DataFrame({'e': v['reals']}), f['real'].target)['e'], spread_fakes=round(float(v['fakes'].std()), 3)) for k, v in z.items()},
               pictures=measure_pictures(nets, f, maps, cams, x, z['madd']), network=measure_network(nets['madd'], f, maps, x, z['madd']),
               places=measure_places(f, maps, cams, falls), habit=habit, consistency={k: {c: number(v) for c, v in r.items()} for k, r in consistency(maps['reals']).to_dict('index').items()}, peaks=[[[number(v) for v in row] for row in m] for m in peak_counts(maps['reals'])])
    first = [int(i) for i in np.flatnonzero(f['fake'].target == f['fake'].target.min())]
    return out, [example(f, i, maps['fakes'][i], cams['plain, L5'][i], falls['madd'][i], z['madd']['fakes'][i]) for i in first] if seed == 0 else []


def example(f, i, maps, cam, fall, z):
    "One face with everything that was laid over it, small enough for a JSON file"
    png = lambda im, ext, *how: base64.b64encode(cv2.imencode(ext, im, how)[1].tobytes()).decode()
    r = f['fake'].iloc[i]
    return dict(person=r.target, method=r.method, evidence=round(float(z), 2), jpeg=png(f['fakes'][i][..., ::-1], '.jpg', cv2.IMWRITE_JPEG_QUALITY, 92), mask=png(f['masks'][i].astype(np.uint8)*255, '.png'),
                **{k: [[number(v) for v in row] for row in m.reshape(-1, m.shape[-1])] for k, m in (('maps', maps), ('cam', cam/cam.max().clamp(min=1e-12)), ('fall', fall))})


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, default=Path('runs/causes')); p.add_argument('--seeds', type=int, default=2); p.add_argument('--people', type=int, default=IDENTITIES)
    p.add_argument('--threads', type=int, default=os.cpu_count()); p.add_argument('--out')
    args = p.parse_args()
    torch.set_num_threads(args.threads); reuse_memory()
    f, runs, shown = faces(args.work, args.people), [], []
    for seed in range(args.seeds):
        start = time.perf_counter()
        run, examples = measure(seed, f, args.work)
        runs.append(run); shown += examples
        print(f'seed {seed}: AUC {run["networks"]["madd"]["auc"]}, hits {run["places"]["hits"]["sum"]}, {time.perf_counter() - start:.0f} s', flush=True)
        if args.out:
            write_json(args.out, dict(date=today(), command=command(), hardware=cpu(), torch=torch.__version__, timm=timm.__version__, captum=captum.__version__, threads=args.threads,
                trained_on=f'{IDENTITIES} embedded identities (28 of them for training), {FRAMES} frames, crf 23, crops of {SIZE} px', backbone=BACKBONE, epochs=EPOCHS, batch=BATCH,
                judged_on=f'{len(f["fakes"])} forged and {len(f["reals"])} real faces of {args.people} other embedded identities, one frame, crf 23', occluded=f'{int(f["occluded"].sum())} of the forged faces: those of every second person', intervals='95 %, people drawn with replacement',
                unit='evidence: logit of fake minus logit of real', runs=runs, examples=shown))


if __name__ == '__main__': main()
