"Crops in tar files: the same bytes every time, readable by webdataset, resumable, here and under a URL"
import io, json, os, signal, subprocess, sys, tarfile, time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from skimage.data import astronaut

from madd.core import UserError
from madd.extract import Store, extract, load_table, save_table, write_shards
from madd.manifest import read_manifest, video_row
from madd.media import save_image, write_video

far = fsspec.filesystem('memory')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Clips with masks in three splits, and a file without a face"
    root, rows = tmp_path_factory.mktemp('data'), []
    face = astronaut()[:256, 96:352]
    for k, split in enumerate(['train', 'train', 'val', 'test']):
        write_video(root/f'{k}.mp4', [np.roll(face, i + k, 1) for i in range(12)], preset='ultrafast')
        write_video(root/f'{k}_mask.mp4', [np.full((256, 256), 255*(k % 2), np.uint8)]*12, preset='ultrafast')
        rows.append(video_row(root/f'{k}.mp4', k % 2, 'toy', 'Odd' if k % 2 else 'original', 'c23', split=split, mask=root/f'{k}_mask.mp4' if k % 2 else ''))
    save_image(root/'plain.png', np.zeros((99, 99, 3), np.uint8))
    return pd.DataFrame(rows + [video_row(root/'plain.png', 0, 'toy', split='train')])


@pytest.fixture(scope='module')
def crops(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('crops')
    return extract(data, out, size=96, n_frames=6, quality=90), out


def files(out): return {str(p.relative_to(out)): p.read_bytes() for p in sorted(Path(out).rglob('*')) if p.is_file()}


def member(out, name):
    shard, _, inside = name.partition('#')
    with tarfile.open(Path(out)/shard) as tar: return tar.extractfile(inside).read()


def test_rows_stay_and_names_lead_to_the_crops(crops, tmp_path):
    df, out = crops
    packed = write_shards(out, tmp_path, per_shard=5)
    assert packed.equals(read_manifest(tmp_path/'manifest.parquet')) and packed.drop(columns=['crop', 'mask_crop']).equals(df.drop(columns=['crop', 'mask_crop']))
    assert packed.crop[0].startswith('shards/00000') and packed.crop[0].endswith('.tar#toy/original/c23/0/000000.jpg') and packed.crop.iloc[-1] == ''
    for new, old in zip(packed.itertuples(), df.itertuples()):
        if old.crop: assert member(tmp_path, new.crop) == (out/old.crop).read_bytes()
        assert bool(new.mask_crop) == bool(old.mask_crop) and (not old.mask_crop or member(tmp_path, new.mask_crop) == (out/old.mask_crop).read_bytes())


def test_no_shard_mixes_splits_and_none_is_too_large(crops, tmp_path):
    packed = write_shards(crops[1], tmp_path, per_shard=5).query('crop != ""')
    by = packed.assign(shard=packed.crop.str.partition('#')[0]).groupby('shard')
    assert (by.split.nunique() == 1).all() and by.size().max() == 5 and by.size().sum() == 24
    assert by.video.nunique().max() > 1                                          # shuffled within the split


def test_same_bytes_again_and_under_a_url(crops, tmp_path):
    write_shards(crops[1], tmp_path/'a', per_shard=7); write_shards(crops[1]/'manifest.parquet', tmp_path/'b', per_shard=7)
    assert files(tmp_path/'a') == files(tmp_path/'b')
    assert files(tmp_path/'a') != files(write_other_seed(crops[1], tmp_path/'c'))
    write_shards(crops[1], 'memory://same', per_shard=7)
    assert {k: far.cat_file(f'/same/{k}') for k in files(tmp_path/'a')} == files(tmp_path/'a')


def write_other_seed(crops, out): write_shards(crops, out, per_shard=7, seed=1); return out


def test_webdataset_reads_them(crops, tmp_path):
    wds = pytest.importorskip('webdataset')
    df, out = crops
    write_shards(out, tmp_path, per_shard=6)
    urls = sorted(map(str, tmp_path.glob('shards/*.tar')))
    seen = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode('rgb8').to_tuple('jpg', 'cls', 'json'))
    assert len(seen) == 24 and all(x.shape == (96, 96, 3) and x.dtype == np.uint8 for x, _, _ in seen)
    assert sorted((j['video'], j['frame'], c, j['split']) for _, c, j in seen) == sorted(map(tuple, df[df.crop != ''][['video', 'frame', 'label', 'split']].values))
    masks = [s for s in wds.WebDataset(urls, shardshuffle=False, empty_check=False) if 'mask.png' in s]
    assert len(masks) == 12 and all(s['cls'] == b'1' for s in masks)


