"""The training movies of the widgets.  python bench/movies.py [--out madd/movies]

The networks of `bench/degradation.py` (same people, same seed 0, same settings), trained once more with a camera on twelve faces of the validation
people: three people, each as they are and forged in three ways. Kept are the maps of every epoch in eight bits, P(fake) of every epoch, the faces
as JPEG, the masks, and, in movies.json, the measures over the 30 forged validation faces that `bench/degradation.py` watches.
Finished runs lie in --work and are not repeated."""
import argparse, time
from pathlib import Path

import cv2, numpy as np, pandas as pd, timm, torch
from fastai.torch_core import get_model

from common import command, cpu, today
from degradation import BACKBONE, BATCH, FRAMES, IDENTITIES, SIZE, VARIANTS, data
from madd.core import atomic_path, normalise, read_json, reuse_memory, seed_everything, write_json
from madd.data import dataloaders, read_crop
from madd.degradation import WatchMaps, watched_faces
from madd.interpret import looking
from madd.manifest import crop_file
from madd.model import MADD
from madd.train import train

MOVIES = {'none': 'paper: none', 'RIL': 'paper: RIL', 'AGDA': 'paper: AGDA', 'RIL + AGDA': 'paper: RIL + AGDA', 'released RIL': 'released RIL'}
METHODS, PEOPLE, EPOCHS, SEED = ('original', 'Deepfakes', 'FaceSwap', 'NeuralTextures'), 3, 6, 0


def film_faces(crops, root):
    "Three people of the validation split, as they are and forged: images, masks, people, methods"
    df = crops[(crops.split == 'val') & (crops.crop != '') & crops.method.isin(METHODS)].sort_values(['target', 'method', 'video', 'frame']).drop_duplicates(['target', 'method'])
    whole = df.groupby('target').method.nunique() == len(METHODS)
    rows = [df[(df.target == t) & (df.method == m)].iloc[0].to_dict() for t in whole[whole].index[:PEOPLE] for m in METHODS]
    images = np.stack([read_crop(crop_file(r, root, 'crop'), SIZE) for r in rows])
    masks = np.stack([read_crop(crop_file(r, root, 'mask_crop'), SIZE)[..., 0] > 127 if r['mask_crop'] else np.zeros((SIZE, SIZE), bool) for r in rows])
    return dict(images=images, masks=masks, people=[r['target'] for r in rows], methods=[r['method'] for r in rows])


class Camera(WatchMaps):
    "Measures the watched faces as ever, and films some others"
    def __init__(self, film, **watched):
        super().__init__(**watched)
        self.film, self.takes = film, []

    def look(self, epoch):
        super().look(epoch)
        net = getattr(get_model(self.learn.model), 'net', get_model(self.learn.model))
        with looking(net): seen = net.analyse(normalise(self.film))
        self.takes.append((seen.attention.numpy(), seen.logits.softmax(-1)[:, 1].numpy()))


def run(name, crops, root, film, work):
    "One training run; read back when it was finished before"
    done = work/'movies'/f'{name.replace(" ", "")}.json'
    if not done.exists():
        seed_everything(SEED); start = time.perf_counter()
        camera = Camera(film, **watched_faces(crops, root, 30, SIZE))
        dls = dataloaders(crops, root, size=SIZE, bs=BATCH, augment='flip', seed=SEED)
        _, history = train(dls, MADD(**dict(backbone=BACKBONE) | VARIANTS[MOVIES[name]]), EPOCHS, SEED, lr=1e-3, cbs=[camera])
        with atomic_path(done.with_suffix('.npz')) as tmp: np.savez(tmp, maps=np.stack([m for m, _ in camera.takes]), prob=np.stack([p for _, p in camera.takes]))
        write_json(done, dict(variant=MOVIES[name], seconds=round(time.perf_counter() - start), auc=[round(float(v), 4) for v in history.auc],
                              maps=camera.table.round(4).to_dict('list')))
        print(name, read_json(done)['auc'], flush=True)
    with np.load(done.with_suffix('.npz')) as f: return read_json(done), f['maps'], f['prob']


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--work', type=Path, default=Path('runs/degradation')); p.add_argument('--out', type=Path, default=Path('madd/movies')); p.add_argument('--threads', type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads); reuse_memory()
    crops, root = data(args.work)
    faces = film_faces(crops, root)
    done = {name: run(name, crops, root, faces['images'], args.work) for name in MOVIES}
    maps, prob = (np.stack([o[i] for o in done.values()]) for i in (1, 2))      # (V, E, B, M, h, w), (V, E, B)
    top = maps.max((-3, -2, -1), keepdims=True).clip(1e-12)                      # one scale per frame: a frame is one face at one epoch
    jpegs = [cv2.imencode('.jpg', im[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1] for im in faces['images']]
    with atomic_path(args.out/'movies.npz') as tmp:
        np.savez_compressed(tmp, bits=np.round(255*maps/top).astype(np.uint8), top=top[..., 0, 0, 0].astype(np.float32), prob=prob.astype(np.float32), variants=np.array(list(done)),
                            faces=np.concatenate(jpegs), lengths=np.array([len(j) for j in jpegs]), masks=np.packbits(faces['masks'], axis=-1), size=SIZE,
                            people=np.array(faces['people']), methods=np.array(faces['methods']))
    write_json(args.out/'movies.json', dict(date=today(), command=command(), hardware=cpu(), torch=torch.__version__, timm=timm.__version__, threads=args.threads, seed=SEED,
        data=f'{IDENTITIES} embedded identities, {FRAMES} frames, crf 23, crops of {SIZE} px', backbone=BACKBONE, recipe='paper', epochs=EPOCHS, batch=BATCH, learning_rate=1e-3,
        measured='30 forged faces of the validation people', movies={name: o[0] for name, o in done.items()}))
    print(f'{(args.out/"movies.npz").stat().st_size/1e3:.0f} kB')


if __name__ == '__main__': main()
