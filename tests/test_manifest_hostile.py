"""Manifests and trees from somebody else: whatever they hold, the answer is a valid table or one sentence; nothing is lost quietly and
nothing is written outside. Hypothesis looks for the input nobody thought of."""
import io, os, string, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from madd.core import FAKE, REAL, UserError
from madd.data import CropDataset, check_leaks, identity_split, index
from madd.datasets import media_files, read_layout
from madd.manifest import COLUMNS, VIDEO_COLUMNS, crop_file, read_manifest, stays_inside, validate, video_row, write_manifest

hostile = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def good(n=4, crops=False):
    "A manifest nobody can object to"
    rows = [video_row(f'clips/{i:03}.mp4', i % 2, 'x', 'swap' if i % 2 else 'original', 'c23', source=f'{i + 1:03}' if i % 2 else '', target=f'{i:03}', split='train') for i in range(n)]
    extra = dict(frame=3, seconds=.12, x0=1.5, score=.9, margin=.3, size=380, reason='') if crops else {}
    return pd.DataFrame([r | extra | (dict(crop=f'crops/{i}.png', mask_crop='') if crops else {}) for i, r in enumerate(rows)])


def is_valid(df):
    "What every later step relies on"
    assert list(df.columns[:len(VIDEO_COLUMNS)]) == list(VIDEO_COLUMNS) and len(df) and set(df.label) <= {REAL, FAKE} and set(df.split) <= {'train', 'val', 'test', ''}
    assert all(stays_inside(v) and v for v in df.video) and all(isinstance(v, str) for k, t in COLUMNS.items() if k in df and t == 'str' for v in df[k])
    return True


def or_one_sentence(f, *args):
    "The result, or None after a UserError of one printable line"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: return f(*args)
        except UserError as e:
            text = str(e)
            assert '\n' not in text and 20 < len(text) < 1500 and text.encode() and text.rstrip()[-1] in '.)', text
            return None


anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.binary(max_size=6), st.dates(), st.lists(st.integers(), max_size=2), st.complex_numbers(),
                     st.sampled_from(['', '0', '1', '../x', '/x', 'a\0b', '\udcff', 'nan', 'train', '000', '1e400', '0.5', pd.NA, pd.NaT, np.nan, np.inf, np.int8(1), np.float32(.5), 2**70]))


# ------------------------------------------------------------------ tables

# One cell of anything, anywhere.
@hostile
@given(st.sampled_from(list(good(crops=True).columns)), st.integers(0, 3), anything)
@example('label', 1, .5)
@example('label', 0, None)
@example('target', 1, 3.0)
@example('video', 1, '../../etc/cron.d/x')
@example('path', 2, 'M\udcfcller.mp4')
def test_one_odd_cell_is_refused_or_meant(column, row, value):
    df = good(crops=True).astype(object)
    df.at[row, column] = value
    out = or_one_sentence(validate, df)
    if out is not None: assert is_valid(out) and len(out) == 4 and out.label.tolist() == [int(v) if i == row and column == 'label' else i % 2 for i, v in enumerate([value]*4)]


# A whole column of another type, a column twice, a column gone.
@hostile
@given(st.sampled_from(list(good(crops=True).columns)), st.sampled_from(['category', 'object', 'str', 'Int64', 'Float64', 'boolean', 'datetime64[ns]', 'float32', 'bytes', 'drop', 'twice']))
def test_columns_of_another_type(column, kind):
    df = good(crops=True)
    try:
        if kind == 'drop': df = df.drop(columns=column)
        elif kind == 'twice': df = pd.concat([df, df[[column]]], axis=1)
        elif kind == 'bytes': df[column] = df[column].map(lambda v: str(v).encode())
        else: df[column] = df[column].astype(kind)
    except (ValueError, TypeError): return
    out = or_one_sentence(validate, df)
    if kind == 'drop' and column in VIDEO_COLUMNS or kind in ('twice',): assert out is None
    if out is not None: assert is_valid(out) and (kind != 'category' or out.equals(validate(good(crops=True))))


