"Bad files, bad folders and a full disk: always a sentence, never a traceback, never half a file"
import json, os, resource, struct, subprocess, sys, warnings, zlib
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(sys.executable).with_name('madd')
START = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, '-c', 'import sys; from madd.cli import main; sys.exit(main())']


def madd(*words, cwd, limit=None):
    "Run `madd words`; `limit` is the largest file the process may write, as a disk that fills"
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
    small = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None
    done = subprocess.run([*START, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, preexec_fn=small)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


def here(capsys, *words):
    "The same in this process, for what needs none of its own: (status, lines on stderr)"
    from madd.cli import main
    with warnings.catch_warnings(): status = main(list(map(str, words)))
    said = capsys.readouterr().err
    assert 'Traceback' not in said
    return status, said.splitlines()


@pytest.fixture(scope='module')
def faces():
    "A real face, and a clip of it"
    from skimage.data import astronaut
    return np.ascontiguousarray(astronaut()[:256, 96:352])


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A detector with random weights: these tests are about files, not about scores"
    import torch
    from madd.model import MADD
    torch.manual_seed(0)
    net = MADD('mobilenetv2_035', n_maps=2, pretrained=False)
    net.notes.update(size=64, margin=.3)
    folder = tmp_path_factory.mktemp('model')
    net.save(folder)
    return folder


def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def bomb(path, side=60000):
    "A tiny PNG that claims 3.6 gigapixels"
    head = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b''))

def sound_only(path):
    import av
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('aac', rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format='fltp', layout='mono')
        frame.rate, frame.sample_rate = 44100, 44100
        for packet in [*stream.encode(frame), *stream.encode()]: box.mux(packet)


