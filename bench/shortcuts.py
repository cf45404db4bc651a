"""Does a detector see a forgery, or what usually comes with one?  python bench/shortcuts.py [--model madd-lite]... [--out bench/results/shortcuts.json]

A forged face is often softer than the picture around it, so a detector may learn "soft face, sharp hair" and nothing about forgeries. Two questions, both
asked on people it has never seen, with every variant of a picture sent along the same route:

- Real pictures, changed in an honest way (`EDITS`): all of it softened, the face alone, everything but the face; skin smoothed and edges kept, as a beauty filter
  does; the background softened and head and shoulders kept, as the portrait mode of a telephone does; the face lit otherwise. None is a forgery in the sense of this
  project, and none should look more like one than the picture as it was.
- Forged pictures of the endless forge, some with the traces of processing on the forged part, the others with them on all of the real picture around it.

A model may be a name or a folder; several are judged on the same pictures, and the others compared with the first. `name=folder` gives it another name in the record."""
import argparse
from pathlib import Path

import cv2, numpy as np, pandas as pd, torch

from common import command, cpu, named, scenes, today
from madd.core import progress, read_json, reuse_memory, write_json
from madd.endless import FORGE_VERSION, Pool, camera, draw_route, split_people, travel
from madd.forge import eye_distance, face_mask, soften
from madd.generalise import Only, gain, mean_auc
from madd.model import model_folder
from madd.predict import Detector
from madd.sources import face_source
from weights import compared

SCENES, HARD, TURNED = 6, .5, .25   # per person; how hard cameras and routes are; share of forgeries with the traces around them


def _soft(image, unit, rng): return cv2.GaussianBlur(image, (0, 0), rng.uniform(.015, .04)*unit)   # unit: eye distance, pixels
def _smooth(image, unit, rng): return cv2.bilateralFilter(image, -1, rng.uniform(20, 40), rng.uniform(.04, .08)*unit)   # pores and wrinkles gone, edges kept
def _light(by): return lambda image, unit, rng: image*np.float32(by)

EDITS = {   # name: (what happens, where)
    'nothing': (None, 'all'), 'everything softer': (_soft, 'all'), 'face softer': (_soft, 'face'), 'all but the face softer': (_soft, 'around'),
    'skin smoothed': (_smooth, 'skin'), 'background softer': (_soft, 'background'), 'face darker': (_light(.88), 'face'), 'face lighter': (_light(1.12), 'face')}


def person(landmarks, shape):
    "Head with hair, neck and shoulders: the face grown by an eye distance, and what widens below it"
    unit, mask = eye_distance(landmarks), face_mask(landmarks, shape, 'face')
    head = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2*round(unit) + 1,)*2))
    (x, y), low, h = landmarks[3:].mean(0), head.copy(), shape[0]
    body = np.float32([[x - .8*unit, y], [x + .8*unit, y], [x + .8*unit + 2*(h - y), h], [x - .8*unit - 2*(h - y), h]])
    cv2.fillConvexPoly(low, np.round(body).astype(np.int32), 1.)
    return low


def place(where, landmarks, shape):
    "(H, W) float32 in [0, 1]: where an edit happens, with a soft edge"
    unit, of = eye_distance(landmarks), lambda region: face_mask(landmarks, shape, region)
    mask = dict(all=lambda: np.ones(shape[:2], np.float32), face=lambda: of('face'), around=lambda: of('face'), background=lambda: person(landmarks, shape),
                skin=lambda: of('face')*(1 - of('eyes'))*(1 - of('mouth')))[where]()
    if where != 'all': mask = soften(mask, .1*unit)
    return 1 - mask if where in ('around', 'background') else mask


def edited(shot, edit, rng):
    "A real picture after one honest edit"
    how, where = EDITS[edit]
    if how is None: return shot.image
    image, mask = shot.image.astype(np.float32), place(where, shot.landmarks, shot.image.shape)[..., None]
    return np.clip(np.rint(mask*how(image, eye_distance(shot.landmarks), rng) + (1 - mask)*image), 0, 255).astype(np.uint8)


def judge(detectors, rgb):
    "Model -> P(fake) of the largest face, or None"
    verdicts = {name: d.judge_picture(rgb) for name, d in detectors.items()}
    return {name: v.frames[0].faces[0].probability if v.frames and v.frames[0].faces else None for name, v in verdicts.items()}


def honest(pool, detectors):
    "One row per picture and model: real pictures and their edits, travelled alike"
    for k in progress(range(SCENES*len(pool)), desc='edits'):
        i, rng = k % len(pool), np.random.default_rng([k, 41])
        shot = camera(pool.portraits[i], rng, HARD)
        route, seed = draw_route(rng, HARD), int(rng.integers(2**31))
        for edit in EDITS:
            rgb, _ = travel(edited(shot, edit, np.random.default_rng([k, 42])), route, seed)
            for model, p in judge(detectors, rgb).items(): yield dict(model=model, target=pool.names[i], video=f'{k}', edit=edit, prob=p)


