"""Every public data set from its tree as downloaded. The trees are miniatures made of the forge's own clips, or, where the counts of the
complete set matter, full-size trees of empty files. Every test is named after the mistake it prevents."""
import json, os, warnings
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from madd import datasets
from madd.core import FAKE, REAL, UserError
from madd.data import check_leaks, identity_split, index
from madd.forge_set import forge_set
from madd.manifest import read_manifest, write_manifest
from madd.media import is_video, read_frames
from madd.sources import AstronautFaces


@pytest.fixture(scope='session')
def clips(tmp_path_factory):
    "The forge's own clips: {REAL: [...], FAKE: [...]} and the root of their set"
    root = forge_set(tmp_path_factory.mktemp('forge')/'set', AstronautFaces(n=6), identities=6, frames=3, crfs=(23,), size=96, workers=1)
    out = {REAL: sorted(root.glob('original_sequences/youtube/c23/videos/*.mp4')), FAKE: sorted(root.glob('manipulated_sequences/*/c23/videos/*.mp4')), 'root': root}
    assert len(out[REAL]) == 6 and len(out[FAKE]) == 30
    return out


class Tree:
    "A tree whose real places hold real clips and whose fake places hold forged ones"
    def __init__(self, root, clips): self.root, self.clips, self.truth = Path(root), clips, {}
    def put(self, label, *names):
        for n in names:
            f, pool = self.root/n, self.clips[label]
            f.parent.mkdir(parents=True, exist_ok=True)
            os.link(pool[len(self.truth) % len(pool)], f)
            self.truth[str(f)] = label
        return self
    def write(self, name, text):
        (self.root/name).parent.mkdir(parents=True, exist_ok=True)
        (self.root/name).write_text(text if isinstance(text, str) else json.dumps(text))
        return self


@contextmanager
def notes():
    "The warnings of a block, as one list of texts"
    out = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield out
    out += [str(w.message) for w in caught]


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return index(*args, **kwargs)


def touch(root, *names):
    for d in {(root/n).parent for n in names}: d.mkdir(parents=True, exist_ok=True)
    for n in names: (root/n).touch()
    return root


# ------------------------------------------------------------------ the layouts

PAIRS = dict(train=[['000', '003'], ['001', '870']], val=[['002', '006']], test=[['007', '132']])


def ff(t, methods=('Deepfakes', 'Face2Face', 'FaceSwap', 'NeuralTextures', 'FaceShifter'), crfs=('c0', 'c23', 'c40')):
    for s, pairs in PAIRS.items():
        t.write(f'splits/{s}.json', pairs)
        for a, b in pairs:
            for c in crfs:
                t.put(REAL, *(f'original_sequences/youtube/{c}/videos/{n}.mp4' for n in (a, b)))
                t.put(FAKE, *(f'manipulated_sequences/{m}/{c}/videos/{x}_{y}.mp4' for m in methods for x, y in ((a, b), (b, a))))
    return t


def dfd(t, actors=14):
    for i in range(1, actors + 1):
        t.put(REAL, f'original_sequences/actors/c23/videos/{i:02}__walking.mp4')
        t.put(FAKE, *(f'manipulated_sequences/DeepFakeDetection/c23/videos/{i:02}_{(i + k - 1) % actors + 1:02}__walking__YVGY8LOK.mp4' for k in (1, 2)))
    return t


def celeb(t, level='', youtube='YouTube-real', test=('1 YouTube-real/00170.mp4', '0 Celeb-synthesis/id1_id0_0007.mp4')):
    t.put(REAL, *(f'Celeb-real/{level}id{i}_0007.mp4' for i in range(20)), *(f'{youtube}/{level}{n}.mp4' for n in ('00170', '00171')))
    t.put(FAKE, *(f'Celeb-synthesis/{level}id{i}_id{i ^ 1}_0007.mp4' for i in range(20)))
    return t.write('List_of_testing_videos.txt', '\n'.join(test) + '\n')


