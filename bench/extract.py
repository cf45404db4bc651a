"""How fast are faces found, aligned and cut?  python bench/extract.py [--faces PORTRAITS] [--out bench/results/extract.json]

Four questions, each answered in one run on one machine:

floor   What do 30 faces from a 720p clip of 300 frames cost, in times of decoding its frames once? (The goal is 2.5.)
lost    Does looking at reduced frames lose a face of 80 pixels or more that a look at the full size finds?
memory  How much more memory does a clip of two hours need than one of ten seconds?
rates   How many frames per second, with one worker and with one per core?

The clips are made here, from the public-domain portrait in scikit-image, so that everybody measures the same thing; `--faces` adds a folder of portraits."""
import argparse, os, platform, shlex, subprocess, sys, tempfile, time
from pathlib import Path

import av
import cv2
import numpy as np
import onnxruntime
import pandas as pd
from retinaface import detect_faces
from skimage.data import astronaut

from common import cpu, today
from madd.core import write_json
from madd.data import index
from madd.extract import Cut, _extract_one, extract
from madd.faces import ENOUGH, SMALL, FaceDetector, iou
from madd.forge_set import forge_set
from madd.manifest import video_row
from madd.media import BadMedia, find_media, read_frames, read_image, write_video
from madd.sources import AstronautFaces

SEED = 0