def forged(pool, detectors):
    "One row per picture and model: real pictures and their forgeries, travelled alike"
    for k, who, facts, pictures in scenes(pool, SCENES, 43, HARD, 'forgeries', TURNED):
        for label, rgb in enumerate(pictures):
            for model, p in judge(detectors, rgb).items():
                yield dict(model=model, target=who, video=f'{k} {label}', method=facts['method'], label=label, traces='around it' if facts['turned'] else 'on the forgery', prob=p)


def share(called, people, n=500):
    "Share of pictures that are called fake, with an interval: people are drawn again, with all their pictures"
    by = called.groupby(people).agg(['sum', 'size']).to_numpy()
    drawn = by[np.random.default_rng(0).integers(len(by), size=(n, len(by)))].sum(1)      # (n, 2)
    lo, hi = np.percentile(drawn[:, 0]/drawn[:, 1], (2.5, 97.5))
    return dict(called=int(called.sum()), share=float(called.mean()), share_lo=float(lo), share_hi=float(hi))


def edit_rows(t, high):
    "Of one model: how often each edit is called fake, and how well it is told from the picture as it was (.5: not at all)"
    first = t[t.edit == 'nothing']
    for edit, g in t.groupby('edit', sort=False):
        both = pd.concat([first.assign(label=0), g.assign(label=1)]).assign(video=lambda d: d.video + ' ' + d.label.astype(str))
        auc = mean_auc([both])
        yield dict(edit=edit, pictures=len(g), **share(g.prob >= high, g.target), median=float(g.prob.median()), auc=auc.value, auc_lo=auc.lo, auc_hi=auc.hi)


def trace_rows(t, first):
    "Of one model: how well forgeries are told from their originals, by where the traces are; and the difference to the first model, on the same people"
    for traces, g in [('both', t), *t.groupby('traces')]:
        control = first if traces == 'both' else first[first.traces == traces]
        auc, more = mean_auc([g]), gain([g], [control])
        yield dict(traces=traces, pairs=int(g.label.sum()), auc=auc.value, auc_lo=auc.lo, auc_hi=auc.hi, gain=more.value, gain_lo=more.lo, gain_hi=more.hi)


def forge_of(folder):
    "The version of the forge a model was trained on, if bench/weights.py has written it down"
    results = model_folder(folder)/'results.json'
    return read_json(results)['about'].get('forge', 1) if results.exists() else None


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', action='append', type=named, help='a name or a folder; may be given several times (default: madd-lite)')
    p.add_argument('--out', type=Path, default=Path('bench/results/shortcuts.json')); p.add_argument('--people', type=int, help='only the first so many, to see that it runs')
    p.add_argument('--clips', type=Path, help='folder of a training of bench/weights.py, whose clips the models judge as well, to be compared person by person with the first')
    a = p.parse_args()
    torch.set_num_threads(1); reuse_memory()
    folders = dict(a.model or [named('madd-lite')])
    detectors = {name: Detector.load(folder, 'cpu', views=1) for name, folder in folders.items()}
    source = face_source('portraits')
    pool = Pool(Only(source, split_people([source[i][0] for i in range(len(source))], 0)['test'][:a.people]))
    edits, pairs = (pd.DataFrame(make(pool, detectors)) for make in (honest, forged))
    lost = {what: int(t.prob.isna().sum()) for what, t in (('edits', edits), ('forgeries', pairs))}
    of = {name: [t[(t.model == name) & t.prob.notna()] for t in (edits, pairs)] for name in detectors}
    models = [dict(model=name, fingerprint=d.fingerprint, forge=forge_of(folders[name]), high=d.settings.high,
                   edits=list(edit_rows(of[name][0], d.settings.high)), forgeries=list(trace_rows(of[name][1], of[next(iter(of))][1]))) for name, d in detectors.items()]
    write_json(a.out, dict(date=today(), command=command(), hardware=cpu(), threads=1, forge=FORGE_VERSION, people=len(pool), scenes=SCENES, hard=HARD, lost=lost,
                           data='portraits of people nobody trained on, public domain; pictures by the endless forge; one cut per face; intervals over people', models=models, **(dict(gains=compared(folders, a.clips)) if a.clips else {})))
    for m in models: print(m['model'], m['fingerprint'], pd.DataFrame(m['edits']).round(3).to_string(index=False), pd.DataFrame(m['forgeries']).round(3).to_string(index=False), sep='\n')


if __name__ == '__main__': main()