def dfdc(t, parts=('dfdc_train_part_0', 'dfdc_train_part_1/dfdc_train_part_1'), test='test'):
    for k, part in enumerate(parts):
        meta = {}
        for i in range(6):
            real, fakes = f'r{k}{i}.mp4', [f'f{k}{i}{j}.mp4' for j in range(3)]
            meta |= {real: dict(label='REAL', split='train')} | {f: dict(label='FAKE', split='train', original=real) for f in fakes}
            t.put(REAL, f'{part}/{real}').put(FAKE, *(f'{part}/{f}' for f in fakes))
        t.write(f'{part}/metadata.json', meta)
    return t.put(FAKE, f'{test}/ta.mp4').put(REAL, f'{test}/tb.mp4').write(f'{test}/labels.csv', 'filename,label\nta.mp4,1\ntb.mp4,0\n') if test else t


def preview(t):
    meta = {}
    for who, other, s in [(i, i + 1, 'train') for i in range(10, 26, 2)] + [(90, 91, 'test')]:
        real, fakes = f'original_videos/{who}/{who}_A.mp4', [f'method_{m}/{who}/{who}_A.mp4' for m in 'AB']
        meta[real] = dict(label='real', set=s, target_id=str(who), swapped_id=None, augmentations=[])
        meta |= {f: dict(label='fake', set=s, target_id=str(who), swapped_id=str(other), augmentations=[]) for f in fakes}
        t.put(REAL, real).put(FAKE, *fakes)
    return t.write('dataset.json', meta)


def deeper(t, reals=True):
    lists = dict(train=['000_W001', '001_W001', '002_M002'], val=['003_M003'], test=['004_W004'])
    for s, names in lists.items():
        t.write(f'lists/splits/{s}.txt', ''.join(f'{n}.mp4\n' for n in names))
        t.put(FAKE, *(f'manipulated_videos/{v}/{n}.mp4' for v in ('end_to_end', 'end_to_end_level_3', 'reenact_postprocess') for n in names))
    touch(t.root, 'source_videos/W001/BlendShape/camera_front/W001_BlendShape_camera_front.mp4')
    return t.put(REAL, *(f'original_sequences/youtube/c23/videos/{i:03}.mp4' for i in range(5))) if reals else t


def uadfv(t): return t.put(REAL, *(f'real/{i:04}.mp4' for i in range(9))).put(FAKE, *(f'fake/{i:04}_fake.mp4' for i in range(9)))


def folders(t):
    return t.put(REAL, *(f'real/p{i}.mp4' for i in range(8))).put(FAKE, *(f'fake/swap/p{i}_p{i ^ 1}.mp4' for i in range(8)), 'fake/other/p0.mp4')


def listed(t):
    t.put(REAL, *(f'clips/{i}.mp4' for i in range(8))).put(FAKE, *(f'clips/f{i}.mp4' for i in range(8)))
    return t.write('manifest.csv', 'path;label;target\n' + ''.join(f'clips/{f}{i}.mp4;{int(f == "f")};p{i}\n' for i in range(8) for f in ('', 'f')))


LAYOUTS = {
    'ff++': (ff, 'FaceForensics++'), 'ff++ with dfd': (lambda t: dfd(ff(t, crfs=('c23',))), 'FaceForensics++'), 'dfd alone': (dfd, 'FaceForensics++'),
    'Celeb-DF-v2': (celeb, 'Celeb-DF'), 'Celeb-DF-v1': (celeb, 'Celeb-DF'), 'celeb, videos level': (lambda t: celeb(t, 'videos/', 'Youtube-real'), 'Celeb-DF'),
    'dfdc': (dfdc, 'DFDC'), 'dfdc, one part': (lambda t: dfdc(t, ('.',), ''), 'DFDC'), 'dfdc, test alone': (lambda t: dfdc(t, (), '.'), 'DFDC'), 'dfdc preview': (preview, 'DFDC preview'),
    'DeeperForensics-1.0': (deeper, 'DeeperForensics-1.0'), 'deeper, no reals': (lambda t: deeper(t, False), 'DeeperForensics-1.0'),
    'UADFV': (uadfv, 'UADFV'), 'real and fake': (folders, 'real and fake'), 'csv': (listed, 'manifest')}