@pytest.mark.parametrize('spoil, why', [
    (lambda d: d[:0], 'empty'), (lambda d: d.drop(columns='label'), 'no column label'), (lambda d: d.assign(label=[0, 1, None, 1]), 'label'), (lambda d: d.assign(label=.5), 'whole number'),
    (lambda d: d.assign(label='real'), 'label'), (lambda d: d.assign(label=2), 'a label is 0 or 1'), (lambda d: pd.concat([d, d[:1]]), 'row 4 repeats'),
    (lambda d: d.assign(video='x/same'), 'row 1 repeats'), (lambda d: d.assign(video=['a', 'b', '/c', 'd']), 'outside'), (lambda d: d.assign(video=['a', 'b', 'c/../../d', 'd']), 'outside'),
    (lambda d: d.assign(split='valid'), 'split'), (lambda d: d.assign(path=['', 'b', 'c', 'd']), 'path'), (lambda d: pd.DataFrame(), 'no column')])
def test_broken_tables_are_named(spoil, why):
    with pytest.raises(UserError, match=why): validate(spoil(good()))
    with pytest.raises(UserError, match=why): write_manifest(spoil(good()), 'never_written.csv')
    assert not Path('never_written.csv').exists()


@pytest.mark.parametrize('spoil, why', [(lambda d: d.assign(crop='a.png'), 'row 1 repeats'), (lambda d: d.assign(crop=['/a', 'b', 'c', 'd']), 'outside'), (lambda d: d.assign(mask_crop='../m.png'), 'outside'),
                                        (lambda d: d.assign(frame=-7), 'frame'), (lambda d: d.assign(margin=-.1), 'margin'), (lambda d: pd.concat([d.assign(crop='')]*2), 'row 4 repeats')])
def test_broken_crop_tables_are_named(spoil, why):
    with pytest.raises(UserError, match=why): validate(spoil(good(crops=True)))


# Several crops of one video, frames without a crop, and several faces of one frame are not duplicates.
def test_what_only_looks_like_a_duplicate():
    df = good(crops=True).assign(track=0)
    many = pd.concat([df, df.assign(frame=4, crop=[f'c/{i}.png' for i in range(4)]), df.assign(frame=5, crop='', reason='no face'), df.assign(track=1, frame=3, crop=[f't/{i}.png' for i in range(4)])], ignore_index=True)
    assert len(validate(many)) == 16


# ------------------------------------------------------------------ files

names = st.text(st.characters(blacklist_categories=['Cs'], blacklist_characters='\0'), min_size=1, max_size=10)


# Any text that a table can hold comes back from both formats as it was: commas, quotes, line ends, `nan`, `000`, Chinese.
@hostile
@given(st.lists(names, min_size=1, max_size=4), st.sampled_from(['.csv', '.parquet']))
@example(['a,b', '"', 'x\r\ny', ';'], '.csv')
@example(['nan', 'NA', '000', 'None'], '.csv')
@example(['\ufeff', '\r', ' a ', '#'], '.csv')
def test_any_text_survives_both_formats(tmp_path, texts, ending):
    df = validate(pd.DataFrame([video_row(f'{i}{t}', i % 2, 'x', name=str(i), source=t, target=t) for i, t in enumerate(texts)]))
    pd.testing.assert_frame_equal(read_manifest(write_manifest(df, tmp_path/f'm{ending}')), df)


CSV = good(3).to_csv(index=False)


# What a spreadsheet does: byte order marks, UTF-16, semicolons, tabs, Windows line ends, all at once.
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_csv_of_a_spreadsheet(tmp_path, encoding, sep, end):
    (tmp_path/'m.csv').write_bytes(CSV.replace(',', sep).replace('\n', end).encode(encoding))
    pd.testing.assert_frame_equal(read_manifest(tmp_path/'m.csv'), validate(good(3)))


# Latin-1 would turn Müller into another file; a file that was cut off has lost rows.
def test_csv_of_another_encoding_or_cut_off_is_refused(tmp_path):
    (tmp_path/'m.csv').write_bytes(CSV.replace('000.mp4', 'Müller.mp4').encode('latin-1'))
    with pytest.raises(UserError, match='not UTF-8'): read_manifest(tmp_path/'m.csv')
    for n in range(1, CSV.rstrip().rfind(',')):
        if CSV[:n].endswith('\n') or CSV[n] == '\n' or n <= CSV.index('\n'): continue
        (tmp_path/'m.csv').write_bytes(CSV[:n].encode())
        with pytest.raises(UserError, match='fields|column'): read_manifest(tmp_path/'m.csv')


