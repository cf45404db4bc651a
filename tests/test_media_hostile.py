"Files nobody should send, and clips that must come out the same everywhere"
import os, pickle, struct, subprocess, sys, warnings, zlib
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from skimage.data import astronaut

from madd.core import UserError
from madd.extract import Cut, Guard, _in_worker, extract, guarded
from madd.manifest import video_row
from madd.media import BadMedia, compress, find_media, read_frames, read_image, save_image, video_info, write_video


@pytest.fixture(scope='module')
def face(): return np.ascontiguousarray(astronaut()[:256, 96:352])


@pytest.fixture(scope='module')
def clip(tmp_path_factory, face):
    "Thirty frames of 256 x 192 at crf 23"
    path = tmp_path_factory.mktemp('clip')/'clip.mp4'
    return write_video(path, [np.roll(face, 3*i, 1)[:192] for i in range(30)])


def refused(read, path):
    "The sentence with which `path` is refused; fails when it is accepted or crashes"
    with pytest.raises(BadMedia) as e, warnings.catch_warnings():
        warnings.simplefilter('error')
        read(path)
    said = str(e.value)
    assert said.startswith(f'Cannot read {path}: ') and said.endswith('.') and '\n' not in said and 'Traceback' not in said
    assert str(pickle.loads(pickle.dumps(e.value))) == said
    return said


def frames(path): return list(read_frames(path))


# ---- pictures -------------------------------------------------------------------------------------------------------------

def test_missing_empty_folder(tmp_path):
    (tmp_path/'empty.jpg').touch(); (tmp_path/'folder.jpg').mkdir()
    for read in (read_image, frames, video_info):
        assert 'no such file' in refused(read, tmp_path/'nowhere.jpg')
        assert 'empty' in refused(read, tmp_path/'empty.jpg')
        assert 'folder' in refused(read, tmp_path/'folder.jpg')


def test_names_with_spaces_unicode_and_nul(tmp_path, face):
    path = save_image(tmp_path/'a b'/'Gesicht äöü 人.png', face)
    assert (read_image(path) == face).all()
    refused(read_image, 'with\0nul.png')


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.gif', '.webp', '.bmp', '.tif'])
def test_truncated_at_every_tenth(tmp_path, face, suffix):
    whole = tmp_path/f'whole{suffix}'
    Image.fromarray(face).save(whole)
    data = whole.read_bytes()
    for tenth in range(1, 10):
        part = tmp_path/f'part{tenth}{suffix}'
        part.write_bytes(data[:len(data)*tenth//10])
        refused(read_image, part)


def test_random_damage_never_crashes(tmp_path, face):
    rng = np.random.default_rng(0)
    for suffix in ('.jpg', '.png', '.gif', '.tif'):
        whole = tmp_path/f'whole{suffix}'; Image.fromarray(face).save(whole)
        for k in range(15):
            data = bytearray(whole.read_bytes())
            for at in rng.integers(0, len(data), 20): data[at] = rng.integers(256)
            bad = tmp_path/f'bad{k}{suffix}'; bad.write_bytes(data)
            try: rgb = read_image(bad)
            except BadMedia: continue
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


def test_wrong_ending_is_read_by_content(tmp_path, face):
    Image.fromarray(face).save(tmp_path/'x.png'); (tmp_path/'x.png').rename(tmp_path/'x.jpg')
    assert (read_image(tmp_path/'x.jpg') == face).all()
    (tmp_path/'text.png').write_text('hello'*100)
    assert 'not a picture' in refused(read_image, tmp_path/'text.png')


def bomb(path, side):
    "A PNG of side x side pixels in a few hundred bytes, without its data"
    chunk = lambda kind, body: struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b''))
    return path


def test_huge_is_refused_before_decoding(tmp_path, face):
    assert 'limit' in refused(read_image, bomb(tmp_path/'12k.png', 12_000))       # above our limit, below Pillow's
    assert 'limit' in refused(read_image, bomb(tmp_path/'60k.png', 60_000))       # above Pillow's
    assert 'limit' in refused(lambda p: read_image(p, max_pixels=1000), save_image(tmp_path/'small.png', face))


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'I', 'F'])
def test_every_mode_becomes_rgb(tmp_path, face, mode):
    base = Image.fromarray(face)
    if mode == 'I;16': im = Image.fromarray(np.asarray(base.convert('L')).astype(np.uint16)*257)
    elif mode == 'F': im = Image.fromarray(np.asarray(base.convert('L'))/np.float32(255))
    elif mode == 'I': im = Image.fromarray(np.asarray(base.convert('L')).astype(np.int32)*257)
    else: im = base.convert(mode)
    path = tmp_path/('x.tif' if mode in ('CMYK', 'YCbCr', 'F', 'I') else 'x.png')
    im.save(path, **({'compression': 'tiff_lzw'} if mode == 'YCbCr' else {}))   # Pillow 12 cannot read back its own uncompressed one
    rgb = read_image(path)
    assert rgb.shape == (256, 256, 3) and rgb.dtype == np.uint8 and rgb.flags.writeable
    look = lambda a: np.asarray(Image.fromarray(a).convert('L').resize((16, 16), Image.Resampling.BOX)).astype(int)   # dithering averages out
    assert np.abs(look(rgb) - look(face)).mean() < 6