@pytest.fixture(params=LAYOUTS)
def tree(request, tmp_path, clips):
    make, reader = LAYOUTS[request.param]
    t = make(Tree(tmp_path/request.param, clips))
    t.reader = reader
    return t


# One test for all: the right reader, every clip once, the right label, own keys, no leak, at most one warning, and the clips open.
def test_every_layout_is_read_whole_and_right(tree):
    with notes() as said: df = index(tree.root)
    assert datasets.read_layout(tree.root).attrs['reader'] == tree.reader
    assert dict(zip(df.path, df.label)) == tree.truth and len(df) == len(tree.truth)
    assert df.video.is_unique and (df.method == 'original').equals(df.label == REAL)
    assert check_leaks(df) is not None and len(said) <= 1, said
    assert all(is_video(p) for p in df.path) and sum(1 for _ in read_frames(df.path[0])) == 3


# The split and where it comes from must survive both formats, and nothing may depend on chance.
def test_the_table_survives_both_formats_and_a_second_look(tree, tmp_path):
    df = quiet(tree.root)
    pd.testing.assert_frame_equal(df, quiet(tree.root))
    for name in ('m.parquet', 'm.csv'):
        write_manifest(df, tmp_path/name)
        pd.testing.assert_frame_equal(read_manifest(tmp_path/name), df)
        pd.testing.assert_frame_equal(quiet(tmp_path/name), df)   # and a stored table is not split again
    assert ((df.split_rule == '') == (df.split == '')).all()


# A split by people can be had for every set, is leak-free for every seed, and says what it is.
def test_a_split_by_people_never_leaks(tree):
    if quiet(tree.root).target.nunique() < 3: pytest.skip('fewer than three people')
    for seed in range(3):
        df = quiet(tree.root, seed=seed, by='people')
        assert check_leaks(df) is not None and set(df[df.split != ''].split_rule) == {f'people, seed {seed}, 0.72/0.14/0.14'} and {'train', 'val', 'test'} <= set(df.split)


# Sets without an official split, and sets without a validation part, get one; official splits are never touched.
def test_who_has_an_official_split_and_who_has_not(tmp_path, clips):
    rule = {}
    for name, (make, _) in LAYOUTS.items():
        df = quiet(make(Tree(tmp_path/name, clips)).root)
        rule[name] = {(d, s): ' '.join(sorted(set(g.split_rule.str.replace(', seed 0.*', '', regex=True)))) for (d, s), g in df[df.split != ''].groupby(['dataset', 'split'])}
    assert rule['ff++'] == {('ff++', s): 'official' for s in ('train', 'val', 'test')}
    assert rule['ff++ with dfd'] == rule['ff++'] | {('dfd', s): 'people' for s in ('train', 'val', 'test')}
    assert rule['Celeb-DF-v2'] == {('celeb-df-v2', 'train'): 'people', ('celeb-df-v2', 'val'): 'people', ('celeb-df-v2', 'test'): 'official'}
    assert rule['dfdc'] == {('dfdc', 'train'): 'people', ('dfdc', 'val'): 'people', ('dfdc', 'test'): 'official'}
    assert rule['dfdc, test alone'] == {('dfdc', 'test'): 'official'}
    assert {k[1]: v for k, v in rule['DeeperForensics-1.0'].items() if k[0] == 'deeperforensics'} == dict(train='official', val='official', test='official')
    assert set(rule['UADFV'].values()) == set(rule['real and fake'].values()) == set(rule['csv'].values()) == {'people'}


# ------------------------------------------------------------------ FaceForensics++ and DeepFakeDetection

def test_ff_four_manipulations_of_one_name_are_four_videos(tmp_path, clips):
    df = quiet(ff(Tree(tmp_path, clips)).root)
    same = df[df.video.str.endswith('/000_003')]
    assert len(same) == same.video.nunique() == 5*3 and set(same.compression) == {'raw', 'c23', 'c40'} and 'FaceShifter' in set(same.method)


def test_ff_both_ends_of_a_pair_share_a_split(tmp_path, clips):
    df = quiet(ff(Tree(tmp_path, clips)).root)
    for s, pairs in PAIRS.items():
        for a, b in pairs: assert set(df[df.target.isin([a, b]) | df.source.isin([a, b])].split) == {s}


