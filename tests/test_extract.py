"Extraction of a whole folder: killed and resumed, with bad files among good ones, with one worker or two"
import os, signal, subprocess, sys, time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from skimage.data import astronaut

from madd.core import UserError
from madd.faces import FaceDetector, align_matrix, extract, template, to_crop
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


def test_killed_and_resumed(root, undisturbed, tmp_path):
    "SIGKILL in the middle of the work; whatever lay half finished must not show in the result"
    done, out = undisturbed
    code = f'from madd.faces import extract; extract({str(root/"videos.parquet")!r}, {str(tmp_path)!r}, workers=2, **{SETTINGS!r})'
    job = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE)
    parts, limit = lambda: len(list(tmp_path.glob('parts/**/*.json'))), time.time() + 60
    while parts() < 2 and job.poll() is None and time.time() < limit: time.sleep(.002)
    job.send_signal(signal.SIGKILL); job.wait()
    assert 2 <= parts() < N_CLIPS, (parts(), job.stderr.read())
    assert not (tmp_path/'manifest.parquet').exists()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob('parts/**/*.json')}
    assert extract(root/'videos.parquet', tmp_path, **SETTINGS).equals(done)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())                   # finished clips were kept
    assert files(tmp_path) == files(out)                                               # nothing missing, nothing left over


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
