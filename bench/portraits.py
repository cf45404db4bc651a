"""What does `madd predict` say of pictures nobody forged?  python bench/portraits.py [--model madd-lite] [--out bench/results/portraits.json]

The portraits of people the detector has never seen, as the files were published and after they were saved once more, judged exactly as `madd predict` judges
a file: faces found in the whole picture, everybody judged, people held at "uncertain" where a rule says so. All three words are counted, because a detector
that answers "uncertain" to everything accuses nobody either; and how far a score moves when a file is only saved again is measured on the same people."""
import argparse, tempfile
from pathlib import Path

import pandas as pd, torch
from PIL import Image

from common import command, cpu, today
from madd.core import progress, reuse_memory, write_json
from madd.endless import split_people
from madd.generalise import called_fake
from madd.predict import VERDICTS, Detector
from madd.sources import face_source

AGAIN = {'JPEG 90': dict(format='JPEG', quality=90), 'JPEG 75': dict(format='JPEG', quality=75), 'WebP 80': dict(format='WEBP', quality=80), 'PNG': dict(format='PNG')}


def judged(detector, path, name, folder):
    "One row per form of a file"
    files = {'as published': path}
    with Image.open(path) as im:
        for form, how in AGAIN.items():
            files[form] = folder/f'{name} {form}.{how["format"].lower()}'
            im.convert('RGB').save(files[form], **how)
    verdicts = {form: detector.predict(file) for form, file in files.items()}
    return [dict(name=name, form=form, word=v.verdict, prob=v.probability) for form, v in verdicts.items()]


def counts(rows, first):
    "How often each word was said of each form, and how far the number moved from that of the file as published"
    for form, t in rows.groupby('form', sort=False):
        t, fake = t.set_index('name'), called_fake(pd.DataFrame(dict(prob=(t.word == 'likely fake').astype(float))), .5).iloc[0]
        moved = (t.prob - first.prob).abs()
        yield dict(form=form, n=len(t), **{w: int((t.word == w).sum()) for w in VERDICTS}, fake_share=fake.share, fake_lo=fake.lo, fake_hi=fake.hi,
                   **({} if form == 'as published' else dict(other_word=int((t.word != first.word).sum()), moved_median=float(moved.median()), moved_most=float(moved.max()))))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--model', default='madd-lite'); p.add_argument('--out', type=Path, default=Path('bench/results/portraits.json')); p.add_argument('--people', type=int, help='only the first so many, to see that it runs')
    a = p.parse_args()
    torch.set_num_threads(1); reuse_memory()
    detector, source = Detector.load(a.model, 'cpu'), face_source('portraits')
    files = {name: source.folder/f'{name}.jpg' for name, _ in (source[i] for i in range(len(source)))}
    names = split_people(list(files), 0)['test'][:a.people]
    with tempfile.TemporaryDirectory() as tmp: rows = pd.DataFrame([r for n in progress(names, desc='people') for r in judged(detector, files[n], n, Path(tmp))])
    first = rows[rows.form == 'as published'].set_index('name')
    s, found = detector.settings, list(counts(rows, first))
    write_json(a.out, dict(date=today(), command=command(), hardware=cpu(), threads=1, model=a.model, fingerprint=detector.fingerprint, low=s.low, high=s.high, data=f'portraits of {len(names)} people nobody trained on, public domain, one file each',
                           rows=found))
    print(pd.DataFrame(found).round(3).to_string(index=False))


if __name__ == '__main__': main()
