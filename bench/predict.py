"""Where does the time go when `Detector` judges a clip?  python bench/predict.py [--out bench/results/predict.json]

A clip of 10 seconds in 720p (H.264, 25 frames per second) with one moving face from the forge, of which 30 frames are judged; EfficientNet-B4 with
MADD's parts at 380 pixels, float32, random weights. Four clocks run: reading (decoding and converting), finding faces, the network, and the rest
(cutting, flags, bookkeeping). The parts are shares of the same wall time. "First result" is the time from opening the clip to the
first probability, after start-up (imports, weights, face finder), which is measured apart. Medians over the turns, after one short clip to warm up."""
import time; BORN = time.perf_counter()     # start-up begins before the imports
import argparse, os, tempfile
from pathlib import Path
from statistics import median

import numpy as np, torch

from common import command, cpu, today
from madd.core import reuse_memory, write_json
from madd.export import load_engine
from madd.forge import animate, portrait
from madd.media import write_video
from madd.model import MADD
from madd.predict import Detector, open_file
from madd.sources import AstronautFaces
IMPORTED = time.perf_counter()

SEED, SIZE, FPS, SHAPE, GOALS = 0, 380, 25, (720, 1280), dict(model_share=.6, first_result_s=3.)


class Clock:
    "Something callable, and the seconds spent in it"
    def __init__(self, work): self.work, self.seconds, self.calls = work, 0., 0
    def __call__(self, *args):
        start = time.perf_counter()
        try: return self.work(*args)
        finally: self.seconds += time.perf_counter() - start; self.calls += 1
    def __getattr__(self, name): return getattr(self.work, name)


def make_clip(path, seconds):
    "A face of half the picture's height before a noisy wall, moving as the forge lets it move"
    face = portrait(AstronautFaces(1, seed=SEED, size=640)[0][1], 512)
    rng = np.random.default_rng(SEED)
    wall = np.clip(np.linspace(70, 150, SHAPE[1])[None, :, None] + rng.normal(0, 6, (*SHAPE, 3)), 0, 255).astype(np.uint8)
    def frames():
        for p in animate(face, int(seconds*FPS), SEED):
            rgb = wall.copy(); rgb[150:662, 384:896] = p.image
            yield rgb
    return write_video(path, frames(), fps=FPS, crf=23)


def ticking(frames, clock):
    frames = iter(frames)
    step = Clock(lambda: next(frames, None)); clock.append(step)
    while (f := step()) is not None: yield f


def turn(detector, clip, n_frames):
    "One clip from path to verdict, with the clocks on"
    faces, engine, found, reading = detector.faces, detector.engine, [], []
    detector.faces, detector.engine = Clock(faces.everyone), Clock(engine)      # Clock has no `everyone` of its own: it is that
    detector.faces.everyone = detector.faces
    start = time.perf_counter()
    opening = Clock(open_file)
    info, frames = opening(clip, n_frames)
    v = detector.predict(clip, n_frames, ticking(frames, reading), info, lambda look: found.append(time.perf_counter() - start) if any(a.probability is not None for a in look.faces) else None)
    wall = time.perf_counter() - start
    parts = dict(reading=opening.seconds + reading[0].seconds, finding_faces=detector.faces.seconds, model=detector.engine.seconds)
    detector.faces, detector.engine = faces, engine
    return dict(wall=wall, first_result=found[0], judged=sum(p.frames for p in v.people), **parts, cutting_and_flags=wall - sum(parts.values()))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--turns', type=int, default=3); p.add_argument('--frames', type=int, default=30); p.add_argument('--seconds', type=float, default=10)
    p.add_argument('--backbone', default='efficientnet_b4'); p.add_argument('--size', type=int, default=SIZE); p.add_argument('--runtime', default='torch', help='torch, or a graph that is exported first: onnx, openvino')
    p.add_argument('--threads', type=int, default=2); p.add_argument('--batch-size', type=int, default=8); p.add_argument('--out')
    args = p.parse_args()
    torch.manual_seed(SEED); torch.set_num_threads(args.threads)
    reused = reuse_memory()
    with tempfile.TemporaryDirectory() as d:
        folder, clip = Path(d)/'model', make_clip(Path(d)/'clip.mp4', args.seconds)
        model = MADD(args.backbone, pretrained=False)
        model.notes.update(size=args.size, margin=.3); model.save(folder)
        if args.runtime != 'torch':
            from madd.export import export
            export(folder, args.runtime)
        ready = time.perf_counter()
        detector = Detector.load(folder, device='cpu', runtime=args.runtime, batch_size=args.batch_size)
        startup = IMPORTED - BORN + time.perf_counter() - ready
        detector.predict(make_clip(Path(d)/'warm.mp4', .4), 9)
        turns = [turn(detector, clip, args.frames) for _ in range(args.turns)]
    assert all(t['judged'] == args.frames for t in turns), [t['judged'] for t in turns]
    middle = {k: round(median(t[k] for t in turns), 3) for k in turns[0] if k != 'judged'}
    parts = ('reading', 'finding_faces', 'cutting_and_flags', 'model')
    shares = {k: round(median(t[k]/t['wall'] for t in turns), 3) for k in parts}
    met = dict(model_share=shares['model'] >= GOALS['model_share'], first_result=middle['first_result'] <= GOALS['first_result_s'])
    for k in parts: print(f'{k:18s} {middle[k]:7.2f} s   {shares[k]:6.1%}')
    print(f'{"wall":18s} {middle["wall"]:7.2f} s   first result after {middle["first_result"]:.2f} s; start-up (imports, weights, face finder) {startup:.2f} s, not counted   goals met: {met}')
    if args.out: write_json(args.out, dict(date=today(), command=command(), seed=SEED, hardware=cpu(), threads=args.threads, torch=torch.__version__,
        allocator='glibc, thresholds raised (madd.core.reuse_memory)' if reused else 'default', runtime=args.runtime, backbone=args.backbone, size=args.size, batch_size=args.batch_size,
        clip=dict(seconds=args.seconds, width=SHAPE[1], height=SHAPE[0], fps=FPS, judged_faces=args.frames), turns=args.turns, startup_s=round(startup, 3), seconds=middle, shares=shares, goals=GOALS, met=met))


if __name__ == '__main__': main()