def clip(path, n, size, face, seed=SEED):
    "Write a clip in which a face `face` pixels high moves about, with a little camera noise"
    rng, (w, h), s, portrait = np.random.default_rng(seed), size, face/119, astronaut()
    grain = rng.normal(0, 3, (8, h, w, 1))
    def frame(i):
        a = .08*np.sin(i/9)
        turn = s*np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        m = np.column_stack([turn, [w/2 + .05*w*np.sin(i/17), h/2 + .03*h*np.cos(i/13)] - turn @ [226, 119]])
        im = cv2.warpAffine(portrait, m, size, flags=cv2.INTER_CUBIC if s > 1 else cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
        return np.clip(im + grain[i % 8], 0, 255).astype(np.uint8)
    return write_video(path, (frame(i) for i in range(n)), preset='veryfast')


def rate(paths, workers, repeats=2, **settings):
    "Frames per second, best of a few runs, and the share of frames that gave a face"
    videos, best = pd.DataFrame([video_row(p, 0, name=f'{k}') for k, p in enumerate(paths)]), 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            done = extract(videos, out, workers=workers, **settings)
            best = max(best, len(done)/(time.perf_counter() - start))
    return round(best, 1), float((done.reason == '').mean())


def detector_ms(path, find, n=10):
    "Milliseconds per frame for one way of finding faces, on one thread"
    frames = [rgb for _, _, rgb in read_frames(path, n)]
    find(frames[0])
    start = time.perf_counter()
    for rgb in frames: find(rgb)
    return round(1000*(time.perf_counter() - start)/n, 1)


# ---- against the floor ----------------------------------------------------------------------------------------------------

def decode(path):
    "Every frame, decoded once in one thread, and nothing else"
    with av.open(str(path)) as box:
        box.streams.video[0].thread_type = 'NONE'
        return sum(1 for _ in box.decode(video=0))


def timed(f, clock=time.perf_counter):
    start = clock(); f()
    return clock() - start


def floor(tmp, repeats, copies=3):
    """30 faces from a clip of 300 frames, and decoding its frames once, in turns: in processor seconds of one process, which other programs on the machine disturb least,
    and in seconds on the clock for the whole of `extract` with one worker (its books, its worker process and its manifest included; averaged over a few clips)"""
    rows, detector = [], FaceDetector()
    for name, face, settings in [('face 240 px', 240, {}), ('face 120 px', 120, {}), ('face 240 px, JPEG 95', 240, dict(quality=95)), ('face 120 px, every face', 120, dict(faces='all'))]:
        path = tmp/f'floor{face}.mp4'
        if not path.exists(): clip(path, 300, (1280, 720), face)
        videos, cpu_base, cpu_cut, base, cut = pd.DataFrame([video_row(path, 0, name=str(k)) for k in range(copies)]), [], [], [], []
        with tempfile.TemporaryDirectory() as out: extract(videos[:1], out, workers=1, n_frames=2)                    # starts the fork server
        for _ in range(repeats):
            cpu_base.append(timed(lambda: decode(path), time.process_time))
            cpu_cut.append(timed(lambda: _extract_one(str(path), '', tmp/'floor', 'x', Cut(n_frames=30, **settings), detector), time.process_time))
            base.append(timed(lambda: [decode(path) for _ in range(copies)])/copies)
            with tempfile.TemporaryDirectory() as out: cut.append(timed(lambda: extract(videos, out, workers=1, n_frames=30, **settings))/copies)
        rows.append(dict(what=name, times_the_floor=round(min(cpu_cut)/min(cpu_base), 2), decode_cpu_s=round(min(cpu_base), 3), extract_cpu_s=round(min(cpu_cut), 3),
                         times_the_floor_on_the_clock=round(min(cut)/min(base), 2), decode_s=round(min(base), 3), extract_s=round(min(cut), 3), kbit_per_s=round(path.stat().st_size*8/12e3)))
        print(rows[-1], flush=True)
    return rows


# ---- faces lost -----------------------------------------------------------------------------------------------------------

def crowd(pictures, rng, size=(1920, 1080)):
    "A 1080p frame with up to ten faces, 80 to 220 pixels high, from pictures with one face each"
    frame, detector = np.full((size[1], size[0], 3), 110, np.uint8), FaceDetector()
    for k, rgb in enumerate(pictures[:10]):
        face = next(iter(detector(rgb)), None)
        if face is None: continue
        scale, side = rng.uniform(85, 220)/face.height, 380
        m = np.column_stack([scale*np.eye(2), side/2 - scale*face.box.reshape(2, 2).mean(0)])
        x, y = (k % 5)*side, (k//5)*side + 100
        frame[y:y + side, x:x + side] = cv2.warpAffine(rgb, m, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    return frame


def lost(frames, detector):
    "Of the faces of at least 80 pixels that a look at full size finds and a close-up confirms: how many does a look at the reduced frame not find?"
    n, gone, wrong, ours, full = 0, 0, 0, 0., 0.
    for rgb in frames:
        ours += timed(lambda: detector.everyone(rgb)); full += timed(lambda: detector.look(rgb))
        there = [f for f in (detector.refine(rgb, f) for f in detector.look(rgb)) if f and f.height >= 80]
        found, first = detector.everyone(rgb), detector(rgb)[:1]
        overlap = lambda f, faces: max([iou(f.box, g.box[None])[0] for g in faces], default=0)
        n, gone = n + len(there), gone + sum(bool(overlap(f, found) < .3) for f in there)
        wrong += bool(there) and (first[0].height if first else 0) < .9*max(f.height for f in there)
    return dict(frames=len(frames), faces=n, lost=gone, frames_whose_first_face_is_below_90_percent_of_the_largest=int(wrong), ms_all_faces_reduced=round(1000*ours/len(frames), 1), ms_one_look_at_full_size=round(1000*full/len(frames), 1))


def losses(tmp, folder, n):
    "On the forge's clips, on the portraits when there are some, and on crowds made of each"
    detector, rng, rows = FaceDetector(), np.random.default_rng(SEED), []
    forge_set(tmp/'forge', AstronautFaces(n=6), identities=6, frames=4, crfs=(40,), size=256)
    clips = [rgb for p in index(tmp/'forge').path for _, _, rgb in read_frames(p, 2)]
    sets = [('clips of the forge, crf 40', clips)]
    if folder:
        portraits = []
        for p in find_media(folder)[:n]:
            try: portraits.append(read_image(p))
            except BadMedia as e: print(e)
        sets.append(('portraits', portraits))
    sets += [(f'1080p crowds of {name}', [crowd([pictures[i] for i in rng.permutation(len(pictures))], rng) for _ in range(6)]) for name, pictures in sets]
    for name, frames in sets:
        rows.append(dict(what=name, **lost(frames, detector)))
        print(rows[-1], flush=True)
    return rows


# ---- memory ---------------------------------------------------------------------------------------------------------------

PEAK = r"""
import re, sys
from pathlib import Path
from madd.extract import Cut, _detector, _extract_one
rows = _extract_one(sys.argv[1], '', Path(sys.argv[2]), 'x', Cut(n_frames=30), _detector())
print(len(rows), re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1])
"""


def two_hours(tmp):
    "Peak memory of cutting 30 faces from ten seconds and from two hours (the same second of film, repeated without encoding it again)"
    once, peaks = clip(tmp/'second.mp4', 25, (320, 240), 100), {}
    with av.open(str(once)) as box: packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in box.demux(video=0) if p.size]
    for seconds in (10, 7200):
        path = tmp/f'{seconds}.mp4'
        with av.open(str(once)) as box, av.open(str(path), 'w') as out:
            stream, base = out.add_stream_from_template(box.streams.video[0]), box.streams.video[0].time_base
            for k in range(seconds):
                for data, pts, dts, key in packets:
                    p = av.Packet(data); at = round(k/base)
                    p.stream, p.time_base, p.is_keyframe, p.pts, p.dts = stream, base, key, pts + at, dts + at
                    out.mux(p)
        start = time.perf_counter()
        n, peak = map(int, subprocess.run([sys.executable, '-c', PEAK, path, tmp/'peak'], capture_output=True, check=True, text=True).stdout.split())
        peaks[seconds] = dict(seconds_of_film=seconds, rows=n, peak_mb=round(peak/1024, 1), took_s=round(time.perf_counter() - start, 1))
        print(peaks[seconds], flush=True)
    return dict(clips=list(peaks.values()), more_mb=round(peaks[7200]['peak_mb'] - peaks[10]['peak_mb'], 1), note='180,000 frames; what grows is the index of the container')


def rates(tmp, repeats):
    "Frames per second for four kinds of clips"
    cores, rows, detector = os.cpu_count(), [], FaceDetector()
    for name, size, face, n, copies, settings in [('720p, face 240 px high', (1280, 720), 240, 250, 4, dict(n_frames=100)),
                                                  ('720p, face 120 px high', (1280, 720), 120, 250, 4, dict(n_frames=100)),
                                                  ('320 x 320, crops of 380', (320, 320), 165, 60, 16, dict(n_frames=15)),
                                                  ('320 x 320, crops of 160', (320, 320), 165, 60, 16, dict(n_frames=15, size=160))]:
        path = clip(tmp/f'rate{len(rows)}.mp4', n, size, face)
        row = dict(clip=name, detect_ms=detector_ms(path, detector), detect_ms_one_look_at_full_size=detector_ms(path, detector.look),
                   detect_ms_retinaface_package=detector_ms(path, detect_faces))
        for workers in sorted({1, cores}):
            row[f'frames_per_second_{workers}_workers'], row['coverage'] = rate([path]*max(copies, workers), workers, repeats, **settings)
            if size[1] == 720: row[f'times_real_time_{workers}_workers'] = round(row[f'frames_per_second_{workers}_workers']/10, 2)
        rows.append(row)
        print(row, flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', default=Path(__file__).parent/'results'/'extract.json'); p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--faces', type=Path, help='a folder of portraits, for the question of lost faces'); p.add_argument('--portraits', type=int, default=100, help='how many of them')
    p.add_argument('--parts', nargs='+', default=['floor', 'lost', 'memory', 'rates'], choices=['floor', 'lost', 'memory', 'rates'])
    args, parts = p.parse_args(), {}
    cv2.setNumThreads(1)                                                              # as in a worker
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        work = dict(floor=lambda: floor(tmp, args.repeats), lost=lambda: losses(tmp, args.faces, args.portraits), memory=lambda: two_hours(tmp), rates=lambda: rates(tmp, 2))
        for part in args.parts: parts[part] = work[part]()
    worst = max((r['times_the_floor'] for r in parts.get('floor', []) if 'every face' not in r['what']), default=0)
    write_json(args.out, dict(what='madd.extract: read, find, align, cut and write faces', date=today(), hardware=f'{cpu()}, {os.cpu_count()} cores',
        load_average_at_end=round(os.getloadavg()[0], 1), seed=SEED, command=shlex.join(['python', 'bench/extract.py', *('PORTRAITS' if args.faces and Path(a) == args.faces else a for a in sys.argv[1:])]), python=platform.python_version(),
        opencv=cv2.__version__, onnxruntime=onnxruntime.__version__, av=av.__version__, goal='30 faces from a 720p clip of 300 frames: at most 2.5 times decoding its frames once, in one thread, in processor time',
        worst_ratio=worst, smallest_face_not_to_lose=SMALL, its_height_in_the_reduced_frame=ENOUGH, sampling='rates, 720p: 100 frames of a clip of 10 s, that is 10 per second; real time is 1', **parts))
    print(f'30 faces cost {worst} times the floor (goal: 2.5); written to {args.out}')
    sys.exit(int(worst > 2.5))


if __name__ == '__main__': main()