def test_ff_masks_are_found_and_are_no_videos(tmp_path, clips):
    t = ff(Tree(tmp_path, clips), crfs=('c23',))
    touch(t.root, 'manipulated_sequences/Deepfakes/masks/videos/000_003.mp4')
    df = quiet(t.root)
    assert len(df) == len(t.truth) and df[df['mask'] != ''].video.tolist() == ['ff++/Deepfakes/c23/000_003'] and Path(df['mask'].max()).is_file()


def test_ff_a_complete_download_is_silent_and_a_hole_is_named(tmp_path):
    numbers = [f'{i:03}' for i in range(1000)]
    pairs = [[numbers[i], numbers[i + 1]] for i in range(0, 1000, 2)]
    (tmp_path/'splits').mkdir()
    for s, p in dict(train=pairs[:360], val=pairs[360:430], test=pairs[430:]).items(): (tmp_path/f'splits/{s}.json').write_text(json.dumps(p))
    touch(tmp_path, *(f'original_sequences/youtube/c23/videos/{n}.mp4' for n in numbers), *(f'manipulated_sequences/{m}/c23/videos/{x}_{y}.mp4' for m in ('Deepfakes', 'Face2Face', 'FaceSwap', 'NeuralTextures')
                                                                                          for a, b in pairs for x, y in ((a, b), (b, a))))
    with notes() as said: df = index(tmp_path)
    assert said == [] and df.groupby(['split', 'label']).size().to_dict() == {(s, k): n*(1, 4)[k] for s, n in (('train', 720), ('val', 140), ('test', 140)) for k in (0, 1)}
    for n in ('004_005', '900_901'): (tmp_path/f'manipulated_sequences/FaceSwap/c23/videos/{n}.mp4').unlink()
    with notes() as said: index(tmp_path)
    assert len(said) == 1 and 'FaceSwap/c23 2 of 1000' in said[0] and 'FaceSwap/c23/004_005' in said[0]


def test_ff_a_short_split_file_is_noticed(tmp_path, clips):
    with notes() as said: index(ff(Tree(tmp_path, clips)).root)
    assert len(said) == 1 and '2/1/1 pairs' in said[0] and '360/70/70' in said[0]


def test_ff_no_split_is_invented_for_videos_no_list_knows(tmp_path, clips):
    t = Tree(tmp_path, clips).put(REAL, *(f'original_sequences/youtube/c23/videos/x{i}.mp4' for i in range(9)))
    for s, p in PAIRS.items(): t.write(f'splits/{s}.json', p)
    assert set(quiet(t.root).split) == {''}


def test_dfd_actor_01_is_not_person_001_of_ff_and_both_actors_count(tmp_path, clips):
    df = quiet(dfd(ff(Tree(tmp_path, clips))).root)
    fake = df[df.video == 'dfd/DeepFakeDetection/c23/01_02__walking__YVGY8LOK'].iloc[0]
    assert (fake.target, fake.source, fake.dataset) == ('01', '02', 'dfd')
    side = df[(df.dataset == 'dfd') & (df.label == REAL)].set_index('target').split
    assert fake.split == (side['01'] if side['01'] == side['02'] else '')


def test_dfd_needs_no_ff_lists(tmp_path, clips):
    assert set(quiet(dfd(Tree(tmp_path, clips)).root).dataset) == {'dfd'}


# ------------------------------------------------------------------ Celeb-DF

def test_celeb_df_one_in_the_list_means_real(tmp_path, clips):
    t = celeb(Tree(tmp_path/'Celeb-DF-v2', clips))
    df = quiet(t.root)
    assert df[df.split == 'test'].set_index('target').label.to_dict() == {'00170': REAL, 'id1': FAKE}
    assert datasets.celeb_test_list(t.root/'List_of_testing_videos.txt') == {'youtube-real/00170': REAL, 'celeb-synthesis/id1_id0_0007': FAKE}