def test_sixteen_bit_colour(tmp_path, face):
    import cv2
    cv2.imwrite(str(tmp_path/'x.png'), face[..., ::-1].astype(np.uint16)*257)
    assert (read_image(tmp_path/'x.png') == face).all()


def test_transparent_palette_lies_on_white(tmp_path):
    im = Image.new('P', (8, 8), 0); im.putpalette([200, 0, 0, 0, 200, 0]); im.putpixel((3, 3), 1)
    im.save(tmp_path/'x.png', transparency=0)
    rgb = read_image(tmp_path/'x.png')
    assert (rgb[0, 0] == 255).all() and tuple(rgb[3, 3]) == (0, 200, 0)


def test_broken_exif_is_no_reason_to_refuse(tmp_path, face):
    Image.fromarray(face).save(tmp_path/'x.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(range(40)))
    assert read_image(tmp_path/'x.jpg').shape == face.shape


def test_save_image_leaves_nothing_half(tmp_path, face):
    with pytest.raises(UserError): save_image(tmp_path/'x.bmp', face)
    with pytest.raises(UserError): save_image(tmp_path/'x.png', face.astype(float))
    assert list(tmp_path.iterdir()) == []


# ---- clips ----------------------------------------------------------------------------------------------------------------

def test_not_a_clip(tmp_path):
    (tmp_path/'text.mp4').write_text('not a clip'); (tmp_path/'zeros.mp4').write_bytes(bytes(5000))
    for name in ('text.mp4', 'zeros.mp4'):
        for read in (video_info, frames): assert 'not a clip' in refused(read, tmp_path/name)


def test_sound_only(tmp_path):
    with av.open(str(tmp_path/'sound.mp4'), 'w') as box:
        s = box.add_stream('aac', rate=16000); s.layout = 'mono'
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format='fltp', layout='mono'); f.sample_rate = 16000
        box.mux(s.encode(f)); box.mux(s.encode())
    assert 'only sound' in refused(frames, tmp_path/'sound.mp4')


def test_header_without_frames(tmp_path, clip):
    data = clip.read_bytes()
    (tmp_path/'head.mp4').write_bytes(data[:data.index(b'mdat') + 8])
    assert 'not a single whole frame' in refused(frames, tmp_path/'head.mp4')


@pytest.mark.parametrize('suffix', ['.mp4', '.mkv'])
def test_cut_short_gives_good_frames_and_says_so(tmp_path, face, suffix):
    whole = write_video(tmp_path/f'whole{suffix}', [np.roll(face, 3*i, 1) for i in range(40)])
    (tmp_path/f'cut{suffix}').write_bytes(whole.read_bytes()[:-whole.stat().st_size//4])
    good = {round(25*t): rgb for _, t, rgb in read_frames(whole)}
    assert video_info(tmp_path/f'cut{suffix}').damaged and not video_info(whole).damaged
    with pytest.warns(UserWarning, match='cut short or damaged'): some = frames(tmp_path/f'cut{suffix}')
    assert 5 < len(some) < 40 and some[0][1] == 0
    for _, t, rgb in some: assert (rgb == good[round(25*t)]).all()          # what is handed out is untouched
    with pytest.raises(BadMedia, match='1 of 2 wanted frames'): list(read_frames(tmp_path/f'cut{suffix}', [0, 39], strict=True))


def test_random_damage_is_the_same_every_time(tmp_path, clip):
    rng = np.random.default_rng(0)
    for k in range(6):
        data = bytearray(clip.read_bytes()); start = data.index(b'mdat') + 8
        for at in rng.integers(start, len(data), 10): data[at] ^= 255
        bad = tmp_path/f'{k}.mp4'; bad.write_bytes(data)
        def attempt():
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try: return [(i, rgb.tobytes()) for i, _, rgb in read_frames(bad)]
                except BadMedia as e: return str(e)
        assert attempt() == attempt()


@pytest.mark.parametrize('degrees, quarter_turns', [(90, 1), (-90, 3), (180, 2)])
def test_phone_clips_stand_upright(tmp_path, face, degrees, quarter_turns):
    path = tmp_path/'phone.mp4'
    with av.open(str(path), 'w') as box:
        s = box.add_stream('libx264', rate=25); s.width, s.height, s.pix_fmt = 256, 192, 'yuv420p'
        if not hasattr(s, 'set_display_rotation'): pytest.skip('this PyAV cannot write a rotation')
        s.set_display_rotation(degrees)
        box.mux(s.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(face[:192]), format='rgb24'))); box.mux(s.encode())
    (_, _, rgb), = read_frames(path)
    upright = np.rot90(face[:192], quarter_turns)
    assert rgb.shape == upright.shape and np.abs(rgb.astype(int) - upright).mean() < 5