# Bytes cut out, put in or turned anywhere, in both formats.
@hostile
@given(st.sampled_from(['.csv', '.parquet']), st.integers(0, 10**6), st.integers(0, 20), st.binary(max_size=8))
def test_damaged_files_are_one_sentence(tmp_path, ending, at, drop, put):
    raw = write_manifest(good(3), tmp_path/f'ok{ending}').read_bytes()
    at %= len(raw)
    (tmp_path/f'bad{ending}').write_bytes(raw[:at] + put + raw[at + drop:])
    out = or_one_sentence(read_manifest, tmp_path/f'bad{ending}')
    assert out is None or is_valid(out)


@hostile
@given(st.binary(max_size=300), st.sampled_from(['.csv', '.parquet']))
@example(b'', '.csv')
@example(b'\xef\xbb\xbf', '.csv')
@example(b'\xff\xfea', '.csv')
@example(b'path,label\n', '.csv')
@example(b'path;label\na;0\nb', '.csv')
@example(b'"', '.csv')
@example(b'PAR1', '.parquet')
def test_bytes_of_anything_are_one_sentence(tmp_path, raw, ending):
    (tmp_path/f'm{ending}').write_bytes(raw)
    assert or_one_sentence(read_manifest, tmp_path/f'm{ending}') is None
    out = or_one_sentence(index, tmp_path/f'm{ending}')
    assert out is None or is_valid(out)


@pytest.mark.parametrize('make', [lambda p: None, lambda p: p.mkdir(), lambda p: p.symlink_to(p), lambda p: p.write_bytes(b'')])
def test_no_file_there_at_all(tmp_path, make):
    make(tmp_path/'m.csv')
    assert or_one_sentence(read_manifest, tmp_path/'m.csv') is None


# ------------------------------------------------------------------ paths

def inside(path, root): return os.path.normpath(path) == os.path.normpath(root) or os.path.normpath(path).startswith(os.path.normpath(root) + os.sep)


# Whatever a manifest calls its crop: it is refused, or it lies below the folder of the manifest.
@settings(hostile, max_examples=400)
@given(st.text(st.sampled_from('./\\~#:ab\0 '), min_size=1, max_size=12))
@example('a/..')
@example('..')
@example('./../x')
@example('a//../..//b')
def test_a_crop_never_lies_outside(name):
    try: file = crop_file({'crop': name}, '/data/crops')
    except UserError: return
    assert '://' in name or (inside(str(file), '/data/crops') and inside(str(file).replace('\\', '/').replace('#', '/'), '/data/crops'))


# Absolute and `..` paths of *sources* may be read (a data set can lie anywhere), but keys and crops, which become file names, may not.
def test_sources_may_lie_anywhere_and_crops_may_not(tmp_path):
    df = good().assign(path=['/far/a.mp4', '../up/b.mp4', 's3://bucket/c.mp4', 'd.mp4'])
    assert index(write_manifest(df, tmp_path/'sub/m.csv')).path.tolist() == ['/far/a.mp4', str(tmp_path/'sub/../up/b.mp4'), 's3://bucket/c.mp4', str(tmp_path/'sub/d.mp4')]
    for crop in ('/etc/passwd', '../a.png', 'x/../../a.png'):
        with pytest.raises(UserError, match='outside'): CropDataset(good(1, crops=True).assign(crop=crop), tmp_path)


# Reading, checking and refusing must leave the disk as it was.
def test_nothing_is_written_outside(tmp_path):
    (tmp_path/'in').mkdir(); (tmp_path/'out').mkdir(); (tmp_path/'out/precious').write_text('x')
    for df in (good().assign(video=[f'../out/{i}' for i in range(4)]), good(crops=True).assign(crop=[f'../out/{i}.png' for i in range(4)])):
        with pytest.raises(UserError, match='outside'): write_manifest(df, tmp_path/'in/m.parquet')
        df.to_parquet(tmp_path/'in/theirs.parquet')
        for f in (read_manifest, index):
            with pytest.raises(UserError, match='outside'): f(tmp_path/'in/theirs.parquet')
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*')) == ['in', 'in/theirs.parquet', 'out', 'out/precious']


# ------------------------------------------------------------------ trees