def test_celeb_df_the_list_has_no_header(tmp_path, clips):
    df = quiet(celeb(Tree(tmp_path/'Celeb-DF-v2', clips), test=('1 YouTube-real/00170.mp4',)).root)
    assert df[df.split == 'test'].target.tolist() == ['00170']                 # the first line is a video
    t = celeb(Tree(tmp_path/'b', clips), test=('label video', '1 YouTube-real/00170.mp4'))
    with pytest.raises(UserError, match='Line 1 of'): index(t.root)            # and a header is refused, not skipped


def test_celeb_df_turned_labels_in_the_list_are_noticed_and_change_nothing(tmp_path, clips):
    right = quiet(celeb(Tree(tmp_path/'a/Celeb-DF-v2', clips)).root)
    with notes() as said: turned = index(celeb(Tree(tmp_path/'b/Celeb-DF-v2', clips), test=('0 YouTube-real/00170.mp4', '1 Celeb-synthesis/id1_id0_0007.mp4')).root)
    assert turned.drop(columns='path').equals(right.drop(columns='path')) and len(said) == 1 and '2 lines of the test list contradict' in said[0]


def test_celeb_df_mirrors_with_a_videos_level_read_the_same(tmp_path, clips):
    a = quiet(celeb(Tree(tmp_path/'a/Celeb-DF-v2', clips)).root)
    b = quiet(celeb(Tree(tmp_path/'b/Celeb-DF-v2', clips), 'videos/', 'Youtube-real').root)
    assert a.drop(columns='path').equals(b.drop(columns='path'))


def test_celeb_df_people_of_the_test_list_are_not_trained_on(tmp_path, clips):
    with notes() as said: df = index(celeb(Tree(tmp_path/'Celeb-DF-v2', clips)).root)
    seen = df[df.split.isin(['train', 'val'])]
    assert not ({'id0', 'id1', '00170'} & (set(seen.target) | set(seen.source))) and {'id2', '00171'} <= set(seen.target)
    assert len(said) == 1 and '3 train videos show people of the test part' in said[0]


@pytest.mark.parametrize('version, real, fake', [(1, 408, 795), (2, 890, 5639)])
def test_celeb_df_complete_counts_are_known(tmp_path, version, real, fake):
    root, half = tmp_path/f'Celeb-DF-v{version}', 590 if version == 2 else 158
    touch(root, *(f'Celeb-real/id{i % 59}_{i:04}.mp4' for i in range(half)), *(f'YouTube-real/{i:05}.mp4' for i in range(real - half)),
          *(f'Celeb-synthesis/id{i % 59}_id{(i % 59) ^ 1}_{i:04}.mp4' for i in range(fake)))
    test = [f'1 YouTube-real/{i:05}.mp4' for i in range(178)] + [f'0 Celeb-synthesis/id{i % 59}_id{(i % 59) ^ 1}_{i:04}.mp4' for i in range(340)]
    if version == 1: test = test[:50]
    (root/'List_of_testing_videos.txt').write_text('\n'.join(test))
    said = datasets.read_layout(root).attrs['notes']
    assert said == []
    (root/f'YouTube-real/{real - half - 1:05}.mp4').unlink()
    assert datasets.read_layout(root).attrs['notes'] == [f'celeb-df-v{version}: {real - 1} real and {fake} fake, where the complete set has {real} and {fake}']


def test_celeb_df_without_its_list_has_no_split(tmp_path, clips):
    t = celeb(Tree(tmp_path/'Celeb-DF-v2', clips))
    (t.root/'List_of_testing_videos.txt').rename(tmp_path/'list.txt')
    with pytest.raises(UserError, match='comes with Celeb-DF'): index(t.root)
    assert (quiet(t.root, splits=tmp_path/'list.txt').split == 'test').sum() == 2
    assert set(quiet(t.root, by='people').split_rule) == {'people, seed 0, 0.72/0.14/0.14'}


def test_celeb_df_a_missing_test_video_is_named(tmp_path, clips):
    with notes() as said: index(celeb(Tree(tmp_path/'Celeb-DF-v2', clips), test=('1 YouTube-real/00170.mp4', '1 YouTube-real/00299.mp4')).root)
    assert '1 of 2 videos of the test list are not on disk: youtube-real/00299' in said[0]