@pytest.mark.parametrize('n', [1, 2, 3])
def test_very_short_clips(tmp_path, face, n):
    path = write_video(tmp_path/'short.mp4', [face]*n)
    assert video_info(path).frames == n and len(list(read_frames(path, 8))) == n and len(compress([face]*n, 40)) == n


@pytest.mark.parametrize('h, w', [(2, 2), (33, 47), (100, 101), (256, 300)])
def test_odd_and_tiny_sizes(tmp_path, h, w):
    frame = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    path = write_video(tmp_path/'x.mp4', [frame]*3)
    info = video_info(path)
    assert (info.height, info.width) == (h + h % 2, w + w % 2)
    assert [f.shape for f in compress([frame]*3)] == [(h, w, 3)]*3


def test_failed_writing_leaves_the_old_file(tmp_path, face):
    path = write_video(tmp_path/'x.mp4', [face]); before = path.read_bytes()
    def stops():
        yield face
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): write_video(path, stops())
    with pytest.raises(UserError): write_video(path, [face, face[:9]])
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ['x.mp4']


RUBBISH = '''
import hashlib, sys
import numpy as np
from skimage.data import astronaut
from madd.media import compress, write_video
a, h = astronaut(), hashlib.sha256()
for side in (128, 144, 224, 302):
    write_video(sys.argv[1], [np.roll(a, i, 1)[:side, 100:100+side] for i in range(24)])
    h.update(open(sys.argv[1], 'rb').read())
print(h.hexdigest())
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='MALLOC_PERTURB_ belongs to the C library of Linux')
def test_bytes_do_not_depend_on_what_lay_in_memory(tmp_path):
    run = lambda k: subprocess.Popen([sys.executable, '-c', RUBBISH, str(tmp_path/f'{k}.mp4')], stdout=subprocess.PIPE,
                                     env={**os.environ, 'MALLOC_PERTURB_': str(k)})
    said = [p.communicate()[0] for p in [run(k) for k in (1, 170)]]
    assert said[0] == said[1] and len(said[0]) > 60


# ---- finding --------------------------------------------------------------------------------------------------------------

def test_find_media(tmp_path, face):
    save_image(tmp_path/'b.png', face); save_image(tmp_path/'deep/er/a.jpg', face); (tmp_path/'._b.png').touch(); (tmp_path/'notes.txt').touch()
    assert [p.name for p in find_media(tmp_path)] == ['b.png', 'a.jpg']
    assert find_media([tmp_path, tmp_path/'b.png', str(tmp_path/'*.png')]) == find_media(tmp_path)
    for nothing in (tmp_path/'no', tmp_path/'*.mp4', []):
        with pytest.raises(UserError): find_media(nothing)


# ---- all of it at once, through extraction --------------------------------------------------------------------------------

def clip_of(path, frames, codec='libx264', pix_fmt='yuv420p', times=None, degrees=0):
    "A clip by hand: any times, any depth, any rotation"
    with av.open(str(path), 'w') as box:
        s = box.add_stream(codec, rate=25); s.height, s.width, s.pix_fmt = *frames[0].shape[:2], pix_fmt
        if times: s.codec_context.time_base = s.time_base = Fraction(1, 1000)
        if degrees: s.set_display_rotation(degrees)
        for k, rgb in enumerate(frames):
            f = av.VideoFrame.from_ndarray(rgb, format='rgb24')
            if times: f.pts, f.time_base = times[k], Fraction(1, 1000)
            box.mux(s.encode(f))
        box.mux(s.encode())
    return path


@pytest.fixture(scope='module')
def zoo(tmp_path_factory, face, clip):
    "name -> (file, rows expected, crops expected, what the reason must say)"
    d = tmp_path_factory.mktemp('zoo')
    frames = [np.roll(face, 2*i, 1) for i in range(12)]
    whole = write_video(d/'whole.mp4', frames*4).read_bytes()
    (d/'cut.mp4').write_bytes(whole[:len(whole)*9//10]); (d/'zero.mp4').touch(); (d/'text.mp4').write_text('not a clip'); os.mkfifo(d/'pipe.mp4')
    (d/'folder.mp4').mkdir(); Image.fromarray(face).save(d/'ok.png')
    return {name: (d/name, *rest) for name, rest in {
        'one.mp4': (write_video(d/'one.mp4', frames[:1]), 1, 1, ''),
        'vfr.mp4': (clip_of(d/'vfr.mp4', frames, times=[0, 10, 20, 500, 510, 2000, 2010, 2020, 2900, 4000, 4001, 6000]), 6, 6, ''),
        'turned.mp4': (clip_of(d/'turned.mp4', [np.ascontiguousarray(np.rot90(f, -1)) for f in frames], degrees=90), 6, 6, ''),
        'hdr.mp4': (clip_of(d/'hdr.mp4', frames, pix_fmt='yuv420p10le'), 6, 6, ''),
        'hevc.mp4': (clip_of(d/'hevc.mp4', frames, codec='libx265', pix_fmt='yuv420p10le'), 6, 6, ''),
        'ok.png': (0, 1, 1, ''),
        'cut.mp4': (0, 6, 6, ''),
        'zero.mp4': (0, 1, 0, 'empty'), 'text.mp4': (0, 1, 0, 'not a clip'), 'pipe.mp4': (0, 1, 0, 'not an ordinary file'), 'folder.mp4': (0, 1, 0, 'folder'),
        'gone.mp4': (0, 1, 0, 'no such file'), 'bomb.png': (bomb(d/'bomb.png', 60_000), 1, 0, 'limit')}.items() for rest in [rest[1:]]}


@pytest.fixture(scope='module')
def extracted(zoo, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return extract(pd.DataFrame([video_row(f, 0, 'zoo', name=n) for n, (f, *_) in zoo.items()]), tmp_path_factory.mktemp('out'), size=96, n_frames=6)


@pytest.mark.parametrize('name', ['one.mp4', 'vfr.mp4', 'turned.mp4', 'hdr.mp4', 'hevc.mp4', 'ok.png', 'cut.mp4', 'zero.mp4', 'text.mp4', 'pipe.mp4', 'folder.mp4', 'gone.mp4', 'bomb.png'])
def test_extraction_takes_it_or_says_why(zoo, extracted, name):
    _, rows, crops, why = zoo[name]
    mine = extracted[extracted.video == f'zoo/original/asis/{name}']
    assert len(mine) == rows and ((mine.crop == '') == (mine.reason != '')).all()
    assert (mine.crop != '').sum() == crops
    assert all(why in r for r in mine.reason if r) and (why == '' or (mine.reason != '').any())
    if name == 'vfr.mp4': assert mine.seconds.tolist() == pytest.approx([0, .02, .51, 2.02, 2.9, 6.][:1] + mine.seconds.tolist()[1:]) and mine.seconds.is_monotonic_increasing and mine.seconds.iloc[-1] == pytest.approx(6., abs=.01)
    if name in ('turned.mp4', 'hdr.mp4', 'hevc.mp4'):                                  # upright: the eyes are level and above the mouth
        assert ((mine.ly0 - mine.ly1).abs() < .2*(mine.lx1 - mine.lx0)).all() and (mine.ly3 > mine.ly0).all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.floats(.05, 1), flips=st.lists(st.tuples(st.floats(0, .999), st.integers(1, 255)), max_size=12))
def test_damaged_clips_give_rows_and_nothing_else(clip, worker, tmp_path_factory, keep, flips):
    "Cut anywhere, with any bytes changed: the worker answers, and every row has a crop or a reason"
    data = bytearray(clip.read_bytes()); data = data[:max(1, int(len(data)*keep))]
    for at, x in flips: data[int(at*len(data))] ^= x
    bad = tmp_path_factory.getbasetemp()/'damaged.mp4'; bad.write_bytes(data)
    rows, reason, _ = guarded(worker, _in_worker, (str(bad), '', str(bad.with_name('damaged')), 'x', asdict(Cut(64, 5))), 60)
    assert (rows is None) == bool(reason)
    for r in rows or []: assert bool(r['crop']) != bool(r['reason'])


@pytest.fixture(scope='module')
def worker():
    guard = Guard()
    yield guard
    guard.close()
