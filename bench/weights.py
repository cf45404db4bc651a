"""The weights in the box, from real faces to a model card:

    python bench/weights.py --out weights            trains, calibrates and measures; a stopped run goes on with the same command
    python bench/weights.py --out weights --compare  ... and says of every number whether it agrees with what madd-lite ships
    python bench/weights.py --out weights --ship madd/weights/madd-lite   replaces what the package ships

Trains exactly as `madd train --recipe forge` does, on public-domain portraits and without a single deepfake. 40 people validate: their forged clips and their untouched
portraits choose the best epoch, the temperature and the thresholds. 60 people are kept for the end, and so are the built-in identities, which are another source altogether."""
import argparse, shutil, time
from pathlib import Path

import numpy as np, pandas as pd, torch

from common import apart, command, cpu, today
from madd.calibrate import calibration_of, set_calibration
from madd.card import write_card
from madd.core import REAL, UserError, normalise, progress, read_json
from madd.endless import ForgeConfig, split_people
from madd.evaluate import fake_logit, metrics_table, score_crops, write_results
from madd.export import fingerprint
from madd.faces import FaceDetector, align_face, first_face
from madd.forge import portrait
from madd.generalise import called_fake, skin_tone, test_clips
from madd.model import load, model_folder
from madd.runs import read_config, run
from madd.sources import AstronautFaces, face_source

PEOPLE = 40, 60, 40   # who validate, who are kept for the end, built-in identities
NOTE = 'This model has learnt from forgeries that madd made of public-domain portraits; how it does on the deepfakes of the internet was not measured.'


def stills(net, source, names, detector):
    "One row per untouched portrait as its source gives it: the face with what surrounds it, found as in training (bench/portraits.py asks `madd predict` about the files themselves)"
    at, rows = {source[i][0]: i for i in range(len(source))}, []
    for name in progress(names, desc='portraits'):
        rgb = source[at[name]][1]
        face = first_face(rgb, detector)
        crop = align_face(rgb, face.landmarks, net.notes['size'], net.notes['margin'])[0]
        with torch.inference_mode(): logit = float(fake_logit(net(normalise(crop[None])))[0])
        rows.append(dict(video=f'portrait/{name}', target=name, label=REAL, logit=logit, tone=skin_tone(portrait(rgb, detector=detector)).name))
    return pd.DataFrame(rows)


def clips(names, source, work, net):
    return test_clips(names, source, work, net.notes['size'], net.notes['margin'])


def probabilities(rows, net):
    "Calibrated, as a verdict has them"
    z = (rows.logit - net.notes.get('shift', 0))/net.notes.get('temperature', 1)
    return rows.assign(prob=1/(1 + np.exp(-z)))


def milliseconds(net, turns=30):
    "One face at batch 1 on one core, median"
    threads, x, took = torch.get_num_threads(), torch.zeros(1, 3, net.notes['size'], net.notes['size']), []
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(turns + 5):
            start = time.perf_counter(); net(x); took.append(1e3*(time.perf_counter() - start))
    torch.set_num_threads(threads)
    return round(float(np.median(took[5:])), 1)


def measured(nets, people, source, strangers, work):
    "Frame scores of every network on both sources, people nobody trained on"
    sets = {'forge of portraits': (people['test'], source), 'forge of built-in identities': ([strangers[i][0] for i in range(len(strangers))], strangers)}
    out = {name: [] for name in nets}
    for what, (names, faces) in sets.items():
        crops, root = clips(names, faces, work/what.replace(' ', '_'), next(iter(nets.values())))
        for name, net in nets.items(): out[name].append(apart(score_crops(net, crops, root), what))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in out.items()}


def settle(folder, people, source, work, detector):
    "Store the trained network in half precision, then calibrate and judge exactly what was stored"
    net = load(work/'run'); net.save(folder, half=True)
    net = load(folder)
    crops, root = clips(people['val'], source, work/'val', net)
    val = score_crops(net, crops.assign(split='val'), root, calibrated=False)
    quiet = stills(net, source, people['val'], detector).assign(dataset='portraits', method='original', compression='', split='val', frame=0)
    scores = pd.concat([val, quiet.assign(prob=1/(1 + np.exp(-quiet.logit)))], ignore_index=True)
    set_calibration(net, calibration_of(scores))
    if 'verdict' not in net.notes: raise UserError(f'{len(people["val"])} people are too few to choose thresholds with: give more to validate.')
    net.notes['note'] = NOTE
    net.save(folder, half=True)
    return net