parts = st.sampled_from(['real', 'fake', 'Real', 'train', 'test', 'a', 'b_a', 'ab.mp4', 'x.png', 'y.JPG', '.hidden', 'manifest.csv', 'metadata.json', 'labels.csv', 'dataset.json', 'Celeb-real', 'Celeb-synthesis',
                         'original_sequences', 'manipulated_videos', 'c23', 'videos', 'List_of_testing_videos.txt', os.fsdecode(b'M\xfcller.mp4'), 'new\nline.mp4', ' .mp4', 'çé.mp4', '#1.mp4', ':.mp4', '..mp4', '...'])
kinds = st.sampled_from(['file', 'file', 'file', 'folder', 'link up', 'link to itself', 'dead link'])


def grow(root, plan):
    "A tree of files, folders and links, some of them in a circle; names that cannot be made are left out"
    for path, kind in plan:
        f = root.joinpath(*path)
        try:
            f.parent.mkdir(parents=True, exist_ok=True)
            if kind == 'file': f.write_bytes(b'path,label\na.mp4,0\n')
            elif kind == 'folder': f.mkdir()
            else: f.symlink_to({'link up': root, 'link to itself': f, 'dead link': root/'nowhere'}[kind])
        except OSError: pass


# Any tree: a valid table with unique keys and no leak, or one sentence; no file twice, no hang, nothing changed.
@settings(hostile, max_examples=150)
@given(st.lists(st.tuples(st.lists(parts, min_size=1, max_size=4), kinds), max_size=14))
@example([(['real', 'a.mp4'], 'file'), (['fake', 'b.mp4'], 'file'), (['real', 'again'], 'link up'), (['fake', 'x.png'], 'link to itself')])
@example([(['real', os.fsdecode(b'M\xfcller.mp4')], 'file'), (['fake', 'a'], 'folder')])
def test_any_tree_is_a_table_or_one_sentence(tmp_path_factory, plan):
    root = tmp_path_factory.mktemp('tree')
    grow(root, plan)
    before = sorted(os.fsencode(p) for p in root.rglob('*'))
    df = or_one_sentence(index, root)
    assert sorted(os.fsencode(p) for p in root.rglob('*')) == before
    if df is None: return
    assert is_valid(df) and df.video.is_unique and check_leaks(df) is not None
    out = write_manifest(df, root.parent/f'{root.name}.csv')
    pd.testing.assert_frame_equal(read_manifest(out), df)
    out.unlink()


# Every file of a tree is found once, whatever links lead to it, and always in the same order.
@settings(hostile, max_examples=60)
@given(st.lists(st.tuples(st.lists(parts, min_size=1, max_size=4), kinds), max_size=14))
def test_the_walk_finds_every_file_once(tmp_path_factory, plan):
    root = tmp_path_factory.mktemp('walk')
    grow(root, plan)
    found = media_files(root, {'.mp4', '.png', '.jpg'})
    there = {os.path.join(d, f) for d, _, files in os.walk(root) for f in files if not f.startswith('.') and os.path.splitext(f)[1].lower() in {'.mp4', '.png', '.jpg'}
             and not any(p.startswith('.') for p in Path(d).relative_to(root).parts)}
    assert found == sorted(found) == media_files(root, {'.mp4', '.png', '.jpg'}) and {str(p) for p in found} >= {p for p in there if not os.path.isdir(p)} and len(found) == len(set(found))


# Splits by people, of any graph of swaps: no leak, every row kept, the same from the same seed.
@hostile
@given(st.lists(st.tuples(st.sampled_from(string.ascii_lowercase[:9]), st.sampled_from(string.ascii_lowercase[:9])), min_size=1, max_size=40), st.integers(0, 5), st.booleans())
def test_any_graph_of_swaps_is_split_without_a_leak(swaps, seed, cut):
    df = pd.DataFrame([video_row(f'{i}', int(a != b), 'x', source='' if a == b else b, target=a) for i, (a, b) in enumerate(swaps)])
    out = or_one_sentence(lambda: identity_split(df, seed, cut=cut))
    if out is None: return
    assert check_leaks(out) is not None and len(out) == len(df) and out.split.tolist() == identity_split(df, seed, cut=cut).split.tolist()
    if not cut: assert (out.split != '').all()
