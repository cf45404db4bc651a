"""Does the training step wait for its pictures?  python bench/loader.py [--workers 2] [--out bench/results/loader.json]

Crops of 380 px are made here, from the built-in faces, with the grain of a camera: PNG files, JPEG files, and the JPEG files once more
in WebDataset shards. The loader is run alone, then a training step of the paper's backbone (EfficientNet-B4, random weights) on one
batch that is already there, then both together: what the step waits for the loader is measured and not derived."""
import argparse, os, platform, tarfile, tempfile, time, warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from common import command, cpu, today
from madd.core import default_device, seed_everything, write_json
from madd.data import dataloaders
from madd.manifest import video_row
from madd.media import save_image
from madd.model import PlainDetector
from madd.sources import AstronautFaces

SEED, SIZE = 0, 380


def make_crops(root, n, ending):
    "A manifest of `n` crops of 380 px on disk, one real for four fakes, most of them for training"
    rng, faces, rows = np.random.default_rng(SEED), AstronautFaces(n=16, seed=SEED, size=SIZE), []
    faces = [faces[i][1] for i in range(16)]
    for i in range(n):
        fake, crop = i % 5 > 0, f'{ending}/{i:05}.{ending}'
        rgb = np.clip(faces[i % 16] + rng.normal(0, 2, (SIZE, SIZE, 1)), 0, 255).astype(np.uint8)
        save_image(root/crop, rgb)
        rows.append(video_row(f'{i}.mp4', int(fake), 'bench', 'swap' if fake else 'original', 'c23', split='val' if i < 10 else 'train') |
                    dict(frame=0, crop=crop, margin=.3, size=SIZE, reason=''))
    return pd.DataFrame(rows)


def pack(df, root):
    "The same crops in shards of 256"
    (root/'shards').mkdir()
    for k in range(0, len(df), 256):
        with tarfile.open(root/f'shards/{k//256:06}.tar', 'w') as tar:
            for i in range(k, min(k + 256, len(df))): tar.add(root/df.crop[i], f'{i:05}.jpg')
    return df.assign(crop=[f'shards/{i//256:06}.tar#{i:05}.jpg' for i in range(len(df))])


def loader_rate(df, root, repeats, **kw):
    "Pictures per second of the loader alone, from the first batch of an epoch to its last; the best of a few epochs"
    dls, best = dataloaders(df, root, size=SIZE, seed=SEED, **kw), 0
    for _ in range(repeats):
        it, n = iter(dls.train), 0
        next(it)                                     # starts the workers
        start = time.perf_counter()
        for x, _ in it: n += len(x)
        best = max(best, n/(time.perf_counter() - start))
    return best


def trainer(device):
    "One step on a batch; waits until it is done"
    seed_everything(SEED)
    model = PlainDetector('efficientnet_b4', pretrained=False).to(device).train()
    opt = torch.optim.AdamW(model.parameters(), 1e-4)
    def step(x, y):
        torch.nn.functional.cross_entropy(model(x), y).backward()
        opt.step(); opt.zero_grad()
        if device.type == 'cuda': torch.cuda.synchronize()
    return step


def step_rate(step, x, y, n):
    "Pictures per second of the step on a batch that is there"
    step(x, y)
    start = time.perf_counter()
    for _ in range(n): step(x, y)
    return n*len(x)/(time.perf_counter() - start)


def waiting(step, dls, n):
    "Share of the time that training steps spend waiting for the next batch"
    waited, it = 0., iter(dls.train)
    step(*next(it))
    begin = time.perf_counter()
    for _ in range(n):
        start = time.perf_counter(); batch = next(it); waited += time.perf_counter() - start
        step(*batch)
    return waited/(time.perf_counter() - begin)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', default=Path(__file__).parent/'results'/'loader.json'); p.add_argument('--workers', type=int, default=2)
    p.add_argument('--crops', type=int, default=320); p.add_argument('--batch', type=int, default=4); p.add_argument('--steps', type=int, default=3); p.add_argument('--repeats', type=int, default=3)
    args, device = p.parse_args(), default_device()
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp:
        root, rows = Path(tmp), []
        tables = {'PNG files': make_crops(root, args.crops, 'png'), 'JPEG files': make_crops(root, args.crops, 'jpg')}
        tables['JPEG in shards'] = pack(tables['JPEG files'], root)
        threads = torch.get_num_threads(); torch.set_num_threads(1)   # the loader's own process only joins batches
        for where, df in tables.items():
            for augment in ('flip', 'modern'):
                rows.append(dict(crops=where, augment=augment, loader_images_per_second=round(loader_rate(df, root, args.repeats, bs=16, augment=augment, num_workers=args.workers, device='cpu'), 1)))
                print(rows[-1], flush=True)
        torch.set_num_threads(threads)
        step, dls = trainer(device), dataloaders(tables['PNG files'], root, size=SIZE, bs=args.batch, augment='modern', seed=SEED, num_workers=args.workers, device=device)
        x, y = dls.one_batch()
        rate = step_rate(step, x, y, args.steps)
        share = waiting(step, dls, args.steps)
    slowest = min(r['loader_images_per_second'] for r in rows)
    for r in rows: r['times_the_step'] = round(r['loader_images_per_second']/rate, 1)
    print(f'at {SIZE} px with {args.workers} workers: loader {slowest:.0f} images per second at least, training step {rate:.1f}: {slowest/rate:.1f} times; the step waits {100*share:.2f} % of its time')
    gpu = torch.cuda.get_device_name() if device.type == 'cuda' else 'none'
    write_json(args.out, dict(what=f'madd.data.dataloaders at {SIZE} px with {args.workers} workers, beside a training step of EfficientNet-B4 (plain, random weights), in one run',
        date=today(), hardware=f'{cpu()}, {os.cpu_count()} cores, GPU {gpu}', load_average_at_end=round(os.getloadavg()[0], 1), seed=SEED,
        command=command(), python=platform.python_version(), opencv=cv2.__version__, torch=torch.__version__, torch_threads_of_step=threads,
        batch_of_loader=16, batch_of_step=args.batch, workers=args.workers, step_device=device.type, step_images_per_second=round(rate, 2), step_waits_share=round(share, 4), results=rows))
    print('written to', args.out)


if __name__ == '__main__': main()