def agreement(rows, shipped):
    "Every AUC beside the shipped one and its interval"
    key = ['model', 'level', 'dataset', 'compression', 'method']
    both = rows.merge(pd.DataFrame(shipped), on=key, suffixes=('', '_shipped'))
    both = both[(both.model == 'madd-lite') & (both.level == 'video')]
    return both.assign(agrees=(both.auc >= both.lo_shipped) & (both.auc <= both.hi_shipped))[[*key[2:], 'auc', 'auc_shipped', 'lo_shipped', 'hi_shipped', 'agrees']]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', type=Path, default=Path('weights'), help='folder of the run, the clips and the result')
    p.add_argument('--faces', default='portraits', help="'portraits' (fetched by `madd portraits`), or a folder with the same files")
    p.add_argument('--set', action='append', default=[], help='a setting of the training, key=value')
    p.add_argument('--ship', type=Path, help='also copy the finished folder here')
    p.add_argument('--compare', action='store_true', help='compare with what madd-lite ships')
    p.add_argument('--people', type=int, nargs=3, default=PEOPLE, metavar=('VAL', 'TEST', 'STRANGERS'), help='people who validate, people kept for the end, built-in identities (default: %(default)s)')
    a = p.parse_args()
    work, start, parts = a.out, time.perf_counter(), dict(zip(('val', 'test'), a.people))
    run(read_config(training='forge', words=a.set, forge=dict(faces=a.faces) | {k: n for k, n in parts.items() if n != getattr(ForgeConfig, k)}), None, work/'run')
    history = {stage: pd.read_csv(work/'run'/at/'history.csv').round(5).to_dict('records') for stage, at in (('first stage', 'pretrain'), ('second stage', ''))}
    hours = sum(r['seconds'] for rows in history.values() for r in rows)/3600
    source, detector = face_source(a.faces), FaceDetector()
    people = split_people([source[i][0] for i in range(len(source))], 0, **parts)
    folder = work/'madd-lite'
    net = settle(folder, people, source, work, detector)
    plain = load(work/'run'/'pretrain')
    scores = measured({'madd-lite': net, 'plain': plain}, people, source, AstronautFaces(a.people[2], seed=1), work)
    table = metrics_table(scores, by='target')
    alarms = probabilities(stills(net, source, people['test'], detector), net)
    groups = called_fake(alarms, net.notes['verdict']['high'], alarms.tone)
    about = dict(date=today(), command=command(), hardware=cpu(), threads=torch.get_num_threads(), hours=round(hours, 2), milliseconds_per_face=milliseconds(net),
                 data='forged and real clips of people nobody trained on; AUC intervals are over people', over='people', people={k: len(v) for k, v in people.items()},
                 models='madd-lite, and plain: its own backbone after the first stage, an ordinary classifier with less training',
                 fingerprints={'madd-lite': fingerprint(folder)}, history=history, portraits_called_fake=groups.to_dict('records'), training=read_json(work/'run'/'train.json'), environment=read_json(work/'run'/'environment.json'))
    write_results(work/'results', scores, table, about)
    for name in ('config.yaml', 'environment.json', 'train.json'):   # where it comes from; the card is made of these
        shutil.copy(work/'run'/name, folder/name)
    shutil.copy(work/'results'/'results.json', folder/'results.json')
    write_card(folder)
    print(table[(table.level == 'video')][['model', 'dataset', 'compression', 'method', 'auc', 'lo', 'hi']].round(3).to_string(index=False))
    print(groups.round(3).to_string(index=False))
    print(f'{about["milliseconds_per_face"]} ms per face on one core; {hours:.2f} hours of training; {(time.perf_counter() - start)/60:.0f} minutes in this call')
    if a.compare: print(agreement(table, read_json(model_folder('madd-lite')/'results.json')['rows']).round(3).to_string(index=False))
    if a.ship:
        a.ship.mkdir(parents=True, exist_ok=True)
        for f in folder.iterdir(): shutil.copy(f, a.ship/f.name)
        write_card(a.ship)   # inside the package it has a licence of its own


if __name__ == '__main__': main()
