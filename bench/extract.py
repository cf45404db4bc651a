"""How fast are faces found, aligned and cut?  python bench/extract.py [--out bench/results/extract.json]

The clips are made here, from the public-domain portrait in scikit-image, so that everybody measures the same thing:
720p clips of 10 s at 25 frames per second, sampled at 10 frames per second, with a large and with a small face, and
small clips of 320 x 320 as `madd forge` makes them."""
import argparse, datetime, os, platform, shlex, sys, tempfile, time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pandas as pd
from retinaface import detect_faces
from skimage.data import astronaut

from madd.core import write_json
from madd.faces import FaceDetector, extract
from madd.manifest import video_row
from madd.media import read_frames, write_video

SEED = 0


def cpu():
    "The name of the processor"
    try: return next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError, StopIteration): return platform.processor()


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
    "Frames per second and per second of processor time, best of a few runs, and the share of frames that gave a face"
    videos, best, cpu_best = pd.DataFrame([video_row(p, 0, name=f'{k}') for k, p in enumerate(paths)]), 0, 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            start, cpu_start = time.perf_counter(), time.process_time()
            done = extract(videos, out, workers=workers, **settings)
            best, cpu_best = max(best, len(done)/(time.perf_counter() - start)), max(cpu_best, len(done)/(time.process_time() - cpu_start))
    return round(best, 1), round(cpu_best, 1), float((done.reason == '').mean())


def detector_ms(path, find, n=10):
    "Milliseconds per frame for one way of finding faces, on one thread"
    frames = [rgb for _, _, rgb in read_frames(path, n)]
    find(frames[0])
    start = time.perf_counter()
    for rgb in frames: find(rgb)
    return round(1000*(time.perf_counter() - start)/n, 1)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', default=Path(__file__).parent/'results'/'extract.json'); p.add_argument('--repeats', type=int, default=2)
    args, cores, rows = p.parse_args(), os.cpu_count(), []
    with tempfile.TemporaryDirectory() as tmp:
        tmp, detector = Path(tmp), FaceDetector()
        for name, size, face, n, copies, settings in [('720p, face 240 px high', (1280, 720), 240, 250, 1, dict(n_frames=100)),
                                                      ('720p, face 120 px high', (1280, 720), 120, 250, 1, dict(n_frames=100)),
                                                      ('320 x 320, crops of 380', (320, 320), 165, 60, 16, dict(n_frames=15)),
                                                      ('320 x 320, crops of 160', (320, 320), 165, 60, 16, dict(n_frames=15, size=160))]:
            path = clip(tmp/f'{len(rows)}.mp4', n, size, face)
            row = dict(clip=name, detect_ms=detector_ms(path, detector), detect_ms_one_look_at_full_size=detector_ms(path, detector.look),
                       detect_ms_retinaface_package=detector_ms(path, detect_faces))
            for workers in sorted({1, cores}):
                row[f'frames_per_second_{workers}_workers'], row['frames_per_cpu_second'], row['coverage'] = rate([path]*max(copies, workers), workers, args.repeats, **settings)
                if size[1] == 720: row[f'times_real_time_{workers}_workers'] = round(row[f'frames_per_second_{workers}_workers']/10, 2)
            rows.append(row)
            print(row, flush=True)
    write_json(args.out, dict(what='madd.faces.extract: read, find, align, cut and write faces; best of %d runs' % args.repeats,
        date=datetime.date.today().isoformat(), hardware=f'{cpu()}, {cores} cores', load_average_at_end=round(os.getloadavg()[0], 1), seed=SEED,
        command=shlex.join(['python', 'bench/extract.py', *sys.argv[1:]]), python=platform.python_version(), opencv=cv2.__version__, onnxruntime=onnxruntime.__version__,
        sampling='720p: 100 frames of a clip of 10 s, that is 10 per second; real time is 1', results=rows))
    print('written to', args.out)


if __name__ == '__main__': main()