@pytest.fixture(scope='module')
def zoo(tmp_path_factory, faces):
    "(folder, files that can be judged, files that cannot: a word of the reason)"
    import cv2
    from PIL import Image
    from madd.media import save_image, write_video
    d = tmp_path_factory.mktemp('zoo')
    pil = Image.fromarray(faces)
    grey = np.asarray(pil.convert('L'))

    save_image(d/'plain.png', faces)
    Image.fromarray(grey).save(d/'grey.png')
    pil.convert('RGBA').save(d/'rgba.png')
    pil.convert('CMYK').save(d/'cmyk.jpg', quality=95)
    pil.convert('P', palette=Image.Palette.ADAPTIVE).save(d/'palette.png')
    cv2.imwrite(str(d/'grey16.png'), grey.astype(np.uint16)*257)
    cv2.imwrite(str(d/'colour16.tif'), faces[..., ::-1].astype(np.uint16)*257)
    pil.save(d/'moving.gif', save_all=True, append_images=[pil.rotate(2), pil.rotate(4)], duration=40)
    pil.save(d/'moving.webp', save_all=True, append_images=[pil.rotate(2)], duration=40, quality=90)
    save_image(d/'name with $ and é.png', faces)
    turned = Image.Exif(); turned[0x0112] = 6
    pil.rotate(90, expand=True).save(d/'turned.jpg', exif=turned, quality=95)
    write_video(d/'clip.mp4', [np.roll(faces, t, 1) for t in range(6)])
    write_video(d/'single.mp4', [faces])
    good = {p.name for p in d.iterdir()}

    bad = {}
    def is_bad(name, word): bad[name] = word; return d/name
    is_bad('empty.jpg', 'empty').touch()
    is_bad('empty.mp4', 'empty').touch()
    is_bad('text.jpg', 'not a picture').write_text('hello')
    is_bad('noise.png', 'picture').write_bytes(np.random.default_rng(0).bytes(3000))
    whole = save_image(d/'whole.jpg', faces).read_bytes(); (d/'whole.jpg').unlink()
    is_bad('truncated.jpg', 'truncated').write_bytes(whole[:len(whole)//2])
    damaged = bytearray((d/'plain.png').read_bytes()); damaged[2000:4000] = bytes(2000)
    is_bad('damaged.png', '').write_bytes(bytes(damaged))
    bomb(is_bad('bomb.png', 'pixels'))
    save_image(is_bad('wall.png', 'no face'), np.full((200, 300, 3), 120, np.uint8))
    save_image(is_bad('dot.png', 'no face'), np.zeros((1, 1, 3), np.uint8))
    is_bad('noise.mp4', '').write_bytes(np.random.default_rng(1).bytes(5000))
    is_bad('text.mp4', '').write_text('this is not a film')
    movie = (d/'clip.mp4').read_bytes()
    is_bad('no_index.mp4', '').write_bytes(movie[:300])
    sound_only(is_bad('sound.mp4', 'sound'))
    write_video(is_bad('wall.mp4', 'no face'), [np.full((96, 96, 3), 90, np.uint8)]*3)
    return d, good, bad


@pytest.fixture(scope='module')
def judged(zoo, model, tmp_path_factory):
    d, good, bad = zoo
    out = tmp_path_factory.mktemp('judged')
    done = madd('predict', d, 'missing.png', '--model', model, '-o', out, '--frames', 3, '--json', '--device', 'cpu', cwd=out.parent)
    assert done.returncode == 0, done.stderr     # some could be judged; the others are listed
    return {Path(r['path']).name: r for r in map(json.loads, done.stdout.splitlines())}, out


def test_every_file_is_in_the_list(zoo, judged):
    _, good, bad = zoo
    assert set(judged[0]) == good | set(bad) | {'missing.png'}


def test_unusual_pictures_and_clips_are_read(zoo, judged):
    for name in zoo[1]:
        row = judged[0][name]
        assert row['probability'] is not None and 0 <= row['probability'] <= 1, (name, row['reason'])
        assert row['verdict'] in ('likely real', 'likely fake', 'uncertain')


def test_the_same_face_in_other_clothes_scores_alike(judged):
    "Lossless variants of one picture: the file format must not be what is judged"
    rows = judged[0]
    for name in ('rgba.png', 'colour16.tif', 'name with $ and é.png'):
        assert rows[name]['probability'] == pytest.approx(rows['plain.png']['probability'], abs=1e-4), name
    assert rows['grey16.png']['probability'] == pytest.approx(rows['grey.png']['probability'], abs=1e-4)


def test_bad_files_get_a_reason_and_never_a_number(zoo, judged):
    for name, word in zoo[2].items():
        row = judged[0][name]
        assert (row['verdict'], row['probability']) == ('no verdict', None), name
        assert row['reason'] and word in row['reason'], (name, row['reason'])
        assert len(row['reason']) < 160 and '\n' not in row['reason']
    assert 'no such file' in judged[0]['missing.png']['reason']


def test_output_is_whole(zoo, judged):
    rows, out = judged
    assert not [p for p in out.rglob('*') if '.part' in p.name]
    assert len((out/'predictions.jsonl').read_text().splitlines()) == len(rows)
    page = (out/'predictions.html').read_text()
    assert '</html>' in page[-20:] and 'no verdict' in page
    from PIL import Image
    for p in out.rglob('*.png'): Image.open(p).verify()
    assert all((out/'files'/rows[n]['figure']).is_file() for n in zoo[1])


def test_a_truncated_clip_is_judged_on_what_is_left_or_refused(faces, model, tmp_path):
    from madd.media import write_video
    rng = np.random.default_rng(0)
    frames = [np.clip(np.roll(faces, t, 1) + rng.normal(0, 6, faces.shape), 0, 255).astype(np.uint8) for t in range(20)]
    data = write_video(tmp_path/'whole.mp4', frames).read_bytes()
    (tmp_path/'cut.mp4').write_bytes(data[:int(len(data)*.6)])
    done = madd('predict', 'cut.mp4', '--model', model, '-o', 'out', '--frames', 8, '--json', '--device', 'cpu', cwd=tmp_path)
    if done.returncode == 2: assert 'cut.mp4' in done.stderr; return
    row = json.loads(done.stdout)
    assert row['notes'] and any('damaged' in n or 'not be' in n for n in row['notes']), row['notes']


def test_a_folder_without_faces(model, tmp_path):
    from madd.media import save_image
    for i in range(2): save_image(tmp_path/'walls'/f'{i}.png', np.full((120, 160, 3), 60 + 90*i, np.uint8))
    done = madd('predict', 'walls', '--model', model, '-o', 'out', '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 2 and 'None of the 2 files' in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stdout.count('no face') == 2 and (tmp_path/'out'/'predictions.jsonl').is_file()


@pytest.mark.parametrize('make', [lambda d: d.mkdir(), lambda d: None, lambda d: (d.mkdir(), (d/'notes.txt').write_text('x'))], ids=['empty', 'missing', 'no media'])
def test_nothing_to_judge(make, model, tmp_path, capsys):
    make(tmp_path/'in')
    status, said = here(capsys, 'predict', tmp_path/'in', '--model', model, '-o', tmp_path/'out', '--device', 'cpu')
    notes = [line for line in said if line.startswith('note: ')]
    assert status == 2 and 'could not be judged' in said[-1] and len(said) == 1 + len(notes)
    assert ['notes.txt' in n and 'name the file itself' in n for n in notes] == [True]*(tmp_path/'in'/'notes.txt').exists()     # what was passed over is named


def test_model_folders_that_are_none(model, tmp_path, faces, capsys, monkeypatch):
    from madd.media import save_image
    save_image(tmp_path/'face.png', faces)
    def says(name, word):
        status, said = here(capsys, 'predict', 'face.png', '--model', name, '-o', 'out', '--device', 'cpu')
        assert status == 2 and len(said) == 1 and word in said[0], said
        assert not (tmp_path/'out').exists()
    monkeypatch.chdir(tmp_path)
    (tmp_path/'empty').mkdir(); says('empty', 'config.json')
    (tmp_path/'pickle').mkdir(); (tmp_path/'pickle'/'model.pth').write_bytes(b'x'); says('pickle', 'pickle')
    (tmp_path/'cut').mkdir(); (tmp_path/'cut'/'config.json').write_bytes((model/'config.json').read_bytes())
    (tmp_path/'cut'/'model.safetensors').write_bytes((model/'model.safetensors').read_bytes()[:5000]); says('cut', 'safetensors')
    (tmp_path/'odd').mkdir(); (tmp_path/'odd'/'model.safetensors').write_bytes((model/'model.safetensors').read_bytes())
    (tmp_path/'odd'/'config.json').write_text('{"model": '); says('odd', 'config.json')


def test_folder_of_faces_that_cannot_be_used(tmp_path):
    (tmp_path/'faces').mkdir(); (tmp_path/'faces'/'a.jpg').write_text('no'); (tmp_path/'faces'/'b.png').touch()
    done = madd('forge', 'out', '--faces', 'faces', '--identities', 6, '--frames', 2, cwd=tmp_path)
    assert done.returncode == 2 and 'bug' not in done.stderr
    assert not list((tmp_path/'out').rglob('*.mp4'))


# ---- a disk that fills: no file may grow beyond a few kB, which is what the process notices when there is no room left

def whole_or_absent(folder):
    "Every file left behind can be read"
    from PIL import Image
    from madd.media import video_info
    for p in Path(folder).rglob('*'):
        assert '.part' not in p.name, p
        if p.suffix == '.json': json.loads(p.read_text())
        if p.suffix == '.mp4': assert video_info(p).frames > 0
        if p.suffix in ('.png', '.jpg'): Image.open(p).verify()


def full_then_free(words, cwd, limit):
    "The command fails with a sentence while the disk is full, and the same command succeeds afterwards"
    done = madd(*words, cwd=cwd, limit=limit)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert 'bug' not in done.stderr and any(w in done.stderr for w in ('space', 'room', 'larger')), done.stderr
    whole_or_absent(cwd)
    done = madd(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    whole_or_absent(cwd)


@pytest.fixture(scope='module')
def disk(tmp_path_factory): return tmp_path_factory.mktemp('disk')

def test_full_disk_forge(disk): full_then_free(('forge', 'set', '--identities', 6, '--frames', 2, '--size', 96, '--crf', 23), disk, 2000)
def test_full_disk_index(disk): full_then_free(('index', 'set', '-o', 'videos.parquet'), disk, 2000)
def test_full_disk_extract(disk): full_then_free(('extract', 'videos.parquet', 'crops', '--size', 64, '--frames', 1), disk, 3000)
def test_full_disk_train(disk): full_then_free(('train', 'crops', 'model', '--backbone', 'mobilenetv2_035', '--random', '--maps', 2, '--epochs', 1, '-b', 8, '--device', 'cpu'), disk, 20000)
def test_full_disk_evaluate(disk): full_then_free(('evaluate', 'model', '--data', 'crops', '-o', 'measured', '--device', 'cpu'), disk, 2000)
def test_full_disk_predict(disk): full_then_free(('predict', 'crops/crops/forge/original/c23', '--model', 'model', '-o', 'judged', '--device', 'cpu'), disk, 2000)


def test_read_only_output(disk, model, faces):
    from madd.media import save_image
    save_image(disk/'face.png', faces)
    (disk/'file').write_text('not a folder')
    done = madd('predict', 'face.png', '--model', model, '-o', 'file', '--device', 'cpu', cwd=disk)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (disk/'file').read_text() == 'not a folder'
