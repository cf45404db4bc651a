"Extraction of a whole folder: killed and resumed, with bad files among good ones, with one worker or two, with many faces"
import contextlib, itertools, os, signal, subprocess, sys, threading, time, tracemalloc
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings, strategies as st
from skimage.data import astronaut

import madd.faces
from madd.core import UserError
from madd.extract import _folder, extract
from madd.faces import FaceDetector, align_matrix, template, to_crop
from madd.manifest import read_manifest, video_row, write_manifest
from madd.media import read_image, save_image, write_video

N_CLIPS, N_FRAMES = 8, 10
SETTINGS = dict(size=160, n_frames=N_FRAMES)


def place(scale, x, y, angle=0., side=256):
    "The astronaut with her face at (x, y)"
    c, s = scale*np.cos(angle), scale*np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    return cv2.warpAffine(astronaut(), np.column_stack([turn, [x, y] - turn @ [226, 119]]), (side, side), flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A folder of clips with their manifest: forged ones have a mask"
    root, rng, rows = tmp_path_factory.mktemp('root'), np.random.default_rng(0), []
    oval = cv2.ellipse(np.zeros((256, 256), np.uint8), (128, 128), (50, 66), 0, 0, 360, 255, -1)
    for k in range(N_CLIPS):
        frames = [place(1.1, 128 + 4*np.sin(i/3 + k), 128 + rng.uniform(-1, 1), .05*np.sin(i/5)) for i in range(20)]
        write_video(root/f'{k:03d}.mp4', frames, preset='veryfast')
        mask = write_video(root/f'{k:03d}_mask.mp4', [oval]*20, preset='veryfast').name if k % 2 else ''
        rows.append(video_row(f'{k:03d}.mp4', k % 2, 'toy', 'Oval' if k % 2 else 'original', 'c23', split='train', mask=mask))
    write_manifest(pd.DataFrame(rows), root/'videos.parquet')
    return root


@pytest.fixture(scope='module')
def undisturbed(root, tmp_path_factory):
    out = tmp_path_factory.mktemp('undisturbed')
    return extract(root/'videos.parquet', out, workers=1, **SETTINGS), out


def files(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob('*')) if p.is_file() and p.name != 'manifest.parquet'}


def test_rows(undisturbed):
    done, out = undisturbed
    assert len(done) == N_CLIPS*N_FRAMES and (done.reason == '').all() and (done.split == 'train').all()
    assert done.frame.tolist()[:N_FRAMES] == [0, 2, 4, 6, 8, 11, 13, 15, 17, 19]
    assert ((done.mask_crop != '') == (done.label == 1)).all() and (done.margin == .3).all() and (done['size'] == 160).all()
    assert read_manifest(out/'manifest.parquet').equals(done)
    for r in done.itertuples():
        assert read_image(out/r.crop).shape == (160, 160, 3)
        if r.mask_crop: assert 100 < read_image(out/r.mask_crop)[60:100, 60:100].mean()
    points = done[[f'l{a}{i}' for i in range(5) for a in 'xy']].to_numpy().reshape(-1, 5, 2)
    for p in points[::7]: assert np.abs(to_crop(p, align_matrix(p, 160)) - template(160)).max() < 8


def test_two_workers_give_the_same(root, undisturbed, tmp_path):
    done, out = undisturbed
    assert extract(root/'videos.parquet', tmp_path, workers=2, **SETTINGS).equals(done)
    assert files(tmp_path) == files(out)


def start(root, out, **more):
    "The same run in a process of its own, started from a script without a guard"
    script = out.with_name(f'{out.name}.py')
    script.write_text(f'from madd.faces import extract\nextract({str(root/"videos.parquet")!r}, {str(out)!r}, workers=2, **{SETTINGS!r})\n')
    return subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE)


def kill_when(job, ready):
    "SIGKILL the run as soon as `ready()`; its workers must not outlive it"
    limit = time.time() + 90
    while not ready() and job.poll() is None and time.time() < limit: time.sleep(.001)
    assert job.poll() is None, job.stderr.read()
    family = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGKILL); job.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, 'workers go on after their run was killed'


