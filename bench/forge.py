"""How fast are faces forged?  python bench/forge.py  (about two minutes; writes bench/results/forge.json)

Forged faces per second, before encoding, on two processes of one thread each: per method and for all five in turn.
Then a small set with encoding, masks and both compressions. The load of the machine is stored beside the numbers: `cpu_ms` is
processor time per face and hardly moves when others work on the same machine, faces per second do."""
import argparse, os, platform, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import cv2

from common import command, cpu, today
from madd.core import write_json
from madd.forge import FORGE_SIZE, METHODS, animate, forge_face, portrait
from madd.forge_set import forge_set
from madd.sources import AstronautFaces


def forge_many(clips, methods, faces, seed):
    "Forge `faces` frames with `methods` in turn; wall clock start and end, processor seconds"
    cv2.setNumThreads(1)
    for m in methods: forge_face(m, clips[0][0], clips[1][0], 0)  # warm up
    start, used = time.time(), time.process_time()
    for i in range(faces):
        target, source = clips[i % len(clips)], clips[(i + 1) % len(clips)]
        forge_face(methods[i % len(methods)], target[i % len(target)], source[i % len(source)], seed + i, (i % len(target)) / len(target))
    return start, time.time(), time.process_time() - used


def rate(pool, clips, methods, faces, workers):
    "Faces per second of all workers together, and processor milliseconds per face"
    done = [f.result() for f in [pool.submit(forge_many, clips, methods, faces, 1000 * w) for w in range(workers)]]
    wall = max(end for _, end, _ in done) - min(start for start, _, _ in done)
    return dict(faces_per_s=round(workers * faces / wall, 1), cpu_ms=round(1000 * sum(c for *_, c in done) / (workers * faces), 2))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--faces', type=int, default=100, help='faces per method and process')
    p.add_argument('--workers', type=int, default=2)
    p.add_argument('--identities', type=int, default=12, help='of the set written with encoding')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', default=Path(__file__).parent/'results'/'forge.json')
    args = p.parse_args()
    source = AstronautFaces(n=args.identities, seed=args.seed)
    faces = [source[i] for i in range(args.identities)]
    clips = [animate(portrait(rgb), 8, args.seed + i) for i, (_, rgb) in enumerate(faces[:6])]
    found, load = {}, os.getloadavg()[0]
    with ProcessPoolExecutor(args.workers, mp_context=get_context('spawn')) as pool:
        rate(pool, clips, list(METHODS), 5, args.workers)  # start the processes
        for m in METHODS: found[m] = rate(pool, clips, [m], args.faces, args.workers)
        overall = rate(pool, clips, list(METHODS), 5 * args.faces, args.workers)
    with tempfile.TemporaryDirectory() as room:
        start = time.time()
        forge_set(Path(room)/'set', faces, identities=args.identities, frames=8, seed=args.seed, workers=args.workers)
        wall = time.time() - start
        files = sum(1 for _ in Path(room).rglob('*.mp4'))
    n_clips = args.identities * (1 + len(METHODS))
    write_json(args.out, dict(
        what='forged faces per second before encoding, and clips per second with encoding (crf 23 and 40, masks) and process start',
        date=today(), seed=args.seed, command=command(),
        hardware=dict(cpu=cpu(), cores=os.cpu_count(), system=platform.system(), python=platform.python_version(), opencv=cv2.__version__),
        load_before=round(load, 2), load_after=round(os.getloadavg()[0], 2), size=FORGE_SIZE, workers=args.workers, faces_per_method=args.workers * args.faces,
        methods=found, overall=overall,
        set=dict(identities=args.identities, frames=8, clips=n_clips, files=files, seconds=round(wall, 1), clips_per_s=round(n_clips / wall, 2), files_per_s=round(files / wall, 1))))
    print(Path(args.out).read_text())


if __name__ == '__main__': main()
