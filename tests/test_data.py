"Reading data sets as they come, keeping people apart, and batches that repeat. Every test is named after the mistake it prevents."
import functools, http.server, json, os, subprocess, sys, tarfile, threading, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from madd import data, datasets
from madd.core import FAKE, REAL, UserError
from madd.data import AUGMENTS, CropDataset, balance_classes, check_leaks, dataloaders, identity_split, index, read_crop
from madd.manifest import video_row, write_manifest
from madd.media import save_image

PAIRS = dict(train=[['000', '003'], ['001', '870']], val=[['002', '006']], test=[['007', '132']])
METHODS = ('Deepfakes', 'Face2Face', 'FaceSwap', 'NeuralTextures')


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture
def ff(tmp_path, monkeypatch):
    "A complete FF++ tree of empty files, four methods, raw under its other name c0; the official lists are as short as ours"
    monkeypatch.setattr(datasets, 'FF_PAIRS', {s: len(p) for s, p in PAIRS.items()})
    root = tmp_path/'FF'
    for c in ('c0', 'c23', 'c40'):
        for a, b in sum(PAIRS.values(), []):
            for n in (a, b): touch(root/f'original_sequences/youtube/{c}/videos/{n}.mp4')
            for m in METHODS:
                for x, y in ((a, b), (b, a)): touch(root/f'manipulated_sequences/{m}/{c}/videos/{x}_{y}.mp4')
    for s, p in PAIRS.items():
        touch(root/f'splits/{s}.json')
        (root/f'splits/{s}.json').write_text(json.dumps(p))
    return root