def test_killed_and_resumed(root, undisturbed, tmp_path):
    "SIGKILL in the middle of the work; whatever lay half finished must not show in the result"
    done, ref = undisturbed
    out = tmp_path/'out'
    parts = lambda: len(list(out.glob('parts/**/*.json')))
    kill_when(start(root, out), lambda: parts() >= 2)
    assert 2 <= parts() < N_CLIPS and not (out/'manifest.parquet').exists()
    before = {p: p.stat().st_mtime_ns for p in out.glob('parts/**/*.json')}
    assert extract(root/'videos.parquet', out, **SETTINGS).equals(done)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())                   # finished clips were kept
    assert files(out) == files(ref)                                                    # nothing missing, nothing left over
    assert (out/'manifest.parquet').read_bytes() == (ref/'manifest.parquet').read_bytes()


def test_killed_again_and_again(root, undisturbed, tmp_path):
    "One folder, killed at its first file, at its first crop, half-way and at the last clip"
    done, ref = undisturbed
    out, n = tmp_path/'out', lambda what: len(list(out.glob(f'{what}/**/*.*')))
    for ready in (lambda: (out/'extract.json').exists(), lambda: n('crops') >= 1, lambda: n('parts') >= 4, lambda: n('parts') >= N_CLIPS - 1): kill_when(start(root, out), ready)
    assert extract(root/'videos.parquet', out, **SETTINGS).equals(done)
    assert files(out) == files(ref)
    assert (out/'manifest.parquet').read_bytes() == (ref/'manifest.parquet').read_bytes()


def workers():
    "The processes that read clips: children of the server that forks them, so two generations below us. Not `active_children`, which would take their exit codes from whoever waits for them"
    try: return [w for server in psutil.Process().children() for w in server.children()]
    except psutil.NoSuchProcess: return []


class Hunter(threading.Thread):
    "Sends a signal to the worker that has started on clip 3: once, or whenever there is a new worker"
    def __init__(self, out, sig, always):
        super().__init__(daemon=True)
        self.out, self.sig, self.always, self.hit, self.over = out, sig, always, set(), False
    def run(self):
        clip, part = self.out/'crops/toy/Oval/c23/003', self.out/'parts/toy/Oval/c23/003.json'
        while not self.over:
            begun = clip.is_dir() and any(clip.iterdir()) and not part.exists()
            for p in workers() if begun else ():                                       # it is asked about the part again: finding the workers takes a while
                if not part.exists() and p.pid not in self.hit and (self.always or not self.hit):
                    with contextlib.suppress(ProcessLookupError): os.kill(p.pid, self.sig); self.hit.add(p.pid)
            time.sleep(.001)


def hunt(root, out, sig, always, **more):
    hunter = Hunter(out, sig, always); hunter.start()
    try: return extract(root/'videos.parquet', out, workers=1, **SETTINGS, **more), hunter
    finally: hunter.over = True; hunter.join()


def test_a_worker_that_is_killed_once_is_replaced(root, undisturbed, tmp_path):
    done, hunter = hunt(root, tmp_path, signal.SIGKILL, always=False)
    assert len(hunter.hit) == 1 and done.equals(undisturbed[0]) and files(tmp_path) == files(undisturbed[1])


@pytest.mark.parametrize('sig, more, why', [(signal.SIGKILL, {}, 'dies (SIGKILL)'), (signal.SIGSTOP, dict(timeout=3.), 'longer than the limit of 3 seconds')])
def test_a_file_that_kills_or_stops_its_worker_costs_its_own_row(root, undisturbed, tmp_path, sig, more, why):
    done, hunter = hunt(root, tmp_path, sig, always=True, **more)
    ref, other = undisturbed[0], done.video != 'toy/Oval/c23/003'
    assert why in done.reason[~other].item() and done.frame[~other].item() == -1
    assert done[other].reset_index(drop=True).equals(ref[ref.video != 'toy/Oval/c23/003'].reset_index(drop=True))
    assert not list((tmp_path/'crops/toy/Oval/c23/003').glob('*'))                     # nothing half done is left
    assert extract(root/'videos.parquet', tmp_path, **SETTINGS).equals(ref)            # next time it is tried again
    assert files(tmp_path) == files(undisturbed[1])


def test_more_clips_later(root, undisturbed, tmp_path):
    "A manifest that grew: old clips are kept, the result is that of the whole"
    videos = read_manifest(root/'videos.parquet').assign(path=lambda d: [str(root/p) for p in d.path], mask=lambda d: [str(root/m) if m else '' for m in d['mask']])
    few = extract(videos[:2], tmp_path, **SETTINGS)
    both = extract(videos[:4], tmp_path, **SETTINGS)
    assert len(few) == 2*N_FRAMES and both[:2*N_FRAMES].equals(few)
    new_split = extract(videos[:2].assign(split='test'), tmp_path, **SETTINGS)             # what the manifest says is taken from the manifest
    assert (new_split.split == 'test').all() and new_split.crop.equals(few.crop)
    assert extract(few, tmp_path, **SETTINGS).equals(few)                              # a manifest of crops is a manifest of its videos


