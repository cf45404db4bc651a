"""What does `madd predict` say of pictures nobody forged?  python bench/portraits.py [--model madd-lite] [--out bench/results/portraits.json]

The portraits of people the detector has never seen, as the files were published and after they were saved once more, judged exactly as `madd predict` judges
a file: faces found in the whole picture, everybody judged, people held at "uncertain" where a rule says so. All three words are counted, because a detector
that answers "uncertain" to everything accuses nobody either; and how far a score moves when a file is only saved again is measured on the same people.
Then: what is it worth to cut the face of a picture several times? The first 1, 2, 4 and 8 views of the same faces, on the same files, and on pairs of a real picture
and its forgery by the endless forge, sent along the same route."""
import argparse, tempfile
from pathlib import Path

import numpy as np, pandas as pd, torch
from PIL import Image
from sklearn.metrics import log_loss

from common import command, cpu, files_of, looks_of, scenes, today
from madd.core import progress, reuse_memory, write_json
from madd.endless import Pool, split_people
from madd.generalise import Only, called_fake, gain, mean_auc
from madd.predict import VERDICTS, VIEWS, Detector
from madd.sources import face_source

AGAIN = {'JPEG 90': dict(format='JPEG', quality=90), 'JPEG 75': dict(format='JPEG', quality=75), 'WebP 80': dict(format='WEBP', quality=80), 'PNG': dict(format='PNG')}
PAIRS, HARD = 4, .5   # per person; how hard their routes are


def judged(detector, path, name, folder):
    "One row per form of a file"
    files = {'as published': path}
    with Image.open(path) as im:
        for form, how in AGAIN.items():
            files[form] = folder/f'{name} {form}.{how["format"].lower()}'
            im.convert('RGB').save(files[form], **how)
    verdicts = {form: detector.predict(file) for form, file in files.items()}
    return [dict(name=name, form=form, word=v.verdict, prob=v.probability, views=looks_of(v)) for form, v in verdicts.items()]


def counts(rows, first):
    "How often each word was said of each form, and how far the number moved from that of the file as published"
    for form, t in rows.groupby('form', sort=False):
        t, fake = t.set_index('name'), called_fake(pd.DataFrame(dict(prob=(t.word == 'likely fake').astype(float))), .5).iloc[0]
        moved = (t.prob - first.prob).abs()
        yield dict(form=form, n=len(t), **{w: int((t.word == w).sum()) for w in VERDICTS}, fake_share=fake.share, fake_lo=fake.lo, fake_hi=fake.hi,
                   **({} if form == 'as published' else dict(other_word=int((t.word != first.word).sum()), moved_median=float(moved.median()), moved_most=float(moved.max()))))


def pairs(detector, source, names):
    "One row per picture: real ones and their forgeries, travelled alike"
    made = scenes(Pool(Only(source, names)), PAIRS, 77, HARD, 'pairs')
    return pd.DataFrame([dict(target=who, video=f'{k} {label}', method=facts['method'], label=label, views=looks_of(detector.judge_picture(rgb))) for k, who, facts, pictures in made for label, rgb in enumerate(pictures)])


def by_views(rows, made, low, high):
    "The same faces, judged by the first so many cuts; the words are left out, because they have other rules beside the thresholds"
    out, n, first = [], 1, None
    files, seen = rows[rows.views.str.len() > 0], made[made.views.str.len() > 0]
    while n <= VIEWS:
        p = files.assign(prob=[float(np.mean(v[:n])) for v in files.views]).pivot(index='name', columns='form', values='prob')
        moved = p.drop(columns='as published').sub(p['as published'], axis=0).abs()
        seen = seen.assign(prob=[float(np.mean(v[:n])) for v in seen.views])
        first = seen if first is None else first
        auc, more, forged = mean_auc([seen]), gain([seen], [first]), seen.prob[seen.label == 1]
        out.append(dict(views=n, moved_median=moved.median().to_dict(), moved_most=moved.max().to_dict(), portraits_low=int((p['as published'] <= low).sum()), portraits_high=int((p['as published'] >= high).sum()),
                        forged_low=int((forged <= low).sum()), forged_high=int((forged >= high).sum()), auc=auc.value, auc_lo=auc.lo, auc_hi=auc.hi, gain=more.value, gain_lo=more.lo, gain_hi=more.hi,
                        log_loss=float(log_loss(seen.label, seen.prob)), pictures=len(seen)))
        n *= 2
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='madd-lite'); p.add_argument('--out', type=Path, default=Path('bench/results/portraits.json')); p.add_argument('--people', type=int, help='only the first so many, to see that it runs')
    a = p.parse_args()
    torch.set_num_threads(1); reuse_memory()
    detector, source = Detector.load(a.model, 'cpu'), face_source('portraits')
    files = files_of(source)
    names = split_people(list(files), 0)['test'][:a.people]
    with tempfile.TemporaryDirectory() as tmp: rows = pd.DataFrame([r for n in progress(names, desc='people') for r in judged(detector, files[n], n, Path(tmp))])
    first = rows[rows.form == 'as published'].set_index('name')
    s, found = detector.settings, list(counts(rows, first))
    views = by_views(rows, pairs(detector, source, names), s.low, s.high)
    write_json(a.out, dict(date=today(), command=command(), hardware=cpu(), threads=1, model=a.model, fingerprint=detector.fingerprint, low=s.low, high=s.high, data=f'portraits of {len(names)} people nobody trained on, public domain, one file each',
                           rows=found, views=views, views_of=f'files: the largest face of each, as published and saved again; pictures: {PAIRS} pairs per person, real and forged by the endless forge, hard={HARD}; intervals over people'))
    for table in (found, views): print(pd.DataFrame(table).round(3).to_string(index=False))


if __name__ == '__main__': main()