@pytest.fixture
def crops(tmp_path):
    "A manifest of random crops: 6 pairs of people, 2 frames per clip"
    rng, rows = np.random.default_rng(0), []
    for i in range(6):
        a, b = f'{2*i:03}', f'{2*i+1:03}'
        for name, label, m, src, tgt in ((a, REAL, 'original', '', a), (b, REAL, 'original', '', b), (f'{a}_{b}', FAKE, 'FaceSwap', b, a), (f'{b}_{a}', FAKE, 'FaceSwap', a, b),
                                         (f'{a}_{b}', FAKE, 'Deepfakes', b, a)):
            for f in range(2):
                crop = f'{m}_{name}_{f}.png'
                save_image(tmp_path/crop, rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
                rows.append(video_row(f'{name}.mp4', label, 'toy', m, 'c23', source=src, target=tgt) | dict(frame=f, crop=crop, margin=.3, size=40, reason=''))
    return identity_split(pd.DataFrame(rows), parts=(.5, .25, .25)), tmp_path


# A complete tree must not warn about anything, and c0 is raw.
def test_complete_tree_is_silent_and_c0_is_raw(ff):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        df = index(ff)
    assert sorted(df.compression.unique()) == ['c23', 'c40', 'raw'] and len(df) == 3*8*(1 + 4)
    assert df.video.is_unique and (df.split != '').all()


# Four manipulations and three compressions of one name are twelve videos, not one.
def test_manipulations_of_one_name_are_not_merged(ff):
    df = index(ff)
    same = df[df.video.str.endswith('/000_003')]
    assert len(same) == 12 and same.video.nunique() == 12


# DeepFakeDetection lies in the same tree, has other names and no official split: it must not be read as FF++.
def test_deepfakedetection_is_not_read_as_ff(ff):
    before = index(ff)
    touch(ff/'manipulated_sequences/DeepFakeDetection/c23/videos/01_02__exit_phone_room__YVGY8LOK.mp4')
    with pytest.warns(UserWarning, match='Too few people in dfd'): df = index(ff)
    row = df[df.method == 'DeepFakeDetection'].iloc[0]
    assert (row.dataset, row.target, row.source, row.split) == ('dfd', '01', '02', '')
    assert df[df.dataset == 'ff++'].reset_index(drop=True).equals(before)


# Endings in capitals and files of macOS must neither be lost nor be read.
def test_capital_endings_are_read_and_hidden_files_are_not(ff):
    (ff/'original_sequences/youtube/c23/videos/000.mp4').rename(ff/'original_sequences/youtube/c23/videos/000.MP4')
    touch(ff/'original_sequences/youtube/c23/videos/._003.mp4')
    df = index(ff)
    assert len(df[(df.method == 'original') & (df.compression == 'c23')]) == 8


# Half a download is normal: a warning with counts, and everything that is there.
def test_a_partial_download_is_indexed_with_one_warning(ff):
    import shutil
    shutil.rmtree(ff/'manipulated_sequences/FaceSwap')
    (ff/'manipulated_sequences/Deepfakes/c23/videos/000_003.mp4').unlink()
    with pytest.warns(UserWarning, match='Deepfakes/c23 1 of 8') as caught: df = index(ff)
    assert len(caught) == 1 and 'FaceSwap' not in set(df.method)


# Without the official files there is no split: never a random one.
def test_no_random_split_is_invented(ff):
    (ff/'splits/val.json').unlink()
    with pytest.raises(UserError, match='fetch_splits'): index(ff)
    assert set(index(ff, by='people').split_rule) == {'people, seed 0, 0.72/0.14/0.14'}   # unless it is asked for, and then it says so


# The index must work from any folder: paths are absolute even when the root was given as a relative one.
def test_paths_survive_a_change_of_folder(ff, monkeypatch):
    monkeypatch.chdir(ff.parent)
    assert all(Path(p).is_absolute() for p in index('FF').path)


# Paths in a manifest are relative to that manifest and not to wherever Python was started.
def test_paths_of_a_manifest_are_relative_to_the_manifest(tmp_path, monkeypatch):
    write_manifest(pd.DataFrame([video_row('clips/a.mp4', REAL, 'x', mask='masks/a.mp4')]), tmp_path/'sub/manifest.csv')
    monkeypatch.chdir('/')
    row = index(tmp_path/'sub').iloc[0]
    assert (row.path, row['mask']) == (str(tmp_path/'sub/clips/a.mp4'), str(tmp_path/'sub/masks/a.mp4'))


# A file, an empty folder and a stranger's layout each get one sentence that helps.
@pytest.mark.parametrize('make', [lambda d: touch(d/'a.txt'), lambda d: None, lambda d: touch(d/'videos/a.mp4')])
def test_an_unknown_layout_is_told_what_works(tmp_path, make):
    make(tmp_path)
    with pytest.raises(UserError, match='real and fake'): index(tmp_path)


# A folder one level too high is the most frequent slip.
def test_one_folder_too_high_gets_a_hint(ff):
    with pytest.raises(UserError, match='Did you mean .*FF'): index(ff.parent)


# 0001.jpg in train and 0001.jpg in test are two people, and every key is unique.
def test_equal_names_in_train_and_test_folders_are_no_leak(tmp_path):
    for s in ('train', 'valid', 'test'):
        for k in ('REAL', 'fake'): touch(tmp_path/f'{s}/{k}/0001.jpg')
    df = index(tmp_path)
    assert df.video.is_unique and check_leaks(df) is df and df.label.tolist() == [REAL, FAKE]*3


# A changed, cut or missing split file must never be taken for the official one.
def test_a_wrong_split_file_is_refused(tmp_path, monkeypatch):
    import hashlib
    (tmp_path/'web').mkdir()
    for s, p in PAIRS.items(): (tmp_path/f'web/{s}.json').write_text(json.dumps(p))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path/'web')
    handler.log_message = lambda *a: None
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        with pytest.raises(UserError, match='SHA-256'): data.fetch_splits(tmp_path/'got', url)
        assert not list((tmp_path/'got').glob('*.json'))
        monkeypatch.setattr(datasets, 'SPLITS_SHA256', {s: hashlib.sha256((tmp_path/f'web/{s}.json').read_bytes()).hexdigest() for s in PAIRS})
        assert data.read_splits('.', data.fetch_splits(tmp_path/'got', url))['test'] == [('007', '132')]
        with pytest.raises(UserError, match='could not be downloaded'): data.fetch_splits(tmp_path/'more', url + '/nowhere')
        server.shutdown()


# One person in two splits is an error even when she is only the *source* of a swap.
def test_a_leak_through_the_source_is_found():
    df = pd.DataFrame([video_row('a', REAL, 'x', split='train'), video_row('b', REAL, 'x', split='test'), video_row('b_a', FAKE, 'x', 'swap', source='a', target='b', split='test')])
    with pytest.raises(UserError, match='x/a'): check_leaks(df)
    assert check_leaks(df[:2]) is not None


# Person 000 of one data set is not person 000 of another.
def test_equal_names_in_two_data_sets_are_two_people():
    check_leaks(pd.DataFrame([video_row('000', REAL, 'x', split='train'), video_row('000', REAL, 'y', split='test')]))