def test_bad_files_have_reasons(root, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path/'text.mp4').write_text('no'); (tmp_path/'empty.jpg').touch()
    save_image(tmp_path/'noise.png', rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    data = (root/'000.mp4').read_bytes(); (tmp_path/'cut.mp4').write_bytes(data[:len(data)*7//10])
    write_video(tmp_path/'leaves.mp4', [place(1.1, 128 + 30*max(0, i - 4), 128) for i in range(12)])   # the face leaves the frame
    names = ['text.mp4', 'empty.jpg', 'noise.png', 'cut.mp4', 'leaves.mp4', 'gone.mp4']
    videos = pd.DataFrame([video_row(tmp_path/n, 0, 'bad', mask=tmp_path/'no_mask.png' if n == 'leaves.mp4' else '') for n in names])
    with pytest.warns(UserWarning): done = extract(videos, tmp_path/'out', size=96, n_frames=6)
    said = {n: done[done.path.str.endswith(n)] for n in names}
    for n, why in [('text.mp4', 'not a clip'), ('empty.jpg', 'empty'), ('gone.mp4', 'no such file')]:
        assert len(said[n]) == 1 and why in said[n].reason.item() and said[n].frame.item() == -1
    assert said['noise.png'].reason.item() == 'no face was found' and said['noise.png'].frame.item() == 0
    assert (said['cut.mp4'].crop != '').sum() >= 5
    assert said['leaves.mp4'].reason.tolist()[:2] == ['', ''] and said['leaves.mp4'].reason.tolist()[-1] == 'no face was found'
    assert (said['leaves.mp4'].mask_crop == '').all()
    bad = done[done.reason != '']
    assert (bad.crop == '').all() and bad[['x0', 'lx0', 'score']].isna().all(axis=None)
    write_video(tmp_path/'text.mp4', [place(1.1, 128, 128)]*3)                                          # mended meanwhile
    again = extract(videos, tmp_path/'out', size=96, n_frames=6)
    assert (again[again.path.str.endswith('text.mp4')].reason == '').all()


def test_folder_without_faces(tmp_path):
    for k in range(3): save_image(tmp_path/f'{k}.png', np.full((100, 150, 3), 60*k, np.uint8))
    done = extract(pd.DataFrame([video_row(tmp_path/f'{k}.png', 0) for k in range(3)]), tmp_path/'out')
    assert (done.reason == 'no face was found').all() and (done.crop == '').all() and len(done) == 3


def test_settings_are_not_mixed(root, tmp_path):
    videos = read_manifest(root/'videos.parquet')[:1].assign(path=str(root/'000.mp4'))
    extract(videos, tmp_path, size=96, n_frames=2)
    for other in (dict(size=100, n_frames=2), dict(size=96, n_frames=3), dict(size=96, n_frames=2, margin=.5), dict(size=96, n_frames=2, quality=90)):
        with pytest.raises(UserError, match='other settings'): extract(videos, tmp_path, **other)
    jpeg = extract(videos, tmp_path/'jpeg', size=96, n_frames=2, quality=90)
    assert jpeg.crop.str.endswith('.jpg').all()


def test_two_people_the_same_one_is_followed(tmp_path):
    "The second face grows larger than the first; the crops stay with the first"
    def scene(i):
        small = place(.8, 70, 128)
        return np.where(np.arange(256)[None, :, None] < 128, small, np.roll(place(.7 + .03*i, 66, 128), 128, 1))
    write_video(tmp_path/'two.mp4', [scene(i) for i in range(10)])
    done = extract(pd.DataFrame([video_row(tmp_path/'two.mp4', 0)]), tmp_path/'out', size=96, n_frames=10)
    last = list(FaceDetector()(scene(9)))
    assert len(last) == 2 and last[0].box[0] > 128              # by size alone it would be the second
    assert (done.x1 < 140).all()


# ---- several faces --------------------------------------------------------------------------------------------------------

def pair(i, left=.9, right=.7):
    "Two people side by side, 512 x 256; both move"
    return np.concatenate([place(left, 128 + 5*np.sin(i/2), 128), place(right, 128, 128 + 6*np.cos(i/2))], 1)


@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    "Two people; the mask is on the right and smaller one, or empty, or absent"
    root, rows = tmp_path_factory.mktemp('crowd'), []
    oval = cv2.ellipse(np.zeros((256, 512), np.uint8), (384, 128), (30, 42), 0, 0, 360, 255, -1)
    write_video(root/'two.mp4', [pair(i) for i in range(16)])
    for name, mask in [('right', oval), ('empty', oval*0), ('half', cv2.resize(oval, (256, 128), interpolation=cv2.INTER_AREA))]: write_video(root/f'{name}.mp4', [mask]*16)
    for name in ('right', 'empty', 'half', ''): rows.append(video_row(root/'two.mp4', int(name in ('right', 'half')), 'crowd', name=name or 'none', mask=root/f'{name}.mp4' if name else ''))
    return pd.DataFrame(rows)


def test_all_faces_have_a_row_and_a_track(crowd, tmp_path):
    done = extract(crowd[:1], tmp_path, size=96, n_frames=8, faces='all')
    assert len(done) == 16 and done.groupby('frame').track.apply(list).tolist() == [[0, 1]]*8 and done.crop.is_unique
    assert (done[done.track == 0].x1 < 256).all() and (done[done.track == 1].x0 > 256).all()
    assert all(read_image(tmp_path/c).shape == (96, 96, 3) for c in done.crop)
    ink = done.groupby('track').mask_crop.apply(lambda m: np.mean([read_image(tmp_path/f).mean() for f in m]))
    assert ink[0] < 2 and ink[1] > 30
    assert extract(done, tmp_path, size=96, n_frames=8, faces='all').equals(done)              # finished, and a manifest of its own videos
    with pytest.raises(UserError, match='faces was'): extract(crowd[:1], tmp_path, size=96, n_frames=8)


def test_people_who_come_and_go(tmp_path):
    "Track 1 leaves and comes back; a third person appears late"
    blank = np.full((256, 256, 3), 90, np.uint8)
    def scene(i): return np.concatenate([place(.9, 128, 128), blank if 4 <= i < 7 else place(.7, 128, 128), place(.8, 128, 128) if i >= 5 else blank], 1)
    write_video(tmp_path/'three.mp4', [scene(i) for i in range(10)])
    done = extract(pd.DataFrame([video_row(tmp_path/'three.mp4', 0)]), tmp_path/'out', size=64, n_frames=10, faces='all')
    place_of = done.groupby('track').x0.agg(lambda x: int(x.mean()//256))
    assert place_of.to_dict() == {0: 0, 1: 1, 2: 2} and done.groupby('track').frame.apply(list).tolist() == [list(range(10)), [0, 1, 2, 3, 7, 8, 9], [5, 6, 7, 8, 9]]


def test_the_mask_chooses(crowd, tmp_path):
    "The smaller, forged face where a mask says so; else the largest, and the row says which it was"
    with pytest.warns(UserWarning, match='2 of 4 videos have no mask'): done = extract(crowd, tmp_path, size=96, n_frames=4, faces='mask')
    name = done.video.str.rpartition('/')[2]
    assert len(done) == 16 and (done.chosen[name.isin(['right', 'half'])] == 'mask').all() and (done.chosen[name.isin(['empty', 'none'])] == 'largest').all()
    assert (done.x0[done.chosen == 'mask'] > 256).all() and (done.x1[done.chosen == 'largest'] < 256).all()


# ---- what it costs, and where it writes -----------------------------------------------------------------------------------

def repeat_clip(path, frames, times):
    "A clip that plays `frames` over and over, made without encoding them more than once"
    once = write_video(path.with_name('once.mp4'), frames, preset='ultrafast')
    with av.open(str(once)) as box: packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in box.demux(video=0) if p.size]
    with av.open(str(once)) as box, av.open(str(path), 'w') as out:
        stream, base = out.add_stream_from_template(box.streams.video[0]), box.streams.video[0].time_base
        for k in range(times):
            for data, pts, dts, key in packets:
                p = av.Packet(data); at = k*len(packets)*round(1/(25*base))
                p.stream, p.time_base, p.is_keyframe, p.pts, p.dts = stream, base, key, pts + at, dts + at
                out.mux(p)
    return path


PEAK = """
import json, resource, sys, tracemalloc
import psutil
from madd.extract import Cut, _detector, _extract_one
from pathlib import Path
_detector()
_extract_one(sys.argv[1], sys.argv[1], Path(sys.argv[3]), 'warm', Cut(64, 4), _detector())
tracemalloc.start()
before = psutil.Process().memory_info().rss
rows = _extract_one(sys.argv[2], sys.argv[2], Path(sys.argv[3]), 'x', Cut(64, 4), _detector())
print(json.dumps([len(rows), tracemalloc.get_traced_memory()[1], psutil.Process().memory_info().rss - before]))
"""


def test_memory_does_not_grow_with_the_clip(tmp_path):
    "A clip of ten seconds and one of ten minutes, each with a mask of the same length: the same peak"
    import json
    frames = [np.roll(astronaut()[40:200, 146:306], i, 1) for i in range(25)]
    short, long = repeat_clip(tmp_path/'short.mp4', frames, 10), repeat_clip(tmp_path/'long.mp4', frames, 600)
    def peak(clip): return json.loads(subprocess.run([sys.executable, '-c', PEAK, short, clip, tmp_path/'out'], capture_output=True, check=True, timeout=120).stdout)
    (n, python, _), (m, python_long, grown) = peak(short), peak(long)
    assert n == m == 4
    assert python_long < python + 200_000, (python, python_long)           # what Python holds: 15,000 frame numbers alone would be more
    assert grown < 20e6, grown                                             # and FFmpeg: only the container's own index grows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=300), min_size=2, max_size=5, unique=True))
def test_no_key_leads_out_of_the_folder_and_no_two_share_one(keys):
    names = [_folder(k) for k in keys]
    assert len(set(names)) == len(keys)
    for n in names:
        assert all(p and p not in ('.', '..') and len(p) <= 100 and p.isascii() for p in n.split('/')) and not n.startswith('/')


def test_links_out_of_the_folder_are_not_followed(root, tmp_path):
    (tmp_path/'out').mkdir(); (tmp_path/'elsewhere').mkdir(); (tmp_path/'out/crops').symlink_to(tmp_path/'elsewhere')
    with pytest.raises(UserError, match='through a link'): extract(root/'videos.parquet', tmp_path/'out', **SETTINGS)
    assert not list((tmp_path/'elsewhere').iterdir())


def test_source_that_is_a_loop_of_links(tmp_path):
    (tmp_path/'a.mp4').symlink_to(tmp_path/'b.mp4'); (tmp_path/'b.mp4').symlink_to(tmp_path/'a.mp4')
    done = extract(pd.DataFrame([video_row(tmp_path/'a.mp4', 0)]), tmp_path/'out')
    assert len(done) == 1 and done.reason.item() and done.crop.item() == ''


def test_a_download_that_went_on_is_done_again(root, tmp_path):
    whole = (root/'000.mp4').read_bytes(); (tmp_path/'x.mp4').write_bytes(whole[:len(whole)*7//10])
    videos = pd.DataFrame([video_row(tmp_path/'x.mp4', 0)])
    with pytest.warns(UserWarning, match='cut short'): cut = extract(videos, tmp_path/'out', size=96, n_frames=6)
    (tmp_path/'x.mp4').write_bytes(whole)
    assert not extract(videos, tmp_path/'out', size=96, n_frames=6).equals(cut)


def test_progress_tells_faces(root, tmp_path, monkeypatch):
    import madd.extract
    said = []
    class Bar:
        def __enter__(self): return self
        def __exit__(self, *a): pass
        def set_postfix(self, faces, refresh): said.append(faces)
        def update(self): pass
    monkeypatch.setattr(madd.extract, 'progress', lambda total, desc: said.append(total) or Bar())
    extract(root/'videos.parquet', tmp_path, **SETTINGS)
    assert said[0] == N_CLIPS and said[-1] == N_CLIPS*N_FRAMES and said[1:] == sorted(said[1:])


def test_wrong_settings_are_sentences(root, tmp_path):
    for wrong in (dict(size=2), dict(n_frames=0), dict(margin=-1), dict(quality=101), dict(faces='both'), dict(engine='steam')):
        with pytest.raises(UserError): extract(root/'videos.parquet', tmp_path/'out', **wrong)
    assert not (tmp_path/'out').exists()


def test_the_old_name_still_works(): assert madd.faces.extract is not extract and 'extract' in madd.faces.__all__
