"The `madd` command from end to end, as a person would type it"
import json, os, re, shutil, signal, subprocess, sys, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(sys.executable).with_name('madd')
START = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, '-c', 'import sys; from madd.cli import main; sys.exit(main())']
COMMANDS = ('demo', 'portraits', 'forge', 'index', 'extract', 'train', 'ablate', 'evaluate', 'predict', 'models', 'convert')


def madd(*words, cwd=None, status=0, **kw):
    "Run `madd words` and expect an exit status; every failure must be a sentence, never a traceback"
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', HF_HUB_OFFLINE='1')
    done = subprocess.run([*START, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, **kw)
    assert done.returncode == status, f'{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}'
    if '--debug' not in words: assert 'Traceback' not in done.stderr
    if status == 2: assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done


def here(*words):
    "The same without a process of its own, for what needs none"
    from madd.cli import main
    with warnings.catch_warnings(): return main(list(map(str, words)))


def no_leftovers(folder):
    assert not [p for p in Path(folder).rglob('*') if '.part' in p.name]


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "One small run through all commands, in the order of the pipeline; the tests below look at what it left"
    d, said = tmp_path_factory.mktemp('cli'), {}
    def step(name, *words): said[name] = madd(*words, cwd=d).stdout
    step('forge', 'forge', 'set', '--identities', 6, '--frames', 3, '--size', 128, '--crf', 23, '--seed', 1, '-w', 1)
    step('index', 'index', 'set', '-o', 'tables/videos.parquet')
    step('extract', 'extract', 'tables/videos.parquet', 'crops', '--size', 96, '--frames', 2)
    small = ('--backbone', 'mobilenetv2_035', '--random', '--epochs', 1, '-b', 8, '--device', 'cpu')
    step('train', 'train', 'crops', 'models/small', '--maps', 2, *small)
    step('plain', 'train', 'crops/manifest.parquet', 'models/control', '--plain', *small)
    step('evaluate', 'evaluate', 'models/small', 'models/control', '--data', 'crops', '-o', 'measured', '--device', 'cpu')
    clips = sorted((d/'set').glob('manipulated_sequences/Deepfakes/c23/videos/*.mp4'))[:1] + sorted((d/'set').glob('original_sequences/*/c23/videos/*.mp4'))[:1]
    said['clips'] = [str(c.relative_to(d)) for c in clips]
    step('predict', 'predict', *said['clips'], '--model', 'models/small', '-o', 'judged', '--frames', 3, '--device', 'cpu')
    return d, said


def test_forge_makes_the_tree_of_faceforensics(work):
    d, said = work
    assert len(list((d/'set'/'original_sequences'/'youtube'/'c23'/'videos').glob('*.mp4'))) == 6
    assert {p.name for p in (d/'set'/'splits').iterdir()} == {'train.json', 'val.json', 'test.json'}
    assert 'forgeries' in said['forge'] and 'madd index set' in said['forge']
    no_leftovers(d/'set')


def test_index_lists_every_clip_with_its_split(work):
    d, said = work
    df = pd.read_parquet(d/'tables'/'videos.parquet')
    assert len(df) == len([p for p in (d/'set').rglob('*.mp4') if 'masks' not in p.parts])
    assert set(df.split) == {'train', 'val', 'test'} and df.video.is_unique
    assert all(Path(p).is_absolute() for p in df.path)      # the manifest may lie anywhere
    assert 'Deepfakes' in said['index']


def test_extract_writes_crops_for_every_frame(work):
    d, said = work
    df = pd.read_parquet(d/'crops'/'manifest.parquet')
    assert (df['size'] == 96).all() and (df.groupby('video').size() == 2).all()
    assert all((d/'crops'/c).is_file() for c in df.crop if c)
    assert (df.crop != '').mean() > .9


def test_train_leaves_a_model_that_knows_its_crops(work):
    d, said = work
    for name, kind in (('small', 'MADD'), ('control', 'PlainDetector')):
        config = json.loads((d/'models'/name/'config.json').read_text())
        assert config['model'] == kind and config['notes']['size'] == 96 and config['notes']['margin'] == .3
        assert (d/'models'/name/'model.safetensors').is_file() and (d/'models'/name/'history.csv').is_file()
        assert not [p for p in (d/'models'/name).rglob('*') if p.suffix in ('.pkl', '.pth', '.pt')]


def test_evaluate_measures_both_and_names_the_control(work):
    d, said = work
    t = pd.read_csv(d/'measured'/'metrics.csv')
    assert set(t.model) == {'small', 'plain'} and set(t.level) == {'frame', 'video'} and 'gain' in t
    assert (t.coverage > 0).all() and t.auc.between(0, 1).all()
    assert '</html>' in (d/'measured'/'report.html').read_text() and json.loads((d/'measured'/'metrics.json').read_text())['video_auc'] >= 0


def test_evaluate_gives_every_data_set_a_page_of_its_own(work):
    "Clips of two data sets are not compared with each other; the tables hold both"
    d, _ = work
    df = pd.read_parquet(d/'crops'/'manifest.parquet')
    for c in df.crop[df.crop != '']: (d/'crops'/'elsewhere'/c).parent.mkdir(parents=True, exist_ok=True); shutil.copy(d/'crops'/c, d/'crops'/'elsewhere'/c)
    copy = df.assign(dataset='elsewhere', video='elsewhere/' + df.video, crop=('elsewhere/' + df.crop).where(df.crop != '', ''))
    pd.concat([df, copy], ignore_index=True).to_parquet(d/'crops'/'two.parquet')
    said = madd('evaluate', 'models/small', 'models/control', 'models/small', '--data', 'crops/two.parquet', '-o', 'both', '--device', 'cpu', cwd=d).stdout
    names = [*df.dataset.unique(), 'elsewhere']
    one, other = (json.loads((d/'both'/n/'metrics.json').read_text()) for n in names)
    assert one['video_auc'] == other['video_auc'] and all((d/'both'/n/'report.html').is_file() and f'Report, {n}: ' in said for n in names)
    assert set(pd.DataFrame(json.loads((d/'both'/'results.json').read_text())['rows']).dataset) == set(names)


def test_models_of_one_name_are_told_apart(monkeypatch, tmp_path):
    import torch
    from madd import cli, model
    from madd.core import UserError
    class Net(torch.nn.Module): pass
    class Control(model.PlainDetector):
        def __init__(self): torch.nn.Module.__init__(self)
    monkeypatch.setattr(model, 'load', lambda d, device='cpu': Control() if 'control' in d else Net())
    named = lambda *folders: list(cli._named_models(folders, 'cpu'))
    assert named('a', 'a', 'b') == ['a', 'b']                                    # the same folder twice is one model
    assert named('x/a', 'y/a', 'control') == ['a', 'y/a', 'plain']
    assert named('x/plain', 'control') == ['x/plain', 'plain']                   # the name of the control is nobody else's
    with pytest.raises(UserError, match='Two models'): named('x/a', 'a')
    assert named('x/a', str(tmp_path/'a')) == ['a', str(tmp_path/'a')]


def test_seeds_are_counted_from_0(tmp_path):
    from madd.core import UserError
    from madd.data import index
    from madd.forge_set import forge_set
    for call in (lambda: index(tmp_path, seed=-1), lambda: forge_set(tmp_path/'set', [], 6, seed=-1)):
        with pytest.raises(UserError, match='counted from 0'): call()
    assert not list(tmp_path.iterdir())


def test_predict_gives_words_numbers_and_pictures(work):
    d, said = work
    rows = [json.loads(line) for line in (d/'judged'/'predictions.jsonl').read_text().splitlines()]
    assert [r['path'] for r in rows] == sorted(said['clips'])
    for r in rows:
        looks = [a for f in r['frames'] for a in f['faces'] if a['probability'] is not None]
        mean = {t: np.mean([a['probability'] for a in looks if a['track'] == t]) for t in {a['track'] for a in looks}}
        assert len(r['frames']) == 3 and r['probability'] == pytest.approx(max(mean.values()), abs=1e-5)
        assert (d/'judged'/'files'/r['figure']).is_file()
    page = (d/'judged'/'predictions.html').read_text()
    assert 'not proof' in page and all(Path(c).name in page for c in said['clips'])
    assert 'not proof' in said['predict'] and 'predictions.html' in said['predict']


def test_predict_does_not_repeat_unchanged_files(work):
    d, said = work
    cases = sorted((d/'judged'/'files').glob('*.json'))
    old = [c.stat().st_mtime_ns for c in cases]
    out = madd('predict', *said['clips'], '--model', 'models/small', '-o', 'judged', '--frames', 3, '--json', '--device', 'cpu', cwd=d).stdout
    assert [c.stat().st_mtime_ns for c in cases] == old
    assert [json.loads(line)['path'] for line in out.splitlines()] == sorted(said['clips'])   # nothing but JSON on stdout


def test_same_seed_same_bytes_for_any_number_of_workers(work):
    d, _ = work
    madd('forge', 'again', '--identities', 6, '--frames', 3, '--size', 128, '--crf', 23, '--seed', 1, '-w', 2, cwd=d)
    for one in (d/'set').rglob('*.mp4'): assert (d/'again'/one.relative_to(d/'set')).read_bytes() == one.read_bytes(), one


def test_help_everywhere_and_every_option_explained():
    assert all(c in madd('--help').stdout for c in COMMANDS)
    assert madd().stdout == madd('--help').stdout
    from typer.main import get_command
    from madd.cli import app
    commands = get_command(app).commands
    assert set(COMMANDS) <= set(commands)
    for name, c in commands.items():
        assert c.help, name
        for p in c.params: assert getattr(p, 'help', None), f'{name} {p.name} has no help'
    for name in COMMANDS[:2]: assert name in madd(name, '--help').stdout


def test_version():
    import madd as package
    assert madd('--version').stdout.strip() == f'madd {package.__version__}'


def test_help_is_quick_and_loads_nothing_heavy():
    def once():
        t = time.perf_counter(); madd('--help'); return time.perf_counter() - t
    assert min(once() for _ in range(3)) < 1
    loaded = subprocess.run([sys.executable, '-c', 'import sys, madd.cli; print(*sys.modules)'], capture_output=True, text=True, check=True).stdout.split()
    assert not {'torch', 'cv2', 'numpy', 'pandas', 'fastai', 'timm', 'matplotlib'} & set(loaded)


@pytest.mark.parametrize('words, says', [
    (('frobnicate',), 'frobnicate'),
    (('forge',), 'OUT'),
    (('forge', 'x', '--frames', 'many'), '--frames'),
    (('train', 'x', 'y', '--wings'), '--wings'),
    (('predict',), 'PATH'),
    (('index', 'x', '--seed', '-1'), '--seed'),
])
def test_mistyped_words_point_to_help(words, says, tmp_path):
    done = madd(*words, cwd=tmp_path, status=2)
    assert says in done.stderr and '--help' in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize('words, says', [
    (('index', 'nowhere'), 'does not exist'),
    (('index', '.'), 'no layout'),
    (('extract', 'nothing.parquet', 'out'), 'no manifest'),
    (('train', 'nothing', 'out'), 'no manifest'),
    (('forge', 'out', '--identities', '7'), 'even'),
    (('forge', 'out', '--faces', 'nobody'), 'nobody'),
    (('predict', '.', '--model', 'nothing'), 'madd-lite'),
    (('export', '--format', 'onnx'), '--output FOLDER'),
    (('export', 'madd-lite', '--runtime', 'onnx'), '--runtime'),
    (('card',), '--out FOLDER'),
    (('train', 'crops', 'out', '--recipe', 'forge'), 'no crops'),
    (('train', 'out', '--recipe', 'forge', '--data', 'crops'), 'no crops'),
    (('train', 'crops', 'out', '--faces', 'x'), '--recipe forge'),
    (('train', 'out', '--recipe', 'forge', '--resume'), 'holds no run'),
    (('train', 'out', '--recipe', 'forge', '--set', 'forge.peple=3'), 'peple'),
    (('train', 'out', '--recipe', 'frge'), 'no recipe'),
    (('evaluate', 'nothing', '--data', 'nothing'), 'no manifest'),
])
def test_wrong_input_is_one_sentence(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert here(*words) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1 and 'Traceback' not in said
    assert not (tmp_path/'out').exists() or not any(p.is_file() for p in (tmp_path/'out').rglob('*'))


@pytest.mark.parametrize('words', [('--debug', 'index', 'nowhere'), ('index', 'nowhere', '--debug')])
def test_debug_shows_the_traceback(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert here(*words) == 2
    said = capsys.readouterr().err
    assert 'Traceback' in said and 'nowhere does not exist' in said.splitlines()[-1]


def test_a_bug_is_called_a_bug(monkeypatch, capsys, tmp_path):
    import madd.data
    def broken(*args, **kw): raise ZeroDivisionError('division by zero')
    monkeypatch.setattr(madd.data, 'index', broken)
    assert here('index', tmp_path) == 1
    said = capsys.readouterr().err
    assert 'bug in madd' in said and 'ZeroDivisionError' in said and 'Traceback' not in said
    assert here('--debug', 'index', tmp_path) == 1
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
def test_ctrl_c_is_quiet_and_the_same_command_goes_on(tmp_path):
    words = ['forge', 'set', '--identities', '12', '--frames', '2', '--size', '96', '--crf', '23', '-w', '2']   # enough that nobody finishes before the key is pressed
    child = subprocess.Popen([*START, *words], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             start_new_session=True, env=os.environ | dict(OMP_NUM_THREADS='1'),
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # a job in the background of a shell is born deaf to Ctrl-C
    until = time.time() + 90
    while not list(tmp_path.rglob('*.mp4')) and time.time() < until and child.poll() is None: time.sleep(.05)
    os.killpg(child.pid, signal.SIGINT)          # what a terminal does: everybody in the group hears it
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert 'Traceback' not in err and 'Error' not in err, err
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.mp4') if '.part' not in p.name}
    assert kept and len(kept) < 132       # 12 people: 72 clips and 60 masks
    madd(*words, cwd=tmp_path)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())    # finished clips were not made again
    no_leftovers(tmp_path)


def test_a_reader_who_leaves_is_no_error(work):
    d, said = work
    line = ' '.join([*(f"'{s}'" for s in START), 'predict', *said['clips'], '--model', 'models/small', '-o', 'judged', '--frames', '3', '--json', '--device', 'cpu', '| head -c 10'])
    done = subprocess.run(line, shell=True, cwd=d, capture_output=True, text=True, timeout=120, env=os.environ | dict(TQDM_DISABLE='1'))
    assert not re.search('Traceback|Error', done.stderr), done.stderr


def test_ablate_trains_every_row_and_goes_on_where_it_stopped(work):
    d, _ = work
    words = ('ablate', 'table1', '--data', 'crops', '-o', 'grid', '--seeds', 1, '--device', 'cpu', '--set', 'backbone=mobilenetv2_035', '--set', 'pretrained=false',
             '--set', 'epochs=1', '--set', 'batch_size=8', '--set', 'size=64')
    said = madd(*words, cwd=d).stdout
    for row in ('L2, L4', 'L2, L5', 'L3, L4', 'L3, L5', 'plain backbone'): assert row in said
    assert '97.26' in said and (d/'grid'/'table1.csv').exists() and (d/'grid'/'table1_frame.png').exists()
    when = {p: p.stat().st_mtime_ns for p in d.glob('grid/*/*/model.safetensors')}
    assert len(when) == 5 and madd(*words, cwd=d).stdout == said
    assert {p: p.stat().st_mtime_ns for p in d.glob('grid/*/*/model.safetensors')} == when
    assert 'table5' in madd('ablate', 'table9', '--data', 'crops', cwd=d, status=2).stderr


def test_convert_makes_a_folder_that_predict_reads(work, tmp_path):
    import torch
    from released_reference import record
    state = {k: v.float() if v.is_floating_point() else v for k, v in record(size=64)['state_dict'].items()}
    torch.save(dict(state_dict=state), tmp_path/'ckpt.pth'); torch.save(dict(state_dict={k: v for k, v in state.items() if 'bn3' not in k}), tmp_path/'broken.pth')
    assert '4 maps' in madd('convert', 'ckpt.pth', 'model', cwd=tmp_path).stdout
    assert {p.name for p in (tmp_path/'model').iterdir()} == {'config.json', 'model.safetensors'}
    madd('predict', work[0]/work[1]['clips'][0], '--model', 'model', '-o', 'judged', '--frames', 2, '--no-figures', '--device', 'cpu', cwd=tmp_path)
    assert 'missing: texture.norms.2' in madd('convert', 'broken.pth', 'model2', cwd=tmp_path, status=2).stderr and not (tmp_path/'model2').exists()
    assert 'another folder' in madd('convert', 'ckpt.pth', 'model', cwd=tmp_path, status=2).stderr


# --- the model in the box ---

def test_a_file_is_judged_without_a_word_about_models(tmp_path):
    from skimage.data import astronaut
    from madd.export import fingerprint
    from madd.media import save_image
    save_image(tmp_path/'face.jpg', astronaut())
    row, = map(json.loads, madd('predict', 'face.jpg', '--json', '--device', 'cpu', cwd=tmp_path).stdout.splitlines())
    assert row['model'] == fingerprint('madd-lite') and row['size'] == 160 and 0 <= row['probability'] <= 1
    help_ = ' '.join(madd('predict', '--help').stdout.split())
    assert '[default: madd-lite]' in help_ and 'was trained on' in help_
    said = ' '.join(madd('models', cwd=tmp_path).stdout.split())
    assert row['model'] in said and 'learnt from' in said and 'It is not proof' in said


def test_a_folder_called_like_the_model_comes_first(work, tmp_path):
    import shutil
    from skimage.data import astronaut
    from madd.export import fingerprint
    from madd.media import save_image
    save_image(tmp_path/'face.jpg', astronaut()); shutil.copytree(work[0]/'models'/'small', tmp_path/'madd-lite')
    row, = map(json.loads, madd('predict', 'face.jpg', '--json', '--device', 'cpu', cwd=tmp_path).stdout.splitlines())
    assert row['model'] == fingerprint(work[0]/'models'/'small')


def test_nothing_is_written_into_the_package(work, tmp_path, monkeypatch, capsys):
    from madd.model import WEIGHTS
    before = {p: p.stat().st_mtime_ns for p in WEIGHTS.rglob('*')}
    monkeypatch.chdir(tmp_path)
    assert here('card', '--out', 'about') == 0 and 'license: apache-2.0' in Path('about/README.md').read_text()
    assert here('export', '--format', 'onnx', '-o', 'mine') == 0 and 'madd predict CLIP --model mine' in capsys.readouterr().out
    assert {p.name for p in Path('mine').iterdir()} == {p.name for p in (WEIGHTS/'madd-lite').iterdir()} | {'model.onnx'}   # its card and where it comes from, too
    assert here('evaluate', 'madd-lite', '--data', work[0]/'crops', '--calibrate', '-o', 'm', '--device', 'cpu') == 2 and 'calibration cannot be stored' in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in WEIGHTS.rglob('*')} == before


def test_the_box_is_measured_beside_a_model_of_mine(work, tmp_path):
    madd('evaluate', 'madd-lite', work[0]/'models'/'control', '--data', work[0]/'crops', '-o', tmp_path/'out', '--device', 'cpu')
    about = json.loads((tmp_path/'out'/'results.json').read_text())['about']
    assert set(about['fingerprints']) == {'madd-lite', 'plain'} and all(about['fingerprints'].values())


def test_a_training_on_the_forge_needs_no_crops_and_goes_on(tmp_path):
    few = [w for k, v in dict(people=4, val=2, test=2, pairs=4, val_pairs=4).items() for w in ('--set', f'forge.{k}={v}')]
    words = ('train', '--recipe', 'forge', 'run', '--faces', '', *few, '--set', 'pretrain_epochs=0', '--size', 64, '--backbone', 'mobilenetv2_035', '--random', '--epochs', 1, '-b', 4, '--device', 'cpu')
    said = madd(*words, cwd=tmp_path).stdout
    assert 'madd predict FILE --model run' in said and (tmp_path/'run'/'train.json').is_file()
    for again in (words, ('train', 'run', '--resume'), ('train', '--recipe', 'forge', 'run', '--resume')): assert 'finished before' in madd(*again, '--device', 'cpu', cwd=tmp_path).stdout
    config = (tmp_path/'run'/'config.yaml').read_text()
    assert 'recipe: paper' in config and 'left_out' not in config and "faces: ''" in config
    assert 'ema: 0.99\n' in config and 'where: 0.0\n' in config      # without a first stage nobody was asked
    (tmp_path/'run'/'config.yaml').write_text(config.replace('ema: 0.99\n', ''))   # begun when there was no such entry: the recipe of today does not fill it
    assert 'finished before' in madd('train', '--recipe', 'forge', 'run', '--resume', '--device', 'cpu', cwd=tmp_path).stdout
    card = ' '.join((madd('card', 'run', cwd=tmp_path), tmp_path/'run'/'README.md')[1].read_text().split())
    assert 'the endless forge of madd' in card and '| people | 4 |' in card and 'license: unknown' in card


def test_a_run_on_crops_goes_on_with_its_crops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'run').mkdir(); (tmp_path/'run/config.yaml').write_text('epochs: 1\n')
    assert here('train', 'run', '--resume') == 2
    assert 'madd train CROPS run --resume' in capsys.readouterr().err