# Balance must hold inside every compression, or compression becomes a clue.
def test_compression_does_not_become_a_clue():
    rows = [video_row(f'{m}{i}', int(m != 'original'), 'x', m, c) for c, n in (('c23', 9), ('c40', 5)) for m, k in (('original', 2), ('swap', n)) for i in range(k)]
    n = balance_classes(pd.DataFrame(rows)).groupby(['compression', 'label']).size()
    assert n['c23'].tolist() == [9, 9] and n['c40'].tolist() == [5, 5]


# Another process with another hash seed must see the same split and the same balance.
def test_no_dependence_on_the_hash_seed():
    code = ('import pandas as pd; from madd.data import *; from madd.manifest import video_row; '
            'df = pd.DataFrame([video_row(f"{a}{i}", 0, "x") for i in range(20) for a in "pq"]); '
            'out = identity_split(df, 1).split.str[0].sum() + balance_classes(df.assign(label=(df.index % 3 == 0).astype(int))).video.str[-2:].sum()')
    here = {}
    exec(code, here)
    there = subprocess.run([sys.executable, '-W', 'ignore', '-c', code + '; print(out)'], env=os.environ | {'PYTHONHASHSEED': '7'}, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here['out'] and len(here['out']) > 40


# Readers in other processes must not hang after OpenCV has used its threads here, and must give the same batches.
def test_workers_do_not_hang_and_change_nothing(crops):
    import cv2
    df, root = crops
    cv2.setNumThreads(2); cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)
    seen = [[(x.double().sum().item(), y.tolist()) for x, y in dataloaders(df, root, size=32, bs=8, augment='modern', num_workers=n, device='cpu').train] for n in (0, 2)]
    assert seen[0] == seen[1]


# Looking at a batch must not change the training that follows.
def test_a_look_at_a_batch_changes_nothing(crops):
    df, root = crops
    a, b = (dataloaders(df, root, size=32, bs=8, device='cpu') for _ in range(2))
    b.one_batch(); b.train.one_batch()
    assert [y.tolist() for _, y in a.train] == [y.tolist() for _, y in b.train]


# A label must belong to its own picture, also after balancing and shuffling.
def test_labels_stay_with_their_pictures(crops):
    df, root = crops
    for i, (_, r) in enumerate(df.iterrows()): save_image(root/r.crop, np.full((40, 40, 3), 200 if r.label == FAKE else 40, np.uint8))
    for x, y in dataloaders(df, root, size=32, bs=8, augment='flip', device='cpu').train: assert ((x.mean((1, 2, 3)) > 0) == y.bool()).all()


# The validation pictures are seen as they are, in order, every time.
def test_validation_is_neither_shuffled_nor_augmented(crops):
    df, root = crops
    v = dataloaders(df, root, size=32, bs=4, augment='modern', device='cpu')
    plain = CropDataset(df[df.split == 'val'], root, 32)
    got = [x for x, _ in v.valid]
    assert sum(map(len, got)) == len(plain)
    assert all((a == plain[i][0]).all() for i, a in enumerate(p for x in got for p in x))


# A crop that cannot be read stops the run; nothing else may take its place.
def test_an_unreadable_crop_is_not_replaced(crops):
    df, root = crops
    (root/df.crop.iloc[0]).write_bytes(b'')
    with pytest.raises(UserError, match='cannot be read'): CropDataset(df, root, 32)[0]


# More than one crop margin in one training set would teach the margin.
def test_mixed_margins_are_refused(crops):
    df, root = crops
    with pytest.raises(UserError, match='different margins'): dataloaders(df.assign(margin=np.linspace(.2, .4, len(df))), root)


# The paper augments reals only; nothing that leaves a trace may be done to one class alone.
def test_only_a_mirror_may_depend_on_the_label():
    assert data.REALS_ONLY == ('paper',) and type(AUGMENTS['paper']()).__name__ == type(AUGMENTS['released']()).__name__ == 'RandomHorizontalFlip'


# `paper` mirrors reals and leaves fakes alone.
def test_paper_leaves_fakes_alone(crops):
    df, root = crops
    plain, paper = (CropDataset(df, root, 32, a) for a in ('none', 'paper'))
    moved = np.array([not (plain[i][0] == paper[i][0]).all() for i in range(len(plain))])
    assert not moved[df.label == FAKE].any() and 0 < moved[df.label == REAL].mean() < 1


