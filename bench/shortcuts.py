"""Does a detector see a forgery, or what usually comes with one?  python bench/shortcuts.py [--model madd-lite]... [--out bench/results/shortcuts.json]

A forged face is often softer than the picture around it, so a detector may learn "soft face, sharp hair" and nothing about forgeries. Two questions, both
asked on people it has never seen, with every variant of a picture sent along the same route:

- Real pictures, changed in an honest way (`EDITS`): all of it softened, the face alone as a beauty filter does, everything but the face as a portrait mode
  does, the face lit otherwise. None is a forgery in the sense of this project, and none should look more like one than the picture as it was.
- Forged pictures of the endless forge, once with the traces of processing on the forged part, once with the same traces on all of the real picture around it.

A model may be a name or a folder; several are judged on the same pictures. `name=folder` gives it another name in the record."""
import argparse
from pathlib import Path

import cv2, numpy as np, pandas as pd, torch

from common import command, cpu, today
from madd.core import progress, read_json, reuse_memory, write_json
from madd.endless import FAMILIES, FORGE_VERSION, Pool, camera, draw_route, forge_scene, split_people, travel
from madd.forge import eye_distance, face_mask, soften
from madd.generalise import Only, mean_auc
from madd.model import model_folder
from madd.predict import Detector
from madd.sources import face_source

SCENES, HARD = 6, .5   # per person; how hard cameras and routes are


def _soft(image, unit, rng): return cv2.GaussianBlur(image, (0, 0), rng.uniform(.015, .04)*unit)   # unit: eye distance, pixels
def _light(by): return lambda image, unit, rng: image*np.float32(by)

EDITS = {   # name: (what happens, where)
    'nothing': (None, 'all'), 'everything softer': (_soft, 'all'), 'face softer': (_soft, 'face'), 'all but the face softer': (_soft, 'around'),
    'face darker': (_light(.88), 'face'), 'face lighter': (_light(1.12), 'face')}


def edited(shot, edit, rng):
    "A real picture after one honest edit"
    how, where = EDITS[edit]
    if how is None: return shot.image
    image, unit = shot.image.astype(np.float32), eye_distance(shot.landmarks)
    mask = np.ones(image.shape[:2], np.float32) if where == 'all' else soften(face_mask(shot.landmarks, image.shape, 'face'), .1*unit)
    mask = (1 - mask if where == 'around' else mask)[..., None]
    return np.clip(np.rint(mask*how(image, unit, rng) + (1 - mask)*image), 0, 255).astype(np.uint8)


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
    for k in progress(range(SCENES*len(pool)), desc='forgeries'):
        i, rng = k % len(pool), np.random.default_rng([k, 43])
        family = list(FAMILIES)[(k//len(pool) + i) % len(FAMILIES)]
        real, fake, facts = forge_scene(pool.portraits[i], pool.look_alike(i, rng), rng, (family,), HARD)
        route, seed = draw_route(rng, HARD), int(rng.integers(2**31))
        for label, rgb in enumerate((real.image, fake.image)):
            for model, p in judge(detectors, travel(rgb, route, seed)[0]).items():
                yield dict(model=model, target=pool.names[i], video=f'{k} {label}', method=family, label=label, traces='around it' if facts['turned'] else 'on the forgery', prob=p)


def edit_rows(t, high):
    "Of one model: how often each edit is called fake, and how well it is told from the picture as it was (.5: not at all)"
    first = t[t.edit == 'nothing']
    for edit, g in t.groupby('edit', sort=False):
        both = pd.concat([first.assign(label=0), g.assign(label=1)]).assign(video=lambda d: d.video + ' ' + d.label.astype(str))
        auc = mean_auc([both])
        yield dict(edit=edit, pictures=len(g), called=int((g.prob >= high).sum()), share=float((g.prob >= high).mean()), median=float(g.prob.median()), auc=auc.value, auc_lo=auc.lo, auc_hi=auc.hi)


def trace_rows(t):
    "Of one model: how well forgeries are told from their originals, by where the traces are"
    for traces, g in [('both', t), *t.groupby('traces')]:
        auc = mean_auc([g])
        yield dict(traces=traces, pairs=int(g.label.sum()), auc=auc.value, auc_lo=auc.lo, auc_hi=auc.hi)


def named(word):
    "(name, folder) of a model on the command line"
    name, _, folder = word.rpartition('=')
    return (name or folder, folder)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', action='append', type=named, help='a name or a folder; may be given several times (default: madd-lite)')
    p.add_argument('--out', type=Path, default=Path('bench/results/shortcuts.json')); p.add_argument('--people', type=int, help='only the first so many, to see that it runs')
    a = p.parse_args()
    torch.set_num_threads(1); reuse_memory()
    folders = dict(a.model or [named('madd-lite')])
    detectors = {name: Detector.load(folder, 'cpu', views=1) for name, folder in folders.items()}
    source = face_source('portraits')
    pool = Pool(Only(source, split_people([source[i][0] for i in range(len(source))], 0)['test'][:a.people]))
    edits, pairs = (pd.DataFrame(make(pool, detectors)) for make in (honest, forged))
    lost = {what: int(t.prob.isna().sum()) for what, t in (('edits', edits), ('forgeries', pairs))}
    models = []
    for name, d in detectors.items():
        mine, about = (t[(t.model == name) & t.prob.notna()] for t in (edits, pairs)), read_json(model_folder(folders[name])/'results.json')['about']
        e, f = mine
        models.append(dict(model=name, fingerprint=d.fingerprint, forge=about.get('forge', 1), high=d.settings.high, edits=list(edit_rows(e, d.settings.high)), forgeries=list(trace_rows(f))))
    write_json(a.out, dict(date=today(), command=command(), hardware=cpu(), threads=1, forge=FORGE_VERSION, people=len(pool), scenes=SCENES, hard=HARD, lost=lost,
                           data='portraits of people nobody trained on, public domain; pictures by the endless forge; one cut per face; intervals over people', models=models))
    for m in models: print(m['model'], m['fingerprint'], pd.DataFrame(m['edits']).round(3).to_string(index=False), pd.DataFrame(m['forgeries']).round(3).to_string(index=False), sep='\n')


if __name__ == '__main__': main()