# ------------------------------------------------------------------ DFDC and its preview

def test_dfdc_fakes_of_one_original_stay_with_it(tmp_path, clips):
    df = quiet(dfdc(Tree(tmp_path, clips)).root)
    assert df[df.target == 'r00'].video.nunique() == 4 and df.groupby('target').split.nunique().max() == 1
    assert {'train', 'val', 'test'} == set(df.split)


def test_dfdc_one_means_fake_in_labels_csv(tmp_path, clips):
    df = quiet(dfdc(Tree(tmp_path, clips)).root)
    assert df[df.split == 'test'].set_index('target').label.to_dict() == {'ta': FAKE, 'tb': REAL}


def test_dfdc_any_root_level_and_any_number_of_parts(tmp_path, clips):
    t = dfdc(Tree(tmp_path/'dfdc', clips))
    all_of_it = set(quiet(t.root).video)
    part = quiet(t.root/'dfdc_train_part_1')
    assert set(part.video) < all_of_it and set(part.video) == set(quiet(t.root/'dfdc_train_part_1/dfdc_train_part_1').video) and len(part) == 24


def test_dfdc_missing_and_unlabelled_videos_are_listed(tmp_path, clips):
    t = dfdc(Tree(tmp_path, clips)).put(REAL, 'dfdc_train_part_0/nobody.mp4')
    (t.root/'dfdc_train_part_0/r00.mp4').unlink()
    with notes() as said: df = index(t.root)
    assert len(said) == 1 and 'dfdc_train_part_0/r00.mp4' in said[0] and 'dfdc_train_part_0/nobody.mp4' in said[0] and '2500 and 2500' in said[0]
    assert 'dfdc/original/asis/nobody' not in set(df.video)


def test_dfdc_complete_test_counts_are_silent(tmp_path):
    touch(tmp_path, *(f'{i}.mp4' for i in range(5000)))
    (tmp_path/'labels.csv').write_text('filename,label\n' + ''.join(f'{i}.mp4,{i % 2}\n' for i in range(5000)))
    with notes() as said: df = index(tmp_path)
    assert said == [] and df.label.value_counts().to_dict() == {0: 2500, 1: 2500} and set(df.split) == {'test'}


@pytest.mark.parametrize('name, text', [('p/metadata.json', '{"a.mp4": {"label": "MAYBE"}}'), ('p/metadata.json', '["label"]'), ('test/labels.csv', 'filename,label\na.mp4,fake\n')])
def test_dfdc_a_label_that_is_none_is_one_sentence(tmp_path, clips, name, text):
    root = Tree(tmp_path/'dfdc', clips).put(REAL, f'{Path(name).parent}_train/a.mp4').write(name.replace('p/', 'p_train/').replace('test/', 'test_train/'), text).root
    with pytest.raises(UserError): index(root)


def test_dfdc_preview_two_methods_of_one_name_are_two_videos(tmp_path, clips):
    df = quiet(preview(Tree(tmp_path, clips)).root)
    same = df[df.path.str.endswith('/10_A.mp4')]
    assert sorted(same.video) == ['dfdc-preview/method_A/asis/10/10_A', 'dfdc-preview/method_B/asis/10/10_A', 'dfdc-preview/original/asis/10/10_A']
    assert set(same[same.label == FAKE].source) == {'11'} and set(same.split) <= {'train', 'val'} and len(set(same.split)) == 1
    assert set(df[df.target == '90'].split) == {'test'}


def test_dfdc_preview_a_path_that_leaves_the_folder_is_refused(tmp_path, clips):
    t = preview(Tree(tmp_path/'p', clips)).write('dataset.json', {'../../outside.mp4': dict(label='real', set='test')})
    with pytest.raises(UserError, match='no usable entry'): index(t.root)


# ------------------------------------------------------------------ DeeperForensics and UADFV

def test_deeperforensics_the_studio_is_not_the_real_class(tmp_path, clips):
    with notes() as said: df = index(deeper(Tree(tmp_path, clips), reals=False).root)
    assert (df.label == FAKE).all() and not df.path.str.contains('source_videos').any() and len(said) == 1 and 'no real class' in said[0]
    df = quiet(deeper(Tree(tmp_path/'b', clips)).root)
    assert set(df.dataset) == {'deeperforensics'} and df.groupby(['dataset', 'compression']).label.nunique().tolist() == [2]     # or fakes and reals would never meet in an AUC