# Weighted draws: classes equal, order and augmentation the same for any number of workers, validation untouched.
def test_weighted_draws_do_not_depend_on_workers(crops):
    df, root = crops
    def run(n, **kw): return [(x.double().sum().item(), y.tolist()) for x, y in dataloaders(df, root, size=32, bs=8, augment='modern', balance='weighted', num_workers=n, device='cpu', **kw).train]
    assert run(0) == run(2) and run(0) != run(0, seed=1)
    with pytest.raises(UserError, match="'repeat', 'weighted'"): dataloaders(df, root, balance='weigthed')


# A crop drawn twice in one epoch must not be augmented twice in the same way.
def test_the_second_draw_of_a_crop_is_augmented_anew(crops):
    df, root = crops
    ds = CropDataset(df, root, 32, 'modern')
    assert not (ds[3][0] == ds[3 + len(ds)][0]).all() and (ds[3][0] == ds[3][0]).all() and ds[3][1] == ds[3 + len(ds)][1]


def pack(df, root, out):
    "Crops into two WebDataset shards; the manifest that goes with them"
    (out/'shards').mkdir(parents=True)
    for k in range(2):
        with tarfile.open(out/f'shards/{k:06}.tar', 'w') as tar:
            for n in range(k, len(df), 2): tar.add(root/df.crop.iloc[n], f'{n}.png')
    return df.assign(crop=[f'shards/{n % 2:06}.tar#{n}.png' for n in range(len(df))])


# Training from shards, and from an object store, is training: the same batches in the same order, with and without workers.
@pytest.mark.parametrize('workers', [0, 2])
def test_shards_and_urls_give_the_batches_of_files(crops, tmp_path, workers):
    import fsspec
    df, root = crops
    packed = pack(df, root, tmp_path/'packed')
    url = f'file://{tmp_path}/copy' if workers else 'memory://packed'   # memory:// lives in one process
    for f in (tmp_path/'packed/shards').iterdir():
        fs, at = fsspec.core.url_to_fs(f'{url}/shards/{f.name}')
        fs.makedirs(at.rpartition('/')[0], exist_ok=True); fs.pipe_file(at, f.read_bytes())
    seen = [[(x.double().sum().item(), y.tolist()) for x, y in dataloaders(d, r, size=32, bs=8, augment='modern', num_workers=n, device='cpu').train]
            for d, r, n in ((df, root, 0), (packed, tmp_path/'packed', workers), (packed, url, workers))]
    assert seen[0] == seen[1] == seen[2]


# A shard that is written again must not be read with its old table of contents.
def test_a_rewritten_shard_is_read_anew(crops, tmp_path):
    df, root = crops
    first = read_crop(tmp_path/'s'/pack(df, root, tmp_path/'s').crop[0])
    with tarfile.open(tmp_path/'s/shards/000000.tar', 'w') as tar: tar.add(root/df.crop.iloc[4], 'other.png'); tar.add(root/df.crop.iloc[5], '0.png')
    assert not (first == read_crop(tmp_path/'s/shards/000000.tar#0.png')).all() and (read_crop(tmp_path/'s/shards/000000.tar#0.png') == read_crop(root/df.crop.iloc[5])).all()


# A shard that is cut off, no tar at all, or without the crop is one sentence.
@pytest.mark.parametrize('spoil', [lambda p: p.write_bytes(p.read_bytes()[:700]), lambda p: p.write_bytes(b'no tar'), lambda p: p.unlink(), lambda p: p.write_bytes(b'')])
def test_a_spoilt_shard_is_one_sentence(crops, tmp_path, spoil):
    df, root = crops
    name = tmp_path/'s'/pack(df, root, tmp_path/'s').crop[2]
    spoil(tmp_path/'s/shards/000000.tar')
    with pytest.raises(UserError, match='cannot be read'): read_crop(name)


# Crops of a manifest from somebody else must not be read from outside its folder.
@pytest.mark.parametrize('crop', ['/etc/passwd', '../crops/a.png', 'a/../../b.png', 'shards/0.tar#../a.png'])
def test_crops_outside_the_folder_are_refused(crops, crop):
    df, root = crops
    with pytest.raises(UserError, match='outside'): CropDataset(df.assign(crop=crop), root)