def test_interrupted_packing_goes_on(crops, tmp_path):
    write_shards(crops[1], tmp_path/'whole', per_shard=4)
    write_shards(crops[1], tmp_path/'killed', per_shard=4)
    for lost in ('shards/000002.tar', 'manifest.parquet'): (tmp_path/'killed'/lost).unlink()
    kept = (tmp_path/'killed/shards/000001.tar').stat().st_mtime_ns
    write_shards(crops[1], tmp_path/'killed', per_shard=4)
    assert files(tmp_path/'killed') == files(tmp_path/'whole') and (tmp_path/'killed/shards/000001.tar').stat().st_mtime_ns == kept


def test_killed_while_packing(crops, tmp_path):
    "SIGKILL after the second shard"
    write_shards(crops[1], tmp_path/'whole', per_shard=1)
    code = f'from madd.extract import write_shards; write_shards({str(crops[1])!r}, {str(tmp_path/"killed")!r}, per_shard=1)'
    job, limit = subprocess.Popen([sys.executable, '-c', code]), time.time() + 60
    while len(list(tmp_path.glob('killed/shards/0*.tar'))) < 2 and job.poll() is None and time.time() < limit: time.sleep(.0005)
    job.send_signal(signal.SIGKILL); job.wait()
    assert not (tmp_path/'killed/manifest.parquet').exists(), 'it was too fast to be killed'
    write_shards(crops[1], tmp_path/'killed', per_shard=1)
    assert files(tmp_path/'killed') == files(tmp_path/'whole')


def test_refusals(crops, data, tmp_path):
    df, out = crops
    with pytest.raises(UserError, match='folder of their own'): write_shards(out, out)
    with pytest.raises(UserError, match='at least 1'): write_shards(out, tmp_path/'x', per_shard=0)
    with pytest.raises(UserError, match='no crop'): write_shards(save_and_path(df[df.crop == ''], tmp_path), tmp_path/'x')
    with pytest.raises(UserError, match='no manifest'): write_shards(tmp_path/'nowhere', tmp_path/'x')
    write_shards(out, tmp_path/'y', per_shard=5)
    for other in (dict(per_shard=6), dict(per_shard=5, seed=3)):
        with pytest.raises(UserError, match='other settings'): write_shards(out, tmp_path/'y', **other)


def save_and_path(df, folder): save_table(df, Store(folder)); return folder


def test_extraction_from_and_to_urls(data, crops, tmp_path):
    "Sources, manifest and crops in an object store; killed half-way, it goes on"
    df, out = crops
    for p in [*data.path, *data['mask']]:
        if p: far.pipe_file(f'/clips/deep/{Path(p).name}', Path(p).read_bytes())
    short = lambda p: f'deep/{Path(p).name}' if p else ''
    save_table(data.assign(path=data.path.map(short), mask=data['mask'].map(short)), Store('memory://clips'))
    away = extract('memory://clips/manifest.parquet', 'memory://cut', size=96, n_frames=6, quality=90)
    same = lambda a, b: a.drop(columns=['path', 'mask']).equals(b.drop(columns=['path', 'mask']))
    assert same(away, df) and load_table('memory://cut')[0].equals(away)
    assert all(far.cat_file(f'/cut/{f}') == (out/f).read_bytes() for f in [*df.crop, *df.mask_crop] if f)
    written = {p: far.created(p) for p in far.find('/cut/crops')}
    lost = f'/cut/{df.crop[7]}'; far.rm_file(lost); far.rm_file('/cut/manifest.parquet')
    assert same(extract('memory://clips', 'memory://cut', size=96, n_frames=6, quality=90), df)
    again = {p: far.created(p) for p in far.find('/cut/crops')}
    assert set(again) == set(written) and {Path(p).parent for p in again if again[p] != written[p]} == {Path(lost).parent}       # one clip was done again
    write_shards('memory://cut', tmp_path, per_shard=5)
    assert len(files(tmp_path)) == len(list(tmp_path.glob('shards/*.tar'))) + 2


def test_bad_urls_are_sentences(data, tmp_path):
    with pytest.raises(UserError, match='not a URL'): extract(data, 'nonsense://x')
    with pytest.raises(UserError, match='manifest'): extract('memory://nowhere/manifest.parquet', tmp_path)
    gone = extract(data[:1].assign(path='memory://gone.mp4'), tmp_path, size=96)
    assert gone.reason.tolist() == ['there is no such file'] and gone.path.tolist() == ['memory://gone.mp4']