def test_deeperforensics_targets_are_people_of_ff(tmp_path, clips):
    a, b = quiet(ff(Tree(tmp_path/'ff', clips)).root), quiet(deeper(Tree(tmp_path/'d', clips), reals=False).root)
    assert a[a.target == '002'].split.iloc[0] == 'val' and b[b.target == 'ff++:002'].split.iloc[0] == 'train'
    with pytest.raises(UserError, match=r'ff\+\+/002'): check_leaks(pd.concat([a, b], ignore_index=True))
    check_leaks(identity_split(pd.concat([a, b], ignore_index=True)))


def test_deeperforensics_variants_of_one_name_are_not_merged(tmp_path, clips):
    df = quiet(deeper(Tree(tmp_path, clips)).root)
    assert sorted(df[df.video.str.endswith('000_W001')].method) == ['end_to_end', 'end_to_end_level_3', 'reenact_postprocess']


def test_uadfv_a_fake_and_its_original_stay_together(tmp_path, clips):
    with notes() as said: df = index(uadfv(Tree(tmp_path, clips)).root)
    assert df.groupby('target').size().tolist() == [2]*9 and df.groupby('target').split.nunique().max() == 1 and set(df.dataset) == {'uadfv'}
    assert len(said) == 1 and '9 real and 9 fake, where the complete set has 49 and 49' in said[0]


def test_uadfv_complete_is_silent(tmp_path):
    touch(tmp_path, *(f'real/{i:04}.mp4' for i in range(49)), *(f'fake/{i:04}_fake.mp4' for i in range(49)))
    with notes() as said: df = index(tmp_path)
    assert said == [] and len(df) == 98


# ------------------------------------------------------------------ what one door has to stand

def test_our_own_forge_is_read_as_ff_under_its_own_name(clips):
    with notes() as said: df = index(clips['root'])
    assert said == [] and set(df.dataset) == {'forge'} and set(df.split_rule) == {'official'} and (df[df.label == FAKE]['mask'] != '').all()


def test_a_name_that_is_not_utf8_is_listed_and_nothing_else_is_lost(tmp_path, clips):
    t = folders(Tree(tmp_path, clips))
    os.link(clips[REAL][0], os.fsencode(tmp_path) + b'/real/M\xfcller.mp4')
    with notes() as said: df = index(tmp_path)
    assert set(df.path) == set(t.truth) and len(said) == 1 and r'M\udcfcller.mp4' in said[0]
    said[0].encode()                                                           # the warning itself can be printed


def test_links_in_a_circle_do_not_hang_and_repeat_nothing(tmp_path, clips):
    t = folders(Tree(tmp_path/'set', clips))
    (t.root/'real/again').symlink_to(t.root); (t.root/'fake/swap/up').symlink_to('..'); (t.root/'real/self').symlink_to('self')
    assert set(quiet(t.root).path) == set(t.truth)


def test_a_linked_data_set_is_followed(tmp_path, clips):
    t = folders(Tree(tmp_path/'far/set', clips))
    (tmp_path/'near').mkdir(); (tmp_path/'near/real').symlink_to(t.root/'real'); (tmp_path/'near/fake').symlink_to(t.root/'fake')
    assert len(quiet(tmp_path/'near')) == len(t.truth)


def test_two_files_with_one_key_stay_two_videos(tmp_path, clips):
    Tree(tmp_path, clips).put(REAL, 'real/a.mp4', 'real/a.MKV', 'real/b.mp4').put(FAKE, 'fake/a.mp4')
    df = quiet(tmp_path)
    assert df.video.is_unique and len(df) == 4 and df[df.target == 'a'].split.nunique() == 1


def test_index_writes_nothing(tree):
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in tree.root.rglob('*'))
    quiet(tree.root)
    assert before == sorted((str(p), p.lstat().st_mtime_ns) for p in tree.root.rglob('*'))
